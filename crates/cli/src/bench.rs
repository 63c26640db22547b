//! `stallfree bench`: measures servers over HTTP and engines in this process with the same workloads and figures.

mod capacity;
mod compare;
mod experiment;
mod list;
mod progress;
mod results;
mod run;
mod serve;
mod step;
mod sweep;
mod workload;

pub(crate) use progress::RunProgress;
pub(crate) use workload::{Rate, WorkloadArgs, count_tokens};

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use rustix::time::{ClockId, clock_gettime};

use crate::environment::Environment;

/// The flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// The subcommands of `bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure an OpenAI-compatible server over HTTP, with vLLM's flags and figures
    Serve(Box<serve::ServeBenchArgs>),
    /// Measure an engine in this process, without HTTP; a simulated device runs in virtual time
    Run(Box<run::RunArgs>),
    /// Measure what a step takes, through the whole engine, beside what the hardware allows
    Step(Box<step::StepArgs>),
    /// Run every combination of settings, and draw what came of it
    Sweep(sweep::SweepArgs),
    /// Find the highest rate within limits on the time between tokens and the scheduling delay
    Capacity(Box<capacity::CapacityArgs>),
    /// Compare deployments: requests within their objectives, by rate per GPU
    Compare(compare::CompareArgs),
    /// Repeat an experiment of the papers: one command, tables and charts
    Experiment(Box<experiment::ExperimentArgs>),
    /// List results, newest first
    List(list::ListArgs),
}

/// Runs a subcommand.
///
/// # Errors
/// The subcommand's.
pub(crate) fn run(args: &BenchArgs, environment: &Environment) -> Result<()> {
    match &args.command {
        BenchCommand::Serve(args) => serve::run(args),
        BenchCommand::Run(args) => run::run(args, environment),
        BenchCommand::Step(args) => step::run(args, environment),
        BenchCommand::Sweep(args) => sweep::run(args, environment),
        BenchCommand::Capacity(args) => capacity::run(args, environment),
        BenchCommand::Compare(args) => compare::run(args),
        BenchCommand::Experiment(args) => experiment::run(args, environment),
        BenchCommand::List(args) => list::run(args),
    }
}

/// Returns the CPU time that this process has taken.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
