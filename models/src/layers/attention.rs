//! One layer's attention: each token's query over the paged KV cache of its sequence.
//!
//! Queries, keys and values come from one fused matrix; a [`Backend`] op norms and rotates them and writes keys and values into the
//! step's slots, a second op attends. This layer does not know blocks, sequences or chunks: they are the step's inputs.
//!
//! Before it on the main path: [`llama`](crate::llama). What follows is a kernel: `kernels/src/cpu/attention.rs` on the CPU,
//! `kernels/cuda/paged_attention_prefill.cu` and `paged_attention_decode.cu` on a GPU.

use std::ops::Range;

use stallfree_kernels::{AttentionSpec, Backend, QkNorm};

use super::{Linear, Outputs};
use crate::Error;
use crate::loader::Loader;

/// Attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention<B: Backend> {
    layer: usize,
    spec: AttentionSpec,
    weights: AttentionWeights<B>,
}

/// What architectures differ in.
#[derive(Debug)]
pub(crate) struct AttentionWeights<B: Backend> {
    /// `[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]`: queries, keys, values.
    pub(crate) qkv: Linear<B>,
    /// Norms of each head's query and key.
    pub(crate) qk_norm: Option<QkNorm<B::Vector>>,
    /// `[hidden_size, num_heads * head_dim]`.
    pub(crate) output: Linear<B>,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(layer: usize, spec: AttentionSpec, weights: AttentionWeights<B>) -> Self {
        Self { layer, spec, weights }
    }

    /// Returns what the ranks' sum is the layer's output.
    ///
    /// # Shapes
    /// - `x`, result: `[num_tokens, hidden_size]`
    pub(crate) fn forward(&self, backend: &mut B, x: B::Tensor, rope: &B::Rope) -> B::Tensor {
        let AttentionWeights { qkv, qk_norm, output } = &self.weights;
        let qkv = qkv.forward(backend, x);
        let query = backend.rope_kv_write(self.layer, qkv, &self.spec, rope, qk_norm.as_ref());
        let attended = backend.paged_attention(self.layer, query, &self.spec);
        output.forward(backend, attended)
    }
}

impl<B: Backend> AttentionWeights<B> {
    /// Loads separate projections of queries, keys and values, with the biases that the configuration states.
    pub(crate) fn load(loader: &mut Loader<'_, B>, prefix: &str) -> Result<Self, Error> {
        let (config, share) = (loader.config(), loader.part().tensor);
        let outputs = |part, num_heads: usize, held: Range<usize>| Outputs {
            name: format!("{prefix}.{part}"),
            out_features: num_heads * config.head_dim,
            held: config.elements_of(held),
        };
        let kv_heads = config.kv_heads_of(share);
        let qkv = [
            outputs("q_proj", config.num_heads, config.heads_of(share)),
            outputs("k_proj", config.num_kv_heads, kv_heads.clone()),
            outputs("v_proj", config.num_kv_heads, kv_heads),
        ];
        Ok(Self {
            qkv: Linear::load_outputs(loader, &qkv, config.hidden_size, config.biases.qkv)?,
            qk_norm: None,
            output: Self::load_output(loader, prefix)?,
        })
    }

    /// Loads the output projection.
    pub(crate) fn load_output(
        loader: &mut Loader<'_, B>,
        prefix: &str,
    ) -> Result<Linear<B>, Error> {
        let config = loader.config();
        let held = config.elements_of(config.heads_of(loader.part().tensor));
        let shape = [config.hidden_size, config.num_heads * config.head_dim];
        let name = format!("{prefix}.o_proj");
        Linear::load_inputs(loader, &name, shape, held, config.biases.output)
    }
}
