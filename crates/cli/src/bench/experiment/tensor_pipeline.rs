//! Sarathi-Serve, figure 13: Falcon-180B on two machines of four GPUs, with all layers over eight GPUs, or half of them on each.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Look, Series};

use super::capacity::{Search, iteration};
use super::lab::{Arriving, Deployment, Lab, LengthsFrom, Load, Policy};
use super::latency_throughput::FALCON;
use super::table::Table;

const SEQS: [usize; 5] = [8, 16, 32, 64, 128];

const TENSOR: Deployment = Deployment { tensor: 8, pipeline: 1, ..FALCON };

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut comparison = Table::new(&["figure", "ours", "theirs"]);
    let latency = latency(lab, &mut comparison)?;
    let capacity = capacities(lab, &mut comparison)?;
    lab.table("comparison", &comparison)?;
    let figure = Figure {
        title: "Falcon-180B over a slow network".to_owned(),
        subtitle: format!(
            "two machines of four A100 each, 100 Gbit/s between them; {}",
            lab.dataset()
        ),
        charts: vec![latency, capacity],
    };
    lab.plot("tensor_pipeline", figure)
}

/// The median time between tokens by the batch's size.
fn latency(lab: &mut Lab<'_>, comparison: &mut Table) -> Result<Chart> {
    let mut medians = Vec::new();
    let mut table = Table::new(&["deployment", "max_num_seqs", "median_tbt_s", "p99_tbt_s"]);
    let mut series = Vec::new();
    for (color, (name, deployment)) in
        [("TP8", TENSOR), ("TP4-PP2", FALCON)].into_iter().enumerate()
    {
        let mut points = Vec::new();
        for seqs in SEQS {
            let load = Load {
                lengths: LengthsFrom::Sharegpt,
                num_prompts: 256,
                arrivals: Arriving::Poisson(0.75),
                max_model_len: 8192,
            };
            let ran = lab.run(&deployment, &Policy::new("sarathi", seqs, 512), &load)?;
            let itl = &ran.summary.itl;
            points.push((seqs as f64, itl.quantile(0.5)));
            medians.push((seqs, itl.quantile(0.5)));
            table.row([
                name.into(),
                seqs.into(),
                itl.quantile(0.5).into(),
                itl.quantile(0.99).into(),
            ]);
        }
        series.push(Series::line(name, color, points));
    }
    lab.table("latency", &table)?;
    for &(seqs, tensor) in &medians[..SEQS.len()] {
        let pipeline = medians.iter().skip(SEQS.len()).find(|(of, _)| *of == seqs);
        let ours = pipeline.map(|(_, pipeline)| tensor / pipeline);
        let figure = format!("median time between tokens, TP8 over TP4-PP2, {seqs} sequences");
        comparison.row([(&*figure).into(), ours.into(), "over 2".into()]);
    }
    Ok(Chart {
        x: Axis::log("sequences at most (Sarathi, chunks of 512)"),
        y: Axis::linear("median time between tokens, s"),
        series,
        ..Chart::default()
    })
}

/// The highest rates within the limits.
fn capacities(lab: &mut Lab<'_>, comparison: &mut Table) -> Result<Chart> {
    let mut table =
        Table::new(&["limit", "p99_tbt_limit_s", "system", "capacity_qps", "sarathi_over_it"]);
    let base = iteration(lab, &FALCON)?;
    let mut bars = vec![Vec::new(); 3];
    for (place, (name, factor, chunk, theirs)) in
        [("strict", 5.0, 512, [Some(4.3), Some(3.6)]), ("relaxed", 25.0, 2048, [None, Some(1.48)])]
            .into_iter()
            .enumerate()
    {
        let systems = [
            ("vllm TP8", TENSOR, Policy::new("vllm", 128, 8192)),
            ("vllm TP4-PP2", FALCON, Policy::new("vllm", 128, 8192)),
            ("sarathi TP4-PP2", FALCON, Policy::new("sarathi", 128, chunk)),
        ];
        let mut found = Vec::new();
        for (_, deployment, policy) in &systems {
            let search = Search {
                deployment,
                policy,
                lengths: LengthsFrom::Sharegpt,
                max_model_len: 8192,
                limit: factor * base,
            };
            found.push(search.capacity(lab, 0.8)?.rate);
        }
        let sarathi = found.last().copied().unwrap_or_default();
        let mut theirs = theirs.into_iter();
        for ((bars, &rate), (system, ..)) in bars.iter_mut().zip(&found).zip(&systems) {
            bars.push((place as f64, rate));
            let over = (rate > 0.0).then(|| sarathi / rate);
            if let Some(theirs) = theirs.next() {
                let figure = format!("{name}: sarathi TP4-PP2's capacity over {system}'s");
                comparison.row([(&*figure).into(), over.into(), theirs.into()]);
            }
            table.row([
                name.into(),
                (factor * base).into(),
                (*system).into(),
                rate.into(),
                over.into(),
            ]);
        }
    }
    lab.table("capacity", &table)?;
    let names = ["vllm TP8", "vllm TP4-PP2", "sarathi TP4-PP2"].into_iter().zip(bars).enumerate();
    Ok(Chart {
        x: Axis::names(
            "limit on the P99 time between tokens",
            ["strict", "relaxed"].map(str::to_owned),
        ),
        y: Axis::linear("capacity, requests a second"),
        series: names
            .map(|(color, (name, bars))| Series::line(name, color, bars).looking(Look::Bars))
            .collect(),
        ..Chart::default()
    })
}
