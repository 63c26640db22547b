//! Sarathi-Serve, figures 10 and 11: the highest rate at which the P99 time between tokens and the median scheduling delay keep to
//! their limits.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};
use stallfree_bench::{CapacityLimits, Trial};

use super::generation_stalls::YI;
use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::latency_throughput::{FALCON, LLAMA, MISTRAL};
use super::table::Table;

/// The most that half of the requests may wait for their first chunk, in seconds.
const MAX_DELAY: f64 = 2.0;

/// How many decode iterations a token may take, by the paper: with 32 sequences of 4,096 tokens and no prefill.
const LIMITS: [(&str, f64); 2] = [("strict", 5.0), ("relaxed", 25.0)];

/// A model, and where the search begins.
struct Case {
    title: &'static str,
    deployment: Deployment,
    /// Requests a second of conversations; half of it for papers.
    start: f64,
    /// What Orca's batches may hold.
    orca_seqs: usize,
    relaxed_chunk: usize,
    /// How many times Orca's and vLLM's capacity Sarathi's is for conversations within the strict limit, by the paper.
    theirs: [Option<f64>; 2],
}

const CASES: [Case; 4] = [
    Case {
        title: "Mistral-7B",
        deployment: MISTRAL,
        start: 4.0,
        orca_seqs: 16,
        relaxed_chunk: 2048,
        theirs: [Some(2.78), Some(2.15)],
    },
    Case {
        title: "Yi-34B",
        deployment: YI,
        start: 2.0,
        orca_seqs: 16,
        relaxed_chunk: 2048,
        theirs: [Some(4.0), Some(3.7)],
    },
    Case {
        title: "LLaMA2-70B",
        deployment: LLAMA,
        start: 1.0,
        orca_seqs: 8,
        relaxed_chunk: 1536,
        theirs: [Some(6.3), Some(4.3)],
    },
    Case {
        title: "Falcon-180B",
        deployment: FALCON,
        start: 1.6,
        orca_seqs: 8,
        relaxed_chunk: 2048,
        theirs: [None, Some(3.6)],
    },
];

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut table = Table::new(&[
        "dataset",
        "limit",
        "model",
        "p99_tbt_limit_s",
        "orca_qps",
        "vllm_qps",
        "sarathi_qps",
        "over_orca",
        "over_vllm",
    ]);
    let mut comparison = Table::new(&["figure", "ours", "theirs"]);
    let mut charts = Vec::new();
    for (dataset, lengths, max_model_len, share) in [
        ("conversations", LengthsFrom::Sharegpt, 8192, 1.0),
        ("papers", LengthsFrom::Arxiv, 16_384, 0.5),
    ] {
        for (limit_name, factor) in LIMITS {
            let mut bars = [Vec::new(), Vec::new(), Vec::new()];
            for (place, case) in lab.cases(&CASES).iter().enumerate() {
                let limit = factor * iteration(lab, &case.deployment)?;
                let chunk = if factor > 5.0 { case.relaxed_chunk } else { 512 };
                let policies = [
                    Policy::new("orca", case.orca_seqs, max_model_len),
                    Policy::new("vllm", 128, max_model_len),
                    Policy::new("sarathi", 128, chunk),
                ];
                let mut found = [0.0; 3];
                for (rate, policy) in found.iter_mut().zip(&policies) {
                    let search = Search {
                        deployment: &case.deployment,
                        policy,
                        lengths: lengths.clone(),
                        max_model_len,
                        limit,
                    };
                    *rate = search.capacity(lab, case.start * share)?;
                }
                for (bars, rate) in bars.iter_mut().zip(found) {
                    bars.push((place as f64, rate));
                }
                let [orca, vllm, sarathi] = found;
                let over = [orca, vllm].map(|rate| (rate > 0.0).then(|| sarathi / rate));
                table.row([
                    dataset.into(),
                    limit_name.into(),
                    (&*lab.title(case.title)).into(),
                    limit.into(),
                    orca.into(),
                    vllm.into(),
                    sarathi.into(),
                    over[0].into(),
                    over[1].into(),
                ]);
                if (dataset, limit_name) == ("conversations", "strict") {
                    for (name, ours, theirs) in
                        [("orca", over[0], case.theirs[0]), ("vllm", over[1], case.theirs[1])]
                    {
                        let figure =
                            format!("{}: sarathi's capacity over {name}'s", lab.title(case.title));
                        comparison.row([(&*figure).into(), ours.into(), theirs.into()]);
                    }
                }
            }
            charts.push(chart(lab, &format!("{dataset}, {limit_name} limit"), bars));
        }
    }
    lab.table("summary", &table)?;
    lab.table("comparison", &comparison)?;
    let title = "Capacity within limits on the time between tokens".to_owned();
    let subtitle = "P99 at most 5 (strict) or 25 (relaxed) times a decode iteration of 32 sequences\n\
        of 4,096 tokens; median scheduling delay at most 2 s";
    let subtitle = subtitle.to_owned();
    lab.plot("capacity", Figure { title, subtitle, charts })
}

/// Draws the three policies' capacities, a group of bars a model.
fn chart(lab: &Lab<'_>, label: &str, bars: [Vec<(f64, f64)>; 3]) -> Chart {
    let series = ["orca", "vllm", "sarathi"].into_iter().zip(bars).enumerate();
    Chart {
        x: Axis::names(label, lab.cases(&CASES).iter().map(|case| lab.title(case.title))),
        y: Axis::linear("capacity, requests a second"),
        series: series
            .map(|(color, (name, bars))| Series::line(name, color, bars).looking(Look::Bars))
            .collect(),
        ..Chart::default()
    }
}

/// Returns how long a decode of 32 sequences at 4,096 tokens takes.
pub(super) fn iteration(lab: &mut Lab<'_>, deployment: &Deployment) -> Result<f64> {
    let load = Load {
        lengths: LengthsFrom::Fixed(4096, 64),
        num_prompts: 32,
        arrivals: Arriving::AtOnce,
        max_model_len: 8192,
    };
    // In a pipeline, batches are the stages' shares of the sequences.
    let policy = Policy::new("vllm", 32, 8192);
    Ok(lab.try_out(deployment, &policy, &load)?.summary.itl.quantile(0.5))
}

/// A policy under a load whose rate is yet to be found.
pub(super) struct Search<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) policy: &'a Policy,
    pub(super) lengths: LengthsFrom,
    pub(super) max_model_len: usize,
    /// On the P99 time between tokens, in seconds.
    pub(super) limit: f64,
}

impl Search<'_> {
    /// Returns the highest rate that keeps to the limits; 0 if none does.
    pub(super) fn capacity(&self, lab: &mut Lab<'_>, start: f64) -> Result<f64> {
        let limits = CapacityLimits { p99_tbt: self.limit, median_scheduling_delay: MAX_DELAY };
        let found = limits.search(start, |rate| -> Result<Trial> {
            let load = Load {
                lengths: self.lengths.clone(),
                num_prompts: 2048,
                arrivals: Arriving::Poisson(rate),
                max_model_len: self.max_model_len,
            };
            let summary = lab.try_out(self.deployment, self.policy, &load)?.summary;
            Ok(Trial {
                rate,
                p99_tbt: summary.itl.quantile(0.99),
                median_scheduling_delay: summary.scheduling_delay.quantile(0.5),
            })
        })?;
        Ok(found.rate.unwrap_or_default())
    }
}
