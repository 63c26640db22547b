//! The simulated device under the real engine.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{Executor, Parallel, Request, SamplingParams, Slo, StopRules, Time};
use stallfree_engine::{Engine, EngineInfo, Replay, SeqOutput};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig};
use stallfree_sim::{Calibration, KvRoom, ModelShape, SimConfig, SimExecutor};

fn config(parallel: Parallel) -> SimConfig {
    let (gpu, factors) = Calibration::find("h100-sxm").expect("a shipped GPU");
    let shape = ModelShape::built_in("mistral-7b").expect("a known model");
    let kv = KvRoom::Blocks(2000);
    SimConfig { gpu, factors, shape, parallel, block_size: 16, kv }
}

fn replay(policy: &str, parallel: Parallel) -> Replay {
    let executor = SimExecutor::new(&config(parallel)).expect("a model that fits");
    let kv = executor.kv_geometry();
    let limits = SchedulerConfig {
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        max_model_len: 4096,
        enable_prefix_caching: false,
        max_in_flight: executor.max_in_flight(),
        decode_pending: parallel.pipeline == 1,
        ..SchedulerConfig::default()
    };
    let info = EngineInfo {
        scheduler: policy.to_owned(),
        max_model_len: limits.max_model_len,
        kv,
        enable_prefix_caching: false,
    };
    let planner = Planner::new(limits, kv, policy).expect("a policy");
    Replay::new(Engine::new(planner, Box::new(executor), None, info))
}

fn request(prompt: usize, max_tokens: usize, seed: u64) -> Request {
    Request {
        prompt: vec![1; prompt],
        sampling: Arc::new(SamplingParams { seed, ..SamplingParams::greedy() }),
        stop: StopRules { max_tokens, min_tokens: 0, stop_token_ids: Arc::new([2]) },
        priority: 0,
        slo: Slo::default(),
    }
}

fn traffic() -> impl Iterator<Item = (Time, Request)> {
    (0..80_u64).map(|i| {
        let at = Time::from_start(Duration::from_millis(i * 23));
        (at, request(50 + (i as usize * 97) % 1200, 5 + (i as usize * 31) % 60, i))
    })
}

#[test]
fn the_same_arrivals_give_the_same_tokens_at_the_same_moments() {
    for policy in POLICIES {
        let run = || -> Vec<_> {
            let outputs = replay(policy.name, Parallel::NONE).run(traffic());
            outputs.into_iter().map(|output: SeqOutput| output.tokens).collect()
        };
        let (once, again) = (run(), run());
        assert_eq!(once, again, "{}", policy.name);
        let lengths = once.iter().map(|tokens| tokens.len());
        assert!(lengths.eq((0..80).map(|i| 5 + (i * 31) % 60)), "{}", policy.name);
    }
}

/// However its prompt was cut and its steps were shared, a sequence's tokens depend on its seed alone.
#[test]
fn policies_change_moments_but_no_tokens() {
    let tokens = |policy: &str, pipeline: usize| -> Vec<Vec<u32>> {
        let outputs = replay(policy, Parallel { tensor: 1, pipeline }).run(traffic());
        outputs
            .iter()
            .map(|output| output.tokens.iter().map(|token| token.token).collect())
            .collect()
    };
    let expected = tokens("sarathi", 1);
    for policy in POLICIES {
        assert_eq!(tokens(policy.name, 1), expected, "{}", policy.name);
        assert_eq!(tokens(policy.name, 3), expected, "{} with three stages", policy.name);
    }
}

#[test]
fn micro_batches_overlap_in_a_pipeline() {
    let makespan = |pipeline: usize, sequences: usize| {
        let mut replay = replay("sarathi", Parallel { tensor: 1, pipeline });
        replay.run((0..sequences).map(|i| (Time::ZERO, request(500, 3, i as u64))));
        replay.now().as_secs_f64()
    };
    // One sequence has no company: its steps pass every stage. Many keep all stages busy.
    assert!(makespan(2, 1) > 0.95 * makespan(1, 1));
    let speedup = makespan(1, 60) / makespan(2, 60);
    assert!((1.5..2.0).contains(&speedup), "{speedup}");
}

/// A client may allow or ban whatever it likes; the draw must end.
#[test]
fn draws_keep_to_what_is_allowed() {
    let tokens = |allowed: Vec<u32>, stop: Vec<u32>, min_tokens: usize| {
        let sampling =
            SamplingParams { allowed_token_ids: allowed.into(), ..SamplingParams::greedy() };
        let stop = StopRules { max_tokens: 20, min_tokens, stop_token_ids: stop.into() };
        let request = Request { sampling: Arc::new(sampling), stop, ..request(10, 20, 1) };
        let output = replay("sarathi", Parallel::NONE).run([(Time::ZERO, request)]);
        output[0].tokens.iter().map(|token| token.token).collect::<Vec<_>>()
    };
    assert!(tokens(vec![7, 9], Vec::new(), 0).iter().all(|token| [7, 9].contains(token)));
    let letters: Vec<u32> = (0..256).collect();
    assert!(tokens(Vec::new(), letters, 20).iter().all(|&token| token >= 256));
    assert_eq!(tokens(vec![7], vec![7], 20), [7], "all that is allowed is banned, and ends it");
}
