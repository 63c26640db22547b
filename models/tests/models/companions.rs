//! The files beside the weights: settings, tokenizer, chat template, suggestions for sampling.

use std::fs;

use serde_json::{Value, json};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{
    ARCHITECTURES, Checkpoint, ModelConfig, RopeScaling, SlidingWindow, TokenizerSource,
};

/// Opens a tiny model whose folder has these JSON files instead of its own.
fn open(architecture: &str, files: &[(&str, Value)]) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new(architecture).write(folder.path()).unwrap();
    for (name, json) in files {
        fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

/// Returns what is read from a tiny model's configuration with these changes; `null` removes a setting.
fn config(architecture: &str, overrides: Value) -> ModelConfig {
    let tiny = TinyModel { overrides, ..TinyModel::new(architecture) };
    let mut json = tiny.config().unwrap();
    json.as_object_mut().unwrap().retain(|key, value| key == "sliding_window" || !value.is_null());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    Checkpoint::dummy(folder.path()).unwrap().config().clone()
}

#[test]
fn every_architecture_makes_a_tiny_model() {
    for name in ARCHITECTURES.iter().flat_map(|architecture| architecture.names) {
        let (_folder, checkpoint) = open(name, &[]);
        assert!(
            ARCHITECTURES.iter().any(|entry| entry.names[0] == checkpoint.config().architecture)
        );
        assert!(checkpoint.describe().contains("safetensors F32"), "{}", checkpoint.describe());
        assert!(checkpoint.num_bytes() > 4 * checkpoint.config().num_parameters());
        let TokenizerSource::File(path) = checkpoint.tokenizer_source().unwrap() else {
            panic!("a folder has a tokenizer.json");
        };
        assert!(path.exists());
        let special = checkpoint.special_tokens().unwrap();
        assert_eq!(special.eos_token.as_deref(), Some("<|im_end|>"));
        assert!(checkpoint.chat_template().unwrap().unwrap().contains("<|im_start|>"));
        assert_eq!(checkpoint.generation_config().unwrap().eos_token_ids, [258]);
    }
}

#[test]
fn rope_scaling_in_old_and_new_words() {
    let scaling = |json: Value| config("LlamaForCausalLM", json);
    let linear = scaling(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(linear.max_model_len(), 8192);
    let newer = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0});
    let newer = scaling(json!({"rope_theta": null, "rope_parameters": newer}));
    assert_eq!((newer.rope.theta, &newer.rope.scaling), (7.0, &linear.rope.scaling));
    let dynamic = scaling(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}));
    assert_eq!((dynamic.max_model_len(), dynamic.rope.scaling), (2048, RopeScaling::None));
    assert_eq!(scaling(json!({"rope_scaling": null})).rope.scaling, RopeScaling::None);
}

#[test]
fn defaults_by_architecture() {
    let window = |architecture: &str, overrides| config(architecture, overrides).sliding_window;
    let from = |size, first_layer| Some(SlidingWindow { size, first_layer });
    assert_eq!(window("MistralForCausalLM", json!({})), from(4096, 0));
    assert_eq!(window("MistralForCausalLM", json!({"sliding_window": null})), None);
    let unused = json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 1});
    assert_eq!(window("Qwen2ForCausalLM", unused), None);
    let used = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1});
    assert_eq!(window("Qwen3ForCausalLM", used), from(8, 1));
    assert_eq!(config("Qwen3ForCausalLM", json!({"head_dim": null})).head_dim, 128);
    assert_eq!(config("LlamaForCausalLM", json!({"head_dim": null})).head_dim, 16);
    let heads = config("LlamaForCausalLM", json!({"num_key_value_heads": null}));
    assert_eq!(heads.num_kv_heads, heads.num_heads);
    let by_type = json!({"architectures": null, "eos_token_id": [7, 8]});
    assert_eq!(config("Qwen2ForCausalLM", by_type).eos_token_ids, [7, 8]);
}

#[test]
fn suggestions_for_sampling() {
    let json = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.9, "eos_token_id": [258, 256]});
    let (_folder, checkpoint) = open("LlamaForCausalLM", &[("generation_config.json", json)]);
    let defaults = checkpoint.generation_config().unwrap();
    assert_eq!(
        (defaults.temperature, defaults.top_k, defaults.top_p),
        (Some(0.6), Some(20), Some(0.9))
    );
    assert_eq!((defaults.min_p, defaults.eos_token_ids), (None, vec![258, 256]));
}

#[test]
fn impossible_suggestions_for_sampling_are_named() {
    let check = |json: Value, expected: &str| {
        let (_folder, checkpoint) = open("LlamaForCausalLM", &[("generation_config.json", json)]);
        let error = checkpoint.generation_config().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        checkpoint.neutral_generation_config().unwrap();
    };
    check(json!({"temperature": "x"}), "temperature: must be 0 or more, not \"x\"");
    check(json!({"temperature": -1}), "temperature");
    check(json!({"top_p": 5}), "top_p: must be over 0 and at most 1, not 5");
    check(json!({"min_p": -3}), "min_p");
    check(json!({"top_k": 1.5}), "top_k");
    check(json!({"repetition_penalty": 0}), "repetition_penalty");
    check(json!([]), "must be an object");
    let all = json!({"temperature": null, "top_k": -1, "max_new_tokens": 7});
    let (_folder, checkpoint) = open("LlamaForCausalLM", &[("generation_config.json", all)]);
    let defaults = checkpoint.generation_config().unwrap();
    assert_eq!(
        (defaults.temperature, defaults.top_k, defaults.max_new_tokens),
        (None, Some(0), Some(7))
    );
}

#[test]
fn chat_templates_wherever_they_are() {
    let named = json!([
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"},
    ]);
    let files = [(
        "tokenizer_config.json",
        json!({"chat_template": named, "bos_token": {"content": "<s>"}}),
    )];
    let (folder, checkpoint) = open("LlamaForCausalLM", &files);
    assert_eq!(checkpoint.chat_template().unwrap().as_deref(), Some("chat"));
    assert_eq!(checkpoint.special_tokens().unwrap().bos_token.as_deref(), Some("<s>"));
    fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(checkpoint.chat_template().unwrap().as_deref(), Some("file"));
}
