//! The same models as candle-transformers computes them.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use serde_json::Value;

/// Returns the logits behind each token of `tokens`. Each prefix is computed on its own, so that no cache takes part.
pub(crate) fn logits(folder: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let json = std::fs::read(folder.join("config.json")).unwrap();
    let weights =
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    logits_of(&serde_json::from_slice(&json).unwrap(), weights, tokens)
}

/// Like [`logits`], of weights at hand.
pub(crate) fn logits_of(
    json: &Value,
    weights: HashMap<String, Tensor>,
    tokens: &[u32],
) -> Vec<Vec<f32>> {
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let prefixes = (1..=tokens.len())
        .map(|len| Tensor::from_slice(&tokens[..len], (1, len), &Device::Cpu).unwrap());
    let architecture = json["architectures"][0].as_str().unwrap();
    let logits: Vec<Tensor> = match architecture {
        "LlamaForCausalLM" => {
            let config: llama::LlamaConfig = serde_json::from_value(json.clone()).unwrap();
            let config = config.into_config(false);
            let model = llama::Llama::load(weights, &config).unwrap();
            prefixes
                .map(|prefix| {
                    let mut cache =
                        llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
                    model.forward(&prefix, 0, &mut cache).unwrap()
                })
                .collect()
        }
        "MistralForCausalLM" => {
            let mut config: mistral::Config = serde_json::from_value(json.clone()).unwrap();
            // candle does not count the query itself.
            config.sliding_window = config.sliding_window.map(|window| window - 1);
            let model = mistral::Model::new(&config, weights).unwrap();
            prefixes.map(|prefix| model.clone().forward(&prefix, 0).unwrap()).collect()
        }
        "Qwen2ForCausalLM" => {
            let model = qwen2::ModelForCausalLM::new(&qwen2_config(json), weights).unwrap();
            prefixes.map(|prefix| model.clone().forward(&prefix, 0).unwrap()).collect()
        }
        "Qwen3ForCausalLM" => {
            let model = qwen3::ModelForCausalLM::new(&qwen3_config(json), weights).unwrap();
            prefixes.map(|prefix| model.clone().forward(&prefix, 0).unwrap()).collect()
        }
        other => panic!("candle-transformers has no {other}"),
    };
    logits.iter().map(|logits| logits.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn number(json: &Value, key: &str) -> usize {
    json[key].as_u64().unwrap() as usize
}

fn qwen2_config(json: &Value) -> qwen2::Config {
    qwen2::Config {
        vocab_size: number(json, "vocab_size"),
        hidden_size: number(json, "hidden_size"),
        intermediate_size: number(json, "intermediate_size"),
        num_hidden_layers: number(json, "num_hidden_layers"),
        num_attention_heads: number(json, "num_attention_heads"),
        num_key_value_heads: number(json, "num_key_value_heads"),
        max_position_embeddings: number(json, "max_position_embeddings"),
        sliding_window: json["sliding_window"]
            .as_u64()
            .map_or(1 << 20, |window| window as usize - 1),
        max_window_layers: 0,
        tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap(),
        rope_theta: json["rope_theta"].as_f64().unwrap(),
        rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap(),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    }
}

fn qwen3_config(json: &Value) -> qwen3::Config {
    qwen3::Config {
        vocab_size: number(json, "vocab_size"),
        hidden_size: number(json, "hidden_size"),
        intermediate_size: number(json, "intermediate_size"),
        num_hidden_layers: number(json, "num_hidden_layers"),
        num_attention_heads: number(json, "num_attention_heads"),
        head_dim: number(json, "head_dim"),
        attention_bias: json["attention_bias"].as_bool().unwrap_or(false),
        num_key_value_heads: number(json, "num_key_value_heads"),
        max_position_embeddings: number(json, "max_position_embeddings"),
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap(),
        rope_theta: json["rope_theta"].as_f64().unwrap(),
        rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap(),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    }
}
