//! Holds models on a GPU against the same ones on the CPU: tiny random models of every architecture, and, if a folder or GGUF file
//! is named, that one. Needs a GPU, so it is run by name: `cargo run --release -p stallfree-worker --example gpu_parity [MODEL]`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a check for people to run and read")]

use std::path::Path;
use std::sync::Arc;

use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, PromptLogprobs, SampleSpec, SamplingParams, SeqId, TokenId,
};
use stallfree_device::Dtype;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig, KvType};
use stallfree_kernels::cuda::{ActivationBytes, CudaBackend, CudaConfig};
use stallfree_kernels::{Backend, WeightType};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, LoadOptions};
use stallfree_worker::Runner;

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 128;
const PROMPT: usize = 300;

fn runner<B: Backend + 'static>(checkpoint: &Checkpoint, mut backend: B) -> Runner<B> {
    let model = stallfree_models::load(checkpoint, &mut backend, &LoadOptions::default()).unwrap();
    backend.allocate_kv(&model.kv_spec(NUM_BLOCKS, BLOCK_SIZE)).unwrap();
    Runner::new(backend, model, BLOCK_SIZE, 4096)
}

fn cuda(dtype: Dtype, ampere_path: bool) -> CudaBackend {
    CudaBackend::new(CudaConfig {
        ordinal: 0,
        dtype,
        kernel_cache: std::env::temp_dir().join("stallfree-kernels"),
        ampere_path,
        weight_bytes: 2 << 30,
        max_tokens: 4096,
        activation_bytes: ActivationBytes { base: 64 << 20, layer: 1 << 30, logits: 1 << 30 },
        records: true,
    })
    .unwrap()
}

/// Returns the logprobs of the prompt's tokens and a greedy continuation, the prompt computed in chunks.
fn run<B: Backend>(
    runner: &mut Runner<B>,
    prompt: &[TokenId],
    chunk: usize,
) -> (Vec<f32>, Vec<TokenId>) {
    let mut tokens = prompt.to_vec();
    let mut logprobs = Vec::new();
    let mut start = 0;
    while tokens.len() < prompt.len() + 16 {
        let end = tokens.len().min(start + chunk);
        let scattered = |b: usize| BlockId((b * 37 % NUM_BLOCKS) as u32);
        let block_ids: Vec<_> = (0..end.div_ceil(BLOCK_SIZE)).map(scattered).collect();
        let targets = prompt.get(start + 1..prompt.len().min(end + 1)).unwrap_or(&[]).to_vec();
        let sample = (end == tokens.len()).then(|| SampleSpec {
            params: Arc::new(SamplingParams::greedy()),
            num_output_tokens: 0,
            banned: Arc::new([]),
            history: None,
        });
        let chunk = Chunk {
            seq: SeqId(0),
            num_computed_tokens: start,
            tokens: 0..end - start,
            blocks: 0..block_ids.len(),
            sample,
            prompt_logprobs: (!targets.is_empty())
                .then_some(PromptLogprobs { num_top: 0, targets }),
        };
        let token_ids = tokens[start..end].to_vec();
        let output =
            runner.run(&Batch { id: BatchId(0), chunks: vec![chunk], token_ids, block_ids });
        for (_, lists) in output.prompt_logprobs {
            logprobs.extend(lists.iter().map(|list| list[0].logprob));
        }
        tokens.extend(output.tokens.iter().map(|sampled| sampled.token));
        start = end;
    }
    (logprobs, tokens[prompt.len()..].to_vec())
}

fn check(name: &str, checkpoint: &Checkpoint, dtype: Dtype, limit: f32) {
    let vocab = checkpoint.config().vocab_size;
    let prompt: Vec<TokenId> =
        (0..PROMPT).map(|i| (i * i * 7 + 13 * i) as u32 % vocab as u32).collect();
    let cpu = CpuConfig { kv_type: KvType::F32, ..CpuConfig::default() };
    let (expected, words) =
        run(&mut runner(checkpoint, CpuBackend::new(cpu).unwrap()), &prompt, 64);
    for ampere_path in [false, true] {
        let mut gpu = runner(checkpoint, cuda(dtype, ampere_path));
        for chunk in [1000, 64, 1] {
            let (got, said) = run(&mut gpu, &prompt, chunk);
            assert_eq!(got.len(), expected.len());
            let differences = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let mean = differences.clone().sum::<f32>() / got.len() as f32;
            let most = differences.fold(0.0, f32::max);
            let same = said.iter().zip(&words).take_while(|(a, b)| a == b).count();
            println!(
                "{name:24} {dtype:?} sm80 {ampere_path} chunks {chunk:4}: logprobs differ by {mean:.4} on average, {most:.4} at most; {same} of 16 tokens alike"
            );
            assert!(mean < limit, "{name}: {mean} over {limit}");
        }
    }
}

fn main() {
    let heads =
        serde_json::json!({"head_dim": 64, "num_attention_heads": 6, "num_key_value_heads": 2});
    for architecture in [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "InternLM2ForCausalLM",
    ] {
        let folder = std::env::temp_dir().join(format!("stallfree-{architecture}"));
        let model = TinyModel {
            dtype: WeightType::F16,
            overrides: heads.clone(),
            ..TinyModel::new(architecture)
        };
        model.write(&folder).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        check(architecture, &checkpoint, Dtype::F16, 0.01);
        check(architecture, &checkpoint, Dtype::Bf16, 0.05);
    }
    if let Some(path) = std::env::args().nth(1) {
        check(&path, &Checkpoint::open(Path::new(&path)).unwrap(), Dtype::F16, 0.2);
    }
}
