//! Launches `cuda/paged_attention_decode.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, HeadShape, KvLayer, Toolchain, check_len};

/// Warps of a block, each with its own keys.
const WARPS: usize = 4;

/// Bytes of a plan that say where a block begins.
const PLACE_BYTES: usize = 32;

/// Threads that share the work out.
const PLANNERS: usize = 512;

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
}

impl DecodeBatch {
    fn check_lens(&self) -> Result<(), CudaError> {
        for (name, slice) in [
            ("rows", self.rows),
            ("context_lens", self.context_lens),
            ("block_starts", self.block_starts),
        ] {
            check_len(name, slice, self.num_seqs, 4)?;
        }
        Ok(())
    }
}

/// Attention of single tokens.
#[derive(Debug)]
pub struct PagedAttentionDecode {
    attend: Function,
    plan: Function,
    heads: HeadShape,
    /// Blocks among which all work is shared equally.
    num_blocks: usize,
}

/// The most bytes of partial results, however many sequences.
pub const DECODE_SCRATCH_BYTES: usize = 24 << 20;

/// Bytes of a block's shared memory: the warps' maxima, sums and results.
const fn shared_bytes(heads: HeadShape) -> usize {
    WARPS * heads.group() * (2 + heads.head_dim) * 4
}

/// Bytes of the partial results of a block: of the first of its parts, and of the last.
const fn block_bytes(heads: HeadShape) -> usize {
    2 * heads.group() * (2 + heads.head_dim) * 4
}

impl PagedAttentionDecode {
    pub(super) fn build(dtype: Dtype, heads: HeadShape) -> Result<Build, CudaError> {
        heads.check()?;
        let text = include_str!("../../cuda/paged_attention_decode.cu");
        let kernels = &["paged_attention_decode", "paged_attention_plan"];
        let sizes = [("WARPS", WARPS), ("PLANNERS", PLANNERS), ("PLACE_BYTES", PLACE_BYTES)];
        let mut defines = heads.defines();
        defines.extend(sizes.map(|(name, size)| (name, size.to_string())));
        let build = Build::new(dtype, ("paged_attention_decode.cu", text), kernels, defines);
        Ok(build.with_shared(shared_bytes(heads)))
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The heads are not supported, or the compiler or the driver fails.
    pub fn load(tools: &Toolchain, heads: HeadShape) -> Result<Self, CudaError> {
        let [attend, plan] = tools.load(&Self::build(tools.dtype, heads)?)?;
        let resident = attend.blocks_per_sm(WARPS * 32, shared_bytes(heads))?;
        let this = Self { attend, plan, heads, num_blocks: usize::MAX };
        Ok(this.limited_to(tools.device.props().num_sms * resident))
    }

    /// Shares work among so many blocks at most.
    #[must_use]
    pub fn limited_to(self, num_blocks: usize) -> Self {
        let most = DECODE_SCRATCH_BYTES / block_bytes(self.heads);
        Self { num_blocks: self.num_blocks.min(num_blocks).min(most).max(1), ..self }
    }

    /// Returns the bytes of a plan.
    #[must_use]
    pub const fn plan_bytes(&self, num_seqs: usize) -> usize {
        self.num_blocks * PLACE_BYTES + (num_seqs + 1) * 4
    }

    /// Returns the bytes of the two scratch ranges: partial results, and counters that start as zeros.
    #[must_use]
    pub const fn scratch_bytes(&self, num_seqs: usize) -> (usize, usize) {
        let partial = self.num_blocks * block_bytes(self.heads);
        (partial, num_seqs * self.heads.num_kv_heads * 4)
    }

    /// Submits the sharing out of a step's work, for all layers with this window: `plan` is of [`plan_bytes`](Self::plan_bytes).
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn plan(
        &self,
        stream: &Stream,
        plan: DeviceSlice,
        batch: &DecodeBatch,
        window: Option<usize>,
    ) -> Result<(), CudaError> {
        check_len("plan", plan, self.plan_bytes(batch.num_seqs), 1)?;
        batch.check_lens()?;
        let launch = Launch { grid: (1, 1, 1), threads: PLANNERS, shared_bytes: 0, overlap: true };
        let args = [
            plan.into(),
            plan.slice(self.num_blocks * PLACE_BYTES, (batch.num_seqs + 1) * 4).into(),
            batch.rows.into(),
            batch.context_lens.into(),
            batch.block_starts.into(),
            Arg::from(batch.num_seqs),
            Arg::from(self.num_blocks),
            Arg::from(window.unwrap_or(0)),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.plan.launch(stream, launch, &args) }?)
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `query`, `out`: `[num_tokens, num_heads * head_dim]`
    /// - `partial`, `counters`: of [`scratch_bytes`](Self::scratch_bytes)
    /// - `plan`: made by [`plan`](Self::plan) for this batch and window
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [query, out, partial, counters, plan]: [DeviceSlice; 5],
        kv: KvLayer,
        batch: &DecodeBatch,
        (scale, window): (f32, Option<usize>),
    ) -> Result<(), CudaError> {
        let (partial_bytes, counter_bytes) = self.scratch_bytes(batch.num_seqs);
        check_len("query", query, batch.num_seqs * self.heads.query_cols(), 2)?;
        check_len("out", out, batch.num_seqs * self.heads.query_cols(), 2)?;
        check_len("partial", partial, partial_bytes, 1)?;
        check_len("counters", counters, counter_bytes, 1)?;
        check_len("plan", plan, self.plan_bytes(batch.num_seqs), 1)?;
        batch.check_lens()?;
        let launch = Launch {
            grid: (self.num_blocks, 1, 1),
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
            plan.into(),
            batch.rows.into(),
            batch.context_lens.into(),
            batch.block_starts.into(),
            batch.block_ids.into(),
            Arg::I64(i64::try_from(kv.block_stride).unwrap_or(i64::MAX)),
            scale.into(),
            Arg::from(window.unwrap_or(0)),
            Arg::from(batch.num_seqs),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.attend.launch(stream, launch, &args) }?)
    }
}
