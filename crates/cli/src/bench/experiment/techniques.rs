//! Sarathi-Serve, table 4: hybrid batches without chunks, chunks without hybrid batches, both.

use anyhow::Result;

use super::generation_stalls::YI;
use super::lab::{Arriving, Lab, LengthsFrom, Load, Policy};
use super::table::Table;

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut table = Table::new(&["dataset", "technique", "median_ttft_s", "p99_tbt_s"]);
    let mut comparison = Table::new(&["figure", "ours", "theirs"]);
    for (dataset, lengths, rate, max_model_len, paper) in [
        (
            "conversations",
            LengthsFrom::Sharegpt,
            1.0,
            8192,
            [(0.53, 0.68), (1.04, 0.17), (0.76, 0.14)],
        ),
        ("papers", LengthsFrom::Arxiv, 0.5, 16_384, [(3.78, 1.38), (5.38, 0.20), (3.90, 0.17)]),
    ] {
        let policies = [
            // A chunk that holds the longest prompt cuts none.
            Policy::new("sarathi", 128, max_model_len).called("hybrid batches only"),
            Policy::new("chunked", 128, 1024).called("chunked prefills only"),
            Policy::new("sarathi", 128, 1024).called("both"),
        ];
        for (policy, (paper_ttft, paper_tbt)) in policies.iter().zip(paper) {
            let load = Load {
                lengths: lengths.clone(),
                num_prompts: 128,
                arrivals: Arriving::Poisson(rate),
                max_model_len,
            };
            let summary = lab.run(&YI, policy, &load)?.summary;
            let (ttft, tbt) = (summary.ttft.quantile(0.5), summary.itl.quantile(0.99));
            table.row([dataset.into(), (&*policy.label).into(), ttft.into(), tbt.into()]);
            for (what, ours, theirs) in [
                ("median time to first token", ttft, paper_ttft),
                ("P99 time between tokens", tbt, paper_tbt),
            ] {
                let figure = format!("{dataset}, {}: {what}, s", policy.label);
                comparison.row([(&*figure).into(), ours.into(), theirs.into()]);
            }
        }
    }
    lab.table("summary", &table)?;
    lab.table("comparison", &comparison)
}
