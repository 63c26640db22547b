//! An agent: memory that others read, and reading theirs.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use stallfree_core::lock;

use super::Nixl;
use super::arena::{Arena, Piece};
use super::library::Handle;
use crate::address::random;

/// The plugin that moves bytes between machines.
const BACKEND: &CStr = c"UCX";

/// `NIXL_CAPI_MEM_DRAM`.
const DRAM: c_int = 0;
/// `NIXL_CAPI_XFER_OP_READ`.
const READ: c_int = 0;
/// `NIXL_CAPI_IN_PROG`.
const IN_PROGRESS: c_int = 1;

/// How often a read is asked whether it is done: quickly at first, as it may be short.
const POLL: Duration = Duration::from_micros(20);

/// A call of NIXL's failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NixlError {
    call: &'static str,
    status: c_int,
}

impl fmt::Display for NixlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, status } = self;
        let reason = match status {
            -1 => "a parameter is invalid",
            -2 => "its backend failed",
            -3 => "it is in no state for it",
            -4 => "it threw an exception",
            _ => "for no reason that it names",
        };
        write!(f, "NIXL's {call} failed: {reason}")
    }
}

impl std::error::Error for NixlError {}

/// An agent with memory of its own that others read, and into which it reads theirs.
pub struct NixlAgent {
    nixl: Arc<Nixl>,
    /// NIXL is called by one thread at a time.
    objects: Mutex<Objects>,
    arena: Arc<Arena>,
    metadata: Vec<u8>,
}

struct Objects {
    agent: Handle,
    backend: Handle,
    /// Names the backend.
    options: Handle,
    registered: Handle,
    /// How often each other agent was met and not yet forgotten.
    met: HashMap<String, usize>,
    /// Where a read that never ended may still write.
    stuck: Vec<Piece>,
}

// SAFETY: NIXL's objects belong to no thread, and the mutex around them lets one use them at a time.
unsafe impl Send for Objects {}

/// Turns a status into a result.
fn check(call: &'static str, status: c_int) -> Result<c_int, NixlError> {
    if status < 0 { Err(NixlError { call, status }) } else { Ok(status) }
}

/// Calls a function of NIXL's, whose status it checks.
macro_rules! call {
    ($nixl:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: handles are NIXL's own and alive, pointers are to live values of the types that the function's declaration names, and
        // the caller holds the lock of the objects that they belong to.
        check(stringify!($name), unsafe { ($nixl.functions.$name)($($arg),*) })
    };
}

impl NixlAgent {
    /// Makes an agent with `bytes` of memory.
    ///
    /// # Errors
    /// There is no such memory, or NIXL refuses.
    pub fn new(nixl: &Arc<Nixl>, bytes: usize) -> Result<Self, String> {
        let arena = Arena::new(bytes)?;
        // Agents that meet must have different names.
        let name = format!("stallfree-{:016x}", random());
        let name = CString::new(name).map_err(|error| error.to_string())?;
        let null = ptr::null_mut;
        let mut objects = Objects {
            agent: null(),
            backend: null(),
            options: null(),
            registered: null(),
            met: HashMap::new(),
            stuck: Vec::new(),
        };
        let metadata = objects.set_up(nixl, &name, &arena).map_err(|error| error.to_string())?;
        Ok(Self { nixl: Arc::clone(nixl), objects: Mutex::new(objects), arena, metadata })
    }

    /// Returns what others have to know to read its memory.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        lock(&self.objects)
    }

    /// Copies bytes to where others can read them, until the copy is dropped; `None` if there is no room.
    pub(crate) fn stage<'a>(
        &self,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Option<Staged> {
        let mut piece = self.arena.lend(parts.clone().map(<[u8]>::len).sum())?;
        let mut rest = piece.bytes_mut();
        for part in parts {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
        Some(Staged(piece))
    }

    /// Gets to know another agent by its metadata; returns its name. It is known until it has been [forgotten](Self::forget) as often.
    ///
    /// # Errors
    /// It is not an agent's, or NIXL refuses.
    pub(crate) fn meet(&self, metadata: &[u8]) -> Result<String, NixlError> {
        let mut objects = self.lock();
        let mut name: *mut c_char = ptr::null_mut();
        let data = metadata.as_ptr().cast::<c_void>();
        call!(self.nixl, load_remote_md(objects.agent, data, metadata.len(), &raw mut name))?;
        if name.is_null() {
            return Err(NixlError { call: "load_remote_md", status: 0 });
        }
        // SAFETY: NIXL returned a string of its own, which ends with a zero and is given away to be freed.
        let text = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: as above; NIXL allocates it with malloc.
        unsafe { free(name.cast()) };
        *objects.met.entry(text.clone()).or_default() += 1;
        Ok(text)
    }

    /// Forgets another agent, which is gone, unless it was met again. None of its reads may be under way: NIXL would free it.
    pub(crate) fn forget(&self, name: &str) {
        let mut objects = self.lock();
        let Some(times) = objects.met.get_mut(name) else { return };
        *times -= 1;
        if *times > 0 {
            return;
        }
        objects.met.remove(name);
        let Ok(name) = CString::new(name) else { return };
        if let Err(error) = call!(self.nixl, invalidate_remote_md(objects.agent, name.as_ptr())) {
            tracing::debug!("{error}");
        }
    }

    /// Reads `len` bytes at `address` of the agent `name`, and takes no longer than `patience`. Whoever owns them has to be asked
    /// afterwards whether they were there all the time.
    ///
    /// # Errors
    /// There is no room for them here, they can't be read, or it takes too long.
    pub(crate) fn read(
        &self,
        name: &str,
        (address, len): (usize, usize),
        patience: Duration,
    ) -> Result<Read, ReadError> {
        let piece = self.arena.lend(len).ok_or(ReadError::NoRoom)?;
        let failed = |error: &dyn fmt::Display| ReadError::Failed(error.to_string());
        let name = CString::new(name).map_err(|error| failed(&error))?;
        let request = Request::post(self, &name, &piece, address);
        let request = request.map_err(|error| failed(&error))?;
        let mut waited = Duration::ZERO;
        loop {
            match request.is_done() {
                Ok(true) => {
                    request.end();
                    return Ok(Read(piece));
                }
                Ok(false) if waited < patience => {
                    // The longer it took already, the less a look more matters.
                    let pause = POLL.max(waited / 16);
                    std::thread::sleep(pause);
                    waited += pause;
                }
                Err(error) => {
                    // It has ended, and writes no more once it is released.
                    if !request.end() {
                        self.lock().stuck.push(piece);
                    }
                    return Err(failed(&error));
                }
                Ok(false) => {
                    request.end();
                    self.lock().stuck.push(piece);
                    return Err(failed(&format!("it took longer than {} s", patience.as_secs())));
                }
            }
        }
    }
}

unsafe extern "C" {
    /// The C library's.
    fn free(pointer: *mut c_void);
}

impl Objects {
    fn set_up(&mut self, nixl: &Nixl, name: &CStr, arena: &Arena) -> Result<Vec<u8>, NixlError> {
        call!(nixl, create_agent(name.as_ptr(), &raw mut self.agent))?;
        let (mut kinds, mut params): (Handle, Handle) = (ptr::null_mut(), ptr::null_mut());
        let (kinds, params) = (&raw mut kinds, &raw mut params);
        call!(nixl, get_plugin_params(self.agent, BACKEND.as_ptr(), kinds, params))?;
        // SAFETY: both were set by the call before.
        let (kinds, params) = unsafe { (*kinds, *params) };
        let made = call!(
            nixl,
            create_backend(self.agent, BACKEND.as_ptr(), params, &raw mut self.backend)
        );
        call!(nixl, destroy_mem_list(kinds))?;
        call!(nixl, destroy_params(params))?;
        made?;
        call!(nixl, create_opt_args(&raw mut self.options))?;
        call!(nixl, opt_args_add_backend(self.options, self.backend))?;
        call!(nixl, create_reg_dlist(DRAM, &raw mut self.registered))?;
        let (address, len) = (arena.address(), arena.len());
        call!(nixl, reg_dlist_add_desc(self.registered, address, len, 0, ptr::null(), 0))?;
        call!(nixl, register_mem(self.agent, self.registered, self.options))?;
        let (mut data, mut len): (*mut c_void, usize) = (ptr::null_mut(), 0);
        call!(nixl, get_local_md(self.agent, &raw mut data, &raw mut len))?;
        if data.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: NIXL returned as many bytes, which are given away to be freed.
        let metadata = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec();
        // SAFETY: as above; NIXL allocates them with malloc.
        unsafe { free(data) };
        Ok(metadata)
    }
}

/// A read that has been started.
struct Request<'a> {
    agent: &'a NixlAgent,
    handle: Handle,
}

impl<'a> Request<'a> {
    fn post(
        agent: &'a NixlAgent,
        from: &CStr,
        into: &Piece,
        address: usize,
    ) -> Result<Self, NixlError> {
        let (nixl, objects) = (&agent.nixl, agent.lock());
        let list = |address: usize| {
            let mut list: Handle = ptr::null_mut();
            call!(nixl, create_xfer_dlist(DRAM, &raw mut list))?;
            let added = call!(nixl, xfer_dlist_add_desc(list, address, into.len(), 0));
            added.map(|_| list)
        };
        let (here, there) = (list(into.address())?, list(address)?);
        let mut handle: Handle = ptr::null_mut();
        let (name, request) = (from.as_ptr(), &raw mut handle);
        let options = objects.options;
        let made =
            call!(nixl, create_xfer_req(objects.agent, READ, here, there, name, request, options));
        call!(nixl, destroy_xfer_dlist(here))?;
        call!(nixl, destroy_xfer_dlist(there))?;
        made?;
        let this = Self { agent, handle };
        let posted = call!(nixl, post_xfer_req(objects.agent, handle, options));
        drop(objects);
        if let Err(error) = posted {
            this.end();
            return Err(error);
        }
        Ok(this)
    }

    fn is_done(&self) -> Result<bool, NixlError> {
        let objects = self.agent.lock();
        let status = call!(self.agent.nixl, get_xfer_status(objects.agent, self.handle))?;
        Ok(status != IN_PROGRESS)
    }

    /// Returns whether NIXL has let it go.
    fn end(self) -> bool {
        let objects = self.agent.lock();
        let nixl = &self.agent.nixl;
        // A request that can't be released is of no more use all the same.
        let released = call!(nixl, release_xfer_req(objects.agent, self.handle));
        let is_released = released.is_ok();
        if let Err(error) = released.and_then(|_| call!(nixl, destroy_xfer_req(self.handle))) {
            tracing::debug!("{error}");
        }
        is_released
    }
}

impl Drop for NixlAgent {
    fn drop(&mut self) {
        let objects = self.lock();
        let nixl = &self.nixl;
        let ended = [
            call!(nixl, deregister_mem(objects.agent, objects.registered, objects.options)),
            call!(nixl, destroy_reg_dlist(objects.registered)),
            call!(nixl, destroy_opt_args(objects.options)),
            call!(nixl, destroy_backend(objects.backend)),
            call!(nixl, destroy_agent(objects.agent)),
        ];
        for error in ended.into_iter().filter_map(Result::err) {
            tracing::debug!("{error}");
        }
    }
}

impl fmt::Debug for NixlAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NixlAgent").field("arena", &self.arena).finish_non_exhaustive()
    }
}

/// Why nothing was read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// There is no room for it here at the moment.
    NoRoom,
    /// It does not work.
    Failed(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom => f.write_str("no memory of NIXL's is free"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// Bytes that others may read.
#[derive(Debug)]
pub(crate) struct Staged(Piece);

impl Staged {
    /// Returns where they begin, and how many they are.
    pub(crate) fn span(&self) -> (usize, usize) {
        (self.0.address(), self.0.len())
    }
}

/// Bytes that were read.
#[derive(Debug)]
pub(crate) struct Read(Piece);

impl Read {
    /// Returns them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}
