//! Loaded kernels and how they are launched.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{Cubin, Device, DeviceError, DeviceSlice, Stream, TensorMap};

/// A cubin on a GPU.
#[derive(Debug)]
pub struct Module {
    raw: cu::CUmodule,
    device: Arc<Device>,
}

// SAFETY: a module may be used from any thread whose context is bound.
unsafe impl Send for Module {}
// SAFETY: the driver's entry points are thread-safe.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    ///
    /// # Errors
    /// The cubin is not for this GPU.
    pub fn load(device: &Arc<Device>, cubin: &Cubin) -> Result<Arc<Self>, DeviceError> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is a whole ELF file, made by the compiler or read from its cache and checked there.
        let code = unsafe { cu::cuModuleLoadData(&raw mut raw, cubin.image().as_ptr().cast()) };
        check("cuModuleLoadData", code)?;
        Ok(Arc::new(Self { raw, device: Arc::clone(device) }))
    }

    /// Finds a kernel and allows it `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// There is no such kernel, or the GPU has not that much shared memory.
    pub fn function(
        self: &Arc<Self>,
        name: &str,
        shared_bytes: usize,
    ) -> Result<Function, DeviceError> {
        self.device.bind()?;
        let symbol = CString::new(name).unwrap_or_default();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module lives and the name ends in a zero.
        let code = unsafe { cu::cuModuleGetFunction(&raw mut raw, self.raw, symbol.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        let attribute =
            cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
        // SAFETY: the function was just found.
        let code = unsafe { cu::cuFuncSetAttribute(raw, attribute, bytes) };
        check("cuFuncSetAttribute", code)?;
        let overlaps = self.device.props().compute_capability.0 >= 9;
        Ok(Function { raw, shared_bytes, overlaps, _module: Arc::clone(self) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once; functions hold the module.
        let _ = unsafe { cu::cuModuleUnload(self.raw) };
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Function {
    raw: cu::CUfunction,
    shared_bytes: usize,
    overlaps: bool,
    /// Keeps the kernel's code loaded.
    _module: Arc<Module>,
}

// SAFETY: a function may be launched from any thread whose context is bound.
unsafe impl Send for Function {}

/// How many threads a launch has, and when it may begin.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: (usize, usize, usize),
    /// Threads a block.
    pub threads: usize,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: usize,
    /// Begins while the launch before it is still finishing; the kernel itself waits before it reads (`griddepcontrol.wait`).
    pub overlap: bool,
}

/// A kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// The address of a range, or null.
    Ptr(u64),
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A float.
    F32(f32),
    /// A view for the copy engine.
    Map(TensorMap),
    /// Eight addresses, as a struct of pointers.
    Addresses([u64; 8]),
}

impl From<DeviceSlice> for Arg {
    fn from(slice: DeviceSlice) -> Self {
        Self::Ptr(slice.address())
    }
}

impl From<TensorMap> for Arg {
    fn from(map: TensorMap) -> Self {
        Self::Map(map)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<usize> for Arg {
    /// A count; counts that kernels take as 32 bits are checked to fit by their launchers' shapes.
    fn from(value: usize) -> Self {
        Self::I32(i32::try_from(value).unwrap_or(i32::MAX))
    }
}

impl Function {
    /// Makes every launch of it wait for the one before, whatever [`Launch::overlap`] says: for code that does not wait itself.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.overlaps = false;
        self
    }

    /// Returns how many blocks of `threads` threads and `shared_bytes` of dynamic shared memory a multiprocessor runs at once.
    ///
    /// # Errors
    /// The driver refuses, after an earlier failure of the context.
    pub fn blocks_per_sm(&self, threads: usize, shared_bytes: usize) -> Result<usize, DeviceError> {
        let mut blocks = 0;
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the function's module lives and the pointer is to a live integer.
        let code = unsafe {
            cu::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.raw,
                threads,
                shared_bytes,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
        Ok(usize::try_from(blocks).unwrap_or(0))
    }

    /// Submits the kernel.
    ///
    /// # Safety
    /// `args` match the kernel's parameters in number and type, and the ranges they name are as long as the kernel's shape
    /// arguments say and outlive its run.
    ///
    /// # Errors
    /// The driver refuses the launch.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        launch: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError> {
        debug_assert!(launch.shared_bytes <= self.shared_bytes.max(48 << 10));
        let mut params: Vec<*mut c_void> = args.iter().map(arg_ptr).collect();
        let mut attributes = Vec::with_capacity(1);
        if launch.overlap && self.overlaps {
            attributes.push(cu::CUlaunchAttribute {
                id: cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: cu::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            });
        }
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let config = cu::CUlaunchConfig {
            gridDimX: size(launch.grid.0),
            gridDimY: size(launch.grid.1),
            gridDimZ: size(launch.grid.2),
            blockDimX: size(launch.threads),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: size(launch.shared_bytes),
            hStream: stream.raw,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the parameters point into `args`, which lives through the call; the rest is the caller's promise.
        let code = unsafe {
            cu::cuLaunchKernelEx(
                &raw const config,
                self.raw,
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernelEx", code)
    }
}

fn arg_ptr(arg: &Arg) -> *mut c_void {
    match arg {
        Arg::Ptr(value) => (&raw const *value).cast_mut().cast(),
        Arg::I32(value) => (&raw const *value).cast_mut().cast(),
        Arg::I64(value) => (&raw const *value).cast_mut().cast(),
        Arg::F32(value) => (&raw const *value).cast_mut().cast(),
        Arg::Addresses(addresses) => addresses.as_ptr().cast_mut().cast(),
        Arg::Map(map) => (&raw const map.0).cast_mut().cast(),
    }
}
