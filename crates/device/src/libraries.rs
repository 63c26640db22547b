//! CUDA's shared libraries beside the driver: where they are looked for, and which are there.
//!
//! The system's come first. What it lacks is opened by full path out of the folder of [`search_libraries_in`]; from then on the
//! dynamic linker, and with it cudarc, finds it by its name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};

use crate::DeviceError;

/// A library that kernels or collectives need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Library {
    /// The run-time compiler.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Collectives; one GPU does without.
    Nccl,
}

impl Library {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nvrtc, Self::CublasLt, Self::Nccl];

    /// Returns what NVIDIA calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Nccl => "NCCL",
        }
    }

    /// Returns its file's name.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Nvrtc => "libnvrtc.so.13",
            Self::CublasLt => "libcublasLt.so.13",
            Self::Nccl => "libnccl.so.2",
        }
    }

    /// Returns the files that it looks for by name itself, so that they have to be opened before it.
    #[must_use]
    pub const fn companions(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc-builtins.so.13.0"],
            Self::CublasLt | Self::Nccl => &[],
        }
    }

    /// Returns the error of its absence.
    pub(crate) const fn missing(self) -> DeviceError {
        let hint = match self {
            Self::Nvrtc => {
                "`stallfree doctor --fetch` brings it, or install CUDA 13's (PyPI: nvidia-cuda-nvrtc) and put its folder on LD_LIBRARY_PATH"
            }
            Self::CublasLt => {
                "`stallfree doctor --fetch` brings it, or install CUDA 13's (PyPI: nvidia-cublas) and put its folder on LD_LIBRARY_PATH"
            }
            Self::Nccl => {
                "`stallfree doctor --fetch` brings it, or install it (PyPI: nvidia-nccl-cu13) and put its folder on LD_LIBRARY_PATH"
            }
        };
        DeviceError::Missing { library: self.file(), hint }
    }
}

/// A library that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedLibrary {
    /// Its version, as it says.
    pub version: String,
    /// The file, if the system tells.
    pub path: Option<PathBuf>,
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();
/// Libraries stay open to the end: code and data of theirs are in use.
static OPENED: Mutex<Vec<(Library, Handle)>> = Mutex::new(Vec::new());

/// Looks for libraries in `folder`, too, from now on; the first call counts.
pub fn search_libraries_in(folder: &Path) {
    let _first = FOLDER.set(folder.to_owned());
}

/// Opens a library and says what it is.
///
/// # Errors
/// It is neither the system's nor in the folder of [`search_libraries_in`], or it can't be opened.
pub fn find_library(library: Library) -> Result<LoadedLibrary, DeviceError> {
    open(library)?;
    let version = match library {
        Library::Nvrtc => {
            let (major, minor) = crate::compiler_version()?;
            format!("{major}.{minor}")
        }
        // SAFETY: the library is open; the call takes nothing and returns a number.
        Library::CublasLt => dotted(unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() }),
        Library::Nccl => nccl_version().map_or_else(|| "unknown".to_owned(), dotted),
    };
    Ok(LoadedLibrary { version, path: mapped_path(library) })
}

/// Makes sure that a library can be used.
pub(crate) fn open(library: Library) -> Result<(), DeviceError> {
    let is_there = match library {
        // SAFETY: only tries to open a shared library.
        Library::Nvrtc => unsafe { cudarc::nvrtc::sys::is_culib_present() },
        // SAFETY: as above.
        Library::CublasLt => unsafe { cudarc::cublaslt::sys::is_culib_present() },
        // cudarc doesn't know the one name that NCCL has.
        Library::Nccl => false,
    };
    if is_there {
        return Ok(());
    }
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if opened.iter().any(|(of, _)| *of == library) {
        return Ok(());
    }
    if library == Library::Nccl
        && let Ok(handle) = open_file(Path::new(library.file()))
    {
        opened.push((library, handle));
        return Ok(());
    }
    let folder = FOLDER.get().filter(|folder| folder.join(library.file()).is_file());
    let folder = folder.ok_or_else(|| library.missing())?;
    for file in library.companions().iter().chain([&library.file()]) {
        let path = folder.join(file);
        let handle = open_file(&path).map_err(|reason| DeviceError::Unusable { path, reason })?;
        opened.push((library, handle));
    }
    Ok(())
}

/// Opens a file, or, if `path` is a mere name, what the dynamic linker knows by it.
fn open_file(path: &Path) -> Result<Handle, String> {
    // SAFETY: NVIDIA's libraries may be opened at any time, from any thread.
    unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| error.to_string())
}

/// Asks NCCL for its version; it is open.
fn nccl_version() -> Option<usize> {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, handle) = opened.iter().find(|(library, _)| *library == Library::Nccl)?;
    let mut version = 0;
    // SAFETY: that is the function's type in nccl.h, and the pointer is to a live integer.
    let code = unsafe {
        let get = handle.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"ncclGetVersion\0").ok()?;
        get(&raw mut version)
    };
    usize::try_from(version).ok().filter(|_| code == 0)
}

/// Reads a version that is written as `10000 * major + 100 * minor + patch`.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Returns where an open library came from: the files that a process has mapped are listed by the kernel.
fn mapped_path(library: Library) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    path_in(&maps, library)
}

fn path_in(maps: &str, library: Library) -> Option<PathBuf> {
    let (stem, _) = library.file().split_once(".so")?;
    let is_it = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.and_then(|name| name.strip_prefix(stem)).is_some_and(|rest| rest.starts_with(".so"))
    };
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])))
        .find(|path| is_it(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_names_what_brings_it() {
        for library in Library::ALL {
            let text = library.missing().to_string();
            assert!(text.contains(library.file()) && text.contains("doctor --fetch"), "{text}");
        }
    }

    #[test]
    fn versions_and_paths_are_read() {
        assert_eq!(dotted(130_002), "13.0.2");
        assert_eq!(dotted(22_809), "2.28.9");
        let maps = "7f00-7f01 r-xp 00000000 fe:00 12 /opt/cuda 13/libnvrtc-builtins.so.13.0\n\
            7f01-7f02 r-xp 00000000 fe:00 13 /opt/cuda 13/libnvrtc.so.13.0.88\n\
            7f02-7f03 rw-p 00000000 00:00 0\n";
        assert_eq!(
            path_in(maps, Library::Nvrtc),
            Some(PathBuf::from("/opt/cuda 13/libnvrtc.so.13.0.88"))
        );
        assert_eq!(path_in(maps, Library::CublasLt), None);
    }
}
