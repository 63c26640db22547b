//! Instances, and the flags that make them.

use std::fmt;

use stallfree_scheduler::SchedulerConfig;

use super::PlanArgs;
use crate::args::{Auto, DeploymentArgs, EngineArgs, Mode, Overrides, ReplicaSpec};
use crate::console;

/// Equal instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) spec: ReplicaSpec,
    pub(super) count: usize,
}

/// What is made of the GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// Instances that run requests from beginning to end.
    Together(Fleet),
    /// Some prefill, the others decode.
    Apart { prefill: Fleet, decode: Fleet },
}

impl Fleet {
    /// Returns how many GPUs they take.
    pub(super) const fn num_gpus(self) -> usize {
        self.count * self.spec.tensor * self.spec.pipeline
    }
}

impl Placement {
    fn fleets(self) -> Vec<Fleet> {
        match self {
            Self::Together(fleet) => vec![fleet],
            Self::Apart { prefill, decode } => vec![prefill, decode],
        }
    }

    /// Returns over how many GPUs an instance of each kind is spread.
    pub(super) fn sizes(self) -> Vec<ReplicaSpec> {
        self.fleets().into_iter().map(|fleet| fleet.spec).collect()
    }

    /// Returns how many GPUs it takes.
    pub(super) fn num_gpus(self) -> usize {
        self.fleets().into_iter().map(Fleet::num_gpus).sum()
    }

    /// Returns what `serve` would be told.
    pub(super) fn deployment(self, args: &PlanArgs) -> DeploymentArgs {
        let specs = |fleet: Fleet| std::iter::repeat_n(fleet.spec, fleet.count);
        let (mode, partition_id) = match self {
            Self::Together(_) => (Mode::Simple, None),
            Self::Apart { prefill, .. } => (Mode::Distserve, Some(prefill.count)),
        };
        DeploymentArgs {
            mode,
            replica_spec: self.fleets().into_iter().flat_map(specs).collect(),
            partition_id,
            ..args.deployment.clone()
        }
    }

    /// Returns the command line that serves with it, on GPUs that are there.
    pub(super) fn command(self, args: &PlanArgs) -> String {
        let mut argv = vec!["stallfree".to_owned(), "serve".to_owned()];
        let model = &args.engine.model;
        argv.extend(model.model.clone().or_else(|| model.model_flag.clone()));
        argv.extend(engine_flags(args));
        let deployment = self.deployment(args);
        let spec = |spec: &ReplicaSpec| format!("{},{}", spec.tensor, spec.pipeline);
        let specs = || deployment.replica_spec.iter().map(spec);
        match self {
            Self::Together(Fleet { spec: ReplicaSpec { tensor, pipeline }, count: 1 }) => {
                argv.extend(flag("tensor-parallel-size", tensor));
                argv.extend(flag("pipeline-parallel-size", pipeline));
                return console::quoted(argv);
            }
            Self::Together(_) => {}
            Self::Apart { prefill, .. } => {
                argv.extend(flag("mode", "distserve"));
                argv.extend(flag("partition-id", prefill.count));
                argv.extend(side_flags("prefill", args.deployment.prefill.overrides()));
                argv.extend(side_flags("decode", args.deployment.decode.overrides()));
            }
        }
        argv.extend(flag("dispatch-policy", &deployment.dispatch_policy));
        argv.push("--replica-spec".to_owned());
        argv.extend(specs());
        console::quoted(argv)
    }
}

fn flag(name: &str, value: impl fmt::Display) -> [String; 2] {
    [format!("--{name}"), value.to_string()]
}

/// Returns the flags of all engines that decide what was simulated.
fn engine_flags(args: &PlanArgs) -> Vec<String> {
    let EngineArgs { model, scheduler, cache } = &args.engine;
    let mut flags = Vec::new();
    flags.extend(flag("scheduler", &scheduler.scheduler));
    flags.extend(
        scheduler
            .scheduler_config
            .iter()
            .flat_map(|(key, value)| flag("scheduler-config", format!("{key}={value}"))),
    );
    flags.extend(flag("max-num-seqs", scheduler.max_num_seqs));
    // Left alone, a simulated device takes the scheduler's own default, a real one what it measures.
    let tokens = scheduler.max_num_batched_tokens;
    let tokens = tokens.unwrap_or(SchedulerConfig::default().max_num_batched_tokens);
    flags.extend(flag("max-num-batched-tokens", tokens));
    if let Some(Auto::Exactly(tokens)) = model.max_model_len {
        flags.extend(flag("max-model-len", tokens));
    }
    flags.extend(flag("gpu-memory-utilization", cache.gpu_memory_utilization));
    if cache.no_enable_prefix_caching {
        flags.push("--no-enable-prefix-caching".to_owned());
    }
    flags
}

/// Returns what is different on one side.
fn side_flags(side: &str, own: Overrides) -> Vec<String> {
    let Overrides { scheduler, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization } = own;
    let values = [
        ("scheduler", scheduler),
        ("max-num-seqs", max_num_seqs.map(|value| value.to_string())),
        ("max-num-batched-tokens", max_num_batched_tokens.map(|value| value.to_string())),
        ("gpu-memory-utilization", gpu_memory_utilization.map(|value| value.to_string())),
    ];
    let typed =
        |(name, value): (&str, Option<String>)| Some(flag(&format!("{side}-{name}"), value?));
    values.into_iter().filter_map(typed).flatten().collect()
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReplicaSpec { tensor, pipeline } = self.spec;
        write!(f, "{} x TP{tensor}", self.count)?;
        if pipeline > 1 { write!(f, " PP{pipeline}") } else { Ok(()) }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Together(fleet) => fleet.to_string(),
            Self::Apart { prefill, decode } => format!("{prefill} prefill, {decode} decode"),
        };
        f.pad(&text)
    }
}
