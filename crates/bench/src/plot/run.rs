//! The figures of one run.

use super::{Axis, Chart, Figure, Look, Series};
use crate::Summary;
use crate::metrics::{Distribution, completions, quantile};
use crate::run::RunOutcome;

/// Points of a distribution.
const QUANTILES: usize = 400;

/// Returns the figures of a run by name; `subtitle` says what ran.
#[must_use]
pub fn run_figures(
    outcome: &RunOutcome,
    summary: &Summary,
    subtitle: &str,
) -> Vec<(&'static str, Figure)> {
    let figure = |title: &str, charts: Vec<Chart>| Figure {
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        charts,
    };
    let mut figures = vec![
        ("tokens", figure("Output tokens over time", vec![tokens(outcome)])),
        ("latencies", figure("Latencies", vec![latencies(summary)])),
    ];
    if !outcome.batches.is_empty() {
        figures.push(("batches", figure("Batches over time", batches(outcome))));
    }
    figures
}

fn tokens(outcome: &RunOutcome) -> Chart {
    let points = completions(&outcome.requests).into_iter().map(|(at, count)| (at, count as f64));
    Chart {
        x: Axis::linear("Time since the first request (s)"),
        y: Axis::linear("Output tokens"),
        series: vec![Series::line("", 0, points.collect()).looking(Look::Steps)],
        ..Chart::default()
    }
}

fn latencies(summary: &Summary) -> Chart {
    let all = [
        ("time to first token", &summary.ttft),
        ("time between tokens", &summary.itl),
        ("whole request", &summary.e2el),
    ];
    let series = all
        .into_iter()
        .enumerate()
        .map(|(index, (name, values))| Series::line(name, index, cdf(values)));
    Chart {
        x: Axis::log("Seconds (log scale)"),
        y: Axis::linear("Share at most that long").from_to(0.0, 1.0),
        series: series.collect(),
        rules: vec![(0.99, "P99".to_owned())],
        ..Chart::default()
    }
}

fn cdf(values: &Distribution) -> Vec<(f64, f64)> {
    let share = |index: usize| index as f64 / QUANTILES as f64;
    let all = (0..=QUANTILES).filter(|_| !values.sorted().is_empty());
    all.map(|index| (quantile(values.sorted(), share(index)), share(index))).collect()
}

fn batches(outcome: &RunOutcome) -> Vec<Chart> {
    let x = || Axis::linear("Time (s)");
    let over = |name: &str, color, of: &dyn Fn(&crate::BatchRecord) -> f64| {
        let points = outcome.batches.iter().map(|batch| (batch.started, of(batch))).collect();
        Series::line(name, color, points).looking(Look::Steps)
    };
    let chart =
        |label: &str, series| Chart { x: x(), y: Axis::linear(label), series, ..Chart::default() };
    vec![
        chart(
            "Tokens in a batch",
            vec![
                over("prompt tokens", 1, &|batch| f64::from(batch.num_prefill_tokens)),
                over("output tokens", 0, &|batch| f64::from(batch.num_decode_tokens)),
            ],
        ),
        chart(
            "Sequences",
            vec![
                over("running", 0, &|batch| f64::from(batch.num_running)),
                over("waiting", 1, &|batch| f64::from(batch.num_waiting)),
            ],
        ),
    ]
}
