//! How large a model's matrices are.

use serde_json::Value;
use stallfree_core::Parallel;

use crate::Error;

/// The sizes of a decoder that decide what a step costs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Decoder layers.
    pub num_layers: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements between the two halves of the feed-forward network.
    pub intermediate_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// How the feed-forward network is built.
    pub feed_forward: FeedForward,
    /// Whether attention and feed-forward network read the same input and their sums are reduced across ranks together.
    pub parallel_attention: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// How many positions back attention sees.
    pub window: Option<usize>,
    /// The longest context, in tokens.
    pub max_model_len: usize,
}

/// How a feed-forward network is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// Two matrices up, of which one gates the other, and one down: SwiGLU.
    Gated,
    /// One up, one down: GELU, ReLU.
    Plain,
}

impl FeedForward {
    /// Returns how many matrices go up.
    #[must_use]
    pub const fn ups(self) -> usize {
        match self {
            Self::Gated => 2,
            Self::Plain => 1,
        }
    }
}

/// The config.json of each model that is known by name.
const CONFIGS: &str = include_str!("../data/shapes.json");

/// The models that are known by name, without a file.
pub const BUILT_IN: &[&str] = &[
    "llama-3-8b",
    "mistral-7b",
    "yi-34b",
    "llama-2-70b",
    "falcon-180b",
    "internlm2-20b",
    "opt-13b",
    "opt-66b",
];

/// Returns the config.json of a model that is known by name, whatever its case.
#[must_use]
pub fn built_in_config(name: &str) -> Option<Value> {
    let mut all: Value = serde_json::from_str(CONFIGS).ok()?;
    all.get_mut(name.to_lowercase()).map(Value::take)
}

impl ModelShape {
    /// Returns a model that is known by name.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        Self::from_config(&built_in_config(name)?).ok()
    }

    /// Reads a parsed config.json: of the Llama family and those that share its keys, of Falcon, or of OPT.
    ///
    /// # Errors
    /// A size is missing or zero.
    pub fn from_config(config: &Value) -> Result<Self, Error> {
        let size = |key: &'static str| {
            let value = config.get(key).and_then(Value::as_u64).unwrap_or(0);
            usize::try_from(value).ok().filter(|&value| value > 0)
        };
        let need = |key: &'static str| size(key).ok_or(Error::BadShape { key });
        let is = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("llama");
        let (is_falcon, is_opt) = (kind == "falcon", kind == "opt");
        let (hidden_size, num_heads) = (need("hidden_size")?, need("num_attention_heads")?);
        let kv_heads = if is_falcon { "num_kv_heads" } else { "num_key_value_heads" };
        let intermediate_size = match kind {
            "falcon" => size("ffn_hidden_size").unwrap_or(4 * hidden_size),
            "opt" => need("ffn_dim")?,
            _ => need("intermediate_size")?,
        };
        let uses_window = config.get("use_sliding_window").and_then(Value::as_bool);
        Ok(Self {
            num_layers: need("num_hidden_layers")?,
            hidden_size,
            num_heads,
            num_kv_heads: size(kv_heads).unwrap_or(num_heads).min(num_heads),
            head_dim: size("head_dim").unwrap_or(hidden_size / num_heads).max(1),
            intermediate_size,
            vocab_size: need("vocab_size")?,
            feed_forward: if is_falcon || is_opt { FeedForward::Plain } else { FeedForward::Gated },
            parallel_attention: is_falcon,
            tied: is_falcon || is_opt || is("tie_word_embeddings"),
            window: size("sliding_window").filter(|_| uses_window != Some(false)),
            max_model_len: size("max_position_embeddings").unwrap_or(2048),
        })
    }

    /// Checks that the model can be split like that.
    pub(crate) fn check_split(&self, parallel: Parallel) -> Result<(), Error> {
        let bad = |what, given, reason: String| Err(Error::BadSplit { what, given, reason });
        let Parallel { tensor, pipeline } = parallel;
        if tensor == 0 || !self.num_heads.is_multiple_of(tensor) {
            let reason = format!("it must divide the model's {} heads", self.num_heads);
            return bad("--tensor-parallel-size", tensor, reason);
        }
        if pipeline == 0 || pipeline > self.num_layers {
            let reason = format!("the model has {} layers", self.num_layers);
            return bad("--pipeline-parallel-size", pipeline, reason);
        }
        Ok(())
    }

    /// Returns the weights of a layer's matrices.
    #[must_use]
    pub const fn layer_parameters(&self) -> usize {
        let heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim;
        let matrices = self.feed_forward.ups() + 1;
        self.hidden_size * (heads + matrices * self.intermediate_size)
    }

    /// Returns all weights of matrices and tables.
    #[must_use]
    pub const fn num_parameters(&self) -> usize {
        let tables = if self.tied { 1 } else { 2 };
        self.layer_parameters() * self.num_layers + tables * self.vocab_size * self.hidden_size
    }

    /// Returns the bytes of a token's keys and values in one layer, over all ranks.
    #[must_use]
    pub const fn layer_kv_bytes(&self) -> usize {
        2 * self.num_kv_heads * self.head_dim * BYTES
    }
}

/// Bytes of a 16-bit element.
pub(crate) const BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_models_have_their_published_sizes() {
        for (name, billions, kv_kib) in [
            ("llama-3-8b", 8.03, 128),
            ("Mistral-7B", 7.24, 128),
            ("yi-34b", 34.39, 240),
            ("llama-2-70b", 68.98, 320),
            ("falcon-180b", 178.6, 160),
            ("internlm2-20b", 19.86, 192),
            ("opt-13b", 12.85, 800),
            ("opt-66b", 65.7, 2304),
        ] {
            let shape = ModelShape::built_in(name).expect(name);
            let parameters = shape.num_parameters() as f64 / 1e9;
            assert!((parameters / billions - 1.0).abs() < 0.005, "{name}: {parameters}");
            let kv = shape.layer_kv_bytes() * shape.num_layers;
            assert_eq!(kv, kv_kib << 10, "{name}");
        }
        assert_eq!(
            BUILT_IN.len(),
            serde_json::from_str::<Value>(CONFIGS).unwrap().as_object().unwrap().len()
        );
        assert_eq!(ModelShape::built_in("gpt-5"), None);
    }

    #[test]
    fn a_config_without_a_size_is_refused_by_its_name() {
        let mut config = built_in_config("yi-34b").unwrap();
        config["hidden_size"] = 0.into();
        let error = ModelShape::from_config(&config).expect_err("no hidden size").to_string();
        assert!(error.contains("hidden_size"), "{error}");
    }
}
