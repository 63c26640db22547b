//! Sarathi-Serve, figures 10 and 11: the highest rate at which the P99 time between tokens and the median scheduling delay keep to
//! their limits.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};
use stallfree_bench::{CapacityLimits, Summary, Trial};

use super::generation_stalls::YI;
use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::latency_throughput::{FALCON, LLAMA, MISTRAL};
use super::table::Table;
use crate::bench::run::Ran;
use crate::console;

/// The most that half of the requests may wait for their first chunk, in seconds.
const MAX_DELAY: f64 = 2.0;

/// How many decode iterations a token may take, by the paper: with 32 sequences of 4,096 tokens and no prefill.
const LIMITS: [(&str, f64); 2] = [("strict", 5.0), ("relaxed", 25.0)];

/// What is compared, in the order of columns.
const POLICIES: [&str; 3] = ["orca", "vllm", "sarathi"];

/// On a real device the bounds of a search are that close in the end: a trial takes a minute there.
const REAL_GRANULARITY: f64 = 0.25;

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
    let mut tables = Tables::new();
    let mut charts = Vec::new();
    let datasets = [
        ("conversations", LengthsFrom::Sharegpt, 8192, 1.0),
        ("papers", LengthsFrom::Arxiv, 16_384, 0.5),
    ];
    let cases = lab.cases(&CASES);
    let wanted = lab.chosen(POLICIES, |name| name);
    for (dataset, lengths, max_model_len, share) in lab.chosen(datasets, |dataset| dataset.0) {
        for (limit_name, factor) in lab.chosen(LIMITS, |limit| limit.0) {
            let mut bars = POLICIES.map(|_| Vec::new());
            for (place, case) in cases.iter().enumerate() {
                let limit = factor * iteration(lab, &case.deployment)?;
                let chunk = if factor > 5.0 { case.relaxed_chunk } else { 512 };
                let policies = [
                    Policy::new(POLICIES[0], case.orca_seqs, max_model_len),
                    Policy::new(POLICIES[1], 128, max_model_len),
                    Policy::new(POLICIES[2], 128, chunk),
                ];
                let mut found = [None; POLICIES.len()];
                for policy in policies.into_iter().filter(|policy| wanted.contains(&policy.name)) {
                    let (deployment, lengths) = (&case.deployment, lengths.clone());
                    let search =
                        Search { deployment, policy: &policy, lengths, max_model_len, limit };
                    let Found { rate, trials } = search.capacity(lab, case.start * share)?;
                    tables.add_trials(
                        [dataset, limit_name, &lab.title(case.title)],
                        &policy,
                        &trials,
                    );
                    let column = POLICIES.iter().position(|&name| name == policy.name);
                    if let Some(column) = column {
                        found[column] = Some(rate);
                        bars[column].push((place as f64, rate));
                    }
                }
                tables.add([dataset, limit_name], (case, &lab.title(case.title)), limit, found);
            }
            charts.push(chart(lab, &format!("{dataset}, {limit_name} limit"), bars));
        }
    }
    lab.table("summary", &tables.summary)?;
    lab.table("trials", &tables.trials)?;
    lab.table("comparison", &tables.comparison)?;
    let title = "Capacity within limits on the time between tokens".to_owned();
    let subtitle = format!(
        "P99 at most 5 (strict) or 25 (relaxed) times a decode iteration of 32 sequences\n\
         of 4,096 tokens; median scheduling delay at most 2 s; {}",
        lab.dataset()
    );
    lab.plot("capacity", Figure { title, subtitle, charts })
}

/// What is written down.
struct Tables {
    /// The capacities.
    summary: Table,
    /// Every rate that was tried.
    trials: Table,
    /// The paper's ratios beside ours.
    comparison: Table,
}

impl Tables {
    fn new() -> Self {
        let summary = [
            "dataset",
            "limit",
            "model",
            "p99_tbt_limit_s",
            "orca_qps",
            "vllm_qps",
            "sarathi_qps",
            "over_orca",
            "over_vllm",
        ];
        let trials = [
            "dataset",
            "limit",
            "model",
            "policy",
            "request_rate",
            "p99_tbt_s",
            "median_tbt_s",
            "stalled_share",
            "median_scheduling_delay_s",
            "median_ttft_s",
            "num_requests",
        ];
        Self {
            summary: Table::new(&summary),
            trials: Table::new(&trials),
            comparison: Table::new(&["figure", "ours", "theirs"]),
        }
    }

    fn add_trials(&mut self, place: [&str; 3], policy: &Policy, trials: &[(f64, Summary)]) {
        for (rate, summary) in trials {
            let figures = [
                *rate,
                summary.itl.quantile(0.99),
                summary.itl.quantile(0.5),
                summary.stalls.stalled_share,
                summary.scheduling_delay.quantile(0.5),
                summary.ttft.quantile(0.5),
                summary.completed as f64,
            ];
            let place = place.into_iter().chain([policy.name]).map(Into::into);
            self.trials.row(place.chain(figures.into_iter().map(Into::into)));
        }
    }

    fn add(
        &mut self,
        [dataset, limit_name]: [&str; 2],
        (case, title): (&Case, &str),
        limit: f64,
        [orca, vllm, sarathi]: [Option<f64>; 3],
    ) {
        let over = [orca, vllm].map(|rate| {
            let rate = rate.filter(|&rate| rate > 0.0);
            sarathi.zip(rate).map(|(sarathi, rate)| sarathi / rate)
        });
        self.summary.row([
            dataset.into(),
            limit_name.into(),
            title.into(),
            limit.into(),
            orca.into(),
            vllm.into(),
            sarathi.into(),
            over[0].into(),
            over[1].into(),
        ]);
        if (dataset, limit_name) == ("conversations", "strict") {
            for ((name, ours), theirs) in ["orca", "vllm"].into_iter().zip(over).zip(case.theirs) {
                let figure = format!("{title}: sarathi's capacity over {name}'s");
                self.comparison.row([(&*figure).into(), ours.into(), theirs.into()]);
            }
        }
    }
}

/// Draws the three policies' capacities, a group of bars a model.
fn chart(lab: &Lab<'_>, label: &str, bars: [Vec<(f64, f64)>; POLICIES.len()]) -> Chart {
    let measured = POLICIES.into_iter().zip(bars).filter(|(_, bars)| !bars.is_empty());
    let series = measured.enumerate();
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

/// What a search found.
pub(super) struct Found {
    /// The highest rate that keeps to the limits; 0 if none does.
    pub(super) rate: f64,
    /// Every rate that was tried, and its figures.
    trials: Vec<(f64, Summary)>,
}

impl Search<'_> {
    /// Searches from `start` or the user's rate.
    pub(super) fn capacity(&self, lab: &mut Lab<'_>, start: f64) -> Result<Found> {
        let limits = CapacityLimits { p99_tbt: self.limit, median_scheduling_delay: MAX_DELAY };
        let is_real = lab.is_real(self.deployment);
        let granularity = if is_real { REAL_GRANULARITY } else { CapacityLimits::GRANULARITY };
        let start = lab.rates(&[start]).first().copied().unwrap_or(start);
        let mut trials = Vec::new();
        let found = limits.search(start, granularity, |rate| -> Result<Trial> {
            let load = Load {
                lengths: self.lengths.clone(),
                num_prompts: 2048,
                arrivals: Arriving::Poisson(rate),
                max_model_len: self.max_model_len,
            };
            let Ran { outcome, summary, .. } = lab.try_out(self.deployment, self.policy, &load)?;
            let trial = Trial {
                rate,
                p99_tbt: summary.itl.quantile(0.99),
                median_scheduling_delay: summary.scheduling_delay.quantile(0.5),
                is_all_at_once: outcome.is_all_at_once(1),
            };
            trials.push((rate, summary));
            Ok(trial)
        })?;
        let rate = found.rate.unwrap_or_default();
        if !found.is_limited {
            console::note(format_args!("No limit was reached: at least {rate} requests a second"));
        }
        Ok(Found { rate, trials })
    }
}
