//! `stallfree bench experiment`: the papers' experiments, each one command.
//!
//! An experiment is a list of `bench run` command lines, and tables and charts made of their records. It doesn't know what computes:
//! each names the device of its paper, simulated, and `--device` puts another in its place. Most write `summary.csv` with what was
//! measured (`tensor_pipeline` writes `capacity.csv` and `latency.csv`), and, where the paper has numbers to compare with,
//! `comparison.csv` with them beside ours.

mod capacity;
mod chunk_size;
mod distserve;
mod fleet;
mod generation_stalls;
mod high_tail_latency;
mod kept;
mod lab;
mod latency_throughput;
mod schedule;
mod table;
mod techniques;
mod tensor_pipeline;
mod tropical;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::args::positive;
use crate::console;
use crate::environment::Environment;
use lab::Lab;

/// The flags of `bench experiment`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExperimentArgs {
    /// Which one; all are listed if none is named
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Where to compute, instead of on the paper's GPUs, simulated
    #[arg(long)]
    device: Option<String>,
    /// A model instead of the paper's
    #[arg(long)]
    model: Option<String>,
    /// GPUs that share each layer, instead of the paper's
    #[arg(long, value_name = "N", value_parser = positive)]
    tensor_parallel_size: Option<usize>,
    /// Stages, instead of the paper's
    #[arg(long, value_name = "N", value_parser = positive)]
    pipeline_parallel_size: Option<usize>,
    /// Take lengths from this trace instead of a synthetic data set
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Requests a run, instead of the paper's: fewer are quicker
    #[arg(long, value_name = "N", value_parser = positive)]
    num_prompts: Option<usize>,
    /// Requests of so many seconds at a run's rate, if these are fewer
    #[arg(long, value_name = "SECONDS")]
    window: Option<f64>,
    /// Requests a second, instead of the paper's
    #[arg(long, value_name = "RATES", value_delimiter = ',')]
    rates: Vec<f64>,
    /// Only these policies, data sets, limits, deployments and figures; of a kind none of which is named, all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// KV blocks, instead of what memory has room for
    #[arg(long, value_name = "N", value_parser = positive)]
    num_gpu_blocks_override: Option<usize>,
    /// Take the runs over that are in the folder already, from an earlier call with the same flags
    #[arg(long)]
    resume: bool,
    /// Decides lengths and arrivals
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where tables and charts go [default: results/experiments/NAME]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// An experiment.
struct Experiment {
    name: &'static str,
    doc: &'static str,
    run: fn(&mut Lab<'_>) -> Result<()>,
}

const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "generation_stalls",
        doc: "Sarathi-Serve, figure 1a: tokens over time, all requests at once",
        run: generation_stalls::run,
    },
    Experiment {
        name: "high_tail_latency",
        doc: "Sarathi-Serve, figure 1b: P99 time between tokens over the request rate",
        run: high_tail_latency::run,
    },
    Experiment {
        name: "latency_throughput",
        doc: "Sarathi-Serve, artifact's figure 7: latencies over the rate, vLLM's batch sizes against Sarathi",
        run: latency_throughput::run,
    },
    Experiment {
        name: "capacity",
        doc: "Sarathi-Serve, figures 10 and 11: the highest rate within strict and relaxed limits",
        run: capacity::run,
    },
    Experiment {
        name: "techniques",
        doc: "Sarathi-Serve, table 4: hybrid batches alone, chunked prefills alone, both",
        run: techniques::run,
    },
    Experiment {
        name: "chunk_size",
        doc: "Sarathi-Serve, figure 14: what cutting a prompt into chunks costs",
        run: chunk_size::run,
    },
    Experiment {
        name: "tensor_pipeline",
        doc: "Sarathi-Serve, figure 13: Falcon-180B over two machines, tensor against pipeline parallelism",
        run: tensor_pipeline::run,
    },
    Experiment {
        name: "distserve",
        doc: "DistServe, figures 8a, 8b, 9b: requests within objectives, prefill and decode apart or together",
        run: distserve::run,
    },
    Experiment {
        name: "tropical",
        doc: "Tropical: requests within both objectives over the rate, prefills where decodes have slack",
        run: tropical::run,
    },
    Experiment {
        name: "schedule",
        doc: "Sarathi-Serve, figure 7: A and B decode, C and D arrive; each policy's steps as text",
        run: schedule::run,
    },
];

/// Runs an experiment, or lists them.
///
/// # Errors
/// There is none of that name, or one of its runs fails.
pub(super) fn run(args: &ExperimentArgs, environment: &Environment) -> Result<()> {
    let Some(name) = &args.name else {
        for Experiment { name, doc, .. } in EXPERIMENTS {
            console::print(format_args!("  {name:<20}{doc}\n"))?;
        }
        return Ok(());
    };
    let wanted = name.replace('-', "_");
    let Some(experiment) = EXPERIMENTS.iter().find(|experiment| experiment.name == wanted) else {
        let names: Vec<&str> = EXPERIMENTS.iter().map(|experiment| experiment.name).collect();
        bail!("there is no experiment `{name}`; there are {}", names.join(", "));
    };
    let mut lab = Lab::open(experiment.name, args, environment)?;
    (experiment.run)(&mut lab)?;
    lab.close();
    Ok(())
}
