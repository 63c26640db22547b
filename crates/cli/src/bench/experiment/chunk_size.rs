//! Sarathi-Serve, figure 14: how much longer a prompt takes in chunks than whole.

use anyhow::Result;
use stallfree_bench::plot::{Axis, Chart, Figure, Series};

use super::generation_stalls::YI;
use super::lab::{Arriving, Lab, LengthsFrom, Load, Policy};
use super::table::Table;

const PROMPTS: [usize; 5] = [1024, 2048, 4096, 8192, 16_384];
const CHUNKS: [usize; 5] = [256, 512, 1024, 1536, 2048];

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut table = Table::new(&["chunk", "prompt", "whole_s", "chunked_s", "chunked_over_whole"]);
    let mut whole = Vec::new();
    for prompt in PROMPTS {
        whole.push(prefill(lab, prompt, *PROMPTS.last().unwrap_or(&prompt))?);
    }
    let (mut series, mut most) = (Vec::new(), Vec::new());
    for (color, chunk) in CHUNKS.into_iter().enumerate() {
        let mut points = Vec::new();
        for (&prompt, &whole) in PROMPTS.iter().zip(&whole) {
            let chunked = prefill(lab, prompt, chunk)?;
            points.push((prompt as f64, (chunked / whole - 1.0) * 100.0));
            table.row([
                chunk.into(),
                prompt.into(),
                whole.into(),
                chunked.into(),
                (chunked / whole).into(),
            ]);
        }
        most.push((chunk, points.iter().fold(0.0_f64, |most, point| most.max(point.1))));
        series.push(Series::line(&format!("chunks of {chunk}"), color, points));
    }
    lab.table("summary", &table)?;
    let mut comparison = Table::new(&["figure", "ours", "theirs"]);
    for (chunk, theirs) in [(512, "25 at most"), (2048, "almost none")] {
        let overhead = most.iter().find(|(of, _)| *of == chunk).map(|(_, most)| *most);
        let figure = format!("most overhead of chunks of {chunk}, %");
        comparison.row([(&*figure).into(), overhead.into(), theirs.into()]);
    }
    lab.table("comparison", &comparison)?;
    let figure = Figure {
        title: "What cutting a prompt into chunks costs".to_owned(),
        subtitle: lab.about(&YI),
        charts: vec![Chart {
            x: Axis::log("prompt, tokens"),
            y: Axis::linear("time on top of the prompt's whole, %"),
            series,
            ..Chart::default()
        }],
    };
    lab.plot("chunk_size", figure)
}

/// Returns how long a lone prompt takes to its first token.
fn prefill(lab: &mut Lab<'_>, prompt: usize, chunk: usize) -> Result<f64> {
    let load = Load {
        lengths: LengthsFrom::Fixed(prompt, 1),
        num_prompts: 1,
        arrivals: Arriving::AtOnce,
        max_model_len: 16_448,
    };
    let ran = lab.try_out(&YI, &Policy::new("sarathi", 1, chunk), &load)?;
    Ok(ran.summary.ttft.quantile(0.5))
}
