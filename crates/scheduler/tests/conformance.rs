//! The laws that every policy of the registry obeys, on random arrivals and small caches.

#[path = "conformance/driver.rs"]
mod driver;
#[path = "conformance/timeline.rs"]
mod timeline;
#[path = "conformance/whim.rs"]
mod whim;

use driver::{Arrival, Driver, StepRecord};
use proptest::prelude::*;
use stallfree_core::{KvGeometry, SeqId};
use stallfree_scheduler::{Admission, Ordering, POLICIES, Planner, Policy, SchedulerConfig};

const ORDERINGS: [Ordering; 6] = [
    Ordering::Fcfs,
    Ordering::Priority,
    Ordering::Sjf,
    Ordering::Ljf,
    Ordering::Edf,
    Ordering::Llf,
];

/// A run to make with each policy.
#[derive(Clone, Debug)]
struct Case {
    config: SchedulerConfig,
    geometry: KvGeometry,
    arrivals: Vec<Arrival>,
}

fn config() -> impl Strategy<Value = (SchedulerConfig, KvGeometry)> {
    let limits = (1_usize..8, 1_usize..40, 0_usize..10, 1_usize..4, 0.0..0.4);
    let choices = (0..ORDERINGS.len(), any::<bool>(), any::<bool>());
    let cache = (1_usize..6, 2_usize..24, 0.0..1.0_f64);
    (limits, choices, cache).prop_map(|(limits, choices, (block_size, num_blocks, share))| {
        let geometry = KvGeometry { num_blocks, block_size };
        let config = SchedulerConfig {
            max_num_seqs: limits.0,
            max_num_batched_tokens: limits.1,
            long_prefill_token_threshold: limits.2,
            max_in_flight: limits.3,
            watermark: limits.4,
            max_model_len: ((geometry.num_tokens() as f64 * share) as usize).max(2),
            ordering: ORDERINGS[choices.0],
            enable_prefix_caching: choices.1,
            decode_pending: choices.2,
            ..SchedulerConfig::default()
        };
        (config, geometry)
    })
}

fn arrival(max_model_len: usize) -> impl Strategy<Value = Arrival> {
    let numbers = (0_usize..30, 1..max_model_len, 1_usize..20, -1_i32..2);
    let due = proptest::option::of(0_usize..40);
    (numbers, proptest::option::weighted(0.2, 0_usize..60), due, 0..=max_model_len).prop_map(
        |((step, prompt_len, max_tokens, priority), leaves, due, num_common)| Arrival {
            step,
            prompt_len,
            max_tokens,
            priority,
            due,
            leaves: leaves.map(|after| step + after),
            num_common,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    config().prop_flat_map(|(config, geometry)| {
        let arrivals = prop::collection::vec(arrival(config.max_model_len), 1..16);
        arrivals.prop_map(move |arrivals| Case { config: config.clone(), geometry, arrivals })
    })
}

fn drain(policy: &Policy, case: &Case) -> (Driver, Vec<StepRecord>) {
    let planner = Planner::new(case.config.clone(), case.geometry, policy.name)
        .expect("a configuration that works");
    let mut driver = Driver::new(planner, case.geometry, &case.arrivals);
    let steps = driver.drain(20_000);
    (driver, steps)
}

/// Returns whether sequences take blocks as they go, and may lose them.
fn grows(driver: &Driver) -> bool {
    matches!(driver.planner.declaration().admission, Admission::ThisChunk | Admission::WholePrompt)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The driver checks each step: the declared bound and allocation, blocks conserved, nobody twice in a batch, everybody's
    /// KV his own. Here: everything drains, and everybody who stayed got all his tokens.
    #[test]
    fn every_policy_drains_and_keeps_to_what_it_declares(case in case()) {
        for policy in POLICIES {
            let (driver, _) = drain(policy, &case);
            for (id, seq) in &driver.finished {
                let arrival = &case.arrivals[id.0 as usize];
                let most = case.config.max_model_len - arrival.prompt_len;
                prop_assert_eq!(seq.output().len(), arrival.max_tokens.min(most));
                let expected: Vec<_> = (0..seq.tokens.len()).map(|at| driver.token(*id, at)).collect();
                prop_assert_eq!(&seq.tokens, &expected);
            }
            let num_stayed = case.arrivals.iter().filter(|arrival| arrival.leaves.is_none()).count();
            prop_assert!(driver.finished.len() >= num_stayed);
            prop_assert!(grows(&driver) || driver.planner.load().num_preemptions == 0);
        }
    }

    #[test]
    fn every_policy_is_deterministic(case in case()) {
        for policy in POLICIES {
            prop_assert_eq!(drain(policy, &case).1, drain(policy, &case).1);
        }
    }

    /// A policy can choose badly, but not break anything.
    #[test]
    fn whatever_a_policy_does_the_planner_stays_sound(case in case(), seed: u64) {
        for admission in [Admission::ThisChunk, Admission::WholePrompt, Admission::MaxTokens] {
            let scheduler = Box::new(whim::Whim::new(seed, admission));
            let planner = Planner::with_scheduler(case.config.clone(), case.geometry, scheduler);
            let planner = planner.expect("a configuration that works");
            Driver::new(planner, case.geometry, &case.arrivals).drain(20_000);
        }
    }

    /// Of sequences that wait from the start, none starts before an earlier one.
    #[test]
    fn sequences_start_in_the_order_of_the_queue(mut case in case()) {
        for arrival in &mut case.arrivals {
            (arrival.step, arrival.leaves) = (0, None);
        }
        for policy in POLICIES {
            let (driver, _) = drain(policy, &case);
            if driver.planner.declaration().in_order {
                let expected = driver::in_order(&case.arrivals, case.config.ordering);
                prop_assert_eq!(&driver.admitted, &expected, "{}", policy.name);
            }
        }
    }
}

/// The random cases would be worth little if they left preemption, the prefix cache or pipelining out.
#[test]
fn a_small_cache_preempts_and_shares() {
    let arrivals: Vec<Arrival> = (0..8)
        .map(|step| Arrival {
            step,
            prompt_len: 9,
            max_tokens: 12,
            priority: 0,
            due: None,
            leaves: None,
            num_common: 6,
        })
        .collect();
    let geometry = KvGeometry { num_blocks: 14, block_size: 4 };
    for max_in_flight in [1, 2, 3] {
        let config = SchedulerConfig { max_model_len: 24, max_in_flight, ..Default::default() };
        let case = Case { config, geometry, arrivals: arrivals.clone() };
        for policy in POLICIES {
            let (driver, steps) = drain(policy, &case);
            let load = driver.planner.load();
            assert_eq!(load.num_preemptions > 0, grows(&driver), "{}: {load:?}", policy.name);
            assert!(load.prefix_cache_hits > 0, "{}: {load:?}", policy.name);
            let decodes_ahead = steps.windows(2).any(|pair| {
                pair[0].plan.chunks.iter().any(|chunk| {
                    chunk.samples && pair[1].plan.chunks.iter().any(|next| next.seq == chunk.seq)
                })
            });
            assert!(decodes_ahead, "{} at {max_in_flight} in flight", policy.name);
        }
    }
}

/// The waiting sequence shares most of its blocks, and the victims hold most of theirs together.
#[test]
fn priority_counts_what_is_shared() {
    let arrival = |step: usize, priority: i32| Arrival {
        step,
        prompt_len: 44,
        max_tokens: 12,
        priority,
        due: None,
        leaves: None,
        num_common: 40,
    };
    let arrivals = vec![arrival(0, 5), arrival(1, 5), arrival(3, 0)];
    let config = SchedulerConfig {
        ordering: Ordering::Priority,
        max_model_len: 56,
        watermark: 0.0,
        ..Default::default()
    };
    // The first two have ten blocks in common and one or two more each.
    let case = Case { config, geometry: KvGeometry { num_blocks: 14, block_size: 4 }, arrivals };
    let sarathi = POLICIES.iter().find(|policy| policy.name == "sarathi").expect("it is built in");
    let (driver, steps) = drain(sarathi, &case);
    let admitted = steps.iter().position(|step| step.plan.admitted.contains(&SeqId(2)));
    assert_eq!(admitted, Some(3), "{:?}", driver.planner.load());
    assert_eq!(steps[3].plan.preempted, [SeqId(1)]);
}
