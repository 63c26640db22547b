//! The same prompt gives the same tokens, however it is cut, placed and mixed.

#![expect(clippy::unwrap_used, reason = "a test fails where it may")]

use std::path::Path;
use std::sync::Arc;

use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, History, PENDING_TOKEN, PromptLogprobs, SampleSpec,
    SamplingParams, SeqId, TokenId,
};
use stallfree_kernels::Backend;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, LoadOptions};
use stallfree_worker::Runner;

const BLOCK_SIZE: usize = 4;
const NUM_BLOCKS: usize = 512;
const NUM_NEW: usize = 12;

fn runner(architecture: &str) -> Runner<CpuBackend> {
    runner_of(architecture, usize::MAX)
}

fn runner_of(architecture: &str, max_tokens: usize) -> Runner<CpuBackend> {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new(architecture).write(folder.path()).unwrap();
    runner_from(folder.path(), max_tokens)
}

fn runner_from(folder: &Path, max_tokens: usize) -> Runner<CpuBackend> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut backend =
        CpuBackend::new(CpuConfig { num_threads: 2, ..CpuConfig::default() }).unwrap();
    let model = stallfree_models::load(&checkpoint, &mut backend, &LoadOptions::default()).unwrap();
    backend.allocate_kv(&model.kv_spec(NUM_BLOCKS, BLOCK_SIZE)).unwrap();
    Runner::new(backend, model, BLOCK_SIZE, max_tokens)
}

/// Fills a row of a model's matrix with what is no number.
fn poison(weights: &Path, matrix: &str, row: usize) {
    let mut file = std::fs::read(weights).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..start]).unwrap();
    let (shape, offsets) = (&header[matrix]["shape"], &header[matrix]["data_offsets"]);
    let [from, to] = [0, 1].map(|end| start + offsets[end].as_u64().unwrap() as usize);
    let row_bytes = (to - from) / shape[0].as_u64().unwrap() as usize;
    file[from + row * row_bytes..][..row_bytes].fill(0xff);
    std::fs::write(weights, file).unwrap();
}

struct Seq {
    tokens: Vec<TokenId>,
    num_computed: usize,
    blocks: Vec<BlockId>,
    num_prompt: usize,
}

/// Continues every prompt, all in one batch a step, in chunks of at most `chunk` tokens.
fn generate(
    runner: &mut Runner<CpuBackend>,
    prompts: &[Vec<TokenId>],
    chunk: usize,
) -> Vec<Vec<TokenId>> {
    let mut seqs = seqs(prompts);
    loop {
        let batch = next_batch(&mut seqs, chunk);
        if batch.chunks.is_empty() {
            return seqs.into_iter().map(|seq| seq.tokens[seq.num_prompt..].to_vec()).collect();
        }
        for sampled in runner.run(&batch).tokens {
            seqs[sampled.seq.0 as usize].tokens.push(sampled.token);
        }
    }
}

/// Does the same with each batch submitted before the tokens of the one before are known.
fn generate_ahead(
    runner: &mut Runner<CpuBackend>,
    prompts: &[Vec<TokenId>],
    chunk: usize,
) -> Vec<Vec<TokenId>> {
    let mut seqs = seqs(prompts);
    let mut under_way = None;
    loop {
        let batch = next_batch(&mut seqs, chunk);
        let before = under_way.take();
        if !batch.chunks.is_empty() {
            under_way = Some(runner.submit(&batch));
        }
        for chunk in batch.chunks.iter().filter(|chunk| chunk.sample.is_some()) {
            seqs[chunk.seq.0 as usize].tokens.push(PENDING_TOKEN);
        }
        for sampled in before.map_or(Vec::new(), |before| before.wait().tokens) {
            let tokens = &mut seqs[sampled.seq.0 as usize].tokens;
            *tokens.iter_mut().find(|token| **token == PENDING_TOKEN).unwrap() = sampled.token;
        }
        if under_way.is_none() {
            return seqs.into_iter().map(|seq| seq.tokens[seq.num_prompt..].to_vec()).collect();
        }
    }
}

/// Returns sequences that are still to be computed; sequence `i` takes every `prompts.len()`th block from `i` on.
fn seqs(prompts: &[Vec<TokenId>]) -> Vec<Seq> {
    let blocks = |i: usize| (0..NUM_BLOCKS / prompts.len()).rev().map(move |b| (b, i));
    let seq = |(i, prompt): (usize, &Vec<TokenId>)| Seq {
        tokens: prompt.clone(),
        num_computed: 0,
        blocks: blocks(i).map(|(b, i)| BlockId((b * prompts.len() + i) as u32)).collect(),
        num_prompt: prompt.len(),
    };
    prompts.iter().enumerate().map(seq).collect()
}

/// Returns a batch of all sequences that have something left to compute.
fn next_batch(seqs: &mut [Seq], chunk: usize) -> Batch {
    let mut batch = Batch { id: BatchId(0), chunks: vec![], token_ids: vec![], block_ids: vec![] };
    for (i, seq) in seqs.iter_mut().enumerate() {
        if seq.tokens.len() - seq.num_prompt < NUM_NEW {
            push(&mut batch, i, seq, chunk);
        }
    }
    batch
}

fn push(batch: &mut Batch, i: usize, seq: &mut Seq, chunk: usize) {
    let end = seq.tokens.len().min(seq.num_computed + chunk);
    let (first, first_block) = (batch.token_ids.len(), batch.block_ids.len());
    batch.token_ids.extend(&seq.tokens[seq.num_computed..end]);
    batch.block_ids.extend(&seq.blocks[..end.div_ceil(BLOCK_SIZE)]);
    let sample = (end == seq.tokens.len()).then(|| {
        let params = params(seq.num_prompt);
        let history = History { tokens: seq.tokens.clone(), prompt_len: seq.num_prompt };
        SampleSpec {
            num_output_tokens: end - seq.num_prompt,
            banned: Arc::new([]),
            history: params.needs_history().then_some(history),
            params: Arc::new(params),
        }
    });
    batch.chunks.push(Chunk {
        seq: SeqId(i as u64),
        num_computed_tokens: seq.num_computed,
        tokens: first..batch.token_ids.len(),
        blocks: first_block..batch.block_ids.len(),
        sample,
        prompt_logprobs: None,
    });
    seq.num_computed = end;
}

/// Returns settings of every kind, by the length of the prompt.
fn params(num_prompt: usize) -> SamplingParams {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams { temperature: 0.8, seed: num_prompt as u64, ..greedy.clone() };
    match num_prompt % 6 {
        0 | 1 => greedy,
        2 => warm,
        3 => SamplingParams { top_k: 40, top_p: 0.9, logprobs: Some(2), ..warm },
        4 => SamplingParams { repetition_penalty: 1.4, frequency_penalty: 0.3, ..greedy },
        _ => SamplingParams {
            bad_words: Arc::new([(0..2).collect()]),
            presence_penalty: 2.0,
            ..warm
        },
    }
}

fn prompts(count: usize) -> Vec<Vec<TokenId>> {
    let token = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) % 250) as TokenId;
    (0..count).map(|i| (0..5 + i * 7 % 40).map(|j| token(i, j)).collect()).collect()
}

fn check(architecture: &str) {
    let mut runner = runner(architecture);
    let prompts = prompts(32);
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| generate(&mut runner, std::slice::from_ref(prompt), 1000).remove(0))
        .collect();
    for chunk in [1, 3, 16, 1000] {
        assert_eq!(
            generate(&mut runner, &prompts, chunk),
            alone,
            "{architecture}, chunks of {chunk}"
        );
        assert_eq!(
            generate_ahead(&mut runner, &prompts, chunk),
            alone,
            "{architecture}, chunks of {chunk}, submitted ahead"
        );
    }
    let mut in_passes = runner_of(architecture, 50);
    assert_eq!(generate(&mut in_passes, &prompts, 1000), alone, "{architecture}, in passes");
    let ahead = generate_ahead(&mut in_passes, &prompts, 1000);
    assert_eq!(ahead, alone, "{architecture}, in passes, submitted ahead");
    assert!(alone.iter().any(|tokens| tokens != &alone[0]), "{architecture} says one thing only");
}

/// Returns the logprobs of a prompt's tokens from the second on, computed in chunks.
fn prompt_logprobs(runner: &mut Runner<CpuBackend>, prompt: &[TokenId], chunk: usize) -> Vec<f32> {
    let mut logprobs = Vec::new();
    for start in (0..prompt.len()).step_by(chunk) {
        let end = prompt.len().min(start + chunk);
        let targets = prompt[start + 1..prompt.len().min(end + 1)].to_vec();
        let block_ids: Vec<_> = (0..end.div_ceil(BLOCK_SIZE) as u32).map(BlockId).collect();
        let chunk = Chunk {
            seq: SeqId(0),
            num_computed_tokens: start,
            tokens: 0..end - start,
            blocks: 0..block_ids.len(),
            sample: None,
            prompt_logprobs: Some(PromptLogprobs { num_top: 0, targets }),
        };
        let token_ids = prompt[start..end].to_vec();
        let batch = Batch { id: BatchId(0), chunks: vec![chunk], token_ids, block_ids };
        for (_, lists) in runner.run(&batch).prompt_logprobs {
            logprobs.extend(lists.iter().map(|list| list[0].logprob));
        }
    }
    logprobs
}

#[test]
fn unsound_logits_are_of_their_sequence_alone() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    poison(&folder.path().join("model.safetensors"), "model.embed_tokens.weight", 7);
    let prompts = [vec![1, 2, 3], vec![4, 7, 5], vec![6, 8]];
    for max_tokens in [usize::MAX, 3] {
        let mut runner = runner_from(folder.path(), max_tokens);
        let output = runner.run(&next_batch(&mut seqs(&prompts), 1000));
        assert_eq!(output.unsound, [SeqId(1)]);
        let drawn: Vec<_> = output.tokens.iter().map(|sampled| sampled.seq).collect();
        assert_eq!(drawn, [SeqId(0), SeqId(2)]);
    }
}

/// More rows than go through the head at once.
#[test]
fn logprobs_of_a_long_prompt_are_those_of_its_parts() {
    let mut runner = runner("LlamaForCausalLM");
    let prompt: Vec<TokenId> = (0..2040).map(|i| (i * i % 251) as TokenId).collect();
    let whole = prompt_logprobs(&mut runner, &prompt, 2040);
    assert_eq!(whole.len(), 2039);
    assert_eq!(whole, prompt_logprobs(&mut runner, &prompt, 100));
}

#[test]
fn llama() {
    check("LlamaForCausalLM");
}

#[test]
fn mistral() {
    check("MistralForCausalLM");
}

#[test]
fn qwen3() {
    check("Qwen3ForCausalLM");
}
