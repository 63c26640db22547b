//! Launches `cuda/silu_mul.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

/// `silu(gate) * up`.
#[derive(Debug)]
pub struct SiluMul {
    function: Function,
}

impl SiluMul {
    pub(super) fn build(dtype: Dtype) -> Build {
        Build::new(
            dtype,
            ("silu_mul.cu", include_str!("../../cuda/silu_mul.cu")),
            &["silu_mul"],
            Vec::new(),
        )
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The compiler or the driver fails.
    pub fn load(tools: &Toolchain) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype))?;
        Ok(Self { function })
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `gate_up`: `[rows, 2 * cols]`, `out`: `[rows, cols]`; `cols` is a multiple of 8
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [gate_up, out]: [DeviceSlice; 2],
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        check_len("gate_up", gate_up, rows * 2 * cols, 2)?;
        check_len("out", out, rows * cols, 2)?;
        if !cols.is_multiple_of(8) {
            return Err(CudaError::Unsupported { what: format!("rows of {cols} elements") });
        }
        let blocks = (rows * cols / 8).div_ceil(256);
        let launch = Launch { grid: (blocks, 1, 1), threads: 256, shared_bytes: 0, overlap: true };
        let args = [gate_up.into(), out.into(), Arg::from(rows), Arg::from(cols)];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
