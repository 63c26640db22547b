//! `stallfree bench compare`: SLO attainment of several deployments, per GPU.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use stallfree_bench::StoredResult;
use stallfree_bench::metrics::{Crossing, Slo};
use stallfree_bench::plot::{self, AttainmentConfig, Group, attainment};

use crate::console;

/// The share of requests that has to keep its objectives.
pub(super) const TARGET: f64 = 0.9;

/// Factors on both objectives.
pub(super) const SCALES: [f64; 10] = [2.0, 1.75, 1.5, 1.25, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25];

/// The flags of `bench compare`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// Folders with results: of sweeps, of single runs, or of vLLM's bench with --save-detailed
    #[arg(value_name = "[NAME=]DIR", required_unless_present_any = ["simple_dir", "nixl_dir"])]
    dirs: Vec<String>,
    /// The same as simple=DIR
    #[arg(long, value_name = "DIR")]
    simple_dir: Option<PathBuf>,
    /// The same as nixl=DIR
    #[arg(long, value_name = "DIR")]
    nixl_dir: Option<PathBuf>,
    /// Objective for the time to the first token, in ms
    #[arg(long, value_name = "MS", default_value_t = 125.0)]
    ttft_slo: f64,
    /// Objective for the mean time per further token, in ms
    #[arg(long, value_name = "MS", default_value_t = 200.0)]
    tpot_slo: f64,
    /// Share of requests that has to meet both, in %
    #[arg(long, value_name = "PERCENT", default_value_t = TARGET * 100.0)]
    atta_target: f64,
    /// Factors on both objectives
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', default_values_t = SCALES)]
    scales: Vec<f64>,
    /// The rate per GPU at which objectives are scaled [default: the highest that all have]
    #[arg(long, value_name = "RATE")]
    scale_rate: Option<f64>,
    /// Where the plots go
    #[arg(long, value_name = "DIR", env = "PLOT_OUTPUT_DIR", default_value = "plots")]
    output: PathBuf,
}

/// Prints what was attained, and draws it.
///
/// # Errors
/// A folder has no results that can be compared, or a file can't be written.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let slo = Slo { ttft: args.ttft_slo / 1000.0, tpot: args.tpot_slo / 1000.0 };
    let target = args.atta_target / 100.0;
    let named = |name: &str, dir: &Option<PathBuf>| Some((Some(name.to_owned()), dir.clone()?));
    let mut dirs: Vec<(Option<String>, PathBuf)> = named("simple", &args.simple_dir)
        .into_iter()
        .chain(named("nixl", &args.nixl_dir))
        .collect();
    dirs.extend(args.dirs.iter().map(|text| match text.split_once('=') {
        Some((name, dir)) if !Path::new(text).exists() => (Some(name.to_owned()), dir.into()),
        _ => (None, text.into()),
    }));
    let mut groups = Vec::new();
    let mut captions = Vec::new();
    for (name, dir) in &dirs {
        let results = StoredResult::find(dir);
        let found = grouped(name.as_deref(), dir, &results);
        if found.is_empty() {
            bail!(
                "{} has no results with a request rate and the figures of single requests; bench run and sweep write \
                 them, bench serve does with --save-detailed or --run-dir",
                dir.display()
            );
        }
        captions.extend(results.first().map(caption));
        groups.extend(found);
    }
    captions.dedup();
    let scale_rate = args.scale_rate;
    let config = AttainmentConfig { slo, target, scales: args.scales.clone(), scale_rate };
    console::print(text(&groups, slo, target))?;
    let name = if dirs.len() > 1 { "comparison" } else { "attainment" };
    let path = args.output.join(name);
    plot::write(&attainment(&groups, &config, &captions.join("\n")), &path)?;
    console::note(format_args!("Plots: {}.{{svg,png,pdf}}", path.display()));
    Ok(())
}

/// Splits a folder's results into curves, by label.
fn grouped(name: Option<&str>, dir: &Path, results: &[StoredResult]) -> Vec<Group> {
    let mut labels: Vec<&str> = Vec::new();
    for result in results {
        let label = result.text("label").unwrap_or_default();
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let stem = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let groups = labels.iter().map(|&label| {
        let members: Vec<&StoredResult> = results
            .iter()
            .filter(|result| result.text("label").unwrap_or_default() == label)
            .collect();
        let name = match (name, label) {
            (Some(name), "") => name.to_owned(),
            (Some(name), label) if labels.len() > 1 => format!("{name} {label}"),
            (Some(name), _) => name.to_owned(),
            (None, "") => stem.clone(),
            (None, label) => label.to_owned(),
        };
        Group::new(&name, &members)
    });
    groups.filter(|group| !group.points.is_empty()).collect()
}

/// Says what a folder's results are of.
fn caption(result: &StoredResult) -> String {
    let text = |name| result.text(name).unwrap_or_default();
    let model = result.text("model_name").or_else(|| result.text("model_id")).unwrap_or_default();
    let mode = result.text("deployment_mode").unwrap_or("simple");
    format!("{model}, {}, {mode}, {} GPUs", text("dataset_name"), result.num_gpus())
}

fn text(groups: &[Group], slo: Slo, target: f64) -> String {
    let mut text = String::new();
    let mut best: Option<f64> = None;
    for group in groups {
        text.push_str(&format!("{} ({} GPUs)\n", group.name, group.num_gpus));
        text.push_str("  req/s/GPU   both %   TTFT %   TPOT %\n");
        for (rate, attained) in group.curve(slo) {
            let [both, ttft, tpot] =
                [attained.both, attained.ttft, attained.tpot].map(|share| share * 100.0);
            text.push_str(&format!("  {rate:9.3} {both:8.1} {ttft:8.1} {tpot:8.1}\n"));
        }
        let goodput = group.goodput(slo, target);
        let percent = target * 100.0;
        text.push_str(&match goodput {
            Crossing::At(rate) => format!("  {percent} % up to {rate:.3} req/s/GPU"),
            Crossing::Beyond(rate) => format!("  {percent} % up to {rate:.3} req/s/GPU at least"),
            Crossing::Never => format!("  {percent} % at no rate that was tried"),
        });
        // The first is what the others are measured against.
        match (best, goodput.last_met()) {
            (None, Some(rate)) => best = Some(rate),
            (Some(base), Some(rate)) if base > 0.0 => {
                text.push_str(&format!(", {:.2}x the first", rate / base));
            }
            _ => {}
        }
        text.push_str("\n\n");
    }
    text
}
