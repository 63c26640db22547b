//! Instances, and what `serve` would be told of them.

use std::fmt;

use super::PlanArgs;
use crate::args::{DecodeArgs, DeploymentArgs, Mode, PrefillArgs, ReplicaSpec};

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

    /// Returns what `serve` would be told: which instances there are, and of the flags given those that concern them.
    pub(super) fn deployment(self, args: &PlanArgs) -> DeploymentArgs {
        let mut deployment = args.deployment.clone();
        let specs = |fleet: Fleet| std::iter::repeat_n(fleet.spec, fleet.count);
        deployment.replica_spec = self.fleets().into_iter().flat_map(specs).collect();
        match self {
            Self::Apart { prefill, .. } => {
                deployment.mode = Mode::Distserve;
                deployment.partition_id = Some(prefill.count);
            }
            Self::Together(fleet) => {
                deployment.prefill_scheduling_policy = None;
                deployment.prefill = PrefillArgs::default();
                deployment.decode = DecodeArgs::default();
                if fleet.count == 1 {
                    deployment.dispatch_policy = None;
                    deployment.max_multiplexing_length = None;
                    deployment.multiplexing_decode_batched_tokens_watermark = None;
                    deployment.multiplexing_decode_batch_latency_watermark = None;
                    deployment.dispatch_timeout = None;
                }
            }
        }
        deployment
    }
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
