//! Sarathi-Serve, figure 1b: conversations at three rates; the P99 time between tokens.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::generation_stalls::YI;
use super::lab::{Arriving, Lab, LengthsFrom, Load, Policy};
use super::table::Table;

const RATES: [f64; 3] = [0.55, 0.7, 1.0];

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let policies = [
        Policy::new("sarathi", 256, 1536),
        Policy::new("vllm", 256, 8192),
        Policy::new("chunked", 256, 1536),
        Policy::new("vllm-v1", 256, 1536),
        Policy::new("orca", 256, 8192),
        Policy::new("fastertransformer", 256, 8192),
    ];
    let mut table = Table::new(&[
        "policy",
        "request_rate",
        "median_tbt_s",
        "p99_tbt_s",
        "max_tbt_s",
        "stalled_share",
        "median_ttft_s",
        "p99_ttft_s",
    ]);
    let mut series = Vec::new();
    for (color, policy) in policies.iter().enumerate() {
        let mut points = Vec::new();
        for (index, rate) in RATES.into_iter().enumerate() {
            let load = Load {
                lengths: LengthsFrom::Sharegpt,
                num_prompts: 128,
                arrivals: Arriving::Poisson(rate),
                max_model_len: 8192,
            };
            let summary = lab.run(&YI, policy, &load, &[])?.summary;
            points.push((index as f64, summary.itl.quantile(0.99)));
            table.row([
                (&*policy.label).into(),
                rate.into(),
                summary.itl.quantile(0.5).into(),
                summary.itl.quantile(0.99).into(),
                summary.itl.max().into(),
                summary.stalls.stalled_share.into(),
                summary.ttft.quantile(0.5).into(),
                summary.ttft.quantile(0.99).into(),
            ]);
        }
        series.push(Series::line(&policy.label, color, points).looking(Look::Bars));
    }
    lab.table("summary", &table)?;
    let figure = Figure {
        title: "Tail latency over the load".to_owned(),
        subtitle: lab.about(&YI),
        charts: vec![Chart {
            x: Axis::names("requests a second", RATES.map(|rate| rate.to_string())),
            y: Axis::linear("P99 time between tokens, s"),
            series,
            ..Chart::default()
        }],
    };
    lab.plot("high_tail_latency", &figure)
}
