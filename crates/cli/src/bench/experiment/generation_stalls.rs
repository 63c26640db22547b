//! Sarathi-Serve, figure 1a: 128 summarisations of long papers at once; how many tokens there are over time.

use anyhow::Result;
use stallfree_bench::metrics::Stalls;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::table::Table;
use crate::bench::run::Ran;

pub(super) const YI: Deployment =
    Deployment { model: "yi-34b", device: "sim:a100-80g-pcie", tensor: 2, pipeline: 1 };

/// How often tokens are counted, in seconds.
const EVERY: f64 = 0.5;

/// The part that is shown larger, as shares of the whole.
const CLOSER: (f64, f64) = (0.5, 0.65);

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let load = Load {
        lengths: LengthsFrom::Arxiv,
        num_prompts: 128,
        arrivals: Arriving::AtOnce,
        max_model_len: 16_384,
    };
    let policies = lab.chosen(
        [
            Policy::new("sarathi", 256, 1536),
            Policy::new("vllm", 256, 16_384),
            Policy::new("chunked", 256, 1536),
            Policy::new("vllm-v1", 256, 1536),
            Policy::new("orca", 256, 16_384),
            Policy::new("fastertransformer", 256, 16_384),
        ],
        |policy| policy.name,
    );
    let mut summary = Table::new(&[
        "policy",
        "first_token_s",
        "silence_s",
        "makespan_s",
        "makespan_over_sarathi",
        "longest_plateau_s",
        "plateaus_over_1s",
        "stalled_share",
        "longest_decode_gap_s",
        "decode_gaps_over_3_tbt_s",
        "median_tbt_s",
        "p99_tbt_s",
        "max_tbt_s",
    ]);
    let mut curves: Vec<Curve> = Vec::new();
    for policy in &policies {
        let ran = lab.run(&YI, policy, &load)?;
        let curve = Curve::of(&ran, &policy.label);
        let base = curves.first().unwrap_or(&curve).makespan();
        let itl = &ran.summary.itl;
        summary.row([
            (&*policy.label).into(),
            curve.moments.first().copied().into(),
            curve.silence.into(),
            curve.makespan().into(),
            (curve.makespan() / base).into(),
            curve.plateaus().fold(0.0, f64::max).into(),
            curve.plateaus().filter(|&plateau| plateau > 1.0).count().into(),
            ran.summary.stalls.stalled_share.into(),
            ran.summary.stalls.longest_stretch.into(),
            Stalls::find(&ran.outcome.requests, itl, 3.0).stalled_time.into(),
            itl.quantile(0.5).into(),
            itl.quantile(0.99).into(),
            itl.max().into(),
        ]);
        curves.push(curve);
    }
    lab.table("summary", &summary)?;
    if let [sarathi, vllm, ..] = &*curves {
        lab.table("comparison", &comparison(sarathi, vllm))?;
    }
    lab.table("decode_completion", &completion(&curves))?;
    lab.plot("generation_stalls", figure(lab, &curves))
}

/// When a policy's tokens came.
struct Curve {
    policy: String,
    /// Of all requests, in order.
    moments: Vec<f64>,
    /// When the first request got its second token: until then nothing decodes.
    silence: Option<f64>,
}

impl Curve {
    fn of(ran: &Ran, policy: &str) -> Self {
        let requests = &ran.outcome.requests;
        let mut moments: Vec<f64> =
            requests.iter().flat_map(|request| request.token_times.iter().copied()).collect();
        moments.sort_unstable_by(f64::total_cmp);
        let second = requests.iter().filter_map(|request| request.token_times.get(1).copied());
        Self { policy: policy.to_owned(), moments, silence: second.reduce(f64::min) }
    }

    fn makespan(&self) -> f64 {
        self.moments.last().copied().unwrap_or_default()
    }

    /// Returns the stretches without a token.
    fn plateaus(&self) -> impl Iterator<Item = f64> + '_ {
        self.moments.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Returns how many tokens there are at a moment.
    fn tokens_at(&self, at: f64) -> usize {
        self.moments.partition_point(|&token| token <= at)
    }
}

/// Puts the paper's figures beside ours. Those of the paper's figure are read off its curves, as far as they can be.
fn comparison(sarathi: &Curve, vllm: &Curve) -> Table {
    let longest = |curve: &Curve| {
        let decoding = curve.plateaus().skip(sarathi.moments.len() / 10);
        decoding.fold(0.0, f64::max)
    };
    let ratio = vllm.makespan() / sarathi.makespan();
    let mut table = Table::new(&["figure", "ours", "theirs", "artifacts_notebook"]);
    table.row([
        "vllm: silence at the start, s".into(),
        vllm.silence.into(),
        "65".into(),
        "65".into(),
    ]);
    table.row(["makespan, vllm over sarathi".into(), ratio.into(), "1.12".into(), "1.12".into()]);
    table.row([
        "vllm: longest plateau after that, s".into(),
        longest(vllm).into(),
        "several".into(),
        "3.2".into(),
    ]);
    table.row([
        "sarathi: longest plateau, s".into(),
        longest(sarathi).into(),
        "none to be seen".into(),
        "none to be seen".into(),
    ]);
    table.row([
        "sarathi: makespan, s".into(),
        sarathi.makespan().into(),
        "over 300".into(),
        "505".into(),
    ]);
    table.row(["vllm: makespan, s".into(), vllm.makespan().into(), "".into(), "567".into()]);
    table.row([
        "output tokens".into(),
        sarathi.moments.len().into(),
        "30000".into(),
        "28400".into(),
    ]);
    table
}

fn completion(curves: &[Curve]) -> Table {
    let columns: Vec<&str> =
        std::iter::once("time_s").chain(curves.iter().map(|curve| &*curve.policy)).collect();
    let mut table = Table::new(&columns);
    let longest = curves.iter().map(Curve::makespan).fold(0.0_f64, f64::max);
    for step in 0..=(longest / EVERY).ceil() as usize {
        let at = step as f64 * EVERY;
        let counts = curves.iter().map(|curve| curve.tokens_at(at).into());
        table.row(std::iter::once(at.into()).chain(counts));
    }
    table
}

fn figure(lab: &Lab<'_>, curves: &[Curve]) -> Figure {
    let title = "Generation stalls: tokens produced over time".to_owned();
    let shown = &curves[..curves.len().min(2)];
    let end = shown.iter().map(Curve::makespan).fold(0.0_f64, f64::max);
    let closer = (CLOSER.0 * end, CLOSER.1 * end);
    let charts = vec![
        chart("time, s", shown, (0.0, end)),
        chart("time, s (a part of the above)", shown, closer),
    ];
    Figure { title, subtitle: lab.about(&YI), charts }
}

/// Draws curves from one moment to another.
fn chart(label: &str, curves: &[Curve], (from, to): (f64, f64)) -> Chart {
    /// More points than these can't be told apart.
    const POINTS: usize = 500;
    let mut series = Vec::new();
    let (mut low, mut high) = (f64::INFINITY, 1.0_f64);
    for (color, curve) in curves.iter().enumerate() {
        let points: Vec<(f64, f64)> = (0..=POINTS)
            .map(|index| {
                let at = from + (to - from) * index as f64 / POINTS as f64;
                (at, curve.tokens_at(at) as f64)
            })
            .collect();
        low = points.iter().fold(low, |low, point| low.min(point.1));
        high = points.iter().fold(high, |high, point| high.max(point.1));
        series.push(Series::line(&curve.policy, color, points).looking(Look::Steps));
    }
    Chart {
        x: Axis::linear(label).from_to(from, to),
        y: Axis::linear("output tokens of all requests").from_to(low, high.max(low + 1.0)),
        series,
        ..Chart::default()
    }
}
