//! The engine's most important law: scheduling changes when a token comes, never which.

use stallfree_core::{Executor, Request, Time, TokenId, TokenLogprob};
use stallfree_engine::{Engine, EngineInfo, Replay};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig};

/// One way to run the requests.
#[derive(Clone, Debug)]
pub struct Case {
    /// The policy.
    pub policy: &'static str,
    /// The planner's limits; `max_in_flight` is the executor's.
    pub limits: SchedulerConfig,
    /// How many blocks the cache has.
    pub num_blocks: usize,
    /// How many batches may be in flight.
    pub max_in_flight: usize,
}

/// What one sequence came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its output.
    pub tokens: Vec<TokenId>,
    /// The output's logprobs, where asked for.
    pub logprobs: Vec<Vec<TokenLogprob>>,
    /// The prompt's logprobs, where asked for.
    pub prompt_logprobs: Vec<Vec<TokenLogprob>>,
}

/// What running a case took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Preemptions.
    pub num_preemptions: u64,
    /// Tokens found in the prefix cache.
    pub prefix_cache_hits: u64,
    /// Steps.
    pub num_steps: u64,
}

/// Returns `base` under every policy.
#[must_use]
pub fn under_every_policy(base: &Case) -> Vec<Case> {
    POLICIES.iter().map(|policy| Case { policy: policy.name, ..base.clone() }).collect()
}

/// Runs the requests, each arriving at its moment.
///
/// # Panics
/// If the case cannot be set up, the engine fails, a sequence doesn't end, or blocks are not given back.
#[must_use]
pub fn run(
    case: &Case,
    executor: Box<dyn Executor>,
    requests: &[(Time, Request)],
) -> (Vec<Answer>, Effort) {
    let mut replay = Replay::new(engine(case, executor));
    let outputs = replay.run(requests.to_vec());
    let engine = replay.engine();
    assert_eq!(engine.dead(), None, "{case:?}");
    engine.check_integrity().expect("the books agree");
    let stats = engine.stats();
    let gauges = (stats.num_running, stats.num_waiting, stats.num_used_blocks);
    assert_eq!(gauges, (0, 0, 0), "{case:?}");
    let answers = outputs.into_iter().map(|output| {
        assert!(output.finished.is_some(), "{case:?}: {output:?}");
        let (tokens, logprobs) =
            output.tokens.into_iter().map(|token| (token.token, token.logprobs)).unzip();
        Answer { tokens, logprobs, prompt_logprobs: output.prompt_logprobs }
    });
    let effort = Effort {
        num_preemptions: stats.num_preemptions,
        prefix_cache_hits: stats.prefix_cache_hits,
        num_steps: stats.num_steps,
    };
    (answers.collect(), effort)
}

/// Runs the requests in every case and checks that the answers are those of `expected`, bit by bit. Returns what each case
/// took, so that a test can see that it had to preempt, say.
///
/// # Panics
/// If an answer differs, or as [`run`].
pub fn check(
    cases: &[Case],
    mut executor: impl FnMut(&Case) -> Box<dyn Executor>,
    requests: &[(Time, Request)],
    expected: &[Answer],
) -> Vec<Effort> {
    let mut efforts = Vec::with_capacity(cases.len());
    for case in cases {
        let (answers, effort) = run(case, executor(case), requests);
        assert_eq!(answers.len(), expected.len());
        for (index, (answer, expected)) in answers.iter().zip(expected).enumerate() {
            assert_eq!(answer, expected, "request {index} under {case:?}");
        }
        efforts.push(effort);
    }
    efforts
}

/// Makes a case's engine.
///
/// # Panics
/// If the limits don't work.
#[must_use]
pub fn engine(case: &Case, executor: Box<dyn Executor>) -> Engine {
    let limits = SchedulerConfig { max_in_flight: executor.max_in_flight(), ..case.limits.clone() };
    let kv = executor.kv_geometry();
    let info = EngineInfo {
        scheduler: case.policy.to_owned(),
        max_model_len: limits.max_model_len,
        kv,
        enable_prefix_caching: limits.enable_prefix_caching,
    };
    let planner = Planner::new(limits, kv, case.policy).expect("limits that work");
    Engine::new(planner, executor, None, info)
}
