//! Sarathi-Serve, figure 7: A and B decode when C and D arrive. Every policy's steps, as text.

use std::fmt::Write as _;

use anyhow::Result;
use stallfree_bench::BatchRecord;
use stallfree_scheduler::POLICIES;

use super::generation_stalls::YI;
use super::lab::{Arriving, Lab, LengthsFrom, Load, Policy};
use super::table::Table;
use crate::bench::run::Ran;
use crate::console;

/// The requests: A and B, then C and D.
const REQUESTS: &str = "arrived_at,num_prefill_tokens,num_decode_tokens\n\
    0.0,256,40\n0.0,256,40\n0.6,2048,10\n0.65,1024,10\n";

const NAMES: [char; 4] = ['A', 'B', 'C', 'D'];

/// Columns of the timeline.
const WIDTH: usize = 100;

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let path = lab.output().join("requests.csv");
    lab.write("requests.csv", REQUESTS)?;
    let load = Load {
        lengths: LengthsFrom::File(path),
        num_prompts: NAMES.len(),
        arrivals: Arriving::AsRecorded,
        max_model_len: 8192,
    };
    let mut rans = Vec::new();
    for policy in POLICIES {
        // Policies that cut prompts cut them to 512; the others take them whole.
        let budget = match policy.name {
            "sarathi" | "chunked" | "vllm-v1" => 512,
            _ => 8192,
        };
        let ran = lab.run(&YI, &Policy::new(policy.name, 8, budget), &load)?;
        rans.push((policy.name, ran));
    }
    let ends =
        rans.iter().flat_map(|(_, ran)| ran.outcome.batches.iter().map(|batch| batch.finished));
    let scale = ends.fold(0.0, f64::max) / WIDTH as f64;
    let mut text = format!(
        "# prefill, = decode, . waiting, space: not there. A character is {:.0} ms.\n",
        scale * 1e3
    );
    let mut table = Table::new(&[
        "policy",
        "steps_without_a_token_for_a_and_b",
        "longest_gap_of_a_and_b_s",
        "c_first_token_s",
        "d_first_token_s",
        "end_s",
    ]);
    for (name, ran) in &rans {
        // Writing to a string can't fail.
        let _ = write!(text, "\n{name}\n{}", timeline(ran, scale));
        let requests = &ran.outcome.requests;
        let gaps = requests.iter().take(2).flat_map(|request| request.gaps());
        let first = |index: usize| requests.get(index).and_then(|request| request.ttft());
        table.row([
            (*name).into(),
            stalled_steps(ran).into(),
            gaps.fold(0.0, f64::max).into(),
            first(2).into(),
            first(3).into(),
            ran.outcome.batches.last().map(|batch| batch.finished).into(),
        ]);
    }
    console::print(format_args!("\n{text}"))?;
    lab.write("timeline.txt", &text)?;
    lab.table("summary", &table)
}

/// Draws a line a request: what it did in each stretch of time.
fn timeline(ran: &Ran, scale: f64) -> String {
    let mut text = String::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let Some(request) = ran.outcome.requests.get(index) else { continue };
        let mark = |column: usize| {
            let at = (column as f64 + 0.5) * scale;
            let step =
                ran.outcome.batches.iter().find(|step| step.started <= at && at < step.finished);
            let chunk = step.and_then(|step| chunk(step, index));
            match chunk {
                Some((prefill, _)) if prefill > 0 => '#',
                Some(_) => '=',
                None if at >= request.sent && at < request.finished => '.',
                None => ' ',
            }
        };
        let line: String = (0..WIDTH).map(mark).collect();
        let _ = writeln!(text, "  {name} {}", line.trim_end());
    }
    text
}

/// Returns the prompt tokens and output tokens that a step has of a request.
fn chunk(step: &BatchRecord, request: usize) -> Option<(u32, u32)> {
    let chunk = step.chunks.iter().find(|chunk| chunk.seq.0 == request as u64)?;
    Some((chunk.num_prefill_tokens, chunk.num_decode_tokens))
}

/// Returns how many steps passed without A or without B, while both were between their first and last tokens.
fn stalled_steps(ran: &Ran) -> usize {
    let decodes = |request: usize, at: f64| {
        let times = ran.outcome.requests.get(request).map(|request| &request.token_times);
        times.and_then(|times| Some(*times.first()? <= at && at < *times.last()?)).unwrap_or(false)
    };
    let steps = ran.outcome.batches.iter();
    steps
        .filter(|step| {
            (0..2).any(|index| decodes(index, step.started) && chunk(step, index).is_none())
        })
        .count()
}
