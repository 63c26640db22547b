//! NCCL's functions, as nccl.h declares them, found when they are first asked for.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library as Handle, RTLD_NOW};
use stallfree_device::{Library as Kind, LoadedLibrary, find_library};

use super::NcclError;

/// What NCCL is told where nobody else says it.
///
/// Multicast over NVLink (NVLS) needs what only some hosts allow. Connections are made when ranks meet, not when a size first comes:
/// that may be while a step is recorded.
const SETTINGS: &[(&str, &str)] = &[("NCCL_NVLS_ENABLE", "0"), ("NCCL_RUNTIME_CONNECT", "0")];

/// A communicator, as the library sees it.
pub(super) type RawComm = *mut c_void;

/// What the ranks of a communicator find each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    bytes: [u8; 128],
}

impl UniqueId {
    /// Makes one; the other ranks of the communicator are to get it from this process, which listens for them.
    ///
    /// # Errors
    /// The library is missing, or finds no network.
    pub fn new() -> Result<Self, NcclError> {
        let library = library()?;
        let mut id = Self { bytes: [0; 128] };
        // SAFETY: the pointer is to as many bytes as an id has.
        library.check("ncclGetUniqueId", unsafe { (library.get_unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Returns its bytes, to be sent to others.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 128] {
        self.bytes
    }

    /// Reads what another process sent; `None` if it has not the length of one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self { bytes: bytes.try_into().ok()? })
    }
}

/// The element types that sums are taken of, and what stands for bytes.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum DataType {
    Bytes = 1,
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}

/// `ncclSum`.
pub(super) const SUM: c_int = 0;

type Gather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, RawComm, *mut c_void) -> c_int;
type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    RawComm,
    *mut c_void,
) -> c_int;
type SendTo =
    unsafe extern "C" fn(*const c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int;
type ReceiveFrom =
    unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int;

/// The functions that are used. Errors are integers: a newer library may know more of them.
pub(super) struct Library {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(super) init: unsafe extern "C" fn(*mut RawComm, c_int, UniqueId, c_int) -> c_int,
    pub(super) abort: unsafe extern "C" fn(RawComm) -> c_int,
    pub(super) async_error: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    pub(super) all_reduce: Reduce,
    pub(super) all_gather: Gather,
    pub(super) send: SendTo,
    pub(super) receive: ReceiveFrom,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
    /// Never closed: the functions are in use to the end.
    _handle: Handle,
}

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// Makes sure that NCCL can be used, and says what it is. The first call sets [variables](https://docs.nvidia.com/deeplearning/nccl/)
/// that nobody set: it belongs before a process has threads that read its environment.
///
/// # Errors
/// The library is missing; the line names what to install.
pub fn find() -> Result<LoadedLibrary, NcclError> {
    library()?;
    Ok(find_library(Kind::Nccl)?)
}

/// Opens the library at the first call.
pub(super) fn library() -> Result<&'static Library, NcclError> {
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    find_library(Kind::Nccl)?;
    let library = Library::open()?;
    for (name, value) in SETTINGS {
        if std::env::var_os(name).is_none() {
            // SAFETY: Rust's own readers of the environment are locked out meanwhile, and the first call comes while flags are
            // resolved, when no other thread runs that reads it in another way.
            unsafe { std::env::set_var(name, value) };
        }
    }
    Ok(LIBRARY.get_or_init(|| library))
}

impl Library {
    fn open() -> Result<Self, NcclError> {
        // By its name: it is open already, and the dynamic linker knows it by that.
        let name = Kind::Nccl.file();
        // SAFETY: NVIDIA's libraries may be opened at any time, from any thread.
        let handle = unsafe { Handle::open(Some(name), RTLD_NOW) };
        let handle = handle.map_err(|_| NcclError::Symbol { name: "name of its own" })?;
        // SAFETY: each of these functions has this type in nccl.h, since NCCL 2.7 at the latest (ncclGetLastError: 2.13).
        unsafe {
            Ok(Self {
                get_unique_id: function(&handle, "ncclGetUniqueId")?,
                init: function(&handle, "ncclCommInitRank")?,
                abort: function(&handle, "ncclCommAbort")?,
                async_error: function(&handle, "ncclCommGetAsyncError")?,
                all_reduce: function(&handle, "ncclAllReduce")?,
                all_gather: function(&handle, "ncclAllGather")?,
                send: function(&handle, "ncclSend")?,
                receive: function(&handle, "ncclRecv")?,
                error_string: function(&handle, "ncclGetErrorString")?,
                last_error: function(&handle, "ncclGetLastError")?,
                _handle: handle,
            })
        }
    }

    /// Turns an answer into a result that names the call.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), NcclError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: both return null or a string that ends with a zero and is not freed; without a communicator the last error is this
        // thread's.
        let texts = unsafe { [(self.error_string)(code), (self.last_error)(std::ptr::null_mut())] };
        let texts = texts.into_iter().filter(|text| !text.is_null());
        // SAFETY: as above.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        let texts: Vec<String> = texts
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|text| !text.is_empty())
            .collect();
        Err(NcclError::Call { call, reason: texts.join(": ") })
    }
}

/// Finds a function.
///
/// # Safety
/// `F` is a pointer to a function of the type that the library has under `name`.
unsafe fn function<F: Copy>(handle: &Handle, name: &'static str) -> Result<F, NcclError> {
    // SAFETY: the caller's.
    let symbol = unsafe { handle.get::<F>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|_| NcclError::Symbol { name })
}

#[cfg(test)]
mod tests {
    use super::{UniqueId, find};

    #[test]
    fn ids_travel_as_bytes() {
        let bytes: Vec<u8> = (0..128).collect();
        let id = UniqueId::from_bytes(&bytes).expect("as long as an id");
        assert_eq!(id.to_bytes().as_slice(), bytes);
        assert_eq!(UniqueId::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn a_missing_library_is_one_line_that_says_what_to_install() {
        match find() {
            Ok(library) => {
                assert!(library.version.starts_with("2."), "{library:?}");
                // Ids need no GPU.
                let ids = UniqueId::new().and_then(|id| Ok([id, UniqueId::new()?]));
                ids.map(|[one, other]| assert_ne!(one, other)).expect("two ids");
            }
            Err(error) => {
                let text = error.to_string();
                let names_it = text.contains("libnccl.so.2") && text.contains("doctor --fetch");
                assert!(names_it && text.lines().count() == 1, "{text}");
            }
        }
    }
}
