//! Launches `cuda/paged_attention_prefill_sm90.cu`: chunks of tokens on Hopper.

use stallfree_device::{
    Arg, DeviceSlice, Dtype, Function, Launch, Stream, Swizzle, TensorMap, TensorMapSpec,
};

use super::{Build, CudaError, HeadShape, KvLayer, PrefillBatch, Toolchain};

/// Rows of a tile, a row being a token and one of its group's heads.
const ROWS: usize = 128;
/// Keys of a tile.
const KEYS: usize = 128;
/// Tiles of keys, and of values, in shared memory.
const STAGES: usize = 2;
/// One warpgroup that loads and two that multiply.
const THREADS: usize = 3 * 128;
/// Barriers and the tiles chosen next.
const CONTROL_BYTES: usize = 512;
/// Keys and values that are read at the same time: what stays in the L2 cache beside all else.
const CACHED_BYTES: usize = 16 << 20;

/// The kernel and where it runs.
#[derive(Debug)]
pub(super) struct Sm90 {
    function: Function,
    heads: HeadShape,
    dtype: Dtype,
    num_sms: usize,
}

/// Says whether it is written for such heads.
pub(super) const fn supports(heads: HeadShape) -> bool {
    matches!(heads.head_dim, 64 | 128)
}

pub(super) fn build(dtype: Dtype, heads: HeadShape) -> Build {
    let text = include_str!("../../cuda/paged_attention_prefill_sm90.cu");
    let kernels = &["paged_attention_prefill_sm90"];
    let build =
        Build::new(dtype, ("paged_attention_prefill_sm90.cu", text), kernels, heads.defines());
    build.with_shared(shared_bytes(heads)).for_hopper()
}

/// Bytes of a block's shared memory: queries, keys and values.
const fn shared_bytes(heads: HeadShape) -> usize {
    (ROWS + 2 * STAGES * KEYS) * heads.head_dim * 2 + CONTROL_BYTES
}

/// Returns how many tokens a tile has.
pub(super) const fn tile_tokens(heads: HeadShape) -> usize {
    ROWS / heads.group()
}

impl Sm90 {
    pub(super) fn load(tools: &Toolchain, heads: HeadShape) -> Result<Self, CudaError> {
        let [function] = tools.load(&build(tools.dtype, heads))?;
        Ok(Self { function, heads, dtype: tools.dtype, num_sms: tools.device.props().num_sms })
    }

    /// Submits. A tile's second number is its first token.
    pub(super) fn run(
        &self,
        stream: &Stream,
        [query, out]: [DeviceSlice; 2],
        kv: KvLayer,
        batch: &PrefillBatch,
        (scale, window): (f32, Option<usize>),
    ) -> Result<(), CudaError> {
        let (kv_view, num_blocks) = self.kv_view(kv)?;
        let launch = Launch {
            grid: (self.num_sms.min(batch.num_tiles * self.heads.num_kv_heads), 1, 1),
            threads: THREADS,
            shared_bytes: shared_bytes(self.heads),
            overlap: true,
        };
        let args = [
            self.query_view(query)?.into(),
            kv_view.into(),
            out.into(),
            batch.tiles.into(),
            batch.seq_rows.into(),
            batch.seq_lens.into(),
            batch.context_lens.into(),
            batch.block_starts.into(),
            batch.block_ids.into(),
            batch.num_tiles.into(),
            self.heads_at_once(batch.num_keys).into(),
            num_blocks.into(),
            scale.into(),
            Arg::from(window.unwrap_or(0)),
        ];
        // SAFETY: the arguments are the kernel's; the step's builder keeps chunks within the query's rows.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }

    /// Returns how many KV heads' tiles to take before the next heads': as many as the cache holds.
    fn heads_at_once(&self, num_keys: usize) -> usize {
        let HeadShape { num_kv_heads, head_dim, .. } = self.heads;
        let fits = CACHED_BYTES / (num_keys * head_dim * 4).max(1);
        (1..=num_kv_heads)
            .rev()
            .find(|&heads| num_kv_heads.is_multiple_of(heads) && heads <= fits)
            .unwrap_or(1)
    }

    /// Views the query as `[num_tokens, num_kv_heads, group, head_dim]`.
    fn query_view(&self, query: DeviceSlice) -> Result<TensorMap, CudaError> {
        let HeadShape { num_kv_heads, head_dim, .. } = self.heads;
        let (group, row) = (self.heads.group(), self.heads.query_cols() * 2);
        let spec = TensorMapSpec {
            data: query,
            dtype: self.dtype,
            dims: &[head_dim, group, num_kv_heads, query.len() / row],
            strides: &[head_dim * 2, group * head_dim * 2, row],
            box_dims: &[64, group, 1, tile_tokens(self.heads)],
            swizzle: Swizzle::B128,
        };
        Ok(TensorMap::encode(spec)?)
    }

    /// Views the layer as `[num_blocks, 8 tokens of a head, half a head, token, 64]`: the order in which the matrix instructions
    /// read a tile. Returns the number of blocks too.
    fn kv_view(&self, kv: KvLayer) -> Result<(TensorMap, usize), CudaError> {
        let HeadShape { num_kv_heads, head_dim, block_size, .. } = self.heads;
        let (row, used) = (head_dim * 2, self.heads.layer_block_len() * 2);
        let expected = used.max(1);
        if kv.data.len() < expected || kv.block_stride == 0 {
            let (operand, got) = ("kv", kv.data.len());
            return Err(CudaError::Bytes { operand, expected, got });
        }
        let num_blocks = (kv.data.len() - used) / (kv.block_stride * 2) + 1;
        let spec = TensorMapSpec {
            data: kv.data,
            dtype: self.dtype,
            dims: &[64, 8, head_dim / 64, 2 * num_kv_heads * block_size / 8, num_blocks],
            strides: &[row, 128, 8 * row, kv.block_stride * 2],
            box_dims: &[64, 8, head_dim / 64, 2, 1],
            swizzle: Swizzle::B128,
        };
        Ok((TensorMap::encode(spec)?, num_blocks))
    }
}
