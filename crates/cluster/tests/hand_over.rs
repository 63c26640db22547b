//! Wherever a sequence runs, and whatever is lost meanwhile: its tokens are those of one engine, and all blocks come back.

#[path = "hand_over/deployment.rs"]
mod deployment;

use std::sync::Arc;
use std::time::Duration;

use deployment::{BLOCK_SIZE, Deployment, MAX_MODEL_LEN, check_answer};
use proptest::prelude::*;
use stallfree_cluster::{
    Cluster, ClusterConfig, ClusterReplay, DISPATCH_POLICIES, DispatchConfig, Role, Start, build,
    roles,
};
use stallfree_core::{
    BatchId, Clock, FinishReason, InstanceId, KvGeometry, LeaseBook, Request, Slo, Time, WallClock,
};
use stallfree_engine::{EngineHandle as _, InstanceChange, Ordering, OutputStream, SubmitError};
use stallfree_scheduler::{POLICIES, SchedulerConfig};
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{Fault, Language, MockConfig, MockExecutor, Pace, greedy, traffic};

const ORDERS: [Ordering; 6] = [
    Ordering::Fcfs,
    Ordering::Priority,
    Ordering::Sjf,
    Ordering::Ljf,
    Ordering::Edf,
    Ordering::Llf,
];

#[test]
fn a_sequence_prefills_here_and_decodes_there() {
    let mut deployment = Deployment::new(2, 1);
    deployment.case.num_blocks = 200;
    let requests = traffic("3x0:15+20~12 2x0.02:33+9 1x0.03:9+1 1x0.03:63+9");
    let mut replay = deployment.start();
    let outputs = replay.run(&requests);
    let mut early = 0;
    for (output, (_, request)) in outputs.iter().zip(&requests) {
        check_answer(output, request, &deployment);
        let admission = output.admission.expect("how it was admitted");
        let finished = output.finished.as_ref().expect("its end");
        assert_eq!(finished.times.scheduled, Some(admission.at));
        assert_eq!(finished.times.first_token, Some(output.tokens[0].at));
        assert_eq!(finished.num_preemptions, 0);
        // What ends with its first token is not handed over.
        let times = &finished.times;
        let fetched = [times.kv_transfer_started, times.kv_transfer_ended];
        match output.tokens.len() {
            1 => assert_eq!(fetched, [None, None]),
            _ => {
                let [started, ended] = fetched.map(|at| at.expect("a moment"));
                let first = times.first_token.expect("a token");
                // What there is of a prompt that takes several steps is fetched meanwhile; its end in any case afterwards.
                early += usize::from(started < first);
                assert!(started <= ended);
                assert_eq!(ended, first + Duration::from_millis(deployment.fetch_ms));
            }
        }
    }
    assert!(early >= 2, "{early}");
    deployment.check_empty(&replay);
    let tokens: Vec<u64> = replay.engines().map(|e| e.stats().generation_tokens).collect();
    // The prompt that ends with its first token stays, as does the one that has room for one.
    assert_eq!(tokens, [7, 5 * 20 - 2 * 11 - 5]);
}

#[test]
fn a_lease_outlasts_a_long_wait_and_ends_with_its_reader() {
    // The decode instance takes one sequence at a time, each for longer than a lease lasts.
    let mut deployment = Deployment::new(2, 1);
    deployment.case.limits.max_num_seqs = 1;
    deployment.case.limits.max_num_batched_tokens = 64;
    let mut replay = deployment.start();
    let mut streams: Vec<OutputStream> =
        (0..3).map(|i| replay.submit(greedy((i..i + 20).collect(), 40))).collect();
    replay.run_until(Time::ZERO + Duration::from_millis(30));
    let kept = |replay: &ClusterReplay| {
        replay.engines().next().map_or(0, |engine| engine.stats().num_used_blocks)
    };
    assert!(kept(&replay) > 0, "what waits is kept");
    streams.pop();
    while replay.step(Time::MAX) {}
    drop(streams);
    deployment.check_empty(&replay);
}

/// A prompt of eight steps, whose client leaves, or whose prefill instance is lost, when some of its KV is there already.
#[test]
fn what_was_expected_and_does_not_come_is_freed() {
    for (leaves_at, fault) in [(22, None), (28, None), (90, Some((0, 4))), (90, Some((1, 2)))] {
        for fetch_ms in [1, 7, 30] {
            let mut deployment = Deployment::new(3, 2);
            deployment.case.limits.max_num_batched_tokens = 8;
            deployment.fetch_ms = fetch_ms;
            deployment.faults = fault.into_iter().collect();
            let mut replay = deployment.start();
            let stream = replay.submit(greedy((0..60).collect(), 4));
            replay.run_until(Time::ZERO + Duration::from_millis(20));
            let used: Vec<usize> =
                replay.engines().map(|engine| engine.stats().num_used_blocks).collect();
            assert!(used[0].min(used[2]) >= 15, "{used:?} blocks are in use");
            replay.run_until(Time::ZERO + Duration::from_millis(leaves_at));
            drop(stream);
            while replay.step(Time::MAX) {}
            deployment.check_empty(&replay);
        }
    }
}

/// Prompts of several steps, of whose fetches some fail: what has come of them is of no use, and they are computed again.
#[test]
fn what_cannot_be_fetched_is_computed_again() {
    let requests = traffic("3x0:30+12 2x0.02:45+9");
    for failing_fetch in 1..8 {
        let mut deployment = Deployment::new(2, 1);
        deployment.case.num_blocks = 200;
        deployment.case.limits.max_num_batched_tokens = 8;
        deployment.failing_fetch = Some(failing_fetch);
        let mut replay = deployment.start();
        let mut fetched = 0;
        for (output, (_, request)) in replay.run(&requests).iter().zip(&requests) {
            check_answer(output, request, &deployment);
            let times = output.finished.as_ref().expect("its end").times;
            fetched += usize::from(times.kv_transfer_ended.is_some());
        }
        // One that fails before its sequence comes is begun anew with the next offer.
        let most = if failing_fetch == 1 { 0 } else { 5 };
        assert!(fetched <= most, "{fetched} of 5 where one fetch of {failing_fetch} fails");
        deployment.check_empty(&replay);
    }
}

/// A client that leaves when its sequence is on the way: its decode instance hears of both at once.
#[test]
fn what_comes_and_goes_at_once_leaves_nothing() {
    for fetch_ms in [1, 30] {
        let mut deployment = Deployment::new(2, 1);
        deployment.roles.reverse();
        deployment.case.limits.max_num_batched_tokens = 8;
        deployment.fetch_ms = fetch_ms;
        let mut replay = deployment.start();
        let mut stream = replay.submit(greedy((0..30).collect(), 4));
        while stream.take().tokens.is_empty() {
            assert!(replay.step(Time::MAX));
        }
        drop(stream);
        while replay.step(Time::MAX) {}
        deployment.check_empty(&replay);
    }
}

#[test]
fn what_a_lost_instance_leaves_goes_on_elsewhere() {
    let requests = traffic("6x0:15+30 4x0.05:33+20");
    for lost in 0..3 {
        for at in [0, 3, 9, 20] {
            let deployment = Deployment { faults: vec![(lost, at)], ..Deployment::new(3, 1) };
            let mut replay = deployment.start();
            let outputs = replay.run(&requests);
            for (output, (_, request)) in outputs.iter().zip(&requests) {
                check_answer(output, request, &deployment);
            }
            deployment.check_empty(&replay);
        }
    }
}

#[test]
fn readers_hear_of_the_end_of_all_instances() {
    let deployment = Deployment { faults: vec![(0, 2), (1, 2)], ..Deployment::new(2, 1) };
    let mut replay = deployment.start();
    let outputs = replay.run(&traffic("4x0:15+30"));
    for output in outputs {
        assert!(output.error.is_some(), "{output:?}");
    }
    deployment.check_empty(&replay);
}

/// A deployment whose prefill instances have as many waiting as may wait takes no more, however idle the others are.
#[test]
fn requests_are_refused_where_prefill_instances_are_full() {
    let kv = KvGeometry { num_blocks: 40, block_size: BLOCK_SIZE };
    let start = |role, fault| {
        let mut case = Deployment::new(2, 1).case;
        case.limits.max_num_seqs = 1;
        let config = MockConfig { kv, pace: Pace::Real, fault, ..MockConfig::default() };
        Start {
            engine: engine(&case, MockExecutor::boxed(config)),
            role,
            leases: LeaseBook::default(),
        }
    };
    let hangs = Some(Fault::Hangs(BatchId(0)));
    let instances = vec![start(Role::Prefill, hangs), start(Role::Decode, None)];
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let dispatch = build(&DispatchConfig::default()).expect("a policy");
    let config = ClusterConfig { dispatch, clock, max_waiting: 2, gate: None };
    let cluster = Cluster::spawn(instances, config).expect("threads");
    let mut streams = Vec::new();
    // One may run and two may wait; the first is counted among those until it runs.
    let refused = (0..4).find_map(|i| match cluster.submit(greedy(vec![i + 1; 8], 4)) {
        Ok(stream) => {
            streams.push(stream);
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Some(SubmitError::QueueFull { waiting: 2, .. })), "{refused:?}");
}

/// A client: when it comes, what it asks, and when it leaves if it does not wait for the end.
#[derive(Clone, Debug)]
struct Client {
    at_ms: u64,
    prompt_len: usize,
    shared: bool,
    max_tokens: usize,
    leaves_after_ms: Option<u64>,
    ttft_slo_ms: Option<u64>,
    tpot_slo_ms: Option<u64>,
}

impl Client {
    fn request(&self, index: usize) -> Request {
        let salt = if self.shared { 0 } else { index as u32 + 1 };
        let prompt = (0..self.prompt_len as u32).map(|i| (salt * 37 + i * 11) % 1000).collect();
        let slo = Slo {
            ttft: self.ttft_slo_ms.map(Duration::from_millis),
            tpot: self.tpot_slo_ms.map(Duration::from_millis),
        };
        Request { slo, ..greedy(prompt, self.max_tokens) }
    }
}

fn clients() -> impl Strategy<Value = Vec<Client>> {
    let leaves = prop_oneof![Just(None), (0_u64..90).prop_map(Some)];
    let slo = || prop::option::of(1_u64..100);
    let lengths = (1_usize..63, any::<bool>(), 1_usize..40);
    let client = (0_u64..80, lengths, leaves, slo(), slo()).prop_map(
        |(at_ms, lengths, leaves_after_ms, ttft_slo_ms, tpot_slo_ms)| {
            let (prompt_len, shared, max_tokens) = lengths;
            Client {
                at_ms,
                prompt_len,
                shared,
                max_tokens,
                leaves_after_ms,
                ttft_slo_ms,
                tpot_slo_ms,
            }
        },
    );
    prop::collection::vec(client, 1..24)
}

/// What happens during a run.
#[derive(Clone, Copy, Debug)]
enum Event {
    Comes(usize),
    Leaves(usize),
    Changes(InstanceId, InstanceChange),
}

/// Instances that drain, or are for something else from some moment on.
fn changes() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let role = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Role::Prefill)),
        1 => Just(Some(Role::Decode)),
        1 => Just(Some(Role::Mixed)),
    ];
    let change = (0_u64..150, 0_u32..4, role, prop::option::of(any::<bool>())).prop_map(
        |(at_ms, instance, role, draining)| {
            (at_ms, Event::Changes(InstanceId(instance), InstanceChange { role, draining }))
        },
    );
    prop::collection::vec(change, 0..6)
}

fn dispatches() -> impl Strategy<Value = DispatchConfig> {
    let numbers = (0..DISPATCH_POLICIES.len(), 0..ORDERS.len(), 1_usize..64, 1_usize..200);
    let watermark = prop_oneof![Just(1_u64), Just(1000)];
    (numbers, watermark).prop_map(|((policy, order, length, tokens), step_ms)| DispatchConfig {
        prefill_order: ORDERS[order],
        max_multiplexing_length: length,
        decode_tokens_watermark: tokens,
        decode_step_watermark: Duration::from_millis(step_ms),
        ..DispatchConfig::named(DISPATCH_POLICIES[policy].name)
    })
}

fn deployments() -> impl Strategy<Value = Deployment> {
    let sizes = (1_usize..5, 1_usize..5, dispatches());
    let limits = (0..POLICIES.len(), 16_usize..60, 1_usize..40, 1_usize..12, 1_usize..4);
    let faults = prop::collection::vec((0_usize..4, 0_u64..30), 0..3);
    let fetches = (0_u64..40, prop::option::weighted(0.3, 1_u64..6));
    (sizes, limits, any::<[bool; 3]>(), fetches, faults).prop_map(
        |((count, partition, dispatch), limits, [prefix, pending, turned], fetches, faults)| {
            let (fetch_ms, failing_fetch) = fetches;
            let (policy, num_blocks, budget, max_num_seqs, max_in_flight) = limits;
            let limits = SchedulerConfig {
                max_num_seqs,
                max_num_batched_tokens: budget,
                max_model_len: MAX_MODEL_LEN,
                enable_prefix_caching: prefix,
                decode_pending: pending,
                ordering: dispatch.prefill_order,
                ..SchedulerConfig::default()
            };
            let case = Case { policy: POLICIES[policy].name, limits, num_blocks, max_in_flight };
            let mut roles = roles(count, partition.min(count));
            // Whether a decode instance takes its step before or after a prefill instance hands something over to it.
            if turned {
                roles.reverse();
            }
            Deployment { roles, dispatch, case, fetch_ms, failing_fetch, faults }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_comes_goes_fails_and_changes(
        deployment in deployments(),
        clients in clients(),
        changes in changes(),
    ) {
        let mut replay = deployment.start();
        let mut events: Vec<(u64, Event)> = changes;
        for (index, client) in clients.iter().enumerate() {
            events.push((client.at_ms, Event::Comes(index)));
            let leaves = client.leaves_after_ms.map(|ms| client.at_ms + ms);
            events.extend(leaves.map(|at_ms| (at_ms, Event::Leaves(index))));
        }
        events.sort_by_key(|(at_ms, _)| *at_ms);
        let mut streams: Vec<Option<OutputStream>> = clients.iter().map(|_| None).collect();
        for (at_ms, event) in events {
            replay.run_until(Time::ZERO + Duration::from_millis(at_ms));
            match event {
                Event::Comes(index) => {
                    streams[index] = Some(replay.submit(clients[index].request(index)));
                }
                Event::Leaves(index) => streams[index] = None,
                Event::Changes(id, change) => replay.change_instance(id, change),
            }
        }
        let mut steps = 0;
        while replay.step(Time::MAX) {
            steps += 1;
            prop_assert!(steps < 20_000, "it does not come to an end");
        }
        for (index, stream) in streams.into_iter().enumerate() {
            let Some(mut stream) = stream else { continue };
            let output = stream.blocking_next().expect("something");
            let request = clients[index].request(index);
            let answer = Language::answer(&request, MAX_MODEL_LEN);
            let tokens: Vec<u32> = output.tokens.iter().map(|token| token.token).collect();
            if output.error.is_some() {
                let is_lost = |index| deployment.faults.iter().any(|&(lost, _)| lost == index);
                let lost = (0..deployment.roles.len()).filter(|&index| is_lost(index)).count();
                prop_assert!(lost > 0, "{:?}", output);
                prop_assert!(answer.starts_with(&tokens));
            } else {
                let finished = output.finished.expect("its end");
                prop_assert_ne!(finished.reason, FinishReason::Abort);
                prop_assert_eq!(tokens, answer);
            }
        }
        deployment.check_empty(&replay);
    }
}
