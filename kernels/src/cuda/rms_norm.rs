//! Launches `cuda/rms_norm.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

/// RMSNorm of rows of one length, with or without a residual.
#[derive(Debug)]
pub struct RmsNorm {
    function: Function,
    cols: usize,
    threads: usize,
}

/// A thread for every 16 bytes of a row, in whole warps, up to 512.
const fn threads(cols: usize) -> usize {
    let wanted = (cols / 8).next_multiple_of(32);
    if wanted > 512 { 512 } else { wanted }
}

impl RmsNorm {
    pub(super) fn build(dtype: Dtype, cols: usize) -> Result<Build, CudaError> {
        if cols == 0 || !cols.is_multiple_of(8) {
            return Err(CudaError::Unsupported { what: format!("rows of {cols} elements") });
        }
        let defines = vec![("COLS", cols.to_string()), ("THREADS", threads(cols).to_string())];
        let file = ("rms_norm.cu", include_str!("../../cuda/rms_norm.cu"));
        Ok(Build::new(dtype, file, &["rms_norm"], defines))
    }

    /// Compiles for rows of `cols` elements, a multiple of 8, and loads.
    ///
    /// # Errors
    /// The length is not a multiple of 8, or the compiler or the driver fails.
    pub fn load(tools: &Toolchain, cols: usize) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype, cols)?)?;
        Ok(Self { function, cols, threads: threads(cols) })
    }

    /// Submits: `residual += x` if there is one; `out` is the norm of the sum, or of `x`.
    ///
    /// # Shapes
    /// - `x`, `residual`, `out`: `[rows, cols]`; `weight`: `[cols]`
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [x, weight, out]: [DeviceSlice; 3],
        residual: Option<DeviceSlice>,
        rows: usize,
        eps: f32,
    ) -> Result<(), CudaError> {
        check_len("x", x, rows * self.cols, 2)?;
        check_len("weight", weight, self.cols, 2)?;
        check_len("out", out, rows * self.cols, 2)?;
        if let Some(residual) = residual {
            check_len("residual", residual, rows * self.cols, 2)?;
        }
        let launch =
            Launch { grid: (rows, 1, 1), threads: self.threads, shared_bytes: 0, overlap: true };
        let residual = residual.map_or(Arg::Ptr(0), Arg::from);
        let args = [x.into(), residual, weight.into(), out.into(), eps.into()];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
