//! What a model's makers suggest for sampling.

use serde_json::Value;

use crate::config::token_ids;
use crate::{Error, ModelConfig};

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
    ///
    /// # Errors
    /// A setting is no number, or none that can be sampled with.
    pub fn new(json: Option<&Value>, config: &ModelConfig) -> Result<Self, Error> {
        if let Some(other) = json.filter(|json| !json.is_object()) {
            return Err(Error::Config {
                field: "generation_config.json".to_owned(),
                problem: format!("must be an object, not {other}"),
            });
        }
        let number = |key: &str, expected: &str, holds: fn(f64) -> bool| {
            let Some(value) = json.and_then(|json| json.get(key)).filter(|value| !value.is_null())
            else {
                return Ok(None);
            };
            value.as_f64().filter(|&number| holds(number)).map(Some).ok_or_else(|| Error::Config {
                field: format!("generation_config.json: {key}"),
                problem: format!(
                    "must be {expected}, not {value}; --generation-config vllm leaves it out"
                ),
            })
        };
        let float = |key, expected, holds| {
            number(key, expected, holds).map(|number| number.map(|number| number as f32))
        };
        let integer = |key, expected, holds| {
            number(key, expected, holds).map(|number| number.map(|number| number.max(0.0) as u32))
        };
        Ok(Self {
            temperature: float("temperature", "0 or more", |t| (0.0..=1e6).contains(&t))?,
            top_k: integer("top_k", "a number of tokens, or 0 or -1 for all", |k| {
                k.fract() == 0.0 && (-1.0..=1e9).contains(&k)
            })?,
            top_p: float("top_p", "over 0 and at most 1", |p| p > 0.0 && p <= 1.0)?,
            min_p: float("min_p", "from 0 to 1", |p| (0.0..=1.0).contains(&p))?,
            repetition_penalty: float("repetition_penalty", "over 0", |r| r > 0.0 && r <= 1e6)?,
            max_new_tokens: integer("max_new_tokens", "a number of tokens", |n| {
                n.fract() == 0.0 && (1.0..=1e9).contains(&n)
            })?,
            eos_token_ids: end_tokens(json, config),
        })
    }

    /// Reads nothing but the tokens that end a text.
    #[must_use]
    pub fn neutral(json: Option<&Value>, config: &ModelConfig) -> Self {
        Self { eos_token_ids: end_tokens(json, config), ..Self::default() }
    }
}

fn end_tokens(json: Option<&Value>, config: &ModelConfig) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    let more = json.and_then(|json| json.get("eos_token_id")).map(token_ids).unwrap_or_default();
    for id in more {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}
