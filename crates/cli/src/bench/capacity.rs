//! `stallfree bench capacity`: the highest rate within limits on the P99 time between tokens and on the scheduling delay.

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use stallfree_bench::{CapacityLimits, Trial};

use super::run::{RunArgs, execute};
use super::workload::Rate;
use crate::console;
use crate::environment::Environment;

/// The flags of `bench capacity`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CapacityArgs {
    /// What is run, at each rate.
    #[command(flatten)]
    run: RunArgs,
    /// What it has to keep to.
    #[command(flatten)]
    limits: LimitArgs,
}

/// What a rate has to keep to.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Capacity")]
struct LimitArgs {
    /// Limit on the P99 time between tokens, in ms
    #[arg(long, value_name = "MS")]
    tbt_slo: f64,
    /// Limit on the median delay until a request's first chunk, in ms
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    scheduling_delay_slo: f64,
    /// The rate that is tried first
    #[arg(long, value_name = "RATE", default_value = "1")]
    start_rate: Rate,
}

/// Searches, prints every trial, and saves.
///
/// # Errors
/// A run fails, or no rate keeps to the limits.
pub(crate) fn run(args: &CapacityArgs, environment: &Environment) -> Result<()> {
    let LimitArgs { tbt_slo, scheduling_delay_slo, start_rate } = args.limits;
    if !(tbt_slo > 0.0 && scheduling_delay_slo > 0.0 && start_rate.0.is_finite()) {
        bail!("--tbt-slo and --scheduling-delay-slo must be above 0, --start-rate finite");
    }
    let limits = CapacityLimits {
        p99_tbt: tbt_slo / 1000.0,
        median_scheduling_delay: scheduling_delay_slo / 1000.0,
    };
    console::print(
        "     req/s   P99 TBT (ms)   longest gap (ms)   stalled (%)   median delay (ms)\n",
    )?;
    let mut num_gpus = 1;
    let found =
        limits.search(start_rate.0, CapacityLimits::GRANULARITY, |rate| -> Result<Trial> {
            let mut trial = args.run.clone();
            trial.workload.arrivals.request_rate = Rate(rate);
            let ran = execute(&trial, environment, &format!("{rate} req/s"))?;
            num_gpus = ran.about.num_gpus;
            if ran.summary.completed == 0 {
                bail!("no request was completed at {rate} requests a second");
            }
            let trial = Trial {
                rate,
                p99_tbt: ran.summary.itl.quantile(0.99),
                median_scheduling_delay: ran.summary.scheduling_delay.quantile(0.5),
                is_all_at_once: ran.outcome.is_all_at_once(1),
            };
            let verdict = if limits.are_kept(&trial) { "kept" } else { "missed" };
            let stalls = ran.summary.stalls;
            let times = [trial.p99_tbt, stalls.longest_gap, trial.median_scheduling_delay];
            let [tbt, gap, delay] = times.map(|s| s * 1000.0);
            let share = stalls.stalled_share * 100.0;
            console::print(format_args!(
                "{rate:>10} {tbt:>14.1} {gap:>18.1} {share:>13.2} {delay:>19.1}   {verdict}\n"
            ))?;
            Ok(trial)
        })?;
    if let Some(folder) = &args.run.mode.run_dir {
        let trials = found.trials.iter().map(|trial| {
            json!({
                "request_rate": trial.rate,
                "p99_tbt": trial.p99_tbt,
                "median_scheduling_delay": trial.median_scheduling_delay,
            })
        });
        let json = json!({
            "command": console::command_line(),
            "capacity": found.rate,
            "is_limited": found.is_limited,
            "capacity_per_gpu": found.rate.map(|rate| rate / num_gpus as f64),
            "tbt_slo": limits.p99_tbt,
            "scheduling_delay_slo": limits.median_scheduling_delay,
            "trials": trials.collect::<Vec<_>>(),
        });
        let path = folder.join("capacity.json");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, format!("{json:#}\n")))
            .with_context(|| format!("{} can't be written", path.display()))?;
        console::note(format_args!("Results: {}", path.display()));
    }
    let rate = found.rate.context("no rate that was tried keeps to the limits")?;
    let each = rate / num_gpus as f64;
    let (least, why) = match found.is_limited {
        true => ("", ""),
        false => ("at least ", "; no limit was reached: all requests came at once"),
    };
    Ok(console::print(format_args!(
        "Capacity: {least}{rate} requests a second, {each:.3} per GPU{why}\n"
    ))?)
}
