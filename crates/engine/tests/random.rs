//! Whatever comes and goes, every sequence ends, answers are right and blocks come back.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use stallfree_core::{FinishReason, KvGeometry, Request, Time};
use stallfree_engine::{OutputStream, Replay, SeqOutput};
use stallfree_scheduler::{POLICIES, SchedulerConfig};
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{Language, MockConfig, MockExecutor, greedy};

const MAX_MODEL_LEN: usize = 64;

/// A client: when it comes, what it asks, and when it leaves if it does not wait for the end.
#[derive(Clone, Debug)]
struct Client {
    at_ms: u64,
    prompt_len: usize,
    shared: bool,
    max_tokens: usize,
    leaves_after_ms: Option<u64>,
}

impl Client {
    fn request(&self, index: usize) -> Request {
        let salt = if self.shared { 0 } else { index as u32 + 1 };
        let prompt = (0..self.prompt_len as u32).map(|i| (salt * 37 + i * 11) % 1000).collect();
        greedy(prompt, self.max_tokens)
    }
}

fn clients() -> impl Strategy<Value = Vec<Client>> {
    let leaves = prop_oneof![Just(None), (0_u64..60).prop_map(Some)];
    let client = (0_u64..80, 1_usize..63, any::<bool>(), 1_usize..40, leaves).prop_map(
        |(at_ms, prompt_len, shared, max_tokens, leaves_after_ms)| Client {
            at_ms,
            prompt_len,
            shared,
            max_tokens,
            leaves_after_ms,
        },
    );
    prop::collection::vec(client, 1..24)
}

fn cases() -> impl Strategy<Value = Case> {
    (0..POLICIES.len(), 16_usize..60, 1_usize..40, 1_usize..12, 1_usize..4, any::<[bool; 2]>())
        .prop_map(|(policy, num_blocks, budget, max_num_seqs, max_in_flight, [prefix, pending])| {
            let limits = SchedulerConfig {
                max_num_seqs,
                max_num_batched_tokens: budget,
                max_model_len: MAX_MODEL_LEN,
                enable_prefix_caching: prefix,
                decode_pending: pending,
                ..SchedulerConfig::default()
            };
            Case { policy: POLICIES[policy].name, limits, num_blocks, max_in_flight }
        })
}

fn ms(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

/// Runs the clients and returns what those who waited got.
fn run(case: &Case, clients: &[Client]) -> Vec<Option<SeqOutput>> {
    let executor = MockExecutor::boxed(MockConfig {
        kv: KvGeometry { num_blocks: case.num_blocks, block_size: 4 },
        max_in_flight: case.max_in_flight,
        ..MockConfig::default()
    });
    let mut replay = Replay::new(engine(case, executor));
    let mut streams: Vec<Option<OutputStream>> = clients.iter().map(|_| None).collect();
    for (at, client, comes) in events(clients) {
        while replay.now() < at && replay.step(at) {
            replay.engine().check_integrity().expect("the books agree");
        }
        replay.run_until(at);
        streams[client] = comes.then(|| replay.submit(clients[client].request(client)));
    }
    while replay.step(Time::MAX) {
        replay.engine().check_integrity().expect("the books agree");
    }
    assert_eq!(replay.engine().dead(), None);
    let stats = replay.engine().stats();
    assert_eq!((stats.num_running, stats.num_waiting, stats.num_used_blocks), (0, 0, 0));
    let read = |stream: Option<OutputStream>| stream.and_then(|mut stream| stream.blocking_next());
    streams.into_iter().map(read).collect()
}

/// Returns when which client comes (`true`) or leaves.
fn events(clients: &[Client]) -> VecDeque<(Time, usize, bool)> {
    let mut events = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        events.push((ms(client.at_ms), index, true));
        let leaves = client.leaves_after_ms.map(|after| ms(client.at_ms + after));
        events.extend(leaves.map(|at| (at, index, false)));
    }
    events.sort_by_key(|(at, ..)| *at);
    events.into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn those_who_wait_get_their_answer(case in cases(), clients in clients()) {
        let outputs = run(&case, &clients);
        for (index, (client, output)) in clients.iter().zip(&outputs).enumerate() {
            let Some(output) = output else {
                prop_assert!(client.leaves_after_ms.is_some(), "client {index} got nothing");
                continue;
            };
            let tokens: Vec<_> = output.tokens.iter().map(|token| token.token).collect();
            prop_assert_eq!(tokens, Language::answer(&client.request(index), MAX_MODEL_LEN));
            let finished = output.finished.as_ref().expect("an end");
            prop_assert_eq!(finished.reason, FinishReason::Length);
            let (times, last) = (finished.times, output.tokens.last().map(|token| token.at));
            prop_assert_eq!(times.arrived, ms(client.at_ms));
            prop_assert_eq!(times.last_token, last);
            prop_assert_eq!(output.admission.map(|admission| admission.at), times.scheduled);
            let order = [Some(times.arrived), times.scheduled, times.first_token, times.last_token];
            prop_assert!(order.is_sorted() && times.finished == times.last_token.unwrap_or_default());
        }
    }

    #[test]
    fn the_same_traffic_gives_the_same_outputs_at_the_same_moments(
        case in cases(),
        clients in clients(),
    ) {
        let (first, second) = (run(&case, &clients), run(&case, &clients));
        prop_assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}
