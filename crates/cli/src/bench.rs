//! `stallfree bench`: measures servers over HTTP and engines in this process with the same workloads and figures.

mod experiment;
mod list;
mod progress;
mod results;
mod run;
mod serve;
mod step;
mod workload;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::environment::Environment;

/// The flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    command: BenchCommand,
}

/// The subcommands of `bench`.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure an OpenAI-compatible server over HTTP, with vLLM's flags and figures
    Serve(Box<serve::ServeBenchArgs>),
    /// Measure an engine in this process, without HTTP; a simulated device runs in virtual time
    Run(Box<run::RunArgs>),
    /// Measure what a step takes, through the whole engine, beside what the hardware allows
    Step(Box<step::StepArgs>),
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
        BenchCommand::Experiment(args) => experiment::run(args, environment),
        BenchCommand::List(args) => list::run(args),
    }
}
