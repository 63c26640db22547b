//! The whole engine over a real model: greedy output is the same whoever schedules and however memory is short.

#![expect(clippy::unwrap_used, reason = "a test fails where it may")]

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;

use stallfree_core::{
    Batch, BatchId, Executor, KvGeometry, Request, SamplingParams, SeqId, StopRules, Time, TokenId,
};
use stallfree_engine::{Command, Engine, EngineInfo, OutputStream, output_stream};
use stallfree_kernels::cpu::CpuConfig;
use stallfree_models::tiny::TinyModel;
use stallfree_models::{Checkpoint, LoadOptions};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig};
use stallfree_worker::{CpuWorkerConfig, KvSize, ThreadExecutor, start_cpu};

const BLOCK_SIZE: usize = 4;
const MAX_MODEL_LEN: usize = 96;

struct Case {
    policy: &'static str,
    num_blocks: usize,
    budget: usize,
    max_num_seqs: usize,
    prefix_caching: bool,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn executor(num_blocks: usize) -> ThreadExecutor {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    let config = CpuWorkerConfig {
        cpu: CpuConfig { num_threads: 2, ..CpuConfig::default() },
        block_size: BLOCK_SIZE,
        kv_size: KvSize::Blocks(num_blocks),
        max_kv_tokens: 0,
        max_model_len: MAX_MODEL_LEN,
        measure_step: false,
    };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    start_cpu(&checkpoint, &config, &LoadOptions::default()).unwrap().0
}

fn prompts() -> Vec<Vec<TokenId>> {
    let shared = |j: usize| (j * 7 % 250) as TokenId;
    let own = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) % 250) as TokenId;
    let prompt = |i: usize| (0..12).map(shared).chain((0..3 + i * 5 % 30).map(move |j| own(i, j)));
    (0..32).map(|i| prompt(i).collect()).collect()
}

/// Runs all prompts at once; returns their outputs and how many preemptions it took.
fn generate(case: &Case) -> (Vec<Vec<TokenId>>, u64) {
    let executor = executor(case.num_blocks);
    let kv = KvGeometry { num_blocks: case.num_blocks, block_size: BLOCK_SIZE };
    assert_eq!(executor.kv_geometry(), kv);
    let config = SchedulerConfig {
        max_num_seqs: case.max_num_seqs,
        max_num_batched_tokens: case.budget,
        max_model_len: MAX_MODEL_LEN,
        enable_prefix_caching: case.prefix_caching,
        ..SchedulerConfig::default()
    };
    let info = EngineInfo {
        scheduler: case.policy.to_owned(),
        max_model_len: MAX_MODEL_LEN,
        kv,
        enable_prefix_caching: case.prefix_caching,
    };
    let planner = Planner::new(config, kv, case.policy).unwrap();
    let mut engine = Engine::new(planner, Box::new(executor), None, info);
    engine.set_waker(Waker::from(Arc::new(Unpark(std::thread::current()))));
    let (mut commands, mut streams) = (Vec::new(), Vec::new());
    for (id, prompt) in prompts().into_iter().enumerate() {
        let stop = StopRules { max_tokens: 20, min_tokens: 0, stop_token_ids: Vec::new() };
        let sampling = Arc::new(SamplingParams::greedy());
        let (output, stream) = output_stream(SeqId(id as u64), || ());
        let request = Request { prompt, sampling, stop, priority: 0 };
        let id = SeqId(id as u64);
        commands.push(Command::Add { id, request, arrived: Time::ZERO, output });
        streams.push(stream);
    }
    while engine.step(Time::ZERO, commands.drain(..)) != stallfree_engine::Wake::Idle {
        std::thread::park();
    }
    assert_eq!(engine.dead(), None);
    assert_eq!((engine.stats().num_running, engine.stats().num_used_blocks), (0, 0));
    (streams.iter_mut().map(read).collect(), engine.stats().num_preemptions)
}

fn read(stream: &mut OutputStream) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while let Some(output) = stream.blocking_next() {
        assert_eq!(output.error, None);
        tokens.extend(output.tokens.iter().map(|token| token.token));
    }
    tokens
}

/// The heartbeat allows for what is predicted; before the first step, too.
#[test]
fn steps_are_predicted_and_tokens_known_from_the_start() {
    let executor = executor(8);
    let batch = |num_tokens: usize| Batch {
        id: BatchId(0),
        chunks: Vec::new(),
        token_ids: vec![1; num_tokens],
        block_ids: Vec::new(),
    };
    let short = executor.predict(&batch(1));
    assert!(!short.is_zero() && executor.predict(&batch(1000)) > short);
    assert_eq!(executor.vocab_size(), Some(259));
}

#[test]
fn greedy_output_is_the_same_under_every_policy() {
    let plenty = 32 * MAX_MODEL_LEN / BLOCK_SIZE;
    let alone = Case {
        policy: "fastertransformer",
        num_blocks: plenty,
        budget: 2048,
        max_num_seqs: 1,
        prefix_caching: false,
    };
    let (expected, _) = generate(&alone);
    assert!(expected.iter().all(|tokens| tokens.len() == 20));
    let mut preemptions = 0;
    for policy in POLICIES {
        for (num_blocks, budget) in [(plenty, 2048), (plenty, 7), (40, 16), (28, 96)] {
            for prefix_caching in [false, true] {
                let case = Case {
                    policy: policy.name,
                    num_blocks,
                    budget,
                    max_num_seqs: 32,
                    prefix_caching,
                };
                let (outputs, count) = generate(&case);
                preemptions += count;
                let what = format!("{} {num_blocks} {budget} {prefix_caching}", policy.name);
                assert_eq!(outputs, expected, "{what}");
            }
        }
    }
    assert!(preemptions > 0, "memory was never short");
}
