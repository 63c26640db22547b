//! Sarathi-Serve, artifact's figure 7: what a rate does to latencies, with vLLM's batch at 16, 32, 64 and 128 and with Sarathi.
//!
//! The artifact's rates are for the paper's machines. Beside them, rates are tried that are shares of what Sarathi completes here
//! when everything comes at once.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::table::Table;

/// A model, the rates it is offered, and Sarathi's chunk.
struct Case {
    title: &'static str,
    deployment: Deployment,
    rates: [f64; 4],
    chunk: usize,
}

/// The rates that are tried beside the artifact's, as shares of Sarathi's saturation.
const SHARES: [f64; 4] = [0.4, 0.6, 0.8, 0.95];

const CASES: [Case; 4] = [
    Case {
        title: "Mistral-7B on 1 A100",
        deployment: MISTRAL,
        rates: [1.0, 2.0, 3.0, 4.0],
        chunk: 1024,
    },
    Case {
        title: "Yi-34B on 2 A100",
        deployment: super::generation_stalls::YI,
        rates: [0.55, 0.7, 0.85, 1.0],
        chunk: 2048,
    },
    Case {
        title: "LLaMA2-70B on 8 A40",
        deployment: LLAMA,
        rates: [0.2, 0.4, 0.6, 0.8],
        chunk: 2048,
    },
    Case {
        title: "Falcon-180B on 8 A100",
        deployment: FALCON,
        rates: [0.4, 0.6, 0.8, 1.0],
        chunk: 2048,
    },
];

pub(super) const MISTRAL: Deployment =
    Deployment { model: "mistral-7b", device: "sim:a100-80g-pcie", tensor: 1, pipeline: 1 };
pub(super) const LLAMA: Deployment =
    Deployment { model: "llama-2-70b", device: "sim:a40-48g", tensor: 4, pipeline: 2 };
pub(super) const FALCON: Deployment =
    Deployment { model: "falcon-180b", device: "sim:a100-80g-pcie", tensor: 4, pipeline: 2 };

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut table = Table::new(&[
        "model",
        "policy",
        "request_rate",
        "share_of_saturation",
        "median_ttft_s",
        "p99_tbt_s",
        "median_tbt_s",
        "stalled_share",
    ]);
    let (mut tbt, mut ttft) = (Vec::new(), Vec::new());
    for case in lab.cases(&CASES) {
        let title = lab.title(case.title);
        let sarathi =
            Policy::new("sarathi", 128, case.chunk).called(format!("sarathi chunk {}", case.chunk));
        let saturation = saturation(lab, case, &sarathi)?;
        let mut rates: Vec<f64> = SHARES.iter().map(|share| rounded(share * saturation)).collect();
        rates.extend(case.rates);
        rates.sort_unstable_by(f64::total_cmp);
        rates.dedup();
        let vllm = [16, 32, 64, 128]
            .map(|seqs| Policy::new("vllm", seqs, 8192).called(format!("vllm batch {seqs}")));
        let (mut tbt_series, mut ttft_series) = (Vec::new(), Vec::new());
        for (color, policy) in vllm.iter().chain([&sarathi]).enumerate() {
            let (mut tbts, mut ttfts) = (Vec::new(), Vec::new());
            for &rate in &rates {
                let load = load(Arriving::Poisson(rate));
                let summary = lab.run(&case.deployment, policy, &load)?.summary;
                let (p99, median) = (summary.itl.quantile(0.99), summary.ttft.quantile(0.5));
                tbts.push((rate, p99));
                ttfts.push((rate, median));
                table.row([
                    (&*title).into(),
                    (&*policy.label).into(),
                    rate.into(),
                    (rate / saturation).into(),
                    median.into(),
                    p99.into(),
                    summary.itl.quantile(0.5).into(),
                    summary.stalls.stalled_share.into(),
                ]);
            }
            let look = if policy.name == "sarathi" { Look::Line } else { Look::Dashed };
            tbt_series.push(Series::line(&policy.label, color, tbts).looking(look));
            ttft_series.push(Series::line(&policy.label, color, ttfts).looking(look));
        }
        let chart = |what: &str, series| Chart {
            x: Axis::log(&format!("{title}: requests a second (log)")),
            y: Axis::log(what),
            series,
            ..Chart::default()
        };
        tbt.push(chart("P99 time between tokens, s (log)", tbt_series));
        ttft.push(chart("median time to first token, s (log)", ttft_series));
    }
    lab.table("summary", &table)?;
    let subtitle = lab.dataset().to_owned();
    for (name, title, charts) in [
        ("tbt", "Tail latency over the load, by batch size", tbt),
        ("ttft", "Time to the first token over the load, by batch size", ttft),
    ] {
        let (title, subtitle) = (title.to_owned(), subtitle.clone());
        lab.plot(name, Figure { title, subtitle, charts })?;
    }
    Ok(())
}

const fn load(arrivals: Arriving) -> Load {
    Load { lengths: LengthsFrom::Sharegpt, num_prompts: 1024, arrivals, max_model_len: 8192 }
}

/// Returns how many requests a second a policy completes when all come at once.
fn saturation(lab: &mut Lab<'_>, case: &Case, policy: &Policy) -> Result<f64> {
    let ran = lab.try_out(&case.deployment, policy, &load(Arriving::AtOnce))?;
    Ok(ran.summary.request_throughput())
}

/// Rounds a rate to two digits.
fn rounded(rate: f64) -> f64 {
    let scale = 10_f64.powf(1.0 - rate.max(1e-9).log10().floor());
    (rate * scale).round() / scale
}
