//! What the engine itself costs a step: 256 or 1,024 sequences decode at a context of about 500, on a device that takes no time.
//!
//! `until_submit` is what the device waits for between two steps where only one batch is in flight: taking the tokens, planning,
//! building the batch. `whole` is with telling the readers, which the device does not wait for.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use stallfree_benches::Instantly;
use stallfree_core::{Executor as _, Request, SamplingParams, SeqId, Slo, StopRules, Time};
use stallfree_engine::{Command, Engine, EngineInfo, OutputStream, output_stream};
use stallfree_scheduler::{Planner, SchedulerConfig};

const NUM_SEQS: [usize; 2] = [256, 1024];
const MAX_NUM_SEQS: usize = NUM_SEQS[1];
const CONTEXT: usize = 500;
const MAX_MODEL_LEN: usize = 2048;

/// An engine all of whose sequences decode.
struct Loaded {
    engine: Engine,
    streams: Vec<OutputStream>,
    submitted: Receiver<Instant>,
    steps_left: usize,
}

impl Loaded {
    fn new(num_seqs: usize) -> Self {
        let limits = SchedulerConfig {
            max_num_seqs: MAX_NUM_SEQS,
            max_num_batched_tokens: 8192,
            max_model_len: MAX_MODEL_LEN,
            ..SchedulerConfig::default()
        };
        let (sender, submitted) = sync_channel(1);
        let executor = Instantly::new(MAX_NUM_SEQS * MAX_MODEL_LEN, Some(sender));
        let kv = executor.kv_geometry();
        let info = EngineInfo {
            scheduler: "sarathi".to_owned(),
            max_model_len: MAX_MODEL_LEN,
            kv,
            enable_prefix_caching: true,
        };
        let planner = Planner::new(limits, kv, "sarathi").expect("limits that work");
        let engine = Engine::new(planner, Box::new(executor), None, info);
        let mut loaded = Self { engine, streams: Vec::new(), submitted, steps_left: 1000 };
        let mut commands = Vec::new();
        for id in 0..num_seqs {
            let id = SeqId(id as u64);
            let (output, stream) = output_stream(id, || ());
            loaded.streams.push(stream);
            commands.push(Command::run(id, request(id.0), Time::ZERO, output));
        }
        loaded.engine.step(Time::ZERO, commands);
        loaded.submitted.try_recv().expect("a first batch");
        while loaded.engine.stats().generation_tokens < 2 * num_seqs as u64 {
            loaded.step();
        }
        loaded
    }

    /// Takes a step; returns how long it took until the next batch was submitted, and in all.
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    fn step(&mut self) -> (Duration, Duration) {
        let start = Instant::now();
        black_box(self.engine.step(Time::ZERO, []));
        let whole = start.elapsed();
        let submitted = self.submitted.try_recv().expect("a batch a step");
        let mut cx = Context::from_waker(Waker::noop());
        for stream in &mut self.streams {
            black_box(stream.poll_next(&mut cx).is_ready());
        }
        self.steps_left -= 1;
        (submitted - start, whole)
    }
}

fn request(id: u64) -> Request {
    let len = CONTEXT as u64 + id % 16;
    Request {
        prompt: (0..len).map(|at| (id * 1000 + at) as u32).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopRules { max_tokens: 2000, min_tokens: 0, stop_token_ids: Arc::new([2]) },
        priority: 0,
        slo: Slo::default(),
    }
}

fn engine_step(criterion: &mut Criterion) {
    for num_seqs in NUM_SEQS {
        let mut group = criterion.benchmark_group(format!("engine_step_{num_seqs}_running"));
        group.sampling_mode(SamplingMode::Flat);
        for (name, part) in [("until_submit", 0), ("whole", 1)] {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|num_steps| {
                    let mut loaded = Loaded::new(num_seqs);
                    let mut total = Duration::ZERO;
                    for _ in 0..num_steps {
                        if loaded.steps_left == 0 {
                            loaded = Loaded::new(num_seqs);
                        }
                        let (until_submit, whole) = loaded.step();
                        total += [until_submit, whole][part];
                    }
                    total
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, engine_step);
criterion_main!(benches);
