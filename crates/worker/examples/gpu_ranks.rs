//! Holds a model on two GPUs, its layers shared or split, against the same one on a single GPU; then makes one of two GPUs fail and
//! waits for what the other one says. Run by name: `cargo run --release -p stallfree-worker --example gpu_ranks`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a check for people to run and read")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, Clock, Executor, Parallel, SampleSpec, SamplingParams, SeqId,
    StepOutput, Time, TokenId, WallClock,
};
use stallfree_kernels::WeightType;
use stallfree_kernels::cuda::Trap;
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions};
use stallfree_worker::{CudaWorkerConfig, KvSize, ThreadExecutor, start_cuda};

const BLOCK_SIZE: usize = 16;
const BLOCKS_EACH: usize = 32;
const NUM_SEQS: usize = 8;
const PROMPT: usize = 100;
const OUTPUT: usize = 128;
/// Sums in another order may turn over what is that close: in natural logarithms, single precision apart from f16's rounding.
const NEAR_TIE: f32 = 0.02;
/// How soon a lost GPU has to be known.
const PATIENCE: Duration = Duration::from_secs(20);

fn kernel_cache() -> PathBuf {
    std::env::temp_dir().join("stallfree-kernels")
}

fn start(checkpoint: &Checkpoint, tensor: usize, pipeline: usize) -> ThreadExecutor {
    let config = CudaWorkerConfig {
        parallel: Parallel { tensor, pipeline },
        nodes: None,
        peer_memory: true,
        first_gpu: 0,
        kernel_cache: kernel_cache(),
        ampere_path: false,
        block_size: BLOCK_SIZE,
        kv_size: KvSize::Blocks(NUM_SEQS * BLOCKS_EACH),
        gpu_memory_utilization: 0.5,
        max_kv_tokens: NUM_SEQS * BLOCKS_EACH * BLOCK_SIZE,
        max_tokens: NUM_SEQS * PROMPT,
        max_recorded_seqs: NUM_SEQS,
    };
    let options = LoadOptions { dtype: DtypeChoice::F16, ..LoadOptions::default() };
    start_cuda(checkpoint, &config, &options, &|_, _| {}).unwrap().0
}

/// Makes a batch of what each sequence has beyond `computed` tokens.
fn batch(id: u64, texts: &[Vec<TokenId>], computed: usize) -> Batch {
    let params = Arc::new(SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() });
    let mut batch =
        Batch { id: BatchId(id), chunks: Vec::new(), token_ids: Vec::new(), block_ids: Vec::new() };
    for (seq, text) in texts.iter().enumerate() {
        let (tokens, blocks) = (batch.token_ids.len(), batch.block_ids.len());
        batch.token_ids.extend(&text[computed..]);
        let count = text.len().div_ceil(BLOCK_SIZE);
        batch.block_ids.extend((0..count).map(|at| BlockId((at * NUM_SEQS + seq) as u32)));
        batch.chunks.push(Chunk {
            seq: SeqId(seq as u64),
            num_computed_tokens: computed,
            tokens: tokens..batch.token_ids.len(),
            blocks: blocks..batch.block_ids.len(),
            sample: Some(SampleSpec {
                params: Arc::clone(&params),
                num_output_tokens: text.len() - PROMPT,
                banned: Arc::new([]),
                history: None,
            }),
            prompt_logprobs: None,
        });
    }
    batch
}

/// Has a batch computed.
fn step(executor: &mut ThreadExecutor, batch: Batch) -> Result<StepOutput, String> {
    executor.submit(batch, Time::ZERO);
    loop {
        match executor.collect(Time::ZERO) {
            Ok(Some(output)) => return Ok(output),
            Ok(None) => std::thread::sleep(Duration::from_micros(50)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn prompts(vocab: usize) -> Vec<Vec<TokenId>> {
    let token = |seq: usize, at: usize| (at * at * 7 + (13 + seq) * at + seq) as u32 % vocab as u32;
    (0..NUM_SEQS).map(|seq| (0..PROMPT).map(|at| token(seq, at)).collect()).collect()
}

/// What each sequence says, and by how much each token was ahead of the next one.
type Said = Vec<Vec<(TokenId, f32)>>;

fn run(executor: &mut ThreadExecutor, vocab: usize) -> Said {
    let mut texts = prompts(vocab);
    let mut said: Said = vec![Vec::new(); NUM_SEQS];
    let mut computed = 0;
    for id in 0..OUTPUT {
        let length = texts[0].len();
        let output = step(executor, batch(id as u64, &texts, computed)).unwrap();
        computed = length;
        for sampled in output.tokens {
            let seq = sampled.seq.0 as usize;
            let logprobs: Vec<f32> = sampled.logprobs.iter().map(|one| one.logprob).collect();
            // The drawn token first, then the two most likely ones.
            said[seq].push((sampled.token, logprobs[1] - logprobs[2]));
            texts[seq].push(sampled.token);
        }
    }
    said
}

fn compare(name: &str, said: &Said, expected: &Said) {
    let mut alike = 0;
    for (seq, (got, wanted)) in said.iter().zip(expected).enumerate() {
        let same = got.iter().zip(wanted).take_while(|(a, b)| a.0 == b.0).count();
        alike += same;
        if let Some(&(_, margin)) = wanted.get(same) {
            println!(
                "{name}: sequence {seq} differs at token {same}, where the best was ahead by {margin:.4}"
            );
            assert!(margin < NEAR_TIE, "{name}: that is no near tie");
        }
    }
    println!(
        "{name}: {alike} of {} tokens before the first near tie are those of one GPU",
        NUM_SEQS * OUTPUT
    );
}

/// Makes the second of two GPUs fail and waits until the executor knows.
fn lose(checkpoint: &Checkpoint, (tensor, pipeline): (usize, usize), vocab: usize) {
    let mut executor = start(checkpoint, tensor, pipeline);
    let texts = prompts(vocab);
    step(&mut executor, batch(0, &texts, 0)).unwrap();
    Trap::set(1, &kernel_cache()).unwrap().spring().unwrap();
    let clock = WallClock::start();
    let lost = step(&mut executor, batch(1, &texts, 0)).unwrap_err();
    let took = clock.now().since_start();
    println!(
        "TP {tensor} PP {pipeline}: GPU 1 failed; known after {:.2} s: {lost}",
        took.as_secs_f64()
    );
    assert!(took < PATIENCE, "that is too late");
    drop(executor);
    println!(
        "TP {tensor} PP {pipeline}: all threads ended {:.2} s after the failure",
        clock.now().as_secs_f64()
    );
}

fn main() {
    let folder = std::env::temp_dir().join("stallfree-ranks");
    let sizes =
        serde_json::json!({"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 4});
    let model = TinyModel {
        dtype: WeightType::F16,
        overrides: sizes,
        ..TinyModel::new("LlamaForCausalLM")
    };
    model.write(&folder).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let vocab = checkpoint.config().vocab_size;
    let expected = run(&mut start(&checkpoint, 1, 1), vocab);
    for (tensor, pipeline) in [(2, 1), (1, 2)] {
        let said = run(&mut start(&checkpoint, tensor, pipeline), vocab);
        compare(&format!("TP {tensor} PP {pipeline}"), &said, &expected);
    }
    // A GPU that failed is lost to this process for good: one split a run.
    let pipeline = std::env::args().any(|word| word == "pp");
    lose(&checkpoint, if pipeline { (1, 2) } else { (2, 1) }, vocab);
}
