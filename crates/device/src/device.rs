//! One GPU: its context and what it can do.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys as cu;
use cudarc::driver::sys::CUdevice_attribute_enum as Attr;

use crate::error::{check, no_driver};
use crate::{Arch, DeviceError};

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProps {
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// Bytes of memory.
    pub memory_bytes: usize,
}

/// A GPU's primary context.
#[derive(Debug)]
pub struct Device {
    ordinal: usize,
    handle: cu::CUdevice,
    context: cu::CUcontext,
    props: DeviceProps,
}

// SAFETY: a context may be used from any thread; `bind` makes it current there.
unsafe impl Send for Device {}
// SAFETY: the driver's entry points are thread-safe, and the fields never change.
unsafe impl Sync for Device {}

impl Device {
    /// Opens GPU `ordinal` and binds it to this thread.
    ///
    /// # Errors
    /// No driver, no such GPU, or a GPU older than Ampere.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, DeviceError> {
        let handle = find(ordinal)?;
        let props = read_props(handle)?;
        check_age(&props)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the handle came from the driver, and the pointer is to a live handle.
        check("cuDevicePrimaryCtxRetain", unsafe {
            cu::cuDevicePrimaryCtxRetain(&raw mut context, handle)
        })?;
        let device = Self { ordinal, handle, context, props };
        device.bind()?;
        Ok(Arc::new(device))
    }

    /// Makes this GPU the calling thread's; every other call needs it once per thread.
    ///
    /// # Errors
    /// The driver refuses, after an earlier failure of the context.
    pub fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until drop.
        check("cuCtxSetCurrent", unsafe { cu::cuCtxSetCurrent(self.context) })
    }

    /// Returns which GPU this is.
    #[must_use]
    pub const fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Returns what this GPU can do.
    #[must_use]
    pub const fn props(&self) -> &DeviceProps {
        &self.props
    }

    /// Returns the architecture that kernels are compiled for here.
    #[must_use]
    pub const fn arch(&self) -> Arch {
        match self.props.compute_capability.0 {
            8 => Arch::Sm80,
            9 => Arch::Sm90a,
            10 => Arch::Sm100a,
            _ => Arch::Sm120,
        }
    }

    /// Lets this GPU read and write the memory of `peer`.
    ///
    /// # Errors
    /// There is no path between them.
    pub fn reach(&self, peer: &Self) -> Result<(), DeviceError> {
        self.bind()?;
        check_path((self.ordinal, self.handle), (peer.ordinal, peer.handle))?;
        // SAFETY: this thread's context is set, and the peer's is retained until its drop.
        match unsafe { cu::cuCtxEnablePeerAccess(peer.context, 0) } {
            cu::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Waits until everything submitted to this GPU is done.
    ///
    /// # Errors
    /// Something submitted earlier failed; the context is lost.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: this thread's context is set.
        check("cuCtxSynchronize", unsafe { cu::cuCtxSynchronize() })
    }

    /// Returns free and total memory in bytes.
    ///
    /// # Errors
    /// The driver refuses, after an earlier failure of the context.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: this thread's context is set and both pointers are to live integers.
        let code = unsafe { cu::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", code)?;
        Ok((free, total))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained in `open`, released once.
        let _ = unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

/// Says whether each of some GPUs can use the memory of every other one; takes none of it.
///
/// # Errors
/// Two of them cannot, or there are fewer.
pub fn check_reach(gpus: Range<usize>) -> Result<(), DeviceError> {
    let gpus: Vec<_> = gpus.map(|gpu| Ok((gpu, find(gpu)?))).collect::<Result<_, DeviceError>>()?;
    for &from in &gpus {
        for &to in gpus.iter().filter(|to| to.0 != from.0) {
            check_path(from, to)?;
        }
    }
    Ok(())
}

fn check_path(from: (usize, cu::CUdevice), to: (usize, cu::CUdevice)) -> Result<(), DeviceError> {
    let mut can = 0;
    // SAFETY: both handles came from cuDeviceGet, and the pointer is to a live integer.
    let code = unsafe { cu::cuDeviceCanAccessPeer(&raw mut can, from.1, to.1) };
    check("cuDeviceCanAccessPeer", code)?;
    if can == 0 { Err(DeviceError::OutOfReach { from: from.0, to: to.0 }) } else { Ok(()) }
}

/// Says whether `libcuda` can be loaded; every other driver call needs it.
pub(crate) fn driver_present() -> bool {
    // SAFETY: only tries to open a shared library.
    unsafe { cu::is_culib_present() }
}

/// Returns how many GPUs the driver lists.
pub(crate) fn count() -> Result<usize, DeviceError> {
    if !driver_present() {
        return Err(no_driver());
    }
    let mut count = 0;
    // SAFETY: the driver is present and the pointer is to a live integer.
    unsafe {
        match cu::cuInit(0) {
            cu::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
            code => check("cuInit", code)?,
        }
        check("cuDeviceGetCount", cu::cuDeviceGetCount(&raw mut count))?;
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Returns the driver's handle of a GPU.
pub(crate) fn find(ordinal: usize) -> Result<cu::CUdevice, DeviceError> {
    let count = count()?;
    if ordinal >= count {
        return Err(DeviceError::NoSuchDevice { ordinal, count });
    }
    let mut handle = 0;
    // SAFETY: the ordinal is below the count, and the pointer is to a live handle.
    check("cuDeviceGet", unsafe {
        cu::cuDeviceGet(&raw mut handle, i32::try_from(ordinal).unwrap_or(i32::MAX))
    })?;
    Ok(handle)
}

/// Refuses what is older than Ampere.
pub(crate) fn check_age(props: &DeviceProps) -> Result<(), DeviceError> {
    let (major, minor) = props.compute_capability;
    if major >= 8 {
        return Ok(());
    }
    Err(DeviceError::TooOld { name: props.name.clone(), major, minor })
}

pub(crate) fn read_props(handle: cu::CUdevice) -> Result<DeviceProps, DeviceError> {
    let attribute = |which: Attr| {
        let mut value = 0;
        // SAFETY: the handle came from cuDeviceGet and the pointer is to a live integer.
        let code = unsafe { cu::cuDeviceGetAttribute(&raw mut value, which, handle) };
        check("cuDeviceGetAttribute", code)?;
        Ok::<_, DeviceError>(value.unsigned_abs())
    };
    let mut name = [0u8; 256];
    let mut memory_bytes = 0;
    // SAFETY: the buffers outlive the calls and their sizes are passed.
    unsafe {
        check("cuDeviceGetName", cu::cuDeviceGetName(name.as_mut_ptr().cast(), 255, handle))?;
        check("cuDeviceTotalMem", cu::cuDeviceTotalMem_v2(&raw mut memory_bytes, handle))?;
    }
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(DeviceProps {
        name: String::from_utf8_lossy(&name[..len]).into_owned(),
        compute_capability: (
            attribute(Attr::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attr::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attr::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared_bytes: attribute(Attr::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        memory_bytes,
    })
}
