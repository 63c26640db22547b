//! Requests with objectives: where they go, whom they wait for, and what they are told.

#[path = "hand_over/deployment.rs"]
mod deployment;

use std::time::Duration;

use deployment::{Deployment, check_answer};
use stallfree_cluster::{ClusterReplay, DispatchConfig};
use stallfree_core::{Request, Slo, Time};
use stallfree_engine::{OutputStream, SeqOutput};
use stallfree_testkit::greedy;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// One instance that prefills and one that decodes; a step takes 5 ms and 10 µs a token, a chunk has 32 tokens.
fn multiplexing(max_multiplexing_length: usize) -> Deployment {
    let mut deployment = Deployment::new(2, 1);
    deployment.case.num_blocks = 200;
    deployment.case.limits.max_num_seqs = 1;
    deployment.dispatch =
        DispatchConfig { max_multiplexing_length, ..DispatchConfig::named("multiplexing") };
    deployment
}

fn request(salt: u32, prompt_len: u32, max_tokens: usize, ttft: Option<Duration>) -> Request {
    let prompt = (0..prompt_len).map(|i| (salt * 37 + i * 11) % 1000).collect();
    let tpot = Some(ms(50));
    Request { slo: Slo { ttft, tpot }, ..greedy(prompt, max_tokens) }
}

fn run(replay: &mut ClusterReplay, requests: &[Request]) -> Vec<SeqOutput> {
    let mut streams: Vec<OutputStream> =
        requests.iter().map(|request| replay.submit(request.clone())).collect();
    while replay.step(Time::MAX) {}
    streams.iter_mut().map(OutputStream::take).collect()
}

/// Returns how many prompt tokens each instance has computed.
fn prompts(replay: &ClusterReplay) -> Vec<u64> {
    replay.engines().map(|engine| engine.stats().prompt_tokens).collect()
}

/// Two prompts that one instance can't have done in time: the other one is computed where decodes are.
#[test]
fn a_prompt_that_would_be_late_is_computed_where_others_decode() {
    let deployment = multiplexing(64);
    let mut replay = deployment.start();
    let requests = [request(1, 60, 3, Some(ms(15))), request(2, 60, 3, Some(ms(15)))];
    let outputs = run(&mut replay, &requests);
    for (output, request) in outputs.iter().zip(&requests) {
        check_answer(output, request, &deployment);
        assert!(output.tokens[0].at <= Time::ZERO + ms(15), "{output:?}");
    }
    assert_eq!(prompts(&replay), [60, 60]);
    deployment.check_empty(&replay);
}

/// Prompts that are too long for an instance that decodes wait for the one that prefills, the one that can still be in time first.
#[test]
fn a_prompt_waits_and_those_that_are_late_wait_for_longer() {
    let deployment = multiplexing(1);
    let mut replay = deployment.start();
    let [late, urgent] = [Some(ms(1)), Some(ms(30))];
    let requests = [request(1, 60, 3, None), request(2, 60, 3, late), request(3, 60, 3, urgent)];
    let outputs = run(&mut replay, &requests);
    for (output, request) in outputs.iter().zip(&requests) {
        check_answer(output, request, &deployment);
    }
    let first = |index: usize| outputs[index].tokens[0].at;
    assert!(first(0) < first(2) && first(2) < first(1), "{outputs:?}");
    assert!(first(2) <= Time::ZERO + ms(30), "{outputs:?}");
    assert_eq!(prompts(&replay), [180, 0]);
    deployment.check_empty(&replay);
}

#[test]
fn who_waits_too_long_is_told_to_come_back() {
    let mut deployment = multiplexing(1);
    deployment.dispatch.timeout = ms(10);
    let mut replay = deployment.start();
    let requests = [request(1, 60, 3, None), request(2, 60, 3, Some(ms(1)))];
    let outputs = run(&mut replay, &requests);
    check_answer(&outputs[0], &requests[0], &deployment);
    assert!(outputs[1].error.is_some() && outputs[1].retry_after == Some(ms(10)), "{outputs:?}");
    assert!(replay.now() < Time::ZERO + ms(1000), "nothing is left to wait for");
    deployment.check_empty(&replay);
}

/// What would be late is refused as it comes, whatever the policy; what has no objective is not.
#[test]
fn early_rejection_names_what_is_predicted() {
    for policy in ["least-tokens", "round-robin", "slack", "multiplexing"] {
        let mut deployment = multiplexing(1);
        deployment.dispatch.policy = policy.to_owned();
        deployment.dispatch.early_rejection = true;
        let mut replay = deployment.start();
        let objectives = [None, None, Some(ms(20)), Some(ms(60))];
        let requests: Vec<Request> =
            (0..4).zip(objectives).map(|(salt, ttft)| request(salt, 60, 3, ttft)).collect();
        let outputs = run(&mut replay, &requests);
        // Two prompts are before it, and each takes two steps.
        let error = outputs[2].error.as_deref().unwrap_or_default();
        assert!(error.contains("predicted after 3") && error.contains("is 20 ms"), "{error}");
        for index in [0, 1, 3] {
            check_answer(&outputs[index], &requests[index], &deployment);
        }
        deployment.check_empty(&replay);
    }
}
