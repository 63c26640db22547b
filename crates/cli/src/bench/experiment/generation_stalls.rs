//! Sarathi-Serve, figure 1a: 128 summarisations of long papers at once; how many tokens there are over time.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::table::Table;
use crate::bench::run::Ran;

pub(super) const YI: Deployment =
    Deployment { model: "yi-34b", device: "sim:a100-80g-pcie", tensor: 2, pipeline: 1 };

/// How often tokens are counted, in seconds.
const EVERY: f64 = 0.5;

/// The part that is shown larger, in seconds.
const CLOSER: (f64, f64) = (150.0, 200.0);

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let load = Load {
        lengths: LengthsFrom::Arxiv,
        num_prompts: 128,
        arrivals: Arriving::AtOnce,
        max_model_len: 16_384,
    };
    let policies = [
        Policy::new("sarathi", 256, 1536),
        Policy::new("vllm", 256, 16_384),
        Policy::new("chunked", 256, 1536),
        Policy::new("vllm-v1", 256, 1536),
        Policy::new("orca", 256, 16_384),
        Policy::new("fastertransformer", 256, 16_384),
    ];
    let mut summary = Table::new(&[
        "policy",
        "first_token_s",
        "silence_s",
        "makespan_s",
        "makespan_over_sarathi",
        "longest_plateau_s",
        "plateaus_over_1s",
        "stalled_share",
        "median_tbt_s",
        "p99_tbt_s",
        "max_tbt_s",
    ]);
    let mut curves = Vec::new();
    for policy in &policies {
        let ran = lab.run(&YI, policy, &load, &[])?;
        let moments = moments(&ran);
        let makespan = moments.last().copied().unwrap_or_default();
        let base = curves.first().map_or(makespan, |(_, moments): &(_, Vec<f64>)| {
            moments.last().copied().unwrap_or(makespan)
        });
        let plateaus = || moments.windows(2).map(|pair| pair[1] - pair[0]);
        let itl = &ran.summary.itl;
        summary.row([
            (&*policy.label).into(),
            moments.first().copied().into(),
            silence(&ran).into(),
            makespan.into(),
            (makespan / base).into(),
            plateaus().fold(0.0, f64::max).into(),
            plateaus().filter(|&plateau| plateau > 1.0).count().into(),
            ran.summary.stalls.stalled_share.into(),
            itl.quantile(0.5).into(),
            itl.quantile(0.99).into(),
            itl.max().into(),
        ]);
        curves.push((policy.label.clone(), moments));
    }
    lab.table("summary", &summary)?;
    lab.table("decode_completion", &completion(&curves))?;
    lab.plot("generation_stalls", &figure(lab, &curves))
}

/// Returns when each token came, in order.
fn moments(ran: &Ran) -> Vec<f64> {
    let requests = ran.outcome.requests.iter();
    let mut all: Vec<f64> = requests.flat_map(|r| r.token_times.iter().copied()).collect();
    all.sort_unstable_by(f64::total_cmp);
    all
}

/// Returns when the first request got its second token: until then nothing decodes.
fn silence(ran: &Ran) -> Option<f64> {
    ran.outcome
        .requests
        .iter()
        .filter_map(|request| request.token_times.get(1).copied())
        .reduce(f64::min)
}

fn completion(curves: &[(String, Vec<f64>)]) -> Table {
    let columns: Vec<&str> =
        std::iter::once("time_s").chain(curves.iter().map(|(name, _)| &**name)).collect();
    let mut table = Table::new(&columns);
    let longest =
        curves.iter().filter_map(|(_, moments)| moments.last()).fold(0.0_f64, |a, &b| a.max(b));
    for step in 0..=(longest / EVERY).ceil() as usize {
        let at = step as f64 * EVERY;
        let counts =
            curves.iter().map(|(_, moments)| moments.partition_point(|&token| token <= at).into());
        table.row(std::iter::once(at.into()).chain(counts));
    }
    table
}

fn figure(lab: &Lab<'_>, curves: &[(String, Vec<f64>)]) -> Figure {
    let shown = || curves.iter().take(2).enumerate();
    let points = |moments: &[f64]| -> Vec<(f64, f64)> {
        moments.iter().enumerate().map(|(index, &at)| (at, index as f64 + 1.0)).collect()
    };
    let series: Vec<Series> = shown()
        .map(|(color, (name, moments))| {
            Series::line(name, color, points(moments)).looking(Look::Steps)
        })
        .collect();
    let within = |at: f64| {
        shown().map(move |(_, (_, moments))| moments.partition_point(|&token| token <= at) as f64)
    };
    let low = within(CLOSER.0).fold(f64::INFINITY, f64::min);
    let high = within(CLOSER.1).fold(0.0, f64::max);
    Figure {
        title: "Generation stalls: tokens produced over time".to_owned(),
        subtitle: lab.about(&YI),
        charts: vec![
            Chart {
                x: Axis::linear("time, s"),
                y: Axis::linear("output tokens of all requests"),
                series: series.clone(),
                ..Chart::default()
            },
            Chart {
                x: Axis::linear("time, s (a part of the above)").from_to(CLOSER.0, CLOSER.1),
                y: Axis::linear("output tokens of all requests").from_to(low, high.max(low + 1.0)),
                series,
                ..Chart::default()
            },
        ],
    }
}
