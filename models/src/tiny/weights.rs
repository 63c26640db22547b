//! A tiny model's weights: what its architecture asks for, drawn at random.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use stallfree_kernels::WeightType;

use super::TinyModel;
use crate::normal::Stream;
use crate::weight::encode;
use crate::{Error, ModelConfig};

/// Large enough that layers matter, small enough that hidden states stay finite.
const STD: f64 = 0.1;

pub(super) fn write(model: &TinyModel, config: &ModelConfig, path: &Path) -> Result<(), Error> {
    let format =
        |problem: String| Error::Format { path: path.to_owned(), format: "safetensors", problem };
    let dtype = match model.dtype {
        WeightType::F16 => Dtype::F16,
        WeightType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product();
            let mut values = Stream::named(&name, model.seed).normals(len, STD);
            if name.contains("norm") {
                values.iter_mut().for_each(|value| *value += 1.0);
            }
            (name, shape, encode(&values, model.dtype))
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        TensorView::new(dtype, shape.clone(), bytes).map(|view| (name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| format(e.to_string()))?;
    safetensors::serialize_to_file(views, None, path).map_err(|e| format(e.to_string()))
}

/// Returns each weight's name in the file and its shape.
fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let is_internlm2 = config.architecture == crate::internlm2::ARCHITECTURE.names[0];
    let has_qk_norm = config.architecture == crate::qwen3::ARCHITECTURE.names[0];
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let query = config.num_heads * config.head_dim;
    let key_value = config.num_kv_heads * config.head_dim;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_layers {
        let mut push = |part: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
        };
        let projections: &[_] = if is_internlm2 {
            &[("wqkv", query + 2 * key_value)]
        } else {
            &[("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)]
        };
        for &(name, rows) in projections {
            push(&format!("self_attn.{name}.weight"), &[rows, hidden]);
            if config.biases.qkv {
                push(&format!("self_attn.{name}.bias"), &[rows]);
            }
        }
        push("self_attn.o_proj.weight", &[hidden, query]);
        if config.biases.output {
            push("self_attn.o_proj.bias", &[hidden]);
        }
        if has_qk_norm {
            push("self_attn.q_norm.weight", &[config.head_dim]);
            push("self_attn.k_norm.weight", &[config.head_dim]);
        }
        push("mlp.gate_proj.weight", &[ffn, hidden]);
        push("mlp.up_proj.weight", &[ffn, hidden]);
        push("mlp.down_proj.weight", &[hidden, ffn]);
        push("input_layernorm.weight", &[hidden]);
        push("post_attention_layernorm.weight", &[hidden]);
    }
    if is_internlm2 {
        for (name, _) in &mut shapes {
            *name = (crate::internlm2::ARCHITECTURE.stored_name)(name);
        }
    }
    shapes
}
