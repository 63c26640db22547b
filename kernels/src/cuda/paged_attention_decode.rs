//! Launches `cuda/paged_attention_decode.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, HeadShape, KvLayer, Toolchain, check_len};

/// Warps of a block, each with its own keys.
const WARPS: usize = 4;

/// By how much batches of equal lengths count for more than those of lengths that are spread evenly.
const ALIKE_WEIGHT: usize = 3;

/// What starting and merging a wave of blocks costs, in tiles of 16 tokens.
const WAVE_COST: usize = 6;

/// Sequences with one token each this step.
#[derive(Clone, Copy, Debug)]
pub struct DecodeBatch {
    /// How many there are.
    pub num_seqs: usize,
    /// `[num_seqs]`, u32: each one's row of the query.
    pub rows: DeviceSlice,
    /// `[num_seqs]`, u32: tokens in the cache, this step's among them; at least 1.
    pub context_lens: DeviceSlice,
    /// `[num_seqs]`, u32: where each one's block table begins in `block_ids`.
    pub block_starts: DeviceSlice,
    /// u32: the block tables, one after the other.
    pub block_ids: DeviceSlice,
    /// How many blocks share one KV head of one sequence; see [`PagedAttentionDecode::splits`].
    pub splits: usize,
}

/// Attention of single tokens.
#[derive(Debug)]
pub struct PagedAttentionDecode {
    function: Function,
    heads: HeadShape,
    /// Blocks that run at once.
    slots: usize,
}

/// The most bytes of partial results, however many sequences and splits.
pub const DECODE_SCRATCH_BYTES: usize = 64 << 20;

/// Bytes of a block's shared memory: the warps' maxima, sums and results.
const fn shared_bytes(heads: HeadShape) -> usize {
    WARPS * heads.group() * (2 + heads.head_dim) * 4
}

/// Returns the number of blocks up to `most` for each of `units` with at most `tiles` tiles, of which `slots` run at once.
fn best_splits((units, tiles): (usize, usize), slots: usize, most: usize) -> usize {
    let cost = |splits: usize| {
        let (blocks, longest) = (units * splits, tiles.div_ceil(splits).next_multiple_of(WARPS));
        let alike = blocks.div_ceil(slots) * (longest + WAVE_COST);
        let spread = (blocks * (longest / 2 + WAVE_COST)).div_ceil(slots) + longest + WAVE_COST;
        ALIKE_WEIGHT * alike + spread
    };
    (1..=most).min_by_key(|&splits| cost(splits)).unwrap_or(1)
}

impl PagedAttentionDecode {
    pub(super) fn build(dtype: Dtype, heads: HeadShape) -> Result<Build, CudaError> {
        heads.check()?;
        let text = include_str!("../../cuda/paged_attention_decode.cu");
        let kernels = &["paged_attention_decode"];
        let build =
            Build::new(dtype, ("paged_attention_decode.cu", text), kernels, heads.defines());
        Ok(build.with_shared(shared_bytes(heads)))
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The heads are not supported, or the compiler or the driver fails.
    pub fn load(tools: &Toolchain, heads: HeadShape) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype, heads)?)?;
        let resident = function.blocks_per_sm(WARPS * 32, shared_bytes(heads))?;
        Ok(Self { function, heads, slots: tools.device.props().num_sms * resident })
    }

    /// Returns how many blocks should share a KV head of a sequence, within [`DECODE_SCRATCH_BYTES`], for `num_seqs` sequences of at most
    /// `context` tokens: the number that ends soonest in two cases, weighed. If all are that long, blocks run in waves, each of which
    /// takes the time of its share and of `WAVE_COST` more tiles. If lengths are spread evenly, blocks take a slot when one is free, and
    /// the last to begin may be the longest (Graham's bound).
    #[must_use]
    pub fn splits(&self, num_seqs: usize, context: usize) -> usize {
        let (units, tiles) = (num_seqs * self.heads.num_kv_heads, context.div_ceil(16));
        let room = DECODE_SCRATCH_BYTES / self.split_bytes(num_seqs).max(1);
        let most = tiles.div_ceil(WARPS).min(256).min(room).max(1);
        best_splits((units, tiles), self.slots, most)
    }

    const fn split_bytes(&self, num_seqs: usize) -> usize {
        num_seqs * self.heads.num_heads * (self.heads.head_dim + 2) * 4
    }

    /// Returns the bytes of the two scratch ranges: partial results, if there are several splits, and counters that start as zeros.
    #[must_use]
    pub const fn scratch_bytes(&self, num_seqs: usize, splits: usize) -> (usize, usize) {
        let partial = if splits > 1 { splits * self.split_bytes(num_seqs) } else { 0 };
        (partial, num_seqs * self.heads.num_kv_heads * 4)
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `query`, `out`: `[num_tokens, num_heads * head_dim]`
    /// - `partial`, `counters`: of [`scratch_bytes`](Self::scratch_bytes)
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [query, out, partial, counters]: [DeviceSlice; 4],
        kv: KvLayer,
        batch: &DecodeBatch,
        (scale, window): (f32, Option<usize>),
    ) -> Result<(), CudaError> {
        let (partial_bytes, counter_bytes) = self.scratch_bytes(batch.num_seqs, batch.splits);
        check_len("query", query, batch.num_seqs * self.heads.query_cols(), 2)?;
        check_len("out", out, batch.num_seqs * self.heads.query_cols(), 2)?;
        check_len("partial", partial, partial_bytes, 1)?;
        check_len("counters", counters, counter_bytes, 1)?;
        for (name, slice) in [
            ("rows", batch.rows),
            ("context_lens", batch.context_lens),
            ("block_starts", batch.block_starts),
        ] {
            check_len(name, slice, batch.num_seqs, 4)?;
        }
        let launch = Launch {
            grid: (batch.splits, self.heads.num_kv_heads, batch.num_seqs),
            threads: WARPS * 32,
            shared_bytes: shared_bytes(self.heads),
            overlap: true,
        };
        let args = [
            query.into(),
            kv.data.into(),
            out.into(),
            partial.into(),
            counters.into(),
            batch.rows.into(),
            batch.context_lens.into(),
            batch.block_starts.into(),
            batch.block_ids.into(),
            Arg::I64(i64::try_from(kv.block_stride).unwrap_or(i64::MAX)),
            scale.into(),
            Arg::from(window.unwrap_or(0)),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::best_splits;

    #[test]
    fn blocks_are_even_where_lengths_are_not() {
        // 132 multiprocessors with three blocks each, 8 KV heads: sequences, the longest context, blocks for each.
        for (num_seqs, context, expected) in [
            (1, 1024, 16),
            (32, 1024, 3),
            (128, 1024, 1),
            (256, 1024, 2),
            (64, 4096, 3),
            // One block for each would end soonest if all were as long; one of 8,192 tokens takes three times as long as the rest.
            (48, 8192, 4),
            (24, 8192, 8),
            (8, 16_384, 12),
        ] {
            let splits = best_splits((num_seqs * 8, context / 16), 396, 256);
            assert_eq!(splits, expected, "{num_seqs} of {context}");
        }
    }
}
