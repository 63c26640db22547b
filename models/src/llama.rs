//! Llama, and the decoder that the other architectures vary: tokens in, logits out.
//!
//! A decoder is an embedding, a stack of equal layers, a norm and a head. This file knows their order; what an op is, the
//! [`Backend`] knows; which token of which sequence a row is, only the step's inputs know.
//!
//! Before it on the main path: `worker/runner.rs`. Next: `models/layers/attention.rs`.
//!
//! # Source
//! Touvron et al. 2023 (Llama, Llama 2); Dubey et al. 2024 (Llama 3, the frequencies of 3.1).

use stallfree_comm::Part;
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

/// A decoder-only transformer, or a rank's part of one.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    config: ModelConfig,
    part: Part,
    /// Where it is needed: on the first stage, and on the last if it is the head, too.
    embedding: Option<B::Matrix>,
    rope: B::Rope,
    layers: Vec<DecoderLayer<B>>,
    /// On the last stage.
    norm: Option<Norm<B>>,
    /// On the last stage, unless the embedding table is the head.
    head: Option<B::Matrix>,
}

impl<B: Backend> Model<B> for Decoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn part(&self) -> Part {
        self.part
    }

    fn hidden(&self, backend: &mut B) -> B::Tensor {
        let residual = match &self.embedding {
            Some(table) if self.part.stage.is_first() => {
                let first_token = self.config.tokens_of(self.part.tensor).start;
                let held = backend.embed(table, first_token);
                backend.all_reduce(held)
            }
            _ => backend.receive(self.config.hidden_size),
        };
        let mut x = None;
        for layer in &self.layers {
            backend.begin_layer();
            x = Some(layer.forward(backend, x, residual, &self.rope));
        }
        match (x, &self.norm) {
            (Some(x), Some(norm)) => return norm.add_forward(backend, x, residual),
            (None, Some(norm)) => return norm.forward(backend, residual),
            (Some(x), None) => backend.all_reduce_add(x, residual),
            (None, None) => {}
        }
        backend.send(residual);
        residual
    }

    fn logits(&self, backend: &mut B, hidden: B::Tensor, rows: &[u32]) -> B::Tensor {
        let hidden = backend.gather_rows(hidden, rows);
        match self.head.as_ref().or(self.embedding.as_ref()) {
            Some(head) => {
                let held = backend.head(hidden, head);
                backend.gather_columns(held, self.config.vocab_size)
            }
            None => hidden, // not the last stage
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a decoder whose layers differ from Llama's in nothing but their attention, which `attention` loads by its prefix:
    /// `model.layers.3.self_attn`.
    pub(crate) fn load<'a>(
        loader: &mut Loader<'a, B>,
        attention: impl Fn(&mut Loader<'a, B>, &str) -> Result<AttentionWeights<B>, Error>,
    ) -> Result<Self, Error> {
        let (config, part) = (loader.config(), loader.part());
        let (is_first, is_last) = (part.stage.is_first(), part.stage.is_last());
        let tied = config.tie_word_embeddings;
        let embedding = match is_first || (is_last && tied) {
            true => Some(load_table(loader, "model.embed_tokens.weight")?),
            false => None,
        };
        let rope = load_rope(loader)?;
        let held = config.layers_of(part);
        let mut layers = Vec::with_capacity(held.len().min(1024));
        for (place, layer) in held.enumerate() {
            let prefix = format!("model.layers.{layer}");
            let weights = attention(loader, &format!("{prefix}.self_attn"))?;
            layers.push(DecoderLayer {
                input_norm: Norm::load(loader, &format!("{prefix}.input_layernorm"))?,
                attention: Attention::new(
                    place,
                    config.attention_spec(layer, part.tensor),
                    weights,
                ),
                post_attention_norm: Norm::load(
                    loader,
                    &format!("{prefix}.post_attention_layernorm"),
                )?,
                mlp: Mlp::load(loader, &format!("{prefix}.mlp"))?,
            });
        }
        let norm = if is_last { Some(Norm::load(loader, "model.norm")?) } else { None };
        let head = match is_last && !tied {
            true => Some(load_table(loader, "lm_head.weight")?),
            false => None,
        };
        Ok(Self { config: config.clone(), part, embedding, rope, layers, norm, head })
    }
}

/// Loads a rank's tokens of the embedding table or the head.
fn load_table<B: Backend>(loader: &mut Loader<'_, B>, name: &str) -> Result<B::Matrix, Error> {
    let config = loader.config();
    let held = config.tokens_of(loader.part().tensor);
    let weight = loader.rows(name, &[config.vocab_size, config.hidden_size], held)?;
    loader.matrix(vec![weight])
}

fn load_rope<B: Backend>(loader: &mut Loader<'_, B>) -> Result<B::Rope, Error> {
    let mut inv_freq = rope::inv_freq(loader.config());
    // GGUF has Llama 3.1's stretching as a divisor for each frequency instead of the settings that it comes from.
    const FACTORS: &str = "rope_freqs.weight";
    if loader.has(FACTORS) {
        let factors = loader.weight(FACTORS, &[inv_freq.len()])?;
        for (freq, factor) in inv_freq.iter_mut().zip(factors.to_f32()) {
            *freq /= factor;
        }
    }
    loader.rope(&inv_freq)
}
