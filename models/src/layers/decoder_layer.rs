//! One layer of a decoder: attention, then the feed-forward network, each behind a norm and around a residual.

use stallfree_kernels::Backend;

use super::{Attention, Mlp, Norm};

/// One layer of a decoder.
#[derive(Debug)]
pub(crate) struct DecoderLayer<B: Backend> {
    pub(crate) input_norm: Norm<B>,
    pub(crate) attention: Attention<B>,
    pub(crate) post_attention_norm: Norm<B>,
    pub(crate) mlp: Mlp<B>,
}

impl<B: Backend> DecoderLayer<B> {
    /// Runs the layer on a hidden state that is held as a sum: `x`, the output of the layer before, and `residual`, all earlier
    /// ones. So each addition is fused with the norm behind it. The embedding comes as `residual` alone.
    ///
    /// # Shapes
    /// - `x`, `residual`, result: `[num_tokens, hidden_size]`
    pub(crate) fn forward(
        &self,
        backend: &mut B,
        x: Option<B::Tensor>,
        residual: B::Tensor,
        rope: &B::Rope,
    ) -> B::Tensor {
        let normed = match x {
            Some(x) => self.input_norm.add_forward(backend, x, residual),
            None => self.input_norm.forward(backend, residual),
        };
        let attended = self.attention.forward(backend, normed, rope);
        let normed = self.post_attention_norm.add_forward(backend, attended, residual);
        self.mlp.forward(backend, normed)
    }
}
