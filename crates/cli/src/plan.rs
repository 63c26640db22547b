//! `stallfree plan`: which instances to make of some GPUs, by simulation.
//!
//! Where prefill and decode are apart, both kinds of instances are tried by themselves and then combined, as DistServe does within one
//! network of GPUs (Zhong et al., OSDI '24, §4.1); the best combinations are then simulated whole, because requests that are late on one
//! side are not those that are late on the other.

mod command;
mod placement;
mod rate;
mod search;
mod table;
mod trial;

use std::num::NonZeroUsize;

use anyhow::{Result, bail};
use clap::Args;
use stallfree_bench::metrics::{ATTAINMENT_TARGET, Slo};

use crate::args::{DeploymentArgs, EngineArgs, Mode, positive};
use crate::bench::WorkloadArgs;
use crate::console;
use crate::environment::Environment;
use trial::Bench;

/// The flags of `plan`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArgs {
    /// What is served, and on which GPUs: --device sim:GPU.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How its instances work together; which there are is what is looked for.
    #[command(flatten)]
    pub(crate) deployment: DeploymentArgs,
    /// Which requests come.
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    /// What is looked for.
    #[command(flatten)]
    pub(crate) search: SearchArgs,
}

/// The most GPUs of a plan: combinations grow with their square.
const MOST_GPUS: usize = 512;

/// What is looked for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Placement")]
pub(crate) struct SearchArgs {
    /// GPUs that there are
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) num_gpus: usize,
    /// Objective for the time to the first token, in ms
    #[arg(long, value_name = "MS")]
    pub(crate) ttft_slo: f64,
    /// Objective for the mean time per further token, in ms
    #[arg(long, value_name = "MS")]
    pub(crate) tpot_slo: f64,
    /// Share of requests that has to meet both, in %
    #[arg(long, value_name = "PERCENT", default_value_t = ATTAINMENT_TARGET * 100.0)]
    pub(crate) atta_target: f64,
    /// Placements of either kind, prefill and decode apart or together, that are simulated whole
    #[arg(long, value_name = "N", default_value = "4")]
    pub(crate) top: NonZeroUsize,
    /// Show no progress
    #[arg(long)]
    pub(crate) no_progress: bool,
}

/// Searches and prints what was found.
///
/// # Errors
/// The flags or the model don't allow it, or no placement meets the objectives.
pub(crate) fn run(args: &PlanArgs, environment: &Environment) -> Result<()> {
    let SearchArgs { ttft_slo, tpot_slo, atta_target, .. } = args.search;
    let objectives = [ttft_slo, tpot_slo].iter().all(|ms| *ms > 0.0 && *ms <= 1e9);
    if !(objectives && atta_target > 0.0 && atta_target <= 100.0) {
        bail!("--ttft-slo and --tpot-slo must be above 0, --atta-target from above 0 to 100");
    }
    let DeploymentArgs { mode, replica_spec, partition_id, instances_listen, .. } =
        &args.deployment;
    let cache = &args.engine.cache;
    if *mode != Mode::Simple
        || !replica_spec.is_empty()
        || partition_id.is_some()
        || instances_listen.is_some()
        || (cache.tensor_parallel_size, cache.pipeline_parallel_size) != (1, 1)
    {
        bail!(
            "--mode, --replica-spec, --partition-id, --instances-listen, --tensor-parallel-size and --pipeline-parallel-size are what a plan is to find out"
        );
    }
    if args.search.num_gpus > MOST_GPUS {
        bail!(
            "--num-gpus {}: all numbers of instances are combined, of up to {MOST_GPUS} GPUs",
            args.search.num_gpus
        );
    }
    let slo = Slo { ttft: ttft_slo / 1000.0, tpot: tpot_slo / 1000.0 };
    let bench = Bench::open(args, environment, slo, atta_target / 100.0)?;
    let found = search::run(&bench, args)?;
    console::print(table::of(&bench, &found, &args.search))?;
    let Some(best) = found.best() else {
        bail!("no placement serves {atta_target} % of requests within the objectives")
    };
    let command = command::of(best.placement, args)?;
    if let Some(note) = bench.stand_in() {
        console::print(format_args!("\n{note}\n"))?;
    }
    Ok(console::print(format_args!("\n{}\n", console::quoted(command)))?)
}
