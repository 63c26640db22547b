//! Launches `cuda/gather.cu`.

use std::ops::Range;

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

/// Copies rows of a table: token embedding, and the rows that need logits.
#[derive(Debug)]
pub struct Gather {
    function: Function,
}

impl Gather {
    pub(super) fn build(dtype: Dtype) -> Build {
        Build::new(
            dtype,
            ("gather.cu", include_str!("../../cuda/gather.cu")),
            &["gather_rows"],
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

    /// Copies row `index[i]` to row `i` of `out`; an index with its highest bit set names a place in `chosen`, where the index is.
    /// The table holds the rows `held`; others are zeros.
    ///
    /// # Shapes
    /// - `table`: `[held.len(), cols]`, `out`: `[rows, cols]`; `cols` is a multiple of 8
    /// - `index`: `[rows]`, `chosen`: `[any]`, u32
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [table, index, out]: [DeviceSlice; 3],
        (chosen, held): (DeviceSlice, Range<usize>),
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        check_len("index", index, rows, 4)?;
        check_len("out", out, rows * cols, 2)?;
        if !cols.is_multiple_of(8) {
            return Err(CudaError::Unsupported { what: format!("rows of {cols} elements") });
        }
        let launch = Launch { grid: (rows, 1, 1), threads: 128, shared_bytes: 0, overlap: true };
        let args = [
            table.into(),
            index.into(),
            chosen.into(),
            out.into(),
            Arg::from(held.start),
            Arg::from(held.len()),
            Arg::from(chosen.len() / 4),
            Arg::from(cols),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
