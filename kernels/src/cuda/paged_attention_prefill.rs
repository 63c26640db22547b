//! Attention of chunks: launches `cuda/paged_attention_prefill.cu`, or on Hopper its sibling.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::paged_attention_prefill_sm90::{Sm90, supports, tile_tokens};
use super::{Build, CudaError, HeadShape, KvLayer, Toolchain, check_len};

/// Warps of a block.
const WARPS: usize = 4;

/// Sequences with chunks of tokens this step.
#[derive(Clone, Copy, Debug)]
pub struct PrefillBatch {
    /// How many tiles there are.
    pub num_tiles: usize,
    /// `[num_tiles, 2]`, u32: of [`PagedAttentionPrefill::tiles`].
    pub tiles: DeviceSlice,
    /// `[num_seqs]`, u32: each one's first row of the query.
    pub seq_rows: DeviceSlice,
    /// `[num_seqs]`, u32: each one's rows of the query.
    pub seq_lens: DeviceSlice,
    /// `[num_seqs]`, u32: tokens in the cache, this step's among them.
    pub context_lens: DeviceSlice,
    /// `[num_seqs]`, u32: where each one's block table begins in `block_ids`.
    pub block_starts: DeviceSlice,
    /// u32: the block tables, one after the other.
    pub block_ids: DeviceSlice,
    /// The sequences' tokens in the cache, all together.
    pub num_keys: usize,
}

/// Attention of chunks of tokens.
#[derive(Debug)]
pub struct PagedAttentionPrefill {
    kernel: Kernel,
    heads: HeadShape,
}

#[derive(Debug)]
enum Kernel {
    Ampere(Function),
    Hopper(Sm90),
}

/// Returns the 16-row tiles of a warp and the keys of a tile: what fits the registers without a spill, which a division by a group
/// that is no power of two needs too.
const fn tiling(heads: HeadShape) -> (usize, usize) {
    match heads.head_dim {
        64 | 96 => (2, 64),
        128 if heads.group().is_power_of_two() => (2, 64),
        128 => (2, 32),
        _ => (1, 32),
    }
}

const fn tile_rows(heads: HeadShape) -> usize {
    WARPS * 16 * tiling(heads).0
}

/// Bytes of a block's shared memory: the queries, and two stages of keys and values.
const fn shared_bytes(heads: HeadShape) -> usize {
    (tile_rows(heads) + 4 * tiling(heads).1) * (heads.head_dim + 8) * 2
}

impl PagedAttentionPrefill {
    pub(super) fn build(dtype: Dtype, heads: HeadShape) -> Result<Build, CudaError> {
        heads.check()?;
        let (row_tiles, keys) = tiling(heads);
        let mut defines = heads.defines();
        defines.extend([("MTILES", row_tiles.to_string()), ("KEYS", keys.to_string())]);
        let text = include_str!("../../cuda/paged_attention_prefill.cu");
        let kernels = &["paged_attention_prefill"];
        let build = Build::new(dtype, ("paged_attention_prefill.cu", text), kernels, defines);
        Ok(build.with_shared(shared_bytes(heads)))
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The heads are not supported, or the compiler or the driver fails.
    pub fn load(tools: &Toolchain, heads: HeadShape) -> Result<Self, CudaError> {
        heads.check()?;
        let kernel = if tools.is_hopper() && supports(heads) {
            Kernel::Hopper(Sm90::load(tools, heads)?)
        } else {
            let [function] = tools.load(&Self::build(tools.dtype, heads)?)?;
            Kernel::Ampere(function)
        };
        Ok(Self { kernel, heads })
    }

    /// Cuts chunks into tiles, those with the most keys first so that the last ones to run are short: each one's sequence and where
    /// it begins. `chunks`: each sequence's tokens this step and tokens in the cache.
    #[must_use]
    pub fn tiles(&self, chunks: &[(usize, usize)]) -> Vec<[u32; 2]> {
        // In rows, a row being a token and one of its group's heads, or in tokens.
        let (step, per_token) = match self.kernel {
            Kernel::Ampere(_) => (tile_rows(self.heads), self.heads.group()),
            Kernel::Hopper(_) => (tile_tokens(self.heads), 1),
        };
        let mut tiles: Vec<(usize, [u32; 2])> = Vec::new();
        for (seq, &(len, context)) in chunks.iter().enumerate() {
            for first in (0..len * per_token).step_by(step) {
                let last = (first + step).min(len * per_token) - 1;
                let as_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                tiles.push((context - len + last / per_token, [as_u32(seq), as_u32(first)]));
            }
        }
        tiles.sort_by_key(|&(keys, _)| std::cmp::Reverse(keys));
        tiles.into_iter().map(|(_, tile)| tile).collect()
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `query`, `out`: `[num_tokens, num_heads * head_dim]`
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [query, out]: [DeviceSlice; 2],
        kv: KvLayer,
        batch: &PrefillBatch,
        (scale, window): (f32, Option<usize>),
    ) -> Result<(), CudaError> {
        check_len("tiles", batch.tiles, batch.num_tiles * 2, 4)?;
        if query.len() != out.len() {
            return Err(CudaError::Bytes { operand: "out", expected: query.len(), got: out.len() });
        }
        if batch.num_tiles == 0 {
            return Ok(());
        }
        let function = match &self.kernel {
            Kernel::Ampere(function) => function,
            Kernel::Hopper(kernel) => {
                return kernel.run(stream, [query, out], kv, batch, (scale, window));
            }
        };
        let launch = Launch {
            // All heads' long tiles before any short one.
            grid: (self.heads.num_kv_heads, batch.num_tiles, 1),
            threads: WARPS * 32,
            shared_bytes: shared_bytes(self.heads),
            overlap: true,
        };
        let args = [
            query.into(),
            kv.data.into(),
            out.into(),
            batch.tiles.into(),
            batch.seq_rows.into(),
            batch.seq_lens.into(),
            batch.context_lens.into(),
            batch.block_starts.into(),
            batch.block_ids.into(),
            Arg::I64(i64::try_from(kv.block_stride).unwrap_or(i64::MAX)),
            scale.into(),
            Arg::from(window.unwrap_or(0)),
        ];
        // SAFETY: the arguments are the kernel's; the step's builder keeps chunks within the query's rows.
        Ok(unsafe { function.launch(stream, launch, &args) }?)
    }
}
