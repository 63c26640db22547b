//! The functions of NIXL's C API that are used, with the types that `wrapper.h` of its Rust bindings declares.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The file of the C API.
const FILE: &str = "libnixl_capi.so";

/// Where the Python package keeps it.
const FOLDER: &str = ".nixl_cu13.mesonpy.libs";

/// An object of NIXL's.
pub(super) type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident($($arg:ty),*);)*) => {
        /// The functions, none of which is called but by [`agent`](super::agent).
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $(
                        // SAFETY: that is the function's type in wrapper.h of NIXL 1.5, as the arguments of `functions!` repeat it.
                        $name: unsafe {
                            *library.get(concat!("nixl_capi_", stringify!($name), "\0").as_bytes())?
                        },
                    )*
                })
            }
        }
    };
}

functions! {
    create_agent(*const c_char, *mut Handle);
    destroy_agent(Handle);
    get_plugin_params(Handle, *const c_char, *mut Handle, *mut Handle);
    destroy_mem_list(Handle);
    destroy_params(Handle);
    create_backend(Handle, *const c_char, Handle, *mut Handle);
    destroy_backend(Handle);
    create_opt_args(*mut Handle);
    opt_args_add_backend(Handle, Handle);
    destroy_opt_args(Handle);
    create_reg_dlist(c_int, *mut Handle);
    reg_dlist_add_desc(Handle, usize, usize, u64, *const c_void, usize);
    destroy_reg_dlist(Handle);
    register_mem(Handle, Handle, Handle);
    deregister_mem(Handle, Handle, Handle);
    get_local_md(Handle, *mut *mut c_void, *mut usize);
    load_remote_md(Handle, *const c_void, usize, *mut *mut c_char);
    invalidate_remote_md(Handle, *const c_char);
    create_xfer_dlist(c_int, *mut Handle);
    xfer_dlist_add_desc(Handle, usize, usize, u64);
    destroy_xfer_dlist(Handle);
    create_xfer_req(Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle);
    post_xfer_req(Handle, Handle, Handle);
    get_xfer_status(Handle, Handle);
    release_xfer_req(Handle, Handle);
    destroy_xfer_req(Handle);
}

/// The library, open.
pub struct Nixl {
    pub(super) functions: Functions,
    path: PathBuf,
    /// Open for as long as its functions are called.
    _library: Library,
}

impl Nixl {
    /// Opens the library: the system's, or that of a Python package unpacked in `folder`.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub fn open(folder: &Path) -> Result<Arc<Self>, String> {
        let unpacked = folder.join(FOLDER).join(FILE);
        let path = if unpacked.is_file() { unpacked.as_path() } else { Path::new(FILE) };
        // SAFETY: NVIDIA's library may be opened at any time; what it runs then registers classes and nothing else.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| {
            let reason = std::error::Error::source(&error).map_or_else(
                || error.to_string(),
                ToString::to_string,
            );
            format!(
                "{FILE} was not found; `stallfree doctor --fetch nixl` brings it, or install it (PyPI: nixl-cu13) and put its folder on \
                 LD_LIBRARY_PATH ({reason})"
            )
        })?;
        let functions = Functions::find(&library)
            .map_err(|error| format!("{} lacks a function: {error}", path.display()))?;
        Ok(Arc::new(Self { functions, path: path.to_owned(), _library: library }))
    }

    /// Returns what was opened: a mere name, if the system knows where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for Nixl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nixl").finish_non_exhaustive()
    }
}
