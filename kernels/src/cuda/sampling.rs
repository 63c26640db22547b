//! Launches `cuda/sampling.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

pub(super) fn build(dtype: Dtype) -> Build {
    Build::new(
        dtype,
        ("sampling.cu", include_str!("../../cuda/sampling.cu")),
        &["argmax"],
        Vec::new(),
    )
}

/// The greedy choice of each row of logits.
#[derive(Debug)]
pub struct Argmax {
    function: Function,
}

impl Argmax {
    /// Compiles and loads.
    ///
    /// # Errors
    /// The compiler or the driver fails.
    pub fn load(tools: &Toolchain) -> Result<Self, CudaError> {
        let [function] = tools.load(&build(tools.dtype))?;
        Ok(Self { function })
    }

    /// Submits; a row with a NaN answers `u32::MAX`.
    ///
    /// # Shapes
    /// - `logits`: `[rows, cols]`, f32; `tokens`: `[rows]`, u32
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [logits, tokens]: [DeviceSlice; 2],
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        check_len("logits", logits, rows * cols, 4)?;
        check_len("tokens", tokens, rows, 4)?;
        let launch = Launch { grid: (rows, 1, 1), threads: 1024, shared_bytes: 0, overlap: true };
        let args = [logits.into(), tokens.into(), Arg::from(cols)];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
