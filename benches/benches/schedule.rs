//! How long planning a step takes: 1,024 sequences decode at a context of about 500, 1,024 wait.
//!
//! Each policy plans the same state over and over: after a plan, the tokens that it sampled are noted outside the measured time,
//! as an engine does while the device computes. The target is under 100 µs for every policy.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use stallfree_core::{KvGeometry, SeqId, Time};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig, Sequence};

const NUM_SEQS: usize = 1024;
const CONTEXT: usize = 500;
const MAX_MODEL_LEN: usize = 2048;

/// Makes a planner with `NUM_SEQS` sequences that decode and as many that wait for a seat.
fn loaded(policy: &str, enable_prefix_caching: bool) -> Planner {
    let config = SchedulerConfig {
        max_num_seqs: NUM_SEQS,
        max_num_batched_tokens: 8192,
        max_model_len: MAX_MODEL_LEN,
        enable_prefix_caching,
        ..SchedulerConfig::default()
    };
    let block_size = 16;
    let num_blocks = NUM_SEQS * MAX_MODEL_LEN / block_size;
    let mut planner = Planner::new(config, KvGeometry { num_blocks, block_size }, policy)
        .expect("a policy of the registry");
    for id in 0..2 * NUM_SEQS {
        // Lengths differ, so that sequences fill their blocks in different steps.
        let len = CONTEXT + id % 16;
        let prompt = (0..len).map(|at| (id * 1000 + at) as u32).collect();
        let seq = Sequence::new(SeqId(id as u64), prompt, MAX_MODEL_LEN, 0, Time::ZERO);
        planner.add(seq).expect("a prompt that fits");
    }
    while step(&mut planner).1 < NUM_SEQS {}
    planner
}

/// Plans a step and notes its tokens; returns how long planning took and how many chunks the plan has.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn step(planner: &mut Planner) -> (Duration, usize) {
    let start = Instant::now();
    let plan = planner.schedule(Time::ZERO);
    let took = start.elapsed();
    planner.complete(&plan.chunks);
    for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
        planner.append_token(chunk.seq, 7);
    }
    (took, plan.chunks.len())
}

fn schedule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule_1024_running_1024_waiting");
    group.sampling_mode(SamplingMode::Flat);
    for policy in POLICIES {
        for enable_prefix_caching in [true, false] {
            let cache = if enable_prefix_caching { "prefix_cache" } else { "plain" };
            group.bench_function(format!("{}/{cache}", policy.name), |bencher| {
                bencher.iter_custom(|num_steps| {
                    time_steps(policy.name, enable_prefix_caching, num_steps)
                });
            });
        }
    }
    group.finish();
}

/// Returns how long planning `num_steps` steps of all decodes took, starting afresh before sequences reach their maximum length.
fn time_steps(policy: &str, enable_prefix_caching: bool, num_steps: u64) -> Duration {
    let mut planner = loaded(policy, enable_prefix_caching);
    let mut total = Duration::ZERO;
    for _ in 0..num_steps {
        let (took, num_chunks) = step(&mut planner);
        if num_chunks == NUM_SEQS {
            total += took;
        } else {
            planner = loaded(policy, enable_prefix_caching);
            total += step(&mut planner).0;
        }
    }
    total
}

criterion_group! {
    name = benches;
    // Only planning counts as measured time, a small part of what passes.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300));
    targets = schedule
}
criterion_main!(benches);
