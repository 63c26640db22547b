//! Sarathi-Serve, figures 10 and 11: the highest rate at which the P99 time between tokens and the median scheduling delay keep to
//! their limits.

use anyhow::{Result, bail};
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

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
}

const CASES: [Case; 4] = [
    Case {
        title: "Mistral-7B",
        deployment: MISTRAL,
        start: 4.0,
        orca_seqs: 16,
        relaxed_chunk: 2048,
    },
    Case { title: "Yi-34B", deployment: YI, start: 2.0, orca_seqs: 16, relaxed_chunk: 2048 },
    Case { title: "LLaMA2-70B", deployment: LLAMA, start: 1.0, orca_seqs: 8, relaxed_chunk: 1536 },
    Case {
        title: "Falcon-180B",
        deployment: FALCON,
        start: 1.6,
        orca_seqs: 8,
        relaxed_chunk: 2048,
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
    let mut charts = Vec::new();
    for (dataset, lengths, max_model_len, share) in [
        ("conversations", LengthsFrom::Sharegpt, 8192, 1.0),
        ("papers", LengthsFrom::Arxiv, 16_384, 0.5),
    ] {
        for (limit_name, factor) in LIMITS {
            let mut bars = [Vec::new(), Vec::new(), Vec::new()];
            for (place, case) in CASES.iter().enumerate() {
                let limit = factor * iteration(lab, &case.deployment)?;
                let chunk = if factor > 5.0 { case.relaxed_chunk } else { 512 };
                let policies = [
                    Policy::new("orca", case.orca_seqs, max_model_len),
                    Policy::new("vllm", 128, max_model_len),
                    Policy::new("sarathi", 128, chunk),
                ];
                let mut found = [0.0; 3];
                for (rate, policy) in found.iter_mut().zip(&policies) {
                    let trial = Trial {
                        deployment: &case.deployment,
                        policy,
                        lengths: lengths.clone(),
                        max_model_len,
                        limit,
                    };
                    *rate = trial.capacity(lab, case.start * share)?;
                }
                for (bars, rate) in bars.iter_mut().zip(found) {
                    bars.push((place as f64, rate));
                }
                let [orca, vllm, sarathi] = found;
                let over = |rate: f64| (rate > 0.0).then(|| sarathi / rate);
                table.row([
                    dataset.into(),
                    limit_name.into(),
                    case.title.into(),
                    limit.into(),
                    orca.into(),
                    vllm.into(),
                    sarathi.into(),
                    over(orca).into(),
                    over(vllm).into(),
                ]);
            }
            let names = CASES.iter().map(|case| case.title.to_owned());
            let series = ["orca", "vllm", "sarathi"].into_iter().zip(bars).enumerate();
            charts.push(Chart {
                x: Axis::names(&format!("{dataset}, {limit_name} limit"), names),
                y: Axis::linear("capacity, requests a second"),
                series: series
                    .map(|(color, (name, bars))| {
                        Series::line(name, color, bars).looking(Look::Bars)
                    })
                    .collect(),
                ..Chart::default()
            });
        }
    }
    lab.table("summary", &table)?;
    let title = "Capacity within limits on the P99 time between tokens".to_owned();
    let subtitle =
        format!("median scheduling delay at most {MAX_DELAY} s; the paper's deployments");
    lab.plot("capacity", &Figure { title, subtitle, charts })
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
    Ok(lab.run(deployment, &policy, &load, &["--records=requests"])?.summary.itl.quantile(0.5))
}

/// A policy under a load whose rate is yet to be found.
pub(super) struct Trial<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) policy: &'a Policy,
    pub(super) lengths: LengthsFrom,
    pub(super) max_model_len: usize,
    /// On the P99 time between tokens, in seconds.
    pub(super) limit: f64,
}

impl Trial<'_> {
    /// Returns the highest rate that passes, within 2.5 %: doubled from `start` until one fails, then halved between.
    pub(super) fn capacity(&self, lab: &mut Lab<'_>, start: f64) -> Result<f64> {
        let (mut passes, mut fails) = (0.0, start);
        while self.passes(lab, fails)? {
            passes = fails;
            fails *= 2.0;
            if fails > 1000.0 * start {
                bail!(
                    "{} passes at any rate: the limit of {} s binds nobody",
                    self.policy.label,
                    self.limit
                );
            }
        }
        while fails - passes > 0.025 * fails && fails > 0.01 * start {
            let rate = f64::midpoint(passes, fails);
            if self.passes(lab, rate)? {
                passes = rate;
            } else {
                fails = rate;
            }
        }
        Ok(passes)
    }

    fn passes(&self, lab: &mut Lab<'_>, rate: f64) -> Result<bool> {
        let load = Load {
            lengths: self.lengths.clone(),
            num_prompts: 1024,
            arrivals: Arriving::Poisson((rate * 1e4).round() / 1e4),
            max_model_len: self.max_model_len,
        };
        let summary =
            lab.run(self.deployment, self.policy, &load, &["--records=requests"])?.summary;
        Ok(summary.itl.quantile(0.99) <= self.limit
            && summary.scheduling_delay.quantile(0.5) <= MAX_DELAY)
    }
}
