//! What a loaded model can do.

use stallfree_comm::Part;
use stallfree_kernels::{Backend, KvSpec};

use crate::ModelConfig;

/// A model whose weights are on a backend.
///
/// A step is `backend.begin_step(inputs)`, [`hidden`](Self::hidden), then [`logits`](Self::logits) of the rows that are sampled
/// from, in as many slices as memory asks for.
pub trait Model<B: Backend>: Send {
    /// Returns what the model was built from.
    fn config(&self) -> &ModelConfig;

    /// Returns the part of the model that this is.
    fn part(&self) -> Part;

    /// Runs all layers over the step's tokens and returns their final hidden states, already normed. On a stage that others follow
    /// it sends on what they continue from, and returns that.
    ///
    /// # Shapes
    /// - returns `[num_tokens, hidden_size]`
    fn hidden(&self, backend: &mut B) -> B::Tensor;

    /// Returns the logits of some rows of `hidden`, in the order given. Only the last stage has any.
    ///
    /// # Shapes
    /// - `hidden`: `[num_tokens, hidden_size]`
    /// - returns `[rows.len(), vocab_size]`
    fn logits(&self, backend: &mut B, hidden: B::Tensor, rows: &[u32]) -> B::Tensor;

    /// Runs the whole step and returns the logits of `logit_rows`.
    fn forward(&self, backend: &mut B, logit_rows: &[u32]) -> B::Tensor {
        let hidden = self.hidden(backend);
        self.logits(backend, hidden, logit_rows)
    }

    /// Returns what the KV cache has to hold for `num_blocks` blocks of `block_size` tokens.
    fn kv_spec(&self, num_blocks: usize, block_size: usize) -> KvSpec {
        self.config().kv_spec(self.part(), num_blocks, block_size)
    }
}
