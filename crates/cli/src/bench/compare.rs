//! `stallfree bench compare`: SLO attainment of several deployments, per GPU.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use stallfree_bench::StoredResult;
use stallfree_bench::metrics::{ATTAINMENT_TARGET, Crossing, Slo};
use stallfree_bench::plot::{self, AttainmentConfig, Group, attainment};

use crate::console;

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
    #[arg(long, value_name = "PERCENT", default_value_t = ATTAINMENT_TARGET * 100.0)]
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
    let mut curves = Vec::new();
    for (name, dir) in &dirs {
        let found = grouped(name.as_deref(), dir, StoredResult::find(dir));
        if found.is_empty() {
            bail!(
                "{} has no results with a request rate and the figures of single requests; bench run and sweep write \
                 them, bench serve does with --save-detailed or --run-dir",
                dir.display()
            );
        }
        curves.extend(found);
    }
    let (scales, scale_rate) = (args.scales.clone(), args.scale_rate);
    let config = AttainmentConfig { slo, target, scales, scale_rate };
    let name = if dirs.len() > 1 { "comparison" } else { "attainment" };
    let path = args.output.join(name);
    report(&curves, &config, &path)?;
    console::note(format_args!("Plots: {}.{{svg,png,pdf}}", path.display()));
    Ok(())
}

/// A deployment's results at several rates.
#[derive(Debug)]
pub(super) struct Curve {
    group: Group,
    results: Vec<StoredResult>,
}

impl Curve {
    /// Collects results that belong together.
    pub(super) fn new(name: &str, results: Vec<StoredResult>) -> Self {
        Self { group: Group::new(name, &results.iter().collect::<Vec<_>>()), results }
    }

    /// Says what the results are of.
    fn caption(&self) -> String {
        let Some(result) = self.results.first() else { return String::new() };
        let text = |name| result.text(name).unwrap_or_default();
        let name = result.text("model_name").or_else(|| result.text("model_id"));
        let mode = result.text("deployment_mode").unwrap_or("simple");
        let instances = match (result.prefill_instances(), result.decode_instances()) {
            (Some((prefill, each)), Some((decode, other))) => {
                format!("{mode} {prefill} x {each} + {decode} x {other} GPUs")
            }
            _ => format!("{mode}, {} GPUs", result.num_gpus()),
        };
        format!("{}, {}, {instances}", name.unwrap_or_default(), text("dataset_name"))
    }

    /// Returns the longest gap at a rate, in seconds, and the largest share of decoding time without a token.
    fn stalls(&self, rate: f64) -> Option<(f64, f64)> {
        let at = |result: &&StoredResult| {
            result.rate().is_some_and(|of| (of / self.group.num_gpus - rate).abs() < 1e-9)
        };
        let stalls = self.results.iter().filter(at).filter_map(|result| {
            Some((result.number("stalls.longest_gap")?, result.number("stalls.stalled_share")?))
        });
        stalls.reduce(|(gap, share), (other, more)| (gap.max(other), share.max(more)))
    }
}

/// Splits a folder's results into curves, by label.
fn grouped(name: Option<&str>, dir: &Path, results: Vec<StoredResult>) -> Vec<Curve> {
    let label = |result: &StoredResult| result.text("label").unwrap_or_default().to_owned();
    let mut by_label: Vec<(String, Vec<StoredResult>)> = Vec::new();
    for result in results {
        let label = label(&result);
        match by_label.iter_mut().find(|(known, _)| *known == label) {
            Some((_, members)) => members.push(result),
            None => by_label.push((label, vec![result])),
        }
    }
    let stem = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let several = by_label.len() > 1;
    let curves = by_label.into_iter().map(|(label, members)| {
        let name = match (name, &*label) {
            (Some(name), "") => name.to_owned(),
            (Some(name), label) if several => format!("{name} {label}"),
            (Some(name), _) => name.to_owned(),
            (None, "") => stem.clone(),
            (None, label) => label.to_owned(),
        };
        Curve::new(&name, members)
    });
    curves.filter(|curve| !curve.group.points.is_empty()).collect()
}

/// Prints curves, and writes them as `path`.{json,svg,png,pdf}.
///
/// # Errors
/// A file can't be written.
pub(super) fn report(curves: &[Curve], config: &AttainmentConfig, path: &Path) -> Result<()> {
    console::print(text(curves, config.slo, config.target))?;
    let mut captions: Vec<String> = curves.iter().map(Curve::caption).collect();
    captions.dedup();
    let groups: Vec<Group> = curves.iter().map(|curve| curve.group.clone()).collect();
    plot::write(&attainment(&groups, config, &captions.join("\n")), path)?;
    let json = json!({
        "ttft_slo": config.slo.ttft,
        "tpot_slo": config.slo.tpot,
        "atta_target": config.target,
        "curves": curves.iter().map(|curve| json(curve, config)).collect::<Vec<_>>(),
    });
    let path = path.with_extension("json");
    fs::write(&path, format!("{json:#}\n")).with_context(|| format!("{}", path.display()))
}

fn json(curve: &Curve, config: &AttainmentConfig) -> serde_json::Value {
    let Group { name, num_gpus, .. } = &curve.group;
    let points = curve.group.curve(config.slo).into_iter().map(
        |(rate, attained)| json!({ "request_rate_per_gpu": rate, "slo_attainment": attained }),
    );
    json!({
        "name": name,
        "configuration": curve.caption(),
        "num_gpus": num_gpus,
        "points": points.collect::<Vec<_>>(),
        "goodput_per_gpu": curve.group.goodput(config.slo, config.target).last_met(),
    })
}

fn text(curves: &[Curve], slo: Slo, target: f64) -> String {
    let mut text = String::new();
    let mut best: Option<f64> = None;
    // Writing to a string can't fail.
    for curve in curves {
        let group = &curve.group;
        let _ = writeln!(text, "{} ({} GPUs)", group.name, group.num_gpus);
        text.push_str("  req/s/GPU   both %   TTFT %   TPOT %   longest gap s   stalled %\n");
        for (rate, attained) in group.curve(slo) {
            let [both, ttft, tpot] =
                [attained.both, attained.ttft, attained.tpot].map(|share| share * 100.0);
            let _ = write!(text, "  {rate:9.3} {both:8.1} {ttft:8.1} {tpot:8.1}");
            let _ = match curve.stalls(rate) {
                Some((gap, share)) => writeln!(text, " {gap:15.3} {:11.2}", share * 100.0),
                None => writeln!(text, " {:>15} {:>11}", "-", "-"),
            };
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
                let _ = write!(text, ", {:.2}x the first", rate / base);
            }
            _ => {}
        }
        text.push_str("\n\n");
    }
    text
}
