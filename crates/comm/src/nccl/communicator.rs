//! A rank's end of a communicator.

use std::ffi::c_int;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use stallfree_core::lock;
use stallfree_device::{Device, DeviceArena, DeviceSlice, Dtype, Stream};

use super::library::{DataType, Library, RawComm, SUM, library};
use super::{NcclError, UniqueId};
use crate::Share;

/// How long a rank that ends the communicator lets a call end first.
const CALL_ENDS: Duration = Duration::from_secs(2);
/// How long whoever needs the end waits for the library to give everything back.
const ABORT_ENDS: Duration = Duration::from_secs(10);
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes that ranks tell each other when they meet.
const WARM_UP_BYTES: usize = 1024;

/// Who meets whom.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// What the ranks find each other by.
    pub id: UniqueId,
    /// Which rank of how many this one is.
    pub rank: Share,
    /// How long to wait for the others.
    pub patience: Duration,
}

/// A rank's end of a communicator. Ranks make the same calls in the same order, each on its own queue; whoever waits for a rank that
/// does not come is freed by [`abort`](Self::abort).
///
/// A thread of its own makes it, waits until it is to end, and ends it. The library's share of that takes until the last recording that
/// names the communicator is gone, and a process that ends meanwhile crashes: [`end`](Self::end) waits for it.
pub struct Communicator {
    library: &'static Library,
    raw: RawComm,
    rank: Share,
    device: Arc<Device>,
    /// Held by whoever is in a call.
    calls: Arc<Mutex<()>>,
    is_aborted: AtomicBool,
    /// Once it is dropped, the thread ends the communicator.
    life: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

// SAFETY: the library takes calls from any thread, one at a time; `calls` sees to that. Ending a communicator and asking for its error
// are allowed beside other calls.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank).finish_non_exhaustive()
    }
}

/// A communicator on its way from the thread that made it.
struct Made(RawComm);

// SAFETY: the library's calls are not bound to a thread.
unsafe impl Send for Made {}

impl Communicator {
    /// Meets the other ranks, and hears from each once, so that all connections are there.
    ///
    /// # Errors
    /// The library is missing, a rank does not come in time, or the library refuses.
    pub fn join(device: &Arc<Device>, membership: Membership) -> Result<Arc<Self>, NcclError> {
        let library = library()?;
        // Taken before any rank waits for another on its GPU: taking memory may wait for GPUs that are connected.
        let stream = Stream::new(device)?;
        let len = (2 + membership.rank.of) * WARM_UP_BYTES;
        let mut arena = DeviceArena::new(device, len + 4096)?;
        let room = arena.take("what ranks tell each other first", len)?;
        let this = Arc::new(Self::meet(library, device, membership)?);
        let calling = Arc::clone(&this);
        let hearing = std::thread::Builder::new().name("stallfree-nccl-hear".to_owned());
        let hearing = hearing.spawn(move || {
            let heard = calling.hear_from_all(&stream, room);
            drop(arena);
            heard
        })?;
        if !ends_within(&hearing, membership.patience) {
            this.abort();
            // Freed by that, it gives its memory back.
            ends_within(&hearing, ABORT_ENDS);
            this.end();
            return Err(alone(membership));
        }
        let heard = hearing.join().unwrap_or_else(|_| Err(alone(membership)));
        heard.map(|()| this)
    }

    /// Starts the thread that makes and ends the communicator; returns when all ranks have come.
    fn meet(
        library: &'static Library,
        device: &Arc<Device>,
        membership: Membership,
    ) -> Result<Self, NcclError> {
        let Membership { id, rank, patience } = membership;
        let (sender, made) = channel();
        let (life, ended) = channel::<()>();
        let calls = Arc::new(Mutex::new(()));
        let (on, called) = (Arc::clone(device), Arc::clone(&calls));
        let thread = std::thread::Builder::new().name("stallfree-nccl".to_owned());
        let thread = thread.spawn(move || {
            let outcome = init(library, &on, id, rank);
            let raw = outcome.as_ref().ok().map(|Made(raw)| *raw);
            drop(sender.send(outcome));
            if let Some(raw) = raw {
                let _closed = ended.recv(); // nothing is ever sent
                wait_for_call(&called);
                // SAFETY: `life` is dropped after `is_aborted` is set, which lets nobody else call, or because nobody has the
                // communicator; and only this thread ends it.
                let _code = unsafe { (library.abort)(raw) };
            }
            drop(on); // the GPU's context outlives the communicator
        })?;
        // The library waits without end for others that do not come: then the thread is left behind.
        let Ok(outcome) = made.recv_timeout(patience) else { return Err(alone(membership)) };
        let Made(raw) = outcome?;
        Ok(Self {
            library,
            raw,
            rank,
            device: Arc::clone(device),
            calls,
            is_aborted: AtomicBool::new(false),
            life: Mutex::new(Some(life)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Sums, gathers and passes a few bytes around.
    fn hear_from_all(&self, stream: &Stream, all: DeviceSlice) -> Result<(), NcclError> {
        self.device.bind()?;
        let len = WARM_UP_BYTES;
        let (one, other) = (all.slice(0, len), all.slice(len, len));
        stream.fill(all, 0)?;
        self.all_reduce(stream, one, other, Dtype::F32)?;
        self.all_gather(stream, one, all.slice(2 * len, self.rank.of * len))?;
        if !self.rank.is_first() {
            self.receive(stream, other, self.rank.index - 1)?;
        }
        if !self.rank.is_last() {
            self.send(stream, one, self.rank.index + 1)?;
        }
        Ok(stream.synchronize()?)
    }

    /// Returns which rank of how many this is.
    #[must_use]
    pub const fn rank(&self) -> Share {
        self.rank
    }

    /// Submits the sum over ranks of `from` into `to`, which may be the same; all ranks get the same bits.
    ///
    /// # Errors
    /// The communicator was ended, or the library refuses.
    pub fn all_reduce(
        &self,
        stream: &Stream,
        from: DeviceSlice,
        to: DeviceSlice,
        dtype: Dtype,
    ) -> Result<(), NcclError> {
        let count = from.len().min(to.len()) / dtype.bytes();
        let data_type = match dtype {
            Dtype::Bf16 => DataType::Bf16,
            Dtype::F16 => DataType::F16,
            Dtype::F32 => DataType::F32,
        };
        let (from, to) = (from.address() as *const _, to.address() as *mut _);
        self.call("ncclAllReduce", |library, comm| {
            // SAFETY: both ranges have as many elements, and the queue is this rank's.
            unsafe {
                (library.all_reduce)(
                    from,
                    to,
                    count,
                    data_type as c_int,
                    SUM,
                    comm,
                    stream.handle(),
                )
            }
        })
    }

    /// Submits the gathering of every rank's `from`, of one length on all, into `to` one after the other. `from` may be this rank's
    /// place there.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_gather(
        &self,
        stream: &Stream,
        from: DeviceSlice,
        to: DeviceSlice,
    ) -> Result<(), NcclError> {
        let count = from.len().min(to.len() / self.rank.of);
        let (from, to) = (from.address() as *const _, to.address() as *mut _);
        self.call("ncclAllGather", |library, comm| {
            let bytes = DataType::Bytes as c_int;
            // SAFETY: `to` has room for as many bytes from each rank, and the queue is this rank's.
            unsafe { (library.all_gather)(from, to, count, bytes, comm, stream.handle()) }
        })
    }

    /// Submits the sending of `x` to rank `to`; it ends once that one receives.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn send(&self, stream: &Stream, x: DeviceSlice, to: usize) -> Result<(), NcclError> {
        let (from, count, peer) = (x.address() as *const _, x.len(), to as c_int);
        self.call("ncclSend", |library, comm| {
            // SAFETY: the range has as many bytes, and the queue is this rank's.
            unsafe {
                (library.send)(from, count, DataType::Bytes as c_int, peer, comm, stream.handle())
            }
        })
    }

    /// Submits the wait for as many bytes as `out` has from rank `from`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn receive(&self, stream: &Stream, out: DeviceSlice, from: usize) -> Result<(), NcclError> {
        let (to, count, peer) = (out.address() as *mut _, out.len(), from as c_int);
        self.call("ncclRecv", |library, comm| {
            // SAFETY: the range has as many bytes, and the queue is this rank's.
            unsafe {
                (library.receive)(to, count, DataType::Bytes as c_int, peer, comm, stream.handle())
            }
        })
    }

    fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&Library, RawComm) -> c_int,
    ) -> Result<(), NcclError> {
        let calling = lock(&self.calls);
        if self.is_aborted.load(Ordering::SeqCst) {
            return Err(NcclError::Aborted);
        }
        let outcome = self.library.check(name, call(self.library, self.raw));
        drop(calling);
        outcome
    }

    /// Returns what went wrong since, on the way to other ranks or on their side.
    #[must_use]
    pub fn problem(&self) -> Option<NcclError> {
        if self.is_aborted.load(Ordering::SeqCst) {
            return Some(NcclError::Aborted);
        }
        // Whoever is in a call learns of it there.
        let _calling = self.calls.try_lock().ok()?;
        if self.is_aborted.load(Ordering::SeqCst) {
            return Some(NcclError::Aborted);
        }
        let mut code = 0;
        // SAFETY: the communicator was not ended when `calls` was taken, nor is it until that is free; the pointer is to a live
        // integer.
        let asked = unsafe { (self.library.async_error)(self.raw, &raw mut code) };
        let outcome = self.library.check("ncclCommGetAsyncError", asked);
        outcome.and_then(|()| self.library.check("a rank's connection through NCCL", code)).err()
    }

    /// Has the communicator ended: whatever waits on the GPU for another rank ends, with numbers that mean nothing, and later calls fail.
    /// Returns at once.
    pub fn abort(&self) {
        self.is_aborted.store(true, Ordering::SeqCst);
        drop(lock(&self.life).take());
    }

    /// Ends the communicator and waits until the library has given everything back, which it does once all recordings that name
    /// communicators of this process's ranks are gone. Returns whether it has: it is not waited for without end.
    pub fn end(&self) -> bool {
        self.abort();
        let Some(thread) = lock(&self.thread).take() else { return true };
        let in_time = ends_within(&thread, ABORT_ENDS);
        if in_time {
            drop(thread.join()); // what the library keeps for each thread is gone then, too
        }
        in_time
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.end();
    }
}

/// Meets the other ranks; returns when all have come.
fn init(library: &Library, device: &Device, id: UniqueId, rank: Share) -> Result<Made, NcclError> {
    device.bind()?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: the pointer is to a live handle, and the rank's GPU is this thread's.
    let code = unsafe { (library.init)(&raw mut raw, rank.of as c_int, id, rank.index as c_int) };
    library.check("ncclCommInitRank", code).map(|()| Made(raw))
}

/// Lets a call that is under way end. One that waits for another rank does not, and is ended with the communicator.
fn wait_for_call(calls: &Mutex<()>) {
    let mut left = CALL_ENDS;
    while let Err(TryLockError::WouldBlock) = calls.try_lock() {
        if left.is_zero() {
            return;
        }
        std::thread::sleep(LOOK);
        left = left.saturating_sub(LOOK);
    }
}

/// Says whether a thread ends in time.
fn ends_within<T>(thread: &JoinHandle<T>, patience: Duration) -> bool {
    let mut left = patience;
    while !thread.is_finished() {
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(LOOK);
        left = left.saturating_sub(LOOK);
    }
    true
}

fn alone(Membership { rank, patience, .. }: Membership) -> NcclError {
    NcclError::Alone { rank: rank.index, size: rank.of, patience }
}
