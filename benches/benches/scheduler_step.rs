//! How long planning a step takes: 64 to 16,384 sequences decode at a context of about 500, and as many wait.
//!
//! Each policy plans the same state over and over: after a plan, the tokens that it sampled are noted outside the measured time,
//! as an engine does while the device computes. The target is under 100 µs for every policy with 1,024 sequences.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use stallfree_core::{KvGeometry, SeqId, Time};
use stallfree_scheduler::{POLICIES, Planner, SchedulerConfig, Sequence};

const CONTEXT: usize = 500;
const MAX_MODEL_LEN: usize = 2048;

/// What is planned.
#[derive(Clone, Copy)]
struct State {
    policy: &'static str,
    num_seqs: usize,
    enable_prefix_caching: bool,
}

impl State {
    /// Makes a planner with `num_seqs` sequences that decode and as many that wait for a seat.
    fn planner(&self) -> Planner {
        let num_seqs = self.num_seqs;
        let config = SchedulerConfig {
            max_num_seqs: num_seqs,
            max_num_batched_tokens: 8192.max(2 * num_seqs),
            max_model_len: MAX_MODEL_LEN,
            enable_prefix_caching: self.enable_prefix_caching,
            ..SchedulerConfig::default()
        };
        let block_size = 16;
        let num_blocks = num_seqs * MAX_MODEL_LEN / block_size;
        let mut planner = Planner::new(config, KvGeometry { num_blocks, block_size }, self.policy)
            .expect("a policy of the registry");
        for id in 0..2 * num_seqs {
            // Lengths differ, so that sequences fill their blocks in different steps.
            let len = CONTEXT + id % 16;
            let prompt = (0..len).map(|at| (id * 1000 + at) as u32).collect();
            let seq = Sequence::new(SeqId(id as u64), prompt, MAX_MODEL_LEN, 0, Time::ZERO);
            planner.add(seq).expect("a prompt that fits");
        }
        while step(&mut planner).1 < num_seqs {}
        planner
    }
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

fn scheduler_step(criterion: &mut Criterion) {
    for (cache, enable_prefix_caching) in [("prefix_cache", true), ("plain", false)] {
        let mut group = criterion.benchmark_group(format!("scheduler_step/{cache}"));
        group.sampling_mode(SamplingMode::Flat);
        for policy in POLICIES {
            let sizes: &[usize] =
                if enable_prefix_caching { &[64, 256, 1024, 4096, 16_384] } else { &[1024] };
            for &num_seqs in sizes {
                let state = State { policy: policy.name, num_seqs, enable_prefix_caching };
                group.bench_function(BenchmarkId::new(policy.name, num_seqs), |bencher| {
                    let mut planner = state.planner();
                    bencher.iter_custom(|num_steps| time_steps(state, &mut planner, num_steps));
                });
            }
        }
        group.finish();
    }
}

/// Returns how long planning `num_steps` steps of all decodes took, starting afresh before sequences reach their maximum length.
fn time_steps(state: State, planner: &mut Planner, num_steps: u64) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..num_steps {
        let (took, num_chunks) = step(planner);
        if num_chunks == state.num_seqs {
            total += took;
        } else {
            *planner = state.planner();
            total += step(planner).0;
        }
    }
    total
}

criterion_group! {
    name = benches;
    // Only planning counts as measured time, a small part of what passes.
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(20))
        .measurement_time(Duration::from_millis(100));
    targets = scheduler_step
}
criterion_main!(benches);
