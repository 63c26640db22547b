//! Launches `cuda/add_bias.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

/// `y += bias`, row by row.
#[derive(Debug)]
pub struct AddBias {
    function: Function,
}

impl AddBias {
    pub(super) fn build(dtype: Dtype) -> Build {
        let file = ("add_bias.cu", include_str!("../../cuda/add_bias.cu"));
        Build::new(dtype, file, &["add_bias"], Vec::new())
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
    /// - `y`: `[rows, cols]`, `bias`: `[cols]`; `cols` is a multiple of 8
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [y, bias]: [DeviceSlice; 2],
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        check_len("y", y, rows * cols, 2)?;
        check_len("bias", bias, cols, 2)?;
        if !cols.is_multiple_of(8) {
            return Err(CudaError::Unsupported { what: format!("rows of {cols} elements") });
        }
        let blocks = (rows * cols / 8).div_ceil(256);
        let launch = Launch { grid: (blocks, 1, 1), threads: 256, shared_bytes: 0, overlap: true };
        let args = [y.into(), bias.into(), Arg::from(rows), Arg::from(cols)];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
