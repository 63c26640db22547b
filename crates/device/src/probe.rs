//! What a machine has: driver, libraries, GPUs.

use cudarc::driver::sys as cu;

/// What was found on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The CUDA version that the driver supports, as `1000 * major + 10 * minor`; `None` without a driver.
    pub driver_version: Option<u32>,
    /// GPUs that the driver lists.
    pub num_devices: usize,
    /// The libraries that cannot be loaded, of those that the CUDA executor uses.
    pub missing: Vec<&'static str>,
}

/// Looks for the driver, its libraries and GPUs; never fails.
#[must_use]
pub fn probe() -> Probe {
    // SAFETY: these only try to open shared libraries.
    let libraries = unsafe {
        [
            ("libnvrtc", cudarc::nvrtc::sys::is_culib_present()),
            ("libcublasLt", cudarc::cublaslt::sys::is_culib_present()),
            ("libnccl", cudarc::nccl::sys::is_culib_present()),
        ]
    };
    let missing = libraries.iter().filter(|(_, found)| !found).map(|(name, _)| *name).collect();
    let mut probe = Probe { missing, ..Probe::default() };
    if !driver_present() {
        return probe;
    }
    let (mut version, mut count) = (0, 0);
    // SAFETY: the driver is present, and both pointers are to live integers.
    let (versioned, counted) = unsafe {
        (
            cu::cuDriverGetVersion(&raw mut version),
            [cu::cuInit(0), cu::cuDeviceGetCount(&raw mut count)],
        )
    };
    if versioned == cu::CUresult::CUDA_SUCCESS {
        probe.driver_version = u32::try_from(version).ok();
    }
    if counted.iter().all(|&code| code == cu::CUresult::CUDA_SUCCESS) {
        probe.num_devices = usize::try_from(count).unwrap_or(0);
    }
    probe
}

/// Says whether `libcuda` can be loaded; every other driver call needs it.
pub(crate) fn driver_present() -> bool {
    // SAFETY: only tries to open a shared library.
    unsafe { cu::is_culib_present() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, DeviceError};

    #[test]
    fn without_a_driver_the_error_names_it_and_what_to_install() {
        let found = probe();
        match Device::open(found.num_devices) {
            Err(DeviceError::Missing { library, hint }) => {
                assert_eq!(found.driver_version, None);
                assert!(library.contains("libcuda") && hint.contains("driver"));
            }
            Err(DeviceError::NoSuchDevice { ordinal, count }) => assert_eq!(ordinal, count),
            other => panic!("opened a device past the last one: {other:?}"),
        }
    }
}
