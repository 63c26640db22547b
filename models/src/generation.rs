//! What a model's makers suggest for sampling.

use serde_json::Value;

use crate::ModelConfig;
use crate::config::token_ids;

/// Sampling settings from generation_config.json; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are sampled from.
    pub top_k: Option<u32>,
    /// How much probability is sampled from.
    pub top_p: Option<f32>,
    /// The least probability, relative to the likeliest token's.
    pub min_p: Option<f32>,
    /// What the scores of tokens already seen are divided by.
    pub repetition_penalty: Option<f32>,
    /// How many tokens to make at most.
    pub max_new_tokens: Option<u32>,
    /// The tokens that end a text, those of the model's configuration included.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// Reads the settings out of a generation_config.json's text; `None` leaves all but the model's own end tokens unsaid.
    #[must_use]
    pub fn new(json: Option<&Value>, config: &ModelConfig) -> Self {
        let value = |key: &str| json.and_then(|json| json.get(key));
        let float = |key: &str| value(key).and_then(Value::as_f64).map(|number| number as f32);
        let integer = |key: &str| value(key).and_then(Value::as_u64)?.try_into().ok();
        let mut eos_token_ids = config.eos_token_ids.clone();
        for id in value("eos_token_id").map(token_ids).unwrap_or_default() {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
        Self {
            temperature: float("temperature"),
            top_k: integer("top_k"),
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("repetition_penalty"),
            max_new_tokens: integer("max_new_tokens"),
            eos_token_ids,
        }
    }
}
