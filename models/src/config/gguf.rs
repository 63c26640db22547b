//! Reads a GGUF file's metadata as a model's configuration.

use super::{Biases, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
use crate::checkpoint::{Gguf, Value};
use crate::error::printable;
use crate::{Error, registry};

/// Reads the configuration of `file`.
///
/// # Errors
/// The architecture or another setting is not supported, or a setting is missing or impossible.
pub(crate) fn parse(file: &Gguf) -> Result<ModelConfig, Error> {
    let name = file.string("general.architecture").unwrap_or("unnamed");
    let architecture = registry::by_gguf_name(name)?;
    let keys = Keys { file, prefix: name };
    keys.refuse_unsupported()?;
    let hidden_size = keys.required("embedding_length")?;
    let num_heads = keys.required("attention.head_count")?;
    let head_dim = match keys.optional("attention.key_length") {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    if keys.optional("rope.dimension_count").is_some_and(|rotated| rotated != head_dim) {
        return Err(unsupported("rotation of a part of each head", "rotation of whole heads"));
    }
    let end_tokens = ["eos_token_id", "eot_token_id"];
    let mut eos_token_ids: Vec<u32> =
        end_tokens.iter().filter_map(|key| file.token_id(key)).collect();
    eos_token_ids.dedup();
    let window = keys.optional("attention.sliding_window").filter(|&size| size > 0);
    let config = ModelConfig {
        architecture: architecture.names[0].to_owned(),
        hidden_size,
        num_layers: keys.required("block_count")?,
        num_heads,
        num_kv_heads: keys.optional("attention.head_count_kv").unwrap_or(num_heads),
        head_dim,
        intermediate_size: keys.required("feed_forward_length")?,
        vocab_size: keys.vocab_size()?,
        rope: RopeConfig {
            theta: file.float(&keys.key("rope.freq_base")).unwrap_or(10_000.0),
            scaling: keys.scaling()?,
        },
        rms_norm_eps: file.float(&keys.key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-6)
            as f32,
        tie_word_embeddings: !file.has("output.weight"),
        sliding_window: window.map(|size| SlidingWindow { size, first_layer: 0 }),
        biases: Biases {
            qkv: file.has("blk.0.attn_q.bias"),
            output: file.has("blk.0.attn_output.bias"),
        },
        max_position_embeddings: keys.required("context_length")?,
        bos_token_id: file.token_id("bos_token_id"),
        eos_token_ids,
        dtype: None,
    };
    config.validate()?;
    Ok(config)
}

/// The settings of one architecture, whose keys start with its name.
struct Keys<'a> {
    file: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn optional(&self, name: &str) -> Option<usize> {
        self.file.integer(&self.key(name)).and_then(|value| usize::try_from(value).ok())
    }

    fn required(&self, name: &str) -> Result<usize, Error> {
        self.optional(name).ok_or_else(|| Error::config(self.key(name), "missing, or not a number"))
    }

    fn vocab_size(&self) -> Result<usize, Error> {
        match self.file.shape("token_embd.weight") {
            Some(&[rows, _]) => Ok(rows),
            _ => self.required("vocab_size"),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), Error> {
        if self.optional("expert_count").is_some_and(|experts| experts > 0) {
            return Err(unsupported("a mixture of experts", "dense models"));
        }
        if self.file.integer("split.count").is_some_and(|parts| parts > 1) {
            return Err(unsupported(
                "a GGUF split into several files",
                "one file (gguf-split --merge)",
            ));
        }
        Ok(())
    }

    fn scaling(&self) -> Result<RopeScaling, Error> {
        // Files before 2024 name no type, only a factor.
        let old_factor = self.file.float(&self.key("rope.scale_linear"));
        let factor = self.file.float(&self.key("rope.scaling.factor")).or(old_factor);
        let kind = match self.file.value(&self.key("rope.scaling.type")) {
            Some(Value::String(kind)) => kind.as_str(),
            _ if old_factor.is_some() => "linear",
            _ => "none",
        };
        match (kind, factor) {
            ("none", _) => Ok(RopeScaling::None),
            ("linear", Some(factor)) if factor.is_finite() && factor > 0.0 => {
                Ok(RopeScaling::Linear { factor })
            }
            ("linear", _) => {
                Err(Error::config(self.key("rope.scaling.factor"), "missing, or not positive"))
            }
            (other, _) => Err(unsupported(
                &format!("rope scaling {}", printable(other)),
                "none, linear, llama3",
            )),
        }
    }
}

fn unsupported(what: &str, supported: &str) -> Error {
    Error::Unsupported { what: what.to_owned(), supported: supported.to_owned() }
}
