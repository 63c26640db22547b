//! What can go wrong on a device, and what to do about it.

use std::path::PathBuf;

use cudarc::driver::sys::CUresult;

/// A call to the driver or one of its libraries failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A shared library is not there.
    #[error("{library} was not found; {hint}")]
    Missing {
        /// The library's file name.
        library: &'static str,
        /// What to install.
        hint: &'static str,
    },
    /// A shared library is there, but can't be opened.
    #[error("{} can't be opened: {reason}; `stallfree doctor --fetch` brings another", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the dynamic linker said.
        reason: String,
    },
    /// The driver is older than the compiler whose kernels it is to run.
    #[error(
        "the driver supports CUDA {}.{} and can't run kernels of NVRTC {}.{}; install NVIDIA driver 580 or newer", .driver.0, .driver.1, .compiler.0, .compiler.1
    )]
    DriverTooOld {
        /// The newest CUDA that the driver supports.
        driver: (u32, u32),
        /// The compiler's version.
        compiler: (u32, u32),
    },
    /// There is no such GPU.
    #[error("{}", no_gpu(*.ordinal, *.count))]
    NoSuchDevice {
        /// The GPU asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// Two GPUs cannot use each other's memory.
    #[error("GPU {from} cannot reach the memory of GPU {to}")]
    OutOfReach {
        /// The one that would read.
        from: usize,
        /// The one that would be read.
        to: usize,
    },
    /// The GPU is too old for the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer"
    )]
    TooOld {
        /// The GPU's name.
        name: String,
        /// Its major compute capability.
        major: u32,
        /// Its minor compute capability.
        minor: u32,
    },
    /// The driver refused a call.
    #[error("{call} failed: {code:?}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's answer.
        code: CUresult,
    },
    /// cuBLASLt refused a call.
    #[error("{call} failed: {code}")]
    Blas {
        /// The call.
        call: &'static str,
        /// The library's answer.
        code: String,
    },
    /// A kernel does not compile.
    #[error("{name} does not compile for {arch}:\n{log}")]
    Compile {
        /// The source's name.
        name: String,
        /// The architecture.
        arch: String,
        /// The compiler's log.
        log: String,
    },
    /// The arena has too little left.
    #[error(
        "{what} needs {bytes} bytes of GPU memory, {left} are left; lower max_num_batched_tokens or raise gpu_memory_utilization"
    )]
    ArenaFull {
        /// What the memory was for.
        what: String,
        /// How much.
        bytes: usize,
        /// How much is left.
        left: usize,
    },
    /// A view of memory is not one that the copy engine takes.
    #[error("tensor map: {what}; dimensions, strides and boxes must agree and lie within the data")]
    TensorMap {
        /// The view.
        what: String,
    },
    /// A copy's two sides differ in size.
    #[error("copy of {host} bytes to or from a device range of {device}")]
    CopySize {
        /// Bytes on the host.
        host: usize,
        /// Bytes on the device.
        device: usize,
    },
}

/// Turns a driver's answer into a result that names the call.
pub(crate) fn check(call: &'static str, code: CUresult) -> Result<(), DeviceError> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(DeviceError::Driver { call, code }) }
}

/// Returns the error of a missing driver.
pub(crate) const fn no_driver() -> DeviceError {
    DeviceError::Missing {
        library: "libcuda.so.1",
        hint: "install the NVIDIA driver, 580 or newer",
    }
}

fn no_gpu(ordinal: usize, count: usize) -> String {
    match count {
        0 => "the NVIDIA driver lists no GPU; CUDA_VISIBLE_DEVICES or a container's settings (--gpus all) may hide it".to_owned(),
        _ => format!("GPU {ordinal} was asked for, but the driver lists {count}"),
    }
}
