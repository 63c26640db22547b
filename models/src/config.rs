//! What a model is made of, whichever file says so.

mod gguf;
mod hf;

use stallfree_comm::Share;
use stallfree_kernels::{AttentionSpec, MAX_VOCAB, WeightType};

use crate::Error;

pub(crate) use gguf::parse as parse_gguf;
pub(crate) use hf::{parse as parse_hf, token_ids};

/// A decoder's dimensions and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture, by the first of its names in the registry: `LlamaForCausalLM`.
    pub architecture: String,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements between the two halves of the feed-forward network.
    pub intermediate_size: usize,
    /// Rows of the embedding table, which may be more than the tokenizer's tokens.
    pub vocab_size: usize,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// What norms add to the mean square.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Which layers see only the last positions.
    pub sliding_window: Option<SlidingWindow>,
    /// Which linear layers of attention have a bias.
    pub biases: Biases,
    /// The positions that the model was trained for, before any scaling.
    pub max_position_embeddings: usize,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The type that the weights were made in, if the file says.
    pub dtype: Option<WeightType>,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for contexts beyond the training length.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor: position interpolation, Chen et al. 2023.
    Linear {
        /// Positions are divided by this.
        factor: f64,
    },
    /// Low frequencies by `factor`, high ones not at all, those between in part: Llama 3.1.
    Llama3 {
        /// Low frequencies are divided by this.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context length before stretching.
        original_max_position_embeddings: usize,
    },
}

/// Which layers see only the last positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// How many positions back a query sees, itself included.
    pub size: usize,
    /// The first layer with a window; all later ones have it too.
    pub first_layer: usize,
}

/// Which linear layers of attention have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output projection.
    pub output: bool,
}

impl ModelConfig {
    /// Returns the longest context that the model can be asked for, in tokens.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        match self.rope.scaling {
            RopeScaling::Linear { factor } => {
                (self.max_position_embeddings as f64 * factor) as usize
            }
            RopeScaling::None | RopeScaling::Llama3 { .. } => self.max_position_embeddings,
        }
    }

    /// Returns how many weights the model has, its biases and norms left out.
    #[must_use]
    pub fn num_parameters(&self) -> u64 {
        let size = |value: usize| value as f64;
        let heads = size(self.num_heads) + size(self.num_kv_heads);
        let per_hidden = 2.0 * heads * size(self.head_dim) + 3.0 * size(self.intermediate_size);
        let tables = if self.tie_word_embeddings { 1.0 } else { 2.0 };
        let columns = per_hidden * size(self.num_layers) + tables * size(self.vocab_size);
        (columns * size(self.hidden_size)) as u64
    }

    /// Returns the shape of a rank's share of one layer's attention.
    #[must_use]
    pub fn attention_spec(&self, layer: usize, share: Share) -> AttentionSpec {
        let window = self.sliding_window.filter(|window| layer >= window.first_layer);
        AttentionSpec {
            num_heads: self.heads_of(share).len(),
            num_kv_heads: self.kv_heads_of(share).len(),
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            sliding_window: window.map(|window| window.size),
        }
    }

    /// Checks that the dimensions make a model.
    fn validate(&self) -> Result<(), Error> {
        let dimensions = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, value) in dimensions {
            if value == 0 || value > MAX_DIMENSION {
                return Err(Error::config(
                    field,
                    format!("{value} is not between 1 and {MAX_DIMENSION}"),
                ));
            }
        }
        if self.vocab_size > MAX_VOCAB {
            let problem =
                format!("{} tokens; at most {MAX_VOCAB} can be drawn from", self.vocab_size);
            return Err(Error::config("vocab_size", problem));
        }
        if self.num_parameters() > MAX_PARAMETERS {
            let problem =
                format!("{} parameters are more than any model has", self.num_parameters());
            return Err(Error::config("config.json", problem));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
            let problem = format!("{kv_heads} does not divide the {heads} attention heads");
            return Err(Error::config("num_key_value_heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(
                "head_dim",
                format!("{} is odd; rotation needs pairs", self.head_dim),
            ));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(Error::config(
                "rope_theta",
                format!("{} is not a positive number", self.rope.theta),
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let problem = format!("{} is not a small positive number", self.rms_norm_eps);
            return Err(Error::config("rms_norm_eps", problem));
        }
        Ok(())
    }
}

/// No dimension of a real model comes near, and products of two stay far from overflow.
const MAX_DIMENSION: usize = 1 << 28;

/// Eight trillion.
const MAX_PARAMETERS: u64 = 1 << 43;
