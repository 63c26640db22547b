//! What a machine has: driver, GPUs and the links between them; and whether a GPU can be used.

use cudarc::driver::sys as cu;
use nvml_wrapper::Nvml;

use crate::device::{self, driver_present, read_props};
use crate::libraries::{self, Library};
use crate::{DeviceError, DeviceProps, Link, compiler_version, links};

/// The management library; only its full name is there without development packages.
const NVML: &str = "libnvidia-ml.so.1";

/// What was found on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The driver; `None` if there is none.
    pub driver: Option<Driver>,
    /// The GPUs that the driver lists.
    pub gpus: Vec<Gpu>,
    /// How they are connected, each pair once.
    pub links: Vec<Link>,
}

/// An NVIDIA driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Its own version, if the management library tells.
    pub version: Option<String>,
    /// The newest CUDA that it supports: major and minor version.
    pub cuda: (u32, u32),
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number of it.
    pub ordinal: usize,
    /// What it is.
    pub props: DeviceProps,
    /// Bytes of its memory that are free, if the management library tells.
    pub free_bytes: Option<u64>,
}

/// Looks for driver and GPUs; never fails, and takes no memory of a GPU.
#[must_use]
pub fn probe() -> Probe {
    if !driver_present() {
        return Probe::default();
    }
    let nvml = Nvml::builder().lib_path(NVML.as_ref()).init().ok();
    let version = nvml.as_ref().and_then(|nvml| nvml.sys_driver_version().ok());
    let driver = cuda_version().map(|cuda| Driver { version, cuda });
    let mut found = Probe { driver, ..Probe::default() };
    let mut buses = Vec::new();
    for ordinal in 0..num_gpus() {
        let Ok(handle) = device::find(ordinal) else { continue };
        let Ok(props) = read_props(handle) else { continue };
        let bus = bus_id(handle);
        let managed = nvml.as_ref().zip(bus.as_deref());
        let managed = managed.and_then(|(nvml, bus)| nvml.device_by_pci_bus_id(bus).ok());
        let free_bytes = managed.and_then(|gpu| gpu.memory_info().ok()).map(|memory| memory.free);
        found.gpus.push(Gpu { ordinal, props, free_bytes });
        buses.push((ordinal, bus));
    }
    if let Some(nvml) = &nvml {
        found.links = links::between(nvml, &buses);
    }
    found
}

/// Returns how many GPUs the driver lists; none without a driver.
#[must_use]
pub fn num_gpus() -> usize {
    device::count().unwrap_or(0)
}

/// Says whether GPU `ordinal` can run the kernels: whether there are a driver, the GPU, and the libraries that one GPU needs.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn gpu_is_usable(ordinal: usize) -> Result<(), DeviceError> {
    let handle = device::find(ordinal)?;
    device::check_age(&read_props(handle)?)?;
    libraries::open(Library::Nvrtc)?;
    libraries::open(Library::CublasLt)?;
    check_versions(cuda_version().unwrap_or((0, 0)), compiler_version()?)
}

/// A driver runs what compilers of its own major version or an older one make.
fn check_versions(driver: (u32, u32), compiler: (u32, u32)) -> Result<(), DeviceError> {
    if driver.0 >= compiler.0 {
        return Ok(());
    }
    Err(DeviceError::DriverTooOld { driver, compiler })
}

/// Returns the newest CUDA that the driver supports; the driver is present.
fn cuda_version() -> Option<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the driver is present, and the pointer is to a live integer.
    let code = unsafe { cu::cuDriverGetVersion(&raw mut version) };
    let version = u32::try_from(version).ok().filter(|_| code == cu::CUresult::CUDA_SUCCESS)?;
    Some((version / 1000, version % 1000 / 10))
}

/// Returns a GPU's address on the bus, by which the management library knows it whatever CUDA_VISIBLE_DEVICES says.
fn bus_id(handle: cu::CUdevice) -> Option<String> {
    let mut text = [0u8; 32];
    // SAFETY: the handle came from the driver; the buffer outlives the call and its size is passed.
    let code = unsafe { cu::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), 32, handle) };
    let text = std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?;
    (code == cu::CUresult::CUDA_SUCCESS).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn without_a_driver_the_error_names_it_and_what_to_install() {
        let found = probe();
        match Device::open(found.gpus.len()) {
            Err(DeviceError::Missing { library, hint }) => {
                assert_eq!(found, Probe::default());
                assert!(library.contains("libcuda") && hint.contains("driver"));
            }
            Err(DeviceError::NoSuchDevice { ordinal, count }) => assert_eq!(ordinal, count),
            other => panic!("opened a device past the last one: {other:?}"),
        }
    }

    #[test]
    fn what_is_in_the_way_is_said_with_what_to_do() {
        let props = |major| DeviceProps {
            name: "Tesla".to_owned(),
            compute_capability: (major, 5),
            num_sms: 80,
            shared_bytes: 0,
            memory_bytes: 0,
        };
        let check = |result: Result<(), DeviceError>, words: &[&str]| {
            let text = result.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(words.iter().all(|word| text.contains(word)), "{text}: {words:?}");
            assert_eq!(text.is_empty(), words.is_empty(), "{text}");
        };
        check(device::check_age(&props(7)), &["Tesla", "7.5", "8.0"]);
        check(device::check_age(&props(8)), &[]);
        check(check_versions((12, 8), (13, 0)), &["12.8", "13.0", "driver 580"]);
        check(check_versions((13, 0), (13, 5)), &[]);
        check(Err(DeviceError::NoSuchDevice { ordinal: 0, count: 0 }), &["CUDA_VISIBLE_DEVICES"]);
        check(Err(DeviceError::NoSuchDevice { ordinal: 2, count: 1 }), &["GPU 2", "lists 1"]);
    }
}
