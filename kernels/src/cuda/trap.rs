//! Launches `cuda/trap.cu`.

use std::path::Path;

use stallfree_device::{CubinCache, Device, Dtype, Launch, Stream};

use super::{Build, CudaError, Toolchain};

pub(super) fn build(dtype: Dtype) -> Build {
    Build::new(dtype, ("trap.cu", include_str!("../../cuda/trap.cu")), &["trap"], Vec::new())
}

/// Makes GPU `ordinal` fail for this process, as an illegal access would: whatever the process does there afterwards is an error. For
/// checks of what a lost GPU takes with it.
///
/// # Errors
/// No driver, compiler or GPU. That the GPU fails is no error.
pub fn trap(ordinal: usize, kernel_cache: &Path) -> Result<(), CudaError> {
    let device = Device::open(ordinal)?;
    let cache = CubinCache::new(kernel_cache);
    let tools = Toolchain { device, cache, ampere_path: false, dtype: Dtype::Bf16 };
    let stream = Stream::new(&tools.device)?;
    let [function] = tools.load(&build(Dtype::Bf16))?;
    let launch = Launch { grid: (1, 1, 1), threads: 32, shared_bytes: 0, overlap: false };
    // SAFETY: the kernel has no arguments and touches no memory.
    unsafe { function.launch(&stream, launch, &[]) }?;
    // The failure shows here, and to everybody else.
    drop(stream.synchronize());
    Ok(())
}
