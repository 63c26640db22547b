//! The vocabulary of fused ops.

use std::fmt::Debug;
use std::ops::Range;

use crate::cuda::CudaKv;
use crate::{KernelError, SampleRows, Sampled, WeightTensor};

/// The most entries of all block tables of a step together: a device has memory for them set aside.
pub const MAX_BLOCK_IDS: usize = 4 << 20;

/// A device that models run on.
///
/// Activations are matrices `[rows, cols]`, one row a token of the step. Ops return handles into an arena that lives until the
/// next [`begin_step`](Self::begin_step) and whose addresses depend only on the sequence of ops and the number of rows, so that
/// a step can be captured as a graph. A row's result never depends on its batch mates or on how its prompt was cut into chunks.
pub trait Backend: Send {
    /// How many steps may be under way at once: more than one where ops only submit work to a device that runs beside the host.
    const MAX_IN_FLIGHT: usize;

    /// A loaded matrix `[out_features, in_features]`: a linear layer's weight or an embedding table.
    type Matrix: Debug + Send + Sync;
    /// A loaded vector: a norm's weight or a bias.
    type Vector: Debug + Send + Sync;
    /// Loaded rotary frequencies.
    type Rope: Debug + Send + Sync;
    /// A handle to an activation matrix of this step.
    type Tensor: Copy + Debug;
    /// Tokens that the device is choosing.
    type Choice: Choice;

    /// Loads a matrix whose rows are those of `parts`, one after the other (fused QKV, fused gate and up). The parts may differ
    /// in type; they agree in columns.
    ///
    /// # Errors
    /// A part has the wrong number of bytes or columns, or memory is short.
    fn load_matrix(&mut self, parts: &[WeightTensor<'_>]) -> Result<Self::Matrix, KernelError>;

    /// Loads a vector whose elements are those of `parts`, one after the other.
    ///
    /// # Errors
    /// A part has the wrong number of bytes, or memory is short.
    fn load_vector(&mut self, parts: &[WeightTensor<'_>]) -> Result<Self::Vector, KernelError>;

    /// Loads rotary frequencies: `inv_freq[i]` is the angle that the pair (i, i + head_dim / 2) turns by a position.
    ///
    /// # Errors
    /// Memory is short.
    fn load_rope(&mut self, inv_freq: &[f32]) -> Result<Self::Rope, KernelError>;

    /// Takes the memory of the KV cache, once, before the first step.
    ///
    /// # Errors
    /// Memory is short.
    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), KernelError>;

    /// Returns how many bytes a head's keys and values of a layer take in a block: a piece.
    fn kv_piece_bytes(&self) -> usize;

    /// Returns the KV cache, if it lies where others can copy from it and into it without this backend; `None` by default.
    fn device_kv(&self) -> Option<CudaKv> {
        None
    }

    /// Copies blocks out of the KV cache, as the steps before leave them: `[block, layer, head]` pieces.
    fn read_kv(&mut self, blocks: &[u32]) -> Vec<u8>;

    /// Copies pieces that a backend of this kind has read into blocks, before the steps to come.
    fn write_kv(&mut self, blocks: &[u32], pieces: &[u8]);

    /// Starts a step: forgets all handles and brings the step's inputs to the device. Their block tables have at most
    /// [`MAX_BLOCK_IDS`] entries.
    fn begin_step(&mut self, inputs: &StepInputs);

    /// Starts a layer: forgets what the layer before the last one made, so that a step's activations take the memory of two
    /// layers and not of all. What was made before the first layer, such as the residual, lives on.
    fn begin_layer(&mut self) {}

    /// Looks up the step's tokens: `[num_tokens, hidden]`. The table's first row is that of token `first_token`; a token that it
    /// does not hold is a row of zeros, as ranks need that hold a share of the table each.
    fn embed(&mut self, table: &Self::Matrix, first_token: usize) -> Self::Tensor;

    /// Returns `x / rms(x) * weight`, row by row.
    fn rms_norm(&mut self, x: Self::Tensor, weight: &Self::Vector, eps: f32) -> Self::Tensor;

    /// Adds `x` to `residual` in place and returns the sum's norm.
    fn add_rms_norm(
        &mut self,
        x: Self::Tensor,
        residual: Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
    ) -> Self::Tensor;

    /// Returns `x · weightᵀ + bias`: `[rows, out_features]`.
    fn linear(
        &mut self,
        x: Self::Tensor,
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
    ) -> Self::Tensor;

    /// Returns `silu(gate) * up` for `[gate | up] = x · weightᵀ`: `[rows, out_features / 2]`.
    fn linear_silu_mul(&mut self, x: Self::Tensor, weight: &Self::Matrix) -> Self::Tensor {
        let gate_up = self.linear(x, weight, None);
        self.silu_mul(gate_up)
    }

    /// Returns the logits `x · weightᵀ`, in single precision whatever the device computes in.
    fn head(&mut self, x: Self::Tensor, weight: &Self::Matrix) -> Self::Tensor {
        self.linear(x, weight, None)
    }

    /// Normalises (if asked) and rotates the queries and keys of `qkv`, writes keys and values of layer `layer` into the step's
    /// slots of the KV cache, and returns the queries.
    ///
    /// # Shapes
    /// - `qkv`: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`, queries, then keys, then values
    /// - returns `[num_tokens, num_heads * head_dim]`
    fn rope_kv_write(
        &mut self,
        layer: usize,
        qkv: Self::Tensor,
        spec: &AttentionSpec,
        rope: &Self::Rope,
        qk_norm: Option<&QkNorm<Self::Vector>>,
    ) -> Self::Tensor;

    /// Attends each query to its sequence's cached positions up to its own, within the sliding window if there is one.
    ///
    /// # Shapes
    /// - `query`, result: `[num_tokens, num_heads * head_dim]`
    ///
    /// # Source
    /// PagedAttention, Kwon et al. 2023, §4.1; online softmax, FlashAttention, Dao et al. 2022.
    fn paged_attention(
        &mut self,
        layer: usize,
        query: Self::Tensor,
        spec: &AttentionSpec,
    ) -> Self::Tensor;

    /// Returns `silu(gate) * up` for `gate_up = [gate | up]`: `[rows, 2 * ffn]` to `[rows, ffn]`.
    fn silu_mul(&mut self, gate_up: Self::Tensor) -> Self::Tensor;

    /// Returns the sum of `x` over the ranks of the stage; in a world of one, `x`. It may have taken the place of `x`.
    fn all_reduce(&mut self, x: Self::Tensor) -> Self::Tensor;

    /// Sums `x` over the ranks, adds the sum to `residual` in place and returns the norm of that: what follows a row-parallel
    /// product.
    fn all_reduce_add_rms_norm(
        &mut self,
        x: Self::Tensor,
        residual: Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
    ) -> Self::Tensor {
        let sum = self.all_reduce(x);
        self.add_rms_norm(sum, residual, weight, eps)
    }

    /// Sums `x` over the ranks and adds the sum to `residual` in place: what ends a stage that others follow.
    fn all_reduce_add(&mut self, x: Self::Tensor, residual: Self::Tensor);

    /// Returns the columns of all ranks of the stage side by side, `cols` in all; in a world of one, `x`.
    fn gather_columns(&mut self, x: Self::Tensor, cols: usize) -> Self::Tensor;

    /// Sends `x` to the rank of the next stage that holds the same share.
    fn send(&mut self, x: Self::Tensor);

    /// Returns what the rank of the stage before sends: `[num_tokens, cols]`.
    fn receive(&mut self, cols: usize) -> Self::Tensor;

    /// Returns some rows of `x`, in the order given.
    fn gather_rows(&mut self, x: Self::Tensor, rows: &[u32]) -> Self::Tensor;

    /// Returns `x`'s values, row-major, once they are computed.
    fn read(&mut self, x: Self::Tensor) -> &[f32];

    /// Chooses a token for each row of logits as `rows` says. The tokens also stay on the device, after the step's earlier ones,
    /// until the next step's first: see [`StepInputs::token_ids`]. Rows may name what the step before chose only in a step's first
    /// choice.
    fn sample(&mut self, logits: Self::Tensor, rows: &SampleRows) -> Self::Choice;

    /// Ends a step that chooses nothing: a choice of no tokens, there once the step is done.
    fn end_step(&mut self) -> Self::Choice;

    /// Returns all that the last step chose, once it is there.
    fn chosen(&mut self) -> Vec<u32>;

    /// Runs `ops` and returns their result. They are the same whenever the step has no chunk, only single tokens: a device may
    /// then record them once for each number of tokens and replay them.
    fn record(&mut self, ops: &dyn Fn(&mut Self) -> Self::Tensor) -> Self::Tensor {
        ops(self)
    }

    /// Returns the numbers of sequences for which steps of at most `num_seqs` are recorded; [`prepare`](Self::prepare) takes each ahead
    /// of time.
    fn recorded_sizes(&self, _num_seqs: usize) -> Vec<usize> {
        Vec::new()
    }

    /// Records `ops` for the step whose inputs are there, without a result.
    fn prepare(&mut self, ops: &dyn Fn(&mut Self) -> Self::Tensor) {
        ops(self);
    }
}

/// Tokens that a device is choosing. It may be waited for on another thread than the backend's.
pub trait Choice: Send + 'static {
    /// Waits for them.
    fn wait(self) -> Vec<Sampled>;
}

impl Choice for Vec<Sampled> {
    fn wait(self) -> Vec<Sampled> {
        self
    }
}

/// Returns what stands in [`StepInputs::token_ids`] for the token that the step before chose at `place` of all its choices.
#[must_use]
pub const fn chosen_at(place: u32) -> u32 {
    place | 1 << 31
}

/// The shape of one layer's attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How many positions back a query sees, itself included; `None` sees all.
    pub sliding_window: Option<usize>,
}

/// Per-head norms of queries and keys (Qwen3), applied before the rotation.
#[derive(Debug)]
pub struct QkNorm<V> {
    /// `[head_dim]`, for the queries.
    pub query: V,
    /// `[head_dim]`, for the keys.
    pub key: V,
    /// Added to the mean square.
    pub eps: f32,
}

/// What the KV cache has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers.
    pub num_layers: usize,
    /// Blocks a layer.
    pub num_blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// One step's inputs: a ragged batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// One a row: a token, or [`chosen_at`] a place among what the step before chose, which the host need not know yet.
    pub token_ids: Vec<u32>,
    /// Each row's position in its sequence.
    pub positions: Vec<u32>,
    /// Where each row's key and value go: block × `block_size` + offset.
    pub slot_mapping: Vec<u32>,
    /// Which rows belong together.
    pub seqs: Vec<RaggedSeq>,
    /// The sequences' block tables, one after the other.
    pub block_ids: Vec<u32>,
}

/// One sequence's share of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaggedSeq {
    /// Its rows.
    pub rows: Range<usize>,
    /// How many of its tokens are in the cache once this step's are written; its last row's position is one less.
    pub context_len: usize,
    /// Its block table, as a range of [`StepInputs::block_ids`].
    pub blocks: Range<usize>,
}
