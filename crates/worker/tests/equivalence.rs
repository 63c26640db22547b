//! The whole engine over a real model: greedy output is the same whoever schedules and however memory is short.

#![expect(clippy::unwrap_used, reason = "a test fails where it may")]

use serde_json::json;
use stallfree_cluster::{ClusterReplay, DispatchConfig, Role, Start};
use stallfree_comm::{Mesh, Part, Peers};
use stallfree_core::{
    Batch, BatchId, Executor, InstanceId, KvGeometry, LeaseBook, Parallel, Request, SeqId, Time,
    TokenId,
};
use stallfree_engine::{
    Command, Engine, EngineInfo, InstanceChange, OutputStream, SeqOutput, output_stream,
    unpark_this_thread,
};
use stallfree_kernels::Backend as _;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig};
use stallfree_models::tiny::TinyModel;
use stallfree_models::{ARCHITECTURES, Checkpoint, LoadOptions};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig};
use stallfree_testkit::{greedy, read_tokens};
use stallfree_transfer::Ports;
use stallfree_worker::{CpuWorkerConfig, KvSize, Runner, ThreadExecutor, start_cpu};

const BLOCK_SIZE: usize = 4;
const MAX_MODEL_LEN: usize = 96;
/// Of each sequence.
const MAX_TOKENS: usize = 20;

#[derive(Clone)]
struct Case {
    architecture: &'static str,
    parallel: Parallel,
    policy: &'static str,
    num_blocks: usize,
    budget: usize,
    max_num_seqs: usize,
    prefix_caching: bool,
    /// How many of the prompts are run.
    num_prompts: usize,
}

fn executor(architecture: &str, parallel: Parallel, num_blocks: usize) -> ThreadExecutor {
    let folder = tempfile::tempdir().unwrap();
    // Three layers make stages of one and two.
    let overrides = json!({"num_hidden_layers": 3});
    TinyModel { overrides, ..TinyModel::new(architecture) }.write(folder.path()).unwrap();
    let config = CpuWorkerConfig {
        cpu: CpuConfig { num_threads: 2, ..CpuConfig::default() },
        parallel,
        nodes: None,
        block_size: BLOCK_SIZE,
        kv_size: KvSize::Blocks(num_blocks),
        max_kv_tokens: 0,
        max_model_len: MAX_MODEL_LEN,
        measure_step: false,
    };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    start_cpu(&checkpoint, &config, &LoadOptions::default()).unwrap().0
}

/// Some have more blocks than a read of KV takes at once.
fn prompts() -> Vec<Vec<TokenId>> {
    let shared = |j: usize| (j * 7 % 250) as TokenId;
    let own = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) % 250) as TokenId;
    let prompt = |i: usize| (0..12).map(shared).chain((0..3 + i * 13 % 61).map(move |j| own(i, j)));
    (0..32).map(|i| prompt(i).collect()).collect()
}

/// Runs all prompts at once; returns their outputs and how many preemptions it took.
fn generate(case: &Case) -> (Vec<Vec<TokenId>>, u64) {
    let executor = executor(case.architecture, case.parallel, case.num_blocks);
    let mut engine = engine(case, executor);
    let (mut commands, mut streams) = requests(case.num_prompts);
    while engine.step(Time::ZERO, commands.drain(..)) != stallfree_engine::Wake::Idle {
        std::thread::park();
    }
    assert_eq!(engine.dead(), None);
    assert_eq!((engine.stats().num_running, engine.stats().num_used_blocks), (0, 0));
    (streams.iter_mut().map(read_tokens).collect(), engine.stats().num_preemptions)
}

fn engine(case: &Case, executor: ThreadExecutor) -> Engine {
    let kv = KvGeometry { num_blocks: case.num_blocks, block_size: BLOCK_SIZE };
    assert_eq!(executor.kv_geometry(), kv);
    let config = SchedulerConfig {
        max_in_flight: executor.max_in_flight(),
        decode_pending: case.parallel.pipeline == 1,
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
    engine.set_waker(unpark_this_thread());
    engine
}

fn requests(num_prompts: usize) -> (Vec<Command>, Vec<OutputStream>) {
    let (mut commands, mut streams) = (Vec::new(), Vec::new());
    for (id, prompt) in prompts().into_iter().take(num_prompts).enumerate() {
        let (output, stream) = output_stream(SeqId(id as u64), || ());
        let id = SeqId(id as u64);
        commands.push(Command::run(id, greedy(prompt, MAX_TOKENS), Time::ZERO, output));
        streams.push(stream);
    }
    (commands, streams)
}

/// The heartbeat allows for what is predicted; before the first step, too.
#[test]
fn steps_are_predicted_and_tokens_known_from_the_start() {
    let executor = executor("LlamaForCausalLM", Parallel::NONE, 8);
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

/// One sequence at a time, whole prompts, one rank.
fn alone(architecture: &'static str) -> Case {
    Case {
        architecture,
        parallel: Parallel::NONE,
        policy: "fastertransformer",
        num_blocks: 32 * MAX_MODEL_LEN / BLOCK_SIZE,
        budget: 2048,
        max_num_seqs: 1,
        prefix_caching: false,
        num_prompts: 32,
    }
}

#[test]
fn greedy_output_is_the_same_under_every_policy() {
    let alone = alone("LlamaForCausalLM");
    let plenty = alone.num_blocks;
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
                    ..alone
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

#[test]
fn greedy_output_is_the_same_on_any_ranks() {
    for architecture in ARCHITECTURES {
        let alone = Case { num_prompts: 8, ..alone(architecture.names[0]) };
        let (expected, _) = generate(&alone);
        for [tensor, pipeline] in [[2, 1], [1, 3], [2, 2]] {
            for policy in POLICIES {
                let case = Case {
                    parallel: Parallel { tensor, pipeline },
                    policy: policy.name,
                    num_blocks: 28,
                    budget: 16,
                    max_num_seqs: 32,
                    prefix_caching: true,
                    ..alone
                };
                let what =
                    format!("{} {} on {tensor} x {pipeline}", case.architecture, case.policy);
                assert_eq!(generate(&case).0, expected, "{what}");
            }
        }
    }
}

/// One prefills, the other fetches and decodes: whatever ranks each of them has, and however short its memory is.
#[test]
fn greedy_output_is_the_same_where_another_instance_decodes() {
    for architecture in ["LlamaForCausalLM", "Qwen3ForCausalLM"] {
        let alone = Case { num_prompts: 16, ..alone(architecture) };
        let (expected, _) = generate(&alone);
        let ranks = |tensor, pipeline| Parallel { tensor, pipeline };
        for (prefill, decode) in [
            (ranks(1, 1), ranks(1, 1)),
            (ranks(1, 1), ranks(2, 1)),
            (ranks(2, 1), ranks(1, 1)),
            (ranks(1, 1), ranks(1, 2)),
            (ranks(2, 1), ranks(1, 3)),
            (ranks(1, 2), ranks(2, 1)),
        ] {
            for (policy, prefix_caching) in [("sarathi", true), ("vllm", false), ("orca", true)] {
                let case = Case { policy, prefix_caching, num_blocks: 40, budget: 16, ..alone };
                let what = format!("{architecture} {policy}: {prefill:?}, then {decode:?}");
                assert_eq!(hand_over(&case, [prefill, decode]), expected, "{what}");
            }
        }
    }
}

/// Puts instances on one clock.
fn deploy(case: &Case, instances: &[(Role, Parallel)]) -> ClusterReplay {
    let ports = Ports::default();
    let start = |(index, &(role, parallel)): (u32, &(Role, Parallel))| {
        let leases = LeaseBook::default();
        let mut executor = executor(case.architecture, parallel, case.num_blocks);
        executor.join(&ports, InstanceId(index), leases.clone()).unwrap();
        let case = Case { parallel, max_num_seqs: 8, ..case.clone() };
        Start { engine: engine(&case, executor), role, leases }
    };
    let dispatch = stallfree_cluster::build(&DispatchConfig::default()).unwrap();
    ClusterReplay::new((0..).zip(instances).map(start).collect(), dispatch)
}

/// Runs all prompts at once, on two instances.
fn hand_over(case: &Case, [prefill, decode]: [Parallel; 2]) -> Vec<Vec<TokenId>> {
    let mut replay = deploy(case, &[(Role::Prefill, prefill), (Role::Decode, decode)]);
    let requests: Vec<(Time, Request)> = prompts()
        .into_iter()
        .take(case.num_prompts)
        .map(|prompt| (Time::ZERO, greedy(prompt, MAX_TOKENS)))
        .collect();
    let outputs = replay.run(&requests);
    let produced: Vec<u64> = replay.engines().map(|e| e.stats().generation_tokens).collect();
    assert_eq!(produced, [case.num_prompts as u64, 19 * case.num_prompts as u64]);
    check_empty(&replay);
    outputs.into_iter().map(tokens).collect()
}

fn check_empty(replay: &ClusterReplay) {
    for engine in replay.engines() {
        engine.check_integrity().unwrap();
        assert_eq!((engine.dead(), engine.stats().num_used_blocks), (None, 0));
    }
}

fn tokens(output: SeqOutput) -> Vec<TokenId> {
    assert!(output.finished.is_some(), "{output:?}");
    output.tokens.into_iter().map(|token| token.token).collect()
}

/// An instance that is to drain while it decodes leaves its sequences to one with other ranks, which goes on from their KV.
#[test]
fn greedy_output_is_the_same_where_an_instance_drains() {
    let alone = Case { num_prompts: 12, ..alone("LlamaForCausalLM") };
    let (expected, _) = generate(&alone);
    let ranks = |tensor, pipeline| Parallel { tensor, pipeline };
    let roles = [Role::Prefill, Role::Decode, Role::Decode];
    for parallel in
        [[ranks(1, 1), ranks(2, 1), ranks(1, 2)], [ranks(1, 2), ranks(1, 1), ranks(2, 1)]]
    {
        let instances: Vec<(Role, Parallel)> = roles.into_iter().zip(parallel).collect();
        let case = Case { policy: "sarathi", num_blocks: 120, budget: 32, ..alone };
        let mut replay = deploy(&case, &instances);
        let produced = |replay: &ClusterReplay| -> Vec<u64> {
            replay.engines().map(|engine| engine.stats().generation_tokens).collect()
        };
        let streams: Vec<OutputStream> = prompts()
            .into_iter()
            .take(case.num_prompts)
            .map(|prompt| replay.submit(greedy(prompt, MAX_TOKENS)))
            .collect();
        while produced(&replay)[1] < 20 {
            assert!(replay.step(Time::MAX), "it comes to its end before");
        }
        let drain = InstanceChange { role: None, draining: Some(true) };
        replay.change_instance(InstanceId(1), drain);
        while replay.step(Time::MAX) {}
        let counts = produced(&replay);
        assert!(counts[1] < 60 && counts[2] > 120, "{counts:?}");
        let outputs: Vec<Vec<TokenId>> =
            streams.into_iter().map(|mut stream| tokens(stream.take())).collect();
        assert_eq!(outputs, expected, "{parallel:?}");
        check_empty(&replay);
    }
}

/// Nobody waits for a rank that is gone: its loss is the engine's, and every request is told.
#[test]
fn a_lost_rank_ends_every_request_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let case = Case { parallel: Parallel { tensor: 2, pipeline: 1 }, ..alone("LlamaForCausalLM") };
    let mut ends = Mesh::threads(2);
    let (other, world) = (ends.pop(), ends.pop().unwrap());
    let Parallel { tensor, pipeline } = case.parallel;
    let part = Part::all(tensor, pipeline)[0];
    let config = CpuConfig { num_threads: 1, ..CpuConfig::default() };
    let mut backend = CpuBackend::with_peers(config, Peers::new(world, part)).unwrap();
    let options = LoadOptions { part, ..LoadOptions::default() };
    let model = stallfree_models::load(&checkpoint, &mut backend, &options).unwrap();
    backend.allocate_kv(&model.kv_spec(case.num_blocks, BLOCK_SIZE)).unwrap();
    let runner = Runner::new(backend, model, BLOCK_SIZE, 4096);
    let kv = KvGeometry { num_blocks: case.num_blocks, block_size: BLOCK_SIZE };
    let mut engine = engine(&case, ThreadExecutor::spawn(vec![runner], kv).unwrap());
    let (mut commands, mut streams) = requests(4);
    assert_eq!(engine.step(Time::ZERO, commands.drain(..)), stallfree_engine::Wake::Output);
    drop(other); // while the first sum waits for it
    while engine.dead().is_none() {
        std::thread::park();
        engine.step(Time::ZERO, []);
    }
    assert!(engine.dead().unwrap().contains("rank 1 is gone"), "{:?}", engine.dead());
    for stream in &mut streams {
        let error = stream.blocking_next().unwrap().error;
        assert!(error.unwrap().contains("rank 1 is gone"));
    }
}
