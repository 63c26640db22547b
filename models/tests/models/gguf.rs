//! GGUF files of every supported type, written by candle, against the same weights dequantized.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use serde_json::{Value as Json, json};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions, TokenizerSource};

use crate::oracle;
use crate::running::{Running, assert_close, prompt};

type Weights = HashMap<String, Tensor>;

/// A folder with a tiny model and the GGUF made of it; rows are long enough for K-quants.
pub(crate) struct GgufModel {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Json,
    /// The weights as the file holds them, in full precision and under their canonical names.
    pub(crate) dequantized: Weights,
}

impl GgufModel {
    pub(crate) fn write(architecture: &str, name: &str, dtype: GgmlDType) -> Self {
        Self::with_biases(architecture, name, [dtype, GgmlDType::F32])
    }

    /// Writes matrices and biases of two types.
    pub(crate) fn with_biases(architecture: &str, name: &str, types: [GgmlDType; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let overrides = json!({
            "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 32,
        });
        let tiny = TinyModel { overrides, ..TinyModel::new(architecture) };
        tiny.write(folder.path()).unwrap();
        let weights = folder.path().join("model.safetensors");
        let weights = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
        let config = tiny.config().unwrap();
        let mut tensors = Vec::new();
        let mut dequantized = Weights::new();
        for (canonical, weight) in weights {
            let rotated = canonical.contains("q_proj") || canonical.contains("k_proj");
            let paired = name == "llama" && rotated && weight.rank() == 2;
            let stored = if paired { pair_rows(&weight, 32) } else { weight.clone() };
            let dtype = match weight.rank() {
                1 if canonical.ends_with(".bias") => types[1],
                1 => GgmlDType::F32,
                _ => types[0],
            };
            let quantized = QTensor::quantize(&stored, dtype).unwrap();
            // Quantization works row by row, so the rows' order does not matter to it.
            let value =
                QTensor::quantize(&weight, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
            tensors.push((gguf_name(&canonical), quantized));
            dequantized.insert(canonical, value);
        }
        let this = Self { folder, config, dequantized };
        write_file(&this.path(), &metadata(name, &this.config), &tensors);
        this
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("model.gguf")
    }
}

fn write_file(path: &Path, metadata: &[(String, Value)], tensors: &[(String, QTensor)]) {
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

fn metadata(name: &str, config: &Json) -> Vec<(String, Value)> {
    let number = |key: &str| Value::U32(config[key].as_u64().unwrap() as u32);
    let float = |key: &str| Value::F32(config[key].as_f64().unwrap() as f32);
    let own = [
        ("block_count", number("num_hidden_layers")),
        ("context_length", number("max_position_embeddings")),
        ("embedding_length", number("hidden_size")),
        ("feed_forward_length", number("intermediate_size")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("attention.key_length", number("head_dim")),
        ("attention.layer_norm_rms_epsilon", float("rms_norm_eps")),
        ("rope.freq_base", float("rope_theta")),
        ("rope.dimension_count", number("head_dim")),
    ];
    let mut metadata: Vec<_> =
        own.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect();
    let string = |text: &str| Value::String(text.to_owned());
    metadata.push(("general.architecture".to_owned(), string(name)));
    let tokens = ["<s>", "</s>", "a"].map(string).to_vec();
    metadata.push(("tokenizer.ggml.model".to_owned(), string("gpt2")));
    metadata.push(("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)));
    metadata.push(("tokenizer.ggml.token_type".to_owned(), Value::Array(vec![Value::I32(3); 3])));
    metadata.push(("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(0)));
    metadata.push(("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(1)));
    metadata.push(("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true)));
    metadata.push(("tokenizer.chat_template".to_owned(), string("{{ messages }}")));
    metadata
}

fn gguf_name(canonical: &str) -> String {
    let name = canonical.replace("model.layers.", "blk.");
    let name = name.replace("self_attn.o_proj", "attn_output").replace("self_attn.", "attn_");
    let name = name.replace("post_attention_layernorm", "ffn_norm").replace("mlp.", "ffn_");
    let name = name.replace("input_layernorm", "attn_norm").replace("_proj", "");
    let name = name.replace("model.embed_tokens", "token_embd").replace("lm_head", "output");
    name.replace("model.norm", "output_norm")
}

/// Puts the two rows of a rotated pair side by side, as llama.cpp's converter does.
fn pair_rows(weight: &Tensor, head_dim: usize) -> Tensor {
    let shape = weight.dims().to_vec();
    let halves = weight.reshape((shape[0] / head_dim, 2, head_dim / 2, shape[1])).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape(shape).unwrap()
}

/// The backend rounds activations to 8 bits for quantized weights, as does candle, each in its own way.
const ROUNDED: f32 = 0.1;

fn tolerance(dtype: GgmlDType) -> f32 {
    if dtype.block_size() == 1 { 1e-5 } else { ROUNDED }
}

fn check(architecture: &str, name: &str, dtype: GgmlDType) {
    let gguf = GgufModel::write(architecture, name, dtype);
    let tokens = prompt(12, 259);
    let checkpoint = Checkpoint::open(&gguf.path()).unwrap();
    let got = Running::load(&checkpoint, &LoadOptions::default()).logits(&tokens, &[5]);
    let expected = oracle::logits_of(&gguf.config, gguf.dequantized.clone(), &tokens);
    let what = format!("{name} {dtype:?}");
    assert_close(&what, &got, &expected, tolerance(dtype));
    let options = LoadOptions { dtype: DtypeChoice::F32, ..LoadOptions::default() };
    let exact = Running::load(&checkpoint, &options).logits(&tokens, &[5]);
    assert_close(&format!("{what} in single precision"), &exact, &expected, 1e-5);
    if !matches!(dtype, GgmlDType::BF16) {
        assert_close(
            &format!("{what}, candle"),
            &got,
            &candle_logits(&gguf.path(), name, &tokens),
            ROUNDED,
        );
    }
}

fn candle_logits(path: &Path, name: &str, tokens: &[u32]) -> Vec<Vec<f32>> {
    let prefixes = (1..=tokens.len())
        .map(|len| Tensor::from_slice(&tokens[..len], (1, len), &Device::Cpu).unwrap());
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let logits: Vec<Tensor> = match name {
        "llama" => {
            let model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            let mut model = model.unwrap();
            prefixes.map(|prefix| model.forward(&prefix, 0).unwrap()).collect()
        }
        "qwen2" => {
            let model = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            let mut model = model.unwrap();
            prefixes.map(|prefix| model.forward(&prefix, 0).unwrap()).collect()
        }
        _ => {
            let model = quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            let mut model = model.unwrap();
            let forward = |prefix: Tensor| {
                model.clear_kv_cache();
                model.forward(&prefix, 0).unwrap()
            };
            prefixes.map(forward).collect()
        }
    };
    logits.iter().map(|logits| logits.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn llama_in_every_type() {
    use GgmlDType::{F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    for dtype in [F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        check("LlamaForCausalLM", "llama", dtype);
    }
    check("LlamaForCausalLM", "llama", GgmlDType::BF16);
}

/// Qwen's rows are not paired in GGUF.
#[test]
fn qwen() {
    check("Qwen2ForCausalLM", "qwen2", GgmlDType::F32);
    check("Qwen2ForCausalLM", "qwen2", GgmlDType::Q8_0);
    check("Qwen3ForCausalLM", "qwen3", GgmlDType::F32);
    check("Qwen3ForCausalLM", "qwen3", GgmlDType::Q4K);
}

#[test]
fn metadata_is_read() {
    let gguf = GgufModel::write("LlamaForCausalLM", "llama", GgmlDType::Q4_1);
    let checkpoint = Checkpoint::open(&gguf.path()).unwrap();
    let from_folder = Checkpoint::open(gguf.folder.path()).unwrap();
    let mut config = checkpoint.config().clone();
    config.bos_token_id = from_folder.config().bos_token_id;
    config.eos_token_ids.clone_from(&from_folder.config().eos_token_ids);
    config.dtype = from_folder.config().dtype;
    assert_eq!(&config, from_folder.config());
    assert_eq!(checkpoint.config().eos_token_ids, [1]);
    assert_eq!(checkpoint.chat_template().unwrap().as_deref(), Some("{{ messages }}"));
    assert_eq!(checkpoint.special_tokens().unwrap().eos_token.as_deref(), Some("</s>"));
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer_source().unwrap() else {
        panic!("a GGUF file describes its own tokenizer");
    };
    assert_eq!((tokenizer.model.as_str(), tokenizer.tokens.len()), ("gpt2", 3));
    assert_eq!((tokenizer.add_bos_token, tokenizer.token_types), (Some(true), vec![3, 3, 3]));
    assert!(checkpoint.describe().starts_with("LlamaForCausalLM, 1M parameters, GGUF Q4_1"));
}

/// Llama 3.1 in GGUF: the stretching comes as divisors of the frequencies.
#[test]
fn rope_factors() {
    let gguf = GgufModel::write("LlamaForCausalLM", "llama", GgmlDType::F32);
    let factors: Vec<f32> = (0..16).map(|i| if i < 6 { 1.0 } else { 8.0 }).collect();
    let factors = Tensor::new(factors.as_slice(), &Device::Cpu).unwrap();
    let mut tensors = vec![(
        "rope_freqs.weight".to_owned(),
        QTensor::quantize(&factors, GgmlDType::F32).unwrap(),
    )];
    for (canonical, weight) in &gguf.dequantized {
        let paired = canonical.contains("q_proj") || canonical.contains("k_proj");
        let stored = if paired { pair_rows(weight, 32) } else { weight.clone() };
        tensors.push((gguf_name(canonical), QTensor::quantize(&stored, GgmlDType::F32).unwrap()));
    }
    let tokens = prompt(12, 259);
    let mut logits = |metadata: &[(String, Value)]| {
        write_file(&gguf.path(), metadata, &tensors);
        let checkpoint = Checkpoint::open(&gguf.path()).unwrap();
        let logits = Running::load(&checkpoint, &LoadOptions::default()).logits(&tokens, &[]);
        tensors.remove(0);
        tensors.insert(
            0,
            ("rope_freqs.unused".to_owned(), QTensor::quantize(&factors, GgmlDType::F32).unwrap()),
        );
        logits
    };
    let metadata = metadata("llama", &gguf.config);
    let stretched = logits(&metadata);
    let plain = logits(&metadata);
    assert_close("the first position", &stretched[..1], &plain[..1], 1e-6);
    assert!(stretched[11] != plain[11]);
}
