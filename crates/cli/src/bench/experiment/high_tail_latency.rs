//! Sarathi-Serve, figure 1b: conversations at three rates; the P99 time between tokens.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::generation_stalls::YI;
use super::lab::{Arriving, Lab, LengthsFrom, Load, Policy};
use super::table::Table;

const RATES: [f64; 3] = [0.55, 0.7, 1.0];

/// What the paper's bars and the artifact's notebook show at each rate, by policy.
const THEIRS: [(&str, [[&str; 2]; 3]); 2] = [
    ("sarathi", [["0.30-0.35", "0.52"], ["0.30-0.35", ""], ["0.30-0.35", "0.54"]]),
    ("vllm", [["0.5", "1.39"], ["", ""], ["1.3-1.4", "2.05"]]),
];

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let policies = lab.chosen(
        [
            Policy::new("sarathi", 256, 1536),
            Policy::new("vllm", 256, 8192),
            Policy::new("chunked", 256, 1536),
            Policy::new("vllm-v1", 256, 1536),
            Policy::new("orca", 256, 8192),
            Policy::new("fastertransformer", 256, 8192),
        ],
        |policy| policy.name,
    );
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
    let mut comparison = Table::new(&["figure", "ours", "theirs", "artifacts_notebook"]);
    let mut series = Vec::new();
    let rates = lab.rates(&RATES);
    for (color, policy) in policies.iter().enumerate() {
        let mut points = Vec::new();
        for (index, &rate) in rates.iter().enumerate() {
            let load = Load {
                lengths: LengthsFrom::Sharegpt,
                num_prompts: 128,
                arrivals: Arriving::Poisson(rate),
                max_model_len: 8192,
            };
            let summary = lab.run(&YI, policy, &load)?.summary;
            let p99 = summary.itl.quantile(0.99);
            points.push((index as f64, p99));
            let place = RATES.iter().position(|papers| papers.total_cmp(&rate).is_eq());
            let theirs = THEIRS.iter().find(|(name, _)| *name == policy.name);
            if let Some((place, (_, theirs))) = place.zip(theirs) {
                let figure = format!("{}: P99 time between tokens at {rate}/s, s", policy.name);
                let [paper, notebook] = theirs[place];
                comparison.row([(&*figure).into(), p99.into(), paper.into(), notebook.into()]);
            }
            table.row([
                (&*policy.label).into(),
                rate.into(),
                summary.itl.quantile(0.5).into(),
                p99.into(),
                summary.itl.max().into(),
                summary.stalls.stalled_share.into(),
                summary.ttft.quantile(0.5).into(),
                summary.ttft.quantile(0.99).into(),
            ]);
        }
        series.push(Series::line(&policy.label, color, points).looking(Look::Bars));
    }
    lab.table("summary", &table)?;
    lab.table("comparison", &comparison)?;
    let figure = Figure {
        title: "Tail latency over the load".to_owned(),
        subtitle: lab.about(&YI),
        charts: vec![Chart {
            x: Axis::names("requests a second", rates.iter().map(f64::to_string)),
            y: Axis::linear("P99 time between tokens, s"),
            series,
            ..Chart::default()
        }],
    };
    lab.plot("high_tail_latency", figure)
}
