//! Each architecture's logits on tiny random weights against candle-transformers, however the prompt is cut.

use serde_json::{Value, json};
use stallfree_kernels::WeightType;
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions};

use crate::oracle;
use crate::running::{Running, assert_close, prompt};

/// One chunk, several, single tokens, a prompt and then decodes.
const CUTS: [&[usize]; 4] = [&[], &[7, 1, 11, 5], &[1], &[20, 1]];

fn check(architecture: &str, overrides: Value) {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyModel { overrides, ..TinyModel::new(architecture) };
    tiny.write(folder.path()).unwrap();
    let tokens = prompt(40, 259);
    let expected = oracle::logits(folder.path(), &tokens);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut running = Running::load(&checkpoint, &LoadOptions::default());
    let whole = running.logits(&tokens, CUTS[0]);
    assert_close(&format!("{architecture} {}", tiny.overrides), &whole, &expected, 1e-5);
    for cut in CUTS {
        assert_eq!(running.logits(&tokens, cut), whole, "{architecture} cut by {cut:?}");
    }
    for ranks in [[2, 1], [4, 1], [1, 2], [2, 2]] {
        let got = Running::logits_of_ranks(&checkpoint, ranks, &tokens, CUTS[1]);
        let what = format!("{architecture} {} on {ranks:?} ranks", tiny.overrides);
        // Without shares nothing is added in another order.
        if ranks[0] == 1 {
            assert_eq!(got, whole, "{what}");
        } else {
            assert_close(&what, &got, &whole, 1e-5);
        }
    }
}

#[test]
fn llama() {
    check("LlamaForCausalLM", json!({}));
    check("LlamaForCausalLM", json!({"tie_word_embeddings": true, "rope_theta": 100_000.0}));
    check("LlamaForCausalLM", json!({"num_key_value_heads": 4, "num_hidden_layers": 3}));
    check("LlamaForCausalLM", json!({"num_key_value_heads": 1, "rope_theta": 5_000_000.0}));
}

/// Positions reach past the original length, so that every kind of frequency takes part.
#[test]
fn llama_3_1_rope_scaling() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    check("LlamaForCausalLM", json!({"rope_scaling": scaling, "rope_theta": 500.0}));
}

#[test]
fn mistral() {
    check("MistralForCausalLM", json!({"sliding_window": null}));
    check("MistralForCausalLM", json!({"sliding_window": 9}));
    check("MistralForCausalLM", json!({"head_dim": 32, "sliding_window": null}));
}

#[test]
fn qwen2() {
    check("Qwen2ForCausalLM", json!({}));
    check("Qwen2ForCausalLM", json!({"tie_word_embeddings": true}));
    let window = json!({"use_sliding_window": true, "sliding_window": 6, "max_window_layers": 0});
    check("Qwen2ForCausalLM", window);
}

#[test]
fn qwen3() {
    check("Qwen3ForCausalLM", json!({}));
    check("Qwen3ForCausalLM", json!({"head_dim": 32, "tie_word_embeddings": true}));
}

/// A window on the later layers only is less than one on all and more than none.
#[test]
fn a_window_starts_at_its_first_layer() {
    let logits = |first_layer: usize| {
        let folder = tempfile::tempdir().unwrap();
        let overrides = json!({
            "use_sliding_window": true, "sliding_window": 6, "max_window_layers": first_layer,
        });
        TinyModel { overrides, ..TinyModel::new("Qwen2ForCausalLM") }.write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        Running::load(&checkpoint, &LoadOptions::default()).logits(&prompt(20, 259), &[])
    };
    let all = logits(0);
    let later = logits(1);
    let none = logits(2);
    assert!(all[19] != later[19] && later[19] != none[19]);
    assert_eq!(later[5], none[5], "the first six positions fit the window");
}

/// InternLM2 is Llama with its weights in another order.
#[test]
fn internlm2_is_llama_with_the_same_weights() {
    for overrides in
        [json!({}), json!({"num_key_value_heads": 1}), json!({"num_key_value_heads": 4})]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut tiny = TinyModel { overrides, ..TinyModel::new("InternLM2ForCausalLM") };
        tiny.write(folder.path()).unwrap();
        let weights = candle_core::safetensors::load(
            folder.path().join("model.safetensors"),
            &candle_core::Device::Cpu,
        );
        tiny.architecture = "LlamaForCausalLM".to_owned();
        let config = tiny.config().unwrap();
        let num_kv_heads = config["num_key_value_heads"].as_u64().unwrap() as usize;
        let weights = internlm2_as_llama(weights.unwrap(), num_kv_heads);
        let tokens = prompt(24, 259);
        let expected = oracle::logits_of(&config, weights, &tokens);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let got = Running::load(&checkpoint, &LoadOptions::default()).logits(&tokens, &[5]);
        assert_close(&format!("InternLM2 {}", tiny.overrides), &got, &expected, 1e-5);
        for ranks in [[2, 1], [4, 1], [2, 2]] {
            let got = Running::logits_of_ranks(&checkpoint, ranks, &tokens, &[5]);
            assert_close(&format!("InternLM2 on {ranks:?} ranks"), &got, &expected, 1e-5);
        }
    }
}

fn internlm2_as_llama(
    weights: std::collections::HashMap<String, candle_core::Tensor>,
    num_kv_heads: usize,
) -> std::collections::HashMap<String, candle_core::Tensor> {
    let mut llama = std::collections::HashMap::new();
    for (name, weight) in weights {
        if let Some(prefix) = name.strip_suffix("attention.wqkv.weight") {
            let (_, hidden) = weight.dims2().unwrap();
            let groups = weight.reshape((num_kv_heads, (), 16, hidden)).unwrap();
            let queries = groups.dim(1).unwrap() - 2;
            for (part, first, len) in [("q", 0, queries), ("k", queries, 1), ("v", queries + 1, 1)]
            {
                let rows = groups.narrow(1, first, len).unwrap().contiguous().unwrap();
                let rows = rows.reshape(((), hidden)).unwrap();
                llama.insert(format!("{prefix}self_attn.{part}_proj.weight"), rows);
            }
            continue;
        }
        let name = name
            .replace("tok_embeddings", "embed_tokens")
            .replace("attention.wo", "self_attn.o_proj")
            .replace("attention_norm", "input_layernorm")
            .replace("ffn_norm", "post_attention_layernorm")
            .replace("feed_forward.w1", "mlp.gate_proj")
            .replace("feed_forward.w2", "mlp.down_proj")
            .replace("feed_forward.w3", "mlp.up_proj");
        let name = if name == "output.weight" { "lm_head.weight".to_owned() } else { name };
        llama.insert(name, weight);
    }
    llama
}

/// Weights of 16 bits are the f32 weights, rounded; so is a conversion at load.
#[test]
fn sixteen_bit_weights() {
    let tokens = prompt(20, 259);
    let open = |dtype: WeightType, choice: DtypeChoice| {
        let folder = tempfile::tempdir().unwrap();
        let tiny = TinyModel { dtype, ..TinyModel::new("LlamaForCausalLM") };
        tiny.write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.config().dtype, Some(dtype));
        let options = LoadOptions { dtype: choice, ..LoadOptions::default() };
        Running::load(&checkpoint, &options).logits(&tokens, &[8])
    };
    let exact = open(WeightType::F32, DtypeChoice::Auto);
    for (dtype, choice, tolerance) in
        [(WeightType::F16, DtypeChoice::F16, 5e-3), (WeightType::BF16, DtypeChoice::BF16, 5e-2)]
    {
        let stored = open(dtype, DtypeChoice::Auto);
        assert_close(&format!("stored as {dtype:?}"), &stored, &exact, tolerance);
        let converted = open(WeightType::F32, choice);
        assert_close(&format!("converted to {dtype:?}"), &converted, &exact, tolerance);
        let widened = open(dtype, DtypeChoice::F32);
        assert_close(&format!("widened from {dtype:?}"), &widened, &stored, tolerance);
    }
}

/// Drawn weights are the same in every run, and give finite logits.
#[test]
fn dummy_weights_are_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = TinyModel { dtype: WeightType::BF16, ..TinyModel::new("Qwen3ForCausalLM") };
    let path = folder.path().join("config.json");
    std::fs::write(&path, tiny.config().unwrap().to_string()).unwrap();
    let logits = || {
        let checkpoint = Checkpoint::dummy(&path).unwrap();
        Running::load(&checkpoint, &LoadOptions::default()).logits(&prompt(12, 259), &[])
    };
    let first = logits();
    assert!(first.iter().flatten().all(|x| x.is_finite()));
    assert!(first[0] != first[1]);
    assert_eq!(first, logits());
}
