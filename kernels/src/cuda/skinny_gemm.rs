//! Launches `cuda/skinny_gemm.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};

/// What is done to a product before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing but the bias.
    None,
    /// `w` is `[gate | up]`; the result is `silu(gate) * up`.
    SiluMul,
}

/// What a kernel is specialized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SkinnySpec {
    /// The most rows of `x`: 1, 8, 16 or 32.
    pub max_rows: usize,
    /// What is done to a product before it is written.
    pub epilogue: Epilogue,
    /// The result is f32 (logits) instead of the element type.
    pub f32_out: bool,
}

impl SkinnySpec {
    /// Returns the specialization for `rows` rows, if there is one.
    #[must_use]
    pub fn for_rows(rows: usize, epilogue: Epilogue, f32_out: bool) -> Option<Self> {
        let max_rows = [1, 8, 16, 32].into_iter().find(|&max| rows <= max)?;
        Some(Self { max_rows, epilogue, f32_out })
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        [1, 8, 16, 32].into_iter().flat_map(|max_rows| {
            [(Epilogue::None, false), (Epilogue::None, true), (Epilogue::SiluMul, false)]
                .map(|(epilogue, f32_out)| Self { max_rows, epilogue, f32_out })
        })
    }
}

/// `x · wᵀ + bias` for few rows.
#[derive(Debug)]
pub struct SkinnyGemm {
    function: Function,
    spec: SkinnySpec,
}

impl SkinnyGemm {
    pub(super) fn build(dtype: Dtype, spec: SkinnySpec) -> Build {
        let epilogue = usize::from(spec.epilogue == Epilogue::SiluMul);
        let mut defines =
            vec![("MAX_ROWS", spec.max_rows.to_string()), ("EPILOGUE", epilogue.to_string())];
        if spec.f32_out {
            defines.push(("OUT_F32", "1".to_owned()));
        }
        let file = ("skinny_gemm.cu", include_str!("../../cuda/skinny_gemm.cu"));
        Build::new(dtype, file, &["skinny_gemm"], defines)
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The compiler or the driver fails.
    pub fn load(tools: &Toolchain, spec: SkinnySpec) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype, spec))?;
        Ok(Self { function, spec })
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `x`: `[rows, inner]`; `w`: `[out, inner]`, or `[2 * out, inner]` for [`Epilogue::SiluMul`]; `y`: `[rows, out]`
    /// - `bias`: `[out]`; not with an epilogue
    /// - `inner` is a multiple of 32
    ///
    /// # Errors
    /// An operand is too short, the shape is not this kernel's, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [w, x, y]: [DeviceSlice; 3],
        bias: Option<DeviceSlice>,
        [rows, out, inner]: [usize; 3],
    ) -> Result<(), CudaError> {
        let halves = if self.spec.epilogue == Epilogue::SiluMul { 2 } else { 1 };
        let fits = (1..=self.spec.max_rows).contains(&rows)
            && inner.is_multiple_of(32)
            && (bias.is_none() || halves == 1);
        if !fits {
            return Err(CudaError::Unsupported {
                what: format!("{rows} rows of {inner} elements with {:?}", self.spec),
            });
        }
        check_len("x", x, rows * inner, 2)?;
        check_len("w", w, halves * out * inner, 2)?;
        check_len("y", y, rows * out, if self.spec.f32_out { 4 } else { 2 })?;
        if let Some(bias) = bias {
            check_len("bias", bias, out, 2)?;
        }
        // Rows of w (or pairs of a gate and its up) that a block takes: see the source.
        let block_rows = match (self.spec.max_rows, self.spec.epilogue) {
            (1, Epilogue::SiluMul) => 8,
            (32, Epilogue::None) => 32,
            _ => 16,
        };
        let grid = (out.div_ceil(block_rows), 1, 1);
        let launch = Launch { grid, threads: 256, shared_bytes: 0, overlap: true };
        let bias = bias.map_or(Arg::Ptr(0), Arg::from);
        let args =
            [w.into(), x.into(), bias, y.into(), Arg::from(rows), Arg::from(out), Arg::from(inner)];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}
