//! Tiny models for tests and demos: real files with random weights, made in milliseconds and needing no network.

mod tokenizer;
mod weights;

use std::path::Path;

use serde_json::{Value, json};
use stallfree_kernels::WeightType;

use crate::{Error, registry};
use tokenizer::{END_OF_TEXT, IM_END, VOCAB_SIZE};

/// What a tiny model is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyModel {
    /// A name of the registry: `LlamaForCausalLM`.
    pub architecture: String,
    /// The weights' type: `F32`, `F16` or `BF16`.
    pub dtype: WeightType,
    /// Other weights for another seed.
    pub seed: u64,
    /// Settings of config.json that replace this model's own.
    pub overrides: Value,
}

impl TinyModel {
    /// Returns a model of `architecture` with f32 weights.
    #[must_use]
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            dtype: WeightType::F32,
            seed: 0,
            overrides: json!({}),
        }
    }

    /// Returns its config.json: two layers, four query heads over two key-value heads, 259 tokens, 2,048 positions.
    ///
    /// # Errors
    /// The architecture is not in the registry.
    pub fn config(&self) -> Result<Value, Error> {
        let architecture = registry::by_name(&self.architecture)?;
        let dtype = match self.dtype {
            WeightType::F16 => "float16",
            WeightType::BF16 => "bfloat16",
            _ => "float32",
        };
        let mut config = json!({
            "architectures": [self.architecture],
            "model_type": architecture.model_types[0],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "bos_token_id": END_OF_TEXT,
            "eos_token_id": IM_END,
            "torch_dtype": dtype,
        });
        if let (Some(config), Some(overrides)) =
            (config.as_object_mut(), self.overrides.as_object())
        {
            config.extend(overrides.clone());
        }
        Ok(config)
    }

    /// Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json into `folder`,
    /// which is made if it is not there.
    ///
    /// # Errors
    /// The architecture or an override is not supported, or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let read = |source| Error::Read { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(read)?;
        let config = self.config()?;
        write_json(folder, "config.json", &config)?;
        write_json(folder, "tokenizer.json", &tokenizer::tokenizer_json())?;
        write_json(folder, "tokenizer_config.json", &tokenizer::tokenizer_config_json())?;
        write_json(
            folder,
            "generation_config.json",
            &json!({"bos_token_id": END_OF_TEXT, "eos_token_id": IM_END}),
        )?;
        weights::write(self, &crate::config::parse_hf(&config)?, &folder.join("model.safetensors"))
    }
}

fn write_json(folder: &Path, name: &str, json: &Value) -> Result<(), Error> {
    let path = folder.join(name);
    std::fs::write(&path, format!("{json:#}\n")).map_err(|source| Error::Read { path, source })
}
