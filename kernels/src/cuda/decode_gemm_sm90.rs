//! Launches `cuda/decode_gemm_sm90.cu`.

use stallfree_device::{
    Arg, DeviceSlice, Dtype, Function, Launch, Stream, Swizzle, TensorMap, TensorMapSpec,
};

use super::{Build, CudaError, Epilogue, Toolchain, check_len};

/// What a kernel is specialized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeGemmSpec {
    /// The most rows of `x`: 8, 16, 32, 64, 128 or 256.
    pub tokens: usize,
    /// How many warpgroups multiply, 64 rows of `w` each.
    pub warpgroups: usize,
    /// Blocks of 64 columns a stage.
    pub k_blocks: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// What is done to a product before it is written.
    pub epilogue: Epilogue,
    /// The result is f32 (logits) instead of the element type.
    pub f32_out: bool,
}

/// Rows, warpgroups, blocks of columns a stage and stages that were fastest somewhere, see `docs/performance.md`.
const SHAPES: [[usize; 4]; 9] = [
    [8, 1, 4, 5],
    [16, 1, 4, 5],
    [32, 1, 2, 8],
    [64, 1, 2, 6],
    [64, 2, 1, 8],
    [128, 1, 1, 8],
    [128, 2, 1, 6],
    [256, 1, 1, 5],
    [256, 2, 1, 4],
];

/// How the tiles of a product are divided among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Division {
    /// Blocks that run at once.
    pub blocks: usize,
    /// How many of them share the tiles that do not go evenly into the blocks, split along the inner dimension.
    pub sharers: usize,
}

impl DecodeGemmSpec {
    /// Returns the specializations for `rows` rows; none if there are too many.
    pub fn for_rows(rows: usize, epilogue: Epilogue, f32_out: bool) -> impl Iterator<Item = Self> {
        let tokens = SHAPES.iter().map(|shape| shape[0]).find(|&tokens| rows <= tokens);
        SHAPES.into_iter().filter(move |shape| Some(shape[0]) == tokens).map(move |shape| {
            let [tokens, warpgroups, k_blocks, stages] = shape;
            Self { tokens, warpgroups, k_blocks, stages, epilogue, f32_out }
        })
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        [8, 16, 32, 64, 128, 256].into_iter().flat_map(|rows| {
            [(Epilogue::None, false), (Epilogue::None, true), (Epilogue::SiluMul, false)]
                .into_iter()
                .flat_map(move |(epilogue, f32_out)| Self::for_rows(rows, epilogue, f32_out))
        })
    }

    const fn tile(self) -> usize {
        64 * self.warpgroups
    }

    /// Columns of `y` a tile.
    fn out_tile(self) -> usize {
        if self.epilogue == Epilogue::SiluMul { self.tile() / 2 } else { self.tile() }
    }

    /// The ring, and room to align it.
    const fn shared_bytes(self) -> usize {
        self.stages * self.k_blocks * 128 * (self.tile() + self.tokens) + 1024
    }

    /// Those that multiply and a warp that loads; a warpgroup that loads where registers have to move, see the source.
    const fn threads(self) -> usize {
        128 * self.warpgroups + if self.tokens > 128 && self.warpgroups > 1 { 128 } else { 32 }
    }

    const fn steps(self, inner: usize) -> usize {
        inner.div_ceil(64 * self.k_blocks)
    }
}

/// `x · wᵀ + bias` for the rows of a decode step, on Hopper.
#[derive(Debug)]
pub struct DecodeGemm {
    function: Function,
    spec: DecodeGemmSpec,
    dtype: Dtype,
    num_sms: usize,
}

impl DecodeGemm {
    pub(super) fn build(dtype: Dtype, spec: DecodeGemmSpec) -> Build {
        let epilogue = usize::from(spec.epilogue == Epilogue::SiluMul);
        let mut defines = vec![
            ("TOKENS", spec.tokens.to_string()),
            ("WARPGROUPS", spec.warpgroups.to_string()),
            ("K_BLOCKS", spec.k_blocks.to_string()),
            ("STAGES", spec.stages.to_string()),
            ("EPILOGUE", epilogue.to_string()),
        ];
        if spec.f32_out {
            defines.push(("OUT_F32", "1".to_owned()));
        }
        let file = ("decode_gemm_sm90.cu", include_str!("../../cuda/decode_gemm_sm90.cu"));
        let build = Build::new(dtype, file, &["decode_gemm"], defines);
        build.with_shared(spec.shared_bytes()).for_hopper()
    }

    /// Says whether the kernel runs on this GPU and takes products of `inner` columns and, with an epilogue, `out` results.
    #[must_use]
    pub fn takes(tools: &Toolchain, epilogue: Epilogue, [out, inner]: [usize; 2]) -> bool {
        // Rows of both operands begin at multiples of 16 bytes, and gates and ups are taken 8 at a time.
        tools.is_hopper()
            && inner.is_multiple_of(8)
            && (epilogue == Epilogue::None || out.is_multiple_of(8))
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The compiler or the driver fails.
    pub fn load(tools: &Toolchain, spec: DecodeGemmSpec) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype, spec))?;
        let num_sms = tools.device.props().num_sms;
        Ok(Self { function, spec, dtype: tools.dtype, num_sms })
    }

    /// Returns divisions worth trying for a product: whole tiles in as few rounds as possible, and shares of tiles.
    #[must_use]
    pub fn divisions(&self, out: usize, inner: usize) -> Vec<Division> {
        let (tiles, steps) = (out.div_ceil(self.spec.out_tile()), self.spec.steps(inner));
        let rounds = tiles.div_ceil(self.num_sms);
        let mut blocks = vec![tiles.div_ceil(rounds), self.num_sms.min(tiles * steps)];
        blocks.extend([2, 4].map(|parts| tiles * parts).into_iter().filter(|&n| n < self.num_sms));
        let mut divisions: Vec<Division> = Vec::new();
        for blocks in blocks {
            let uneven = tiles % blocks;
            // Each in one piece, or all in as many pieces as there are blocks.
            for sharers in [uneven, blocks.min(uneven * steps)] {
                let division = Division { blocks, sharers: sharers.max(1) };
                if !divisions.contains(&division) {
                    divisions.push(division);
                }
            }
        }
        divisions
    }

    /// Returns the bytes of the two scratch ranges: parts of split tiles, and counters that start as zeros.
    #[must_use]
    pub fn scratch_bytes(&self, out: usize, division: Division) -> (usize, usize) {
        let partial = division.blocks * 2 * self.spec.tile() * self.spec.tokens * 4;
        (partial, out.div_ceil(self.spec.out_tile()) * 4)
    }

    /// Submits. `w` must not be written by what was submitted just before: its first loads do not wait.
    ///
    /// # Shapes
    /// - `x`: `[rows, inner]`; `w`: `[out, inner]`, or `[2 * out, inner]` for [`Epilogue::SiluMul`]; `y`: `[rows, out]`
    /// - `partial`, `counters`: of [`scratch_bytes`](Self::scratch_bytes)
    /// - `bias`: `[out]`; not with an epilogue
    ///
    /// # Errors
    /// An operand is too short, the shape is not this kernel's, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [w, x, y, partial, counters]: [DeviceSlice; 5],
        bias: Option<DeviceSlice>,
        [rows, out, inner]: [usize; 3],
        division: Division,
    ) -> Result<(), CudaError> {
        let spec = self.spec;
        let halves = if spec.epilogue == Epilogue::SiluMul { 2 } else { 1 };
        let (tiles, steps) = (out.div_ceil(spec.out_tile()), spec.steps(inner));
        let fits = (1..=spec.tokens).contains(&rows)
            && inner.is_multiple_of(8)
            && (halves == 1 || (bias.is_none() && out.is_multiple_of(8)))
            && (1..=self.num_sms).contains(&division.blocks)
            && (1..=(tiles % division.blocks * steps).max(1)).contains(&division.sharers)
            && division.sharers <= division.blocks;
        if !fits {
            return Err(CudaError::Unsupported {
                what: format!("{rows} rows of {inner} elements with {spec:?} and {division:?}"),
            });
        }
        let (partial_bytes, counter_bytes) = self.scratch_bytes(out, division);
        check_len("y", y, rows * out, if spec.f32_out { 4 } else { 2 })?;
        check_len("partial", partial, partial_bytes, 1)?;
        check_len("counters", counters, counter_bytes, 1)?;
        if let Some(bias) = bias {
            check_len("bias", bias, out, 2)?;
        }
        let launch = Launch {
            grid: (division.blocks, 1, 1),
            threads: spec.threads(),
            shared_bytes: spec.shared_bytes(),
            overlap: true,
        };
        let args = [
            self.weight_map(w, [out, inner])?.into(),
            self.map(x, &[inner, rows], &[inner * 2], &[64, spec.tokens])?.into(),
            bias.map_or(Arg::Ptr(0), Arg::from),
            y.into(),
            partial.into(),
            counters.into(),
            Arg::from(rows),
            Arg::from(out),
            Arg::from(inner),
            Arg::from(division.sharers),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above and by the maps.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }

    /// Boxes of a tile; with an epilogue 8 gates and their ups in turn, so that one thread gets both.
    fn weight_map(&self, w: DeviceSlice, [out, inner]: [usize; 2]) -> Result<TensorMap, CudaError> {
        let (row, tile) = (inner * 2, self.spec.tile());
        if self.spec.epilogue == Epilogue::None {
            return self.map(w, &[inner, out], &[row], &[64, tile]);
        }
        let strides = [row, out * row, 8 * row];
        self.map(w, &[inner, 8, 2, out / 8], &strides, &[64, 8, 2, tile / 16])
    }

    fn map(
        &self,
        data: DeviceSlice,
        dims: &[usize],
        strides: &[usize],
        box_dims: &[usize],
    ) -> Result<TensorMap, CudaError> {
        let (dtype, swizzle) = (self.dtype, Swizzle::B128);
        Ok(TensorMap::encode(TensorMapSpec { data, dtype, dims, strides, box_dims, swizzle })?)
    }
}
