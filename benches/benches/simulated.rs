//! Runs of Yi-34B on two simulated A100, and their seconds as what criterion measures.

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, SamplingMode, Throughput};
use stallfree_bench::metrics::Summary;
use stallfree_bench::run::{Detail, Recorder, RunConfig, in_virtual_time};
use stallfree_bench::workload::{Arrivals, Source, StandIn};
use stallfree_bench::{WorkloadConfig, metrics::SummaryConfig};
use stallfree_core::{Executor as _, Parallel};
use stallfree_engine::{Engine, EngineInfo, Replay};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_sim::{Calibration, KvRoom, ModelShape, SimConfig, SimExecutor};

/// Every policy that criterion reports, and the tokens of its batches: those that cut prompts take the paper's chunk.
pub(crate) const POLICIES: [(&str, Option<usize>); 6] = [
    ("sarathi", Some(1536)),
    ("vllm-v1", Some(1536)),
    ("chunked", Some(1536)),
    ("vllm", None),
    ("orca", None),
    ("fastertransformer", None),
];

/// What is run.
pub(crate) struct Load {
    pub(crate) lengths: StandIn,
    pub(crate) arrivals: Arrivals,
    pub(crate) max_model_len: usize,
}

impl Load {
    /// Runs 128 requests under a policy.
    pub(crate) fn run(&self, policy: &str, chunk: Option<usize>) -> Summary {
        let (gpu, factors) = Calibration::find("a100-80g-pcie").expect("it is shipped");
        let executor = SimExecutor::new(&SimConfig {
            gpu,
            factors,
            shape: ModelShape::built_in("yi-34b").expect("it is known"),
            parallel: Parallel { tensor: 2, pipeline: 1 },
            block_size: 16,
            kv: KvRoom::Utilization(0.85),
        })
        .expect("it fits");
        let limits = SchedulerConfig {
            max_num_seqs: 256,
            max_num_batched_tokens: chunk.unwrap_or(self.max_model_len),
            max_model_len: self.max_model_len,
            enable_prefix_caching: false,
            ..SchedulerConfig::default()
        };
        let kv = executor.kv_geometry();
        let info = EngineInfo {
            scheduler: policy.to_owned(),
            max_model_len: self.max_model_len,
            kv,
            enable_prefix_caching: false,
        };
        let planner = Planner::new(limits, kv, policy).expect("limits that work");
        let recorder = Recorder::new(Detail::Requests);
        let engine = Engine::new(planner, Box::new(executor), Some(recorder.observer()), info);
        let workload = WorkloadConfig {
            source: Source::StandIn(self.lengths.clone()),
            arrivals: self.arrivals.clone(),
            num_requests: Some(128),
            max_total_len: Some(self.max_model_len),
            output_len: None,
            shared_prefix_len: 0,
            seed: 42,
        };
        let workload = workload.generate().expect("a workload");
        let run = RunConfig::exact(64_000);
        let outcome =
            in_virtual_time(&mut Replay::new(engine), &workload, &run, &recorder, &mut |_| {});
        Summary::new(&outcome.requests, SummaryConfig::default())
    }
}

/// Reports a figure of each policy's run. The same code gives the same figure, so any change is a change of behaviour.
pub(crate) fn report(
    criterion: &mut Criterion<VirtualTime>,
    group: &str,
    load: &Load,
    seconds: fn(&Summary) -> f64,
) {
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    for (policy, chunk) in POLICIES {
        group.bench_function(policy, |bencher| {
            bencher.iter_custom(|runs| {
                let each = |_| seconds(&load.run(policy, chunk)).max(NOTHING);
                (0..runs).map(each).sum()
            });
        });
    }
    group.finish();
}

/// Criterion of virtual seconds.
pub(crate) fn criterion() -> Criterion<VirtualTime> {
    Criterion::default()
        .with_measurement(VirtualTime)
        .sample_size(10)
        .noise_threshold(0.001)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(500))
}

/// Stands for no seconds at all, which criterion takes for a mistake.
const NOTHING: f64 = 1e-9;

/// Seconds of a simulation's own time.
pub(crate) struct VirtualTime;

impl Measurement for VirtualTime {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {}

    /// Nothing passes but what a run says.
    fn end(&self, (): ()) -> f64 {
        0.0
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Seconds
    }
}

struct Seconds;

impl ValueFormatter for Seconds {
    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        for value in values.iter_mut().filter(|value| **value <= NOTHING) {
            *value = 0.0;
        }
        "s"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        _throughput: &Throughput,
        _values: &mut [f64],
    ) -> &'static str {
        "s"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "s"
    }
}
