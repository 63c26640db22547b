//! What cannot be loaded is refused in one line that names it; damaged files never end the program.

use std::fs;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use proptest::prelude::*;
use serde_json::{Value, json};
use stallfree_kernels::cpu::{CpuBackend, CpuConfig};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, LoadOptions, load};

use crate::gguf::GgufModel;
use crate::running::Running;

/// Opens, loads and runs the model at `path`, and returns the error, which is a single line.
fn error_of(path: &Path) -> Option<String> {
    let config = CpuConfig { num_threads: 1, ..CpuConfig::default() };
    let mut backend = CpuBackend::new(config).unwrap();
    let opened = Checkpoint::open(path).and_then(|checkpoint| {
        let model = load(&checkpoint, &mut backend, &LoadOptions::default())?;
        assert!(!checkpoint.describe().is_empty());
        checkpoint.fingerprint()?;
        checkpoint.tokenizer_source()?;
        checkpoint.special_tokens()?;
        checkpoint.chat_template()?;
        checkpoint.generation_config()?;
        Ok(model)
    });
    let message = match opened {
        Ok(model) => {
            Running::new(model, backend).logits(&[1, 0], &[]);
            return None;
        }
        Err(error) => error.to_string(),
    };
    assert!(message.len() < 1000 && !message.contains('\n'), "not one short line");
    Some(message)
}

/// Checks that a tiny model with these settings is refused with a message that has all of `parts`.
fn check_config(overrides: Value, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
    fs::write(&path, config.to_string()).unwrap();
    let message = error_of(folder.path()).expect("it is refused");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn settings_that_are_not_supported() {
    let mixtral = json!({"architectures": ["MixtralForCausalLM"]});
    check_config(
        mixtral,
        &["architecture MixtralForCausalLM is not supported", "Qwen3ForCausalLM"],
    );
    for method in ["gptq", "awq", "fp8"] {
        let overrides = json!({"quantization_config": {"quant_method": method}});
        check_config(
            overrides,
            &[&format!("quantization {method} is not supported"), "GGUF", "Q4_1"],
        );
    }
    check_config(
        json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}),
        &["rope_scaling yarn", "llama3"],
    );
    check_config(json!({"hidden_act": "gelu"}), &["hidden_act gelu", "silu"]);
    check_config(json!({"torch_dtype": "int8"}), &["torch_dtype int8", "bfloat16"]);
    check_config(json!({"mlp_bias": true}), &["mlp_bias"]);
}

#[test]
fn settings_that_make_no_model() {
    check_config(json!({"hidden_size": 0}), &["hidden_size", "0"]);
    check_config(json!({"hidden_size": "large"}), &["config.json", "large"]);
    check_config(json!({"num_key_value_heads": 3}), &["num_key_value_heads", "3", "4"]);
    check_config(json!({"num_attention_heads": 0}), &["num_attention_heads"]);
    check_config(json!({"vocab_size": u64::MAX}), &["vocab_size"]);
    check_config(
        json!({"vocab_size": (1 << 20) + 1}),
        &["vocab_size", "1048577", "at most 1048576"],
    );
    check_config(
        json!({"num_hidden_layers": 100_000_000, "hidden_size": 1_000_000}),
        &["parameters"],
    );
    check_config(json!({"head_dim": 15}), &["head_dim", "odd"]);
    check_config(json!({"rope_scaling": {"rope_type": "linear"}}), &["rope_scaling.factor"]);
    check_config(
        json!({"architectures": null, "model_type": null}),
        &["architectures", "model_type"],
    );
}

#[test]
fn weights_that_do_not_fit_the_configuration() {
    check_config(json!({"num_hidden_layers": 3}), &["model.layers.2.", "missing", "looked for"]);
    check_config(
        json!({"intermediate_size": 96}),
        &["model.layers.0.mlp.gate_proj.weight", "[96, 64]", "[128, 64]"],
    );
    check_config(
        json!({"vocab_size": 300}),
        &["model.embed_tokens.weight", "[300, 64]", "[259, 64]"],
    );
}

#[test]
fn paths_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    assert!(error_of(&folder.path().join("absent")).unwrap().contains("no such file"));
    assert!(error_of(folder.path()).unwrap().contains("config.json"));
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(error_of(folder.path()).unwrap().contains("*.safetensors"));
}

#[test]
fn a_truncated_file_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let message = error_of(folder.path()).unwrap();
    assert!(message.contains("weight model.") || message.contains("weight lm_head"), "{message}");
    assert!(message.contains("truncated"), "{message}");

    let gguf = GgufModel::write("LlamaForCausalLM", "llama", GgmlDType::Q8_0);
    let bytes = fs::read(gguf.path()).unwrap();
    fs::write(gguf.path(), &bytes[..bytes.len() - 200]).unwrap();
    let message = error_of(&gguf.path()).unwrap();
    assert!(message.starts_with("weight ") && message.contains("truncated"), "{message}");
}

#[test]
fn a_quantized_vector_is_named() {
    let types = [GgmlDType::Q8_0, GgmlDType::Q4_0];
    let gguf = GgufModel::with_biases("Qwen2ForCausalLM", "llama", types);
    let message = error_of(&gguf.path()).unwrap();
    assert!(message.contains("blk.0.attn_q.bias: a vector of type Q4_0"), "{message}");
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    let shard = |name: &str| folder.path().join(name);
    fs::rename(shard("model.safetensors"), shard("model-00001-of-00001.safetensors")).unwrap();
    let index = |file: &str| json!({"weight_map": {"lm_head.weight": file}}).to_string();
    let path = shard("model.safetensors.index.json");
    fs::write(&path, index("model-00002-of-00002.safetensors")).unwrap();
    assert!(error_of(folder.path()).unwrap().contains("model-00002-of-00002.safetensors"));
    fs::write(&path, index("model-00001-of-00001.safetensors")).unwrap();
    assert_eq!(error_of(folder.path()), None);
}

/// Where a file is changed, and to what. Headers are where readers can be led astray.
fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, Option<usize>)> {
    let changes = prop::collection::vec((0usize..4096, any::<u8>()), 0..6);
    (changes, prop::option::of(0usize..8192))
}

fn check_damaged(path: &Path, model: &Path, (changes, len): (Vec<(usize, u8)>, Option<usize>)) {
    let intact = fs::read(path).unwrap();
    let mut bytes = intact.clone();
    for (position, byte) in changes {
        let position = position % bytes.len();
        bytes[position] = byte;
    }
    bytes.truncate(len.unwrap_or(usize::MAX));
    fs::write(path, bytes).unwrap();
    error_of(model);
    fs::write(path, intact).unwrap();
}

#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("Qwen3ForCausalLM").write(folder.path()).unwrap();
    let safetensors = folder.path().join("model.safetensors");
    let config = folder.path().join("config.json");
    let gguf = GgufModel::write("LlamaForCausalLM", "llama", GgmlDType::Q4_0);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) }, |(damage in damage())| {
        check_damaged(&safetensors, folder.path(), damage.clone());
        check_damaged(&config, folder.path(), damage.clone());
        check_damaged(&gguf.path(), &gguf.path(), damage);
    });
}

#[test]
fn wrong_settings_never_panic() {
    let wrong =
        json!([null, true, -1, 0, 1, 3, u32::MAX, u64::MAX, 1e300, "", "llama3", [], [{}], {}]);
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    });
    let folder = tempfile::tempdir().unwrap();
    let overrides = json!({"sliding_window": 8, "rope_scaling": scaling});
    TinyModel { overrides, ..TinyModel::new("MistralForCausalLM") }.write(folder.path()).unwrap();
    assert_eq!(error_of(folder.path()), None);
    for (file, inner) in
        [("config.json", "/rope_scaling"), ("config.json", ""), ("tokenizer_config.json", "")]
    {
        let path = folder.path().join(file);
        let intact = fs::read(&path).unwrap();
        let json: Value = serde_json::from_slice(&intact).unwrap();
        for key in json.pointer(inner).unwrap().as_object().unwrap().keys() {
            for value in wrong.as_array().unwrap() {
                let mut damaged = json.clone();
                damaged.pointer_mut(inner).unwrap()[key] = value.clone();
                fs::write(&path, damaged.to_string()).unwrap();
                error_of(folder.path());
            }
        }
        fs::write(&path, intact).unwrap();
    }
}

/// What does not divide is said in one line, before a weight is read.
#[test]
fn splits_that_do_not_work() {
    let check = |overrides: Value, [tensor, stages]: [usize; 2], parts: &[&str]| {
        let mut config = TinyModel::new("LlamaForCausalLM").config().unwrap();
        config.as_object_mut().unwrap().extend(overrides.as_object().unwrap().clone());
        let checkpoint = Checkpoint::dummy_of(&config).unwrap();
        let result = checkpoint.config().check_split(tensor, stages);
        let message = result.expect_err("it is refused").to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    };
    let flag = "--tensor-parallel-size";
    check(json!({}), [3, 1], &[flag, "3 does not divide the 4 attention heads"]);
    check(json!({"intermediate_size": 130}), [4, 1], &[flag, "130"]);
    let heads = json!({"num_attention_heads": 12, "num_key_value_heads": 6});
    check(heads, [4, 1], &[flag, "4 and the 6 key-value heads"]);
    check(json!({"vocab_size": 20}), [4, 1], &[flag, "20 tokens"]);
    check(json!({}), [1, 3], &["--pipeline-parallel-size", "3 is more than the 2 layers"]);
}
