//! Scheduling changes when a token comes, never which.
//!
//! On the mock executor, whose output depends on every block table and every recomputation.

use std::sync::Arc;

use stallfree_core::{
    Executor, FinishReason, KvGeometry, Request, SamplingParams, StopRules, Time,
};
use stallfree_engine::Replay;
use stallfree_scheduler::{Ordering, SchedulerConfig};
use stallfree_testkit::equivalence::{
    Answer, Case, Effort, check, engine, run, under_every_policy,
};
use stallfree_testkit::{Language, MockConfig, MockExecutor, greedy, traffic};

const BLOCK_SIZE: usize = 4;
const MAX_MODEL_LEN: usize = 96;
/// So many that 32 sequences of the maximum length fit.
const PLENTY: usize = 32 * MAX_MODEL_LEN / BLOCK_SIZE;
/// Hardly more than one sequence needs.
const TIGHT: usize = 28;

fn case(policy: &'static str, num_blocks: usize) -> Case {
    let limits = SchedulerConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: 256,
        max_model_len: MAX_MODEL_LEN,
        enable_prefix_caching: false,
        ..SchedulerConfig::default()
    };
    Case { policy, limits, num_blocks, max_in_flight: 1 }
}

fn executor(case: &Case) -> Box<dyn Executor> {
    let kv = KvGeometry { num_blocks: case.num_blocks, block_size: BLOCK_SIZE };
    let max_in_flight = case.max_in_flight;
    MockExecutor::boxed(MockConfig { kv, max_in_flight, ..MockConfig::default() })
}

/// 32 requests, some while others run; a third of them share 12 tokens. Every fifth has a twist.
fn requests() -> Vec<(Time, Request)> {
    let mut requests = traffic("8x0:15+20~12 8x0:9+30 4x0.03:60+20~12 4x0.05:3+9 8x0.1:33+12");
    for (index, (_, request)) in requests.iter_mut().enumerate().step_by(5) {
        let greedy = SamplingParams::greedy();
        request.sampling = Arc::new(match index % 4 {
            0 => SamplingParams { prompt_logprobs: Some(2), logprobs: Some(1), ..greedy },
            1 => SamplingParams { temperature: 1.0, seed: index as u64, ..greedy },
            2 => SamplingParams { repetition_penalty: 1.5, ..greedy },
            _ => greedy,
        });
        let answer = Language::answer(request, MAX_MODEL_LEN);
        let stop_token_ids = Arc::new([answer[3], answer[answer.len() - 2]]);
        request.stop = StopRules { min_tokens: 6, stop_token_ids, ..request.stop.clone() };
    }
    requests
}

/// Returns the answers of a run without company, cache or shortage, which are those of the language itself.
fn expected(requests: &[(Time, Request)]) -> Vec<Answer> {
    let mut alone = case("fastertransformer", PLENTY);
    alone.limits.max_num_seqs = 1;
    let (answers, _) = run(&alone, executor(&alone), requests);
    for (answer, (_, request)) in answers.iter().zip(requests) {
        assert_eq!(answer.tokens, Language::answer(request, MAX_MODEL_LEN));
        let wanted = request.sampling.prompt_logprobs.map_or(0, |_| request.prompt.len() - 1);
        assert_eq!(answer.prompt_logprobs.len(), wanted);
    }
    answers
}

/// Runs changed cases under every policy, with and without prefix cache, with 1 to 3 batches in flight; returns what they took
/// together.
fn check_all(num_blocks: &[usize], change: impl Fn(&mut Case)) -> Effort {
    let requests = requests();
    let expected = expected(&requests);
    let mut all = Effort::default();
    for &num_blocks in num_blocks {
        for (max_in_flight, enable_prefix_caching) in
            [(1, false), (1, true), (2, false), (2, true), (3, true)]
        {
            let mut base = Case { max_in_flight, ..case("", num_blocks) };
            base.limits.enable_prefix_caching = enable_prefix_caching;
            change(&mut base);
            let cases = under_every_policy(&base);
            for effort in check(&cases, executor, &requests, &expected) {
                all.num_preemptions += effort.num_preemptions;
                all.prefix_cache_hits += effort.prefix_cache_hits;
            }
        }
    }
    all
}

#[test]
fn whatever_the_budget() {
    for budget in [1, 7, 16, 64, 2048] {
        let effort = check_all(&[PLENTY], |case| case.limits.max_num_batched_tokens = budget);
        assert_eq!(effort.num_preemptions, 0);
        assert!(effort.prefix_cache_hits > 0);
    }
}

#[test]
fn whatever_the_longest_chunk() {
    for threshold in [1, 3, 17] {
        check_all(&[PLENTY, TIGHT], |case| case.limits.long_prefill_token_threshold = threshold);
    }
}

#[test]
fn however_short_of_blocks() {
    for budget in [9, 96] {
        for num_blocks in [MAX_MODEL_LEN / BLOCK_SIZE, TIGHT, 40] {
            let effort =
                check_all(&[num_blocks], |case| case.limits.max_num_batched_tokens = budget);
            assert!(effort.num_preemptions > 0, "{num_blocks} blocks were enough");
        }
    }
}

#[test]
fn whatever_the_batch_size() {
    for max_num_seqs in [1, 2, 5] {
        check_all(&[PLENTY, TIGHT], |case| case.limits.max_num_seqs = max_num_seqs);
    }
}

#[test]
fn whether_sequences_wait_for_their_token_or_not() {
    let effort = check_all(&[PLENTY, TIGHT], |case| case.limits.decode_pending = false);
    assert!(effort.num_preemptions > 0);
}

#[test]
fn in_order_of_priority() {
    check_all(&[PLENTY, TIGHT], |case| case.limits.ordering = Ordering::Priority);
}

#[test]
fn prompt_logprobs_come_once_though_the_prompt_is_computed_twice() {
    let sampling = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy() };
    let sampling = Arc::new(sampling);
    let requests: Vec<_> = traffic("6x0:40+30")
        .into_iter()
        .map(|(at, request)| (at, Request { sampling: Arc::clone(&sampling), ..request }))
        .collect();
    let expected = expected(&requests);
    for max_in_flight in 1..=3 {
        let mut base = Case { max_in_flight, ..case("", TIGHT) };
        base.limits.max_num_batched_tokens = 16;
        let efforts = check(&under_every_policy(&base), executor, &requests, &expected);
        assert!(efforts.iter().any(|effort| effort.num_preemptions > 0));
    }
}

#[test]
fn sequences_end_for_the_reason_that_holds() {
    let mut stopped = greedy(vec![1, 2, 3], 50);
    let answer = Language::answer(&stopped, MAX_MODEL_LEN);
    stopped.stop.stop_token_ids = Arc::new([answer[4]]);
    let requests = [stopped, greedy(vec![4, 5], 7), greedy(vec![6; 90], 50)];
    for max_in_flight in 1..=3 {
        let case = Case { max_in_flight, ..case("sarathi", PLENTY) };
        let mut replay = Replay::new(engine(&case, executor(&case)));
        let outputs = replay.run(requests.iter().map(|request| (Time::ZERO, request.clone())));
        let ends = outputs.iter().map(|output| {
            let finished = output.finished.as_ref().expect("an end");
            (output.tokens.len(), finished.reason, finished.stop_token)
        });
        let length = |num_tokens| (num_tokens, FinishReason::Length, None);
        let stop = (5, FinishReason::Stop, Some(answer[4]));
        assert_eq!(ends.collect::<Vec<_>>(), [stop, length(7), length(6)]);
    }
}
