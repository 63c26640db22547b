//! Launches `cuda/trap.cu`.

use std::path::Path;

use stallfree_device::{CubinCache, Device, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain};

pub(super) fn build(dtype: Dtype) -> Build {
    Build::new(dtype, ("trap.cu", include_str!("../../cuda/trap.cu")), &["trap"], Vec::new())
}

/// Makes a GPU fail for this process, as an illegal access would: whatever the process does there afterwards is an error. For checks
/// of what a lost GPU takes with it.
#[derive(Debug)]
pub struct Trap {
    function: Function,
    stream: Stream,
}

impl Trap {
    /// Makes all ready on GPU `ordinal`; nothing fails yet.
    ///
    /// # Errors
    /// No driver, compiler or GPU.
    pub fn set(ordinal: usize, kernel_cache: &Path) -> Result<Self, CudaError> {
        let device = Device::open(ordinal)?;
        let stream = Stream::new(&device)?;
        let cache = CubinCache::new(kernel_cache);
        let tools = Toolchain { device, cache, ampere_path: false, dtype: Dtype::Bf16 };
        let [function] = tools.load(&build(Dtype::Bf16))?;
        Ok(Self { function, stream })
    }

    /// Lets the GPU fail, and returns when it has.
    ///
    /// # Errors
    /// The kernel can't be launched. That the GPU fails is no error.
    pub fn spring(self) -> Result<(), CudaError> {
        let launch = Launch { grid: (1, 1, 1), threads: 32, shared_bytes: 0, overlap: false };
        // SAFETY: the kernel has no arguments and touches no memory.
        unsafe { self.function.launch(&self.stream, launch, &[]) }?;
        // The failure shows here, and to everybody else.
        drop(self.stream.synchronize());
        Ok(())
    }
}
