//! Llama, and the decoder that the other architectures vary: tokens in, logits out.
//!
//! A decoder is an embedding, a stack of equal layers, a norm and a head. This file knows their order; what an op is, the
//! [`Backend`] knows; which token of which sequence a row is, only the step's inputs know.
//!
//! Before it on the main path: `worker/runner.rs`. Next: `models/layers/attention.rs`.
//!
//! # Source
//! Touvron et al. 2023 (Llama, Llama 2); Dubey et al. 2024 (Llama 3, the frequencies of 3.1).

use stallfree_kernels::Backend;

use crate::layers::{Attention, AttentionWeights, DecoderLayer, Mlp, Norm, rope};
use crate::loader::Loader;
use crate::{Architecture, Error, Model, ModelConfig};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    names: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_types: &["llama"],
    gguf: &["llama"],
    doc: "Llama 2, 3, 3.1 and 3.2 (text), Yi, SmolLM2, TinyLlama",
    configure: |_, _| Ok(()),
    stored_name: str::to_owned,
    gguf_pairs_rows: true,
};

pub(crate) fn build<B: Backend>(loader: &mut Loader<'_, B>) -> Result<Decoder<B>, Error> {
    Decoder::load(loader, AttentionWeights::load)
}

/// A decoder-only transformer.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    config: ModelConfig,
    embedding: B::Matrix,
    rope: B::Rope,
    layers: Vec<DecoderLayer<B>>,
    norm: Norm<B>,
    /// `None`: the embedding table is the head, too.
    head: Option<B::Matrix>,
}

impl<B: Backend> Model<B> for Decoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden(&self, backend: &mut B) -> B::Tensor {
        let residual = backend.embed(&self.embedding);
        let mut x = None;
        for layer in &self.layers {
            backend.begin_layer();
            x = Some(layer.forward(backend, x, residual, &self.rope));
        }
        match x {
            Some(x) => self.norm.add_forward(backend, x, residual),
            None => self.norm.forward(backend, residual),
        }
    }

    fn logits(&self, backend: &mut B, hidden: B::Tensor, rows: &[u32]) -> B::Tensor {
        let hidden = backend.gather_rows(hidden, rows);
        backend.head(hidden, self.head.as_ref().unwrap_or(&self.embedding))
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a decoder whose layers differ from Llama's in nothing but their attention, which `attention` loads by its prefix:
    /// `model.layers.3.self_attn`.
    pub(crate) fn load<'a>(
        loader: &mut Loader<'a, B>,
        attention: impl Fn(&mut Loader<'a, B>, &str) -> Result<AttentionWeights<B>, Error>,
    ) -> Result<Self, Error> {
        let config = loader.config();
        let table =
            loader.weight("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let embedding = loader.matrix(vec![table])?;
        let rope = load_rope(loader)?;
        let mut layers = Vec::with_capacity(config.num_layers.min(1024));
        for layer in 0..config.num_layers {
            let prefix = format!("model.layers.{layer}");
            let weights = attention(loader, &format!("{prefix}.self_attn"))?;
            layers.push(DecoderLayer {
                input_norm: Norm::load(loader, &format!("{prefix}.input_layernorm"))?,
                attention: Attention::new(layer, config.attention_spec(layer), weights),
                post_attention_norm: Norm::load(
                    loader,
                    &format!("{prefix}.post_attention_layernorm"),
                )?,
                mlp: Mlp::load(loader, &format!("{prefix}.mlp"))?,
            });
        }
        let norm = Norm::load(loader, "model.norm")?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            let weight =
                loader.weight("lm_head.weight", &[config.vocab_size, config.hidden_size])?;
            Some(loader.matrix(vec![weight])?)
        };
        Ok(Self { config: config.clone(), embedding, rope, layers, norm, head })
    }
}

fn load_rope<B: Backend>(loader: &mut Loader<'_, B>) -> Result<B::Rope, Error> {
    let mut inv_freq = rope::inv_freq(loader.config());
    // GGUF has Llama 3.1's stretching as a divisor for each frequency instead of the settings that it comes from.
    const FACTORS: &str = "rope_freqs.weight";
    if loader.has(FACTORS) {
        let factors = loader.weight(FACTORS, &[inv_freq.len()])?;
        for (freq, factor) in inv_freq.iter_mut().zip(factors.floats().unwrap_or_default()) {
            *freq /= factor;
        }
    }
    loader.rope(&inv_freq)
}
