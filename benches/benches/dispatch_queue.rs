//! What a step costs where prompts wait that no instance is to have yet: one instance prefills, the other one decodes eight sequences
//! and may compute no prompts, both report each step, and 100 to 10,000 prompts wait, whose deadlines are over.
//!
//! `amid_a_prompt` is with a long prompt under way, so that nothing can be done for those that wait; with `a_prompt_a_step`, each step
//! ends a prompt, and the next one is looked for. The target: with 10,000 that wait a step takes no more than 0.5 ms in the one case, and
//! 2 ms, a tenth of what such a step takes on a GPU, in the other.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use stallfree_cluster::{ClusterReplay, DispatchConfig, Role, Start, build};
use stallfree_core::{InstanceId, KvGeometry, LeaseBook, Request, Slo, Time};
use stallfree_engine::OutputStream;
use stallfree_scheduler::SchedulerConfig;
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{MockConfig, MockExecutor, MockNetwork, greedy};

const MAX_MODEL_LEN: usize = 8192;

/// Steps of one deployment: fewer than the long prompt takes, of 64 tokens each.
const NUM_STEPS: usize = 100;

/// A deployment in which prompts wait.
struct Crowded {
    replay: ClusterReplay,
    _streams: Vec<OutputStream>,
    steps_left: usize,
}

impl Crowded {
    /// One whose prefill instance has the first prompt of so many tokens before it.
    fn new(first_len: u32, num_waiting: usize) -> Self {
        let network = MockNetwork::default();
        let start = |(index, role): (u32, Role)| {
            let limits = SchedulerConfig {
                max_num_batched_tokens: 64,
                max_model_len: MAX_MODEL_LEN,
                ..SchedulerConfig::default()
            };
            let case = Case { policy: "sarathi", limits, num_blocks: 8192, max_in_flight: 1 };
            let config = MockConfig {
                kv: KvGeometry { num_blocks: case.num_blocks, block_size: 16 },
                ..MockConfig::default()
            };
            let leases = LeaseBook::default();
            let executor = MockExecutor::on(&network, InstanceId(index), leases.clone(), config);
            Start { engine: engine(&case, Box::new(executor)), role, leases }
        };
        let instances = (0..).zip([Role::Prefill, Role::Decode]).map(start).collect();
        let dispatch = DispatchConfig {
            max_multiplexing_length: 1,
            timeout: Duration::from_secs(1_000_000),
            ..DispatchConfig::named("multiplexing")
        };
        let mut replay = ClusterReplay::new(instances, build(&dispatch).expect("a policy"));
        let mut streams: Vec<OutputStream> =
            (0..8).map(|salt| replay.submit(request(salt, 16, None))).collect();
        replay.run_until(Time::from_start(Duration::from_secs(1)));
        streams.push(replay.submit(request(8, first_len, None)));
        let late = Some(Duration::from_millis(1));
        streams.extend((0..num_waiting).map(|salt| replay.submit(request(salt as u32, 16, late))));
        Self { replay, _streams: streams, steps_left: NUM_STEPS }
    }

    /// Lets both instances take a step, and returns how long that took.
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    fn step(&mut self) -> Duration {
        let num_steps = |replay: &ClusterReplay| {
            replay.engines().map(|engine| engine.stats().num_steps).min().unwrap_or(0)
        };
        let before = num_steps(&self.replay);
        let start = Instant::now();
        while num_steps(&self.replay) == before {
            self.replay.step(Time::MAX);
        }
        self.steps_left -= 1;
        start.elapsed()
    }
}

fn request(salt: u32, len: u32, ttft: Option<Duration>) -> Request {
    let prompt = (0..len).map(|i| (salt * 37 + i * 11) % 1000).collect();
    Request { slo: Slo { ttft, tpot: None }, ..greedy(prompt, MAX_MODEL_LEN) }
}

fn dispatch_queue(criterion: &mut Criterion) {
    for (name, first_len) in [("amid_a_prompt", MAX_MODEL_LEN as u32 - 2), ("a_prompt_a_step", 16)]
    {
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat);
        for num_waiting in [NUM_STEPS, 1000, 10_000] {
            group.bench_function(BenchmarkId::from_parameter(num_waiting), |bencher| {
                bencher.iter_custom(|num_steps| {
                    let mut crowded = Crowded::new(first_len, num_waiting);
                    let mut total = Duration::ZERO;
                    for _ in 0..num_steps {
                        if crowded.steps_left == 0 {
                            crowded = Crowded::new(first_len, num_waiting);
                        }
                        total += crowded.step();
                    }
                    total
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, dispatch_queue);
criterion_main!(benches);
