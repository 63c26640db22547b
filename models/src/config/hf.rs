//! Reads `config.json` as Hugging Face writes it, its older spellings included.

use serde::Deserialize;
use serde_json::Value;
use stallfree_kernels::WeightType;

use super::{Biases, ModelConfig, RopeConfig, RopeScaling};
use crate::error::printable;
use crate::{Error, registry};

/// The settings that all architectures share; what only one knows, its own file reads.
#[derive(Debug, Deserialize)]
struct HfConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    #[serde(alias = "dtype")]
    torch_dtype: Option<String>,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_positions() -> usize {
    2048
}

/// Reads a parsed `config.json`.
///
/// # Errors
/// The architecture, quantization or another setting is not supported, or a setting is missing or impossible.
pub(crate) fn parse(json: &Value) -> Result<ModelConfig, Error> {
    let architecture = registry::by_hf_config(json)?;
    refuse_quantized(json)?;
    let raw =
        HfConfig::deserialize(json).map_err(|e| Error::config("config.json", e.to_string()))?;
    raw.refuse_unsupported()?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => head_dim,
        None => raw.hidden_size.checked_div(raw.num_attention_heads).unwrap_or(0),
    };
    let attention_bias = raw.attention_bias.unwrap_or(false);
    let mut config = ModelConfig {
        architecture: architecture.names[0].to_owned(),
        hidden_size: raw.hidden_size,
        num_layers: raw.num_hidden_layers,
        num_heads: raw.num_attention_heads,
        num_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        head_dim,
        intermediate_size: raw.intermediate_size,
        vocab_size: raw.vocab_size,
        rope: raw.rope()?,
        rms_norm_eps: raw.rms_norm_eps as f32,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        sliding_window: None,
        biases: Biases { qkv: attention_bias, output: attention_bias },
        max_position_embeddings: raw.max_position_embeddings,
        bos_token_id: raw.bos_token_id.as_ref().and_then(|id| token_ids(id).first().copied()),
        eos_token_ids: raw.eos_token_id.as_ref().map(token_ids).unwrap_or_default(),
        dtype: raw.dtype()?,
    };
    (architecture.configure)(json, &mut config)?;
    config.validate()?;
    Ok(config)
}

impl HfConfig {
    fn refuse_unsupported(&self) -> Result<(), Error> {
        if let Some(act) =
            self.hidden_act.as_deref().filter(|act| !matches!(*act, "silu" | "swish"))
        {
            return Err(unsupported(format!("hidden_act {}", printable(act)), "silu"));
        }
        if self.mlp_bias == Some(true) {
            return Err(unsupported("mlp_bias true", "false"));
        }
        if self.partial_rotary_factor.is_some_and(|factor| (factor - 1.0).abs() > 1e-6) {
            return Err(unsupported("a partial_rotary_factor", "rotation of whole heads"));
        }
        Ok(())
    }

    fn dtype(&self) -> Result<Option<WeightType>, Error> {
        let Some(name) = &self.torch_dtype else { return Ok(None) };
        match name.trim_start_matches("torch.") {
            "float32" | "float" => Ok(Some(WeightType::F32)),
            "float16" | "half" => Ok(Some(WeightType::F16)),
            "bfloat16" => Ok(Some(WeightType::BF16)),
            other => Err(unsupported(
                format!("torch_dtype {}", printable(other)),
                "float32, float16, bfloat16",
            )),
        }
    }

    fn rope(&self) -> Result<RopeConfig, Error> {
        // Newer files hold theta and scaling together in rope_parameters.
        let parameters = self.rope_parameters.as_ref().filter(|parameters| parameters.is_object());
        let scaling =
            self.rope_scaling.as_ref().filter(|scaling| scaling.is_object()).or(parameters);
        let theta = self.rope_theta.or_else(|| parameters?.get("rope_theta")?.as_f64());
        Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), scaling: rope_scaling(scaling)? })
    }
}

/// Reads rope_scaling, with the old name of its kind and the new one.
fn rope_scaling(scaling: Option<&Value>) -> Result<RopeScaling, Error> {
    let Some(scaling) = scaling else { return Ok(RopeScaling::None) };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
    let positive = |key: &str| match scaling.get(key).and_then(Value::as_f64) {
        Some(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(Error::config(format!("rope_scaling.{key}"), "missing, or not a positive number")),
    };
    match kind {
        // Dynamic scaling only begins beyond max_position_embeddings, and that is where contexts end here.
        None | Some("default" | "dynamic") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: positive("factor")? }),
        Some("llama3") => {
            let low_freq_factor = positive("low_freq_factor")?;
            let high_freq_factor = positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let problem = "not above low_freq_factor";
                return Err(Error::config("rope_scaling.high_freq_factor", problem));
            }
            let factor = positive("factor")?;
            let original = positive("original_max_position_embeddings")? as usize;
            Ok(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            })
        }
        Some(other) => Err(unsupported(
            format!("rope_scaling {}", printable(other)),
            "linear, llama3, dynamic within the trained length",
        )),
    }
}

/// Refuses weights that were quantized by a Hugging Face method.
fn refuse_quantized(json: &Value) -> Result<(), Error> {
    let Some(quantization) = json.get("quantization_config").filter(|config| !config.is_null())
    else {
        return Ok(());
    };
    let method =
        quantization.get("quant_method").and_then(Value::as_str).unwrap_or("of an unnamed method");
    Err(unsupported(
        format!("quantization {}", printable(method)),
        "unquantized f32, f16 and bf16, or GGUF with Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or K-quants",
    ))
}

/// Reads one token id or a list of them.
pub(crate) fn token_ids(ids: &Value) -> Vec<u32> {
    let one = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    match ids {
        Value::Array(ids) => ids.iter().filter_map(one).collect(),
        id => one(id).into_iter().collect(),
    }
}

fn unsupported(what: impl Into<String>, supported: &str) -> Error {
    Error::Unsupported { what: what.into(), supported: supported.to_owned() }
}
