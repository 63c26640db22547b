//! Runs small loads and takes the time of every step that they lead to.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use stallfree_bench::run::{Detail, Progress, Recorder, RunConfig, in_real_time, in_virtual_time};
use stallfree_bench::workload::{Arrivals, Lengths, Source};
use stallfree_bench::{BatchRecord, Workload, WorkloadConfig};
use stallfree_core::{Clock, SeqMap, WallClock};
use stallfree_engine::{Replay, ThreadedEngine};
use stallfree_sim::Step;

use super::FitArgs;
use crate::bench::RunProgress;
use crate::config::InstanceConfig;
use crate::instance::{self, Built};

/// What was measured.
pub(super) struct Measurement {
    pub(super) steps: Vec<Step>,
    /// The device, as its executor calls it.
    pub(super) device: String,
    /// Tokens of KV cache.
    pub(super) kv_tokens: usize,
}

/// Requests that come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    count: usize,
    len: usize,
}

impl FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().ok().filter(|&number: &usize| number > 0);
        let row = text.split_once('x').and_then(|(n, len)| Some((number(n)?, number(len)?)));
        let (count, len) = row.ok_or_else(|| format!("'{text}' is no row; write 8x1024"))?;
        Ok(Self { count, len })
    }
}

impl Row {
    /// Each seed has its own prompts.
    fn workload(&self, output_len: usize, seed: usize) -> Result<Workload> {
        let config = WorkloadConfig {
            source: Source::Drawn {
                name: "calibration".to_owned(),
                prompt: Lengths::Fixed(self.len),
                output: Lengths::Fixed(output_len),
            },
            arrivals: Arrivals::Static,
            num_requests: Some(self.count),
            max_total_len: None,
            output_len: None,
            shared_prefix_len: 0,
            seed: seed as u64,
        };
        Ok(config.generate()?)
    }
}

/// Measures all rows. A simulated device is measured in its virtual time, any other by the wall clock.
pub(super) fn steps(args: &FitArgs, path: &Path, config: &InstanceConfig) -> Result<Measurement> {
    let recorder = Recorder::new(Detail::Chunks);
    let build = || instance::engine(path, config, recorder.observer());
    let built = build()?;
    let (device, kv_tokens) = (built.worker.device.clone(), built.worker.kv.num_tokens());
    let longest = built.scheduler.max_model_len;
    let rows: Vec<Row> = args
        .rows
        .iter()
        .copied()
        .filter(|row| row.len + args.output_len <= longest && row.count * row.len <= kv_tokens)
        .collect();
    if rows.is_empty() {
        bail!("no row fits into {longest} tokens a sequence and {kv_tokens} of KV cache: --rows");
    }
    let run = RunConfig::exact(built.vocab_size);
    let mut kinds = Kinds::default();
    if config.device.is_simulated() {
        for (seed, row) in rows.iter().enumerate() {
            let mut engine = Replay::new(build()?.engine);
            let workload = row.workload(args.output_len, seed)?;
            let ran = in_virtual_time(&mut engine, &workload, &run, &recorder, &mut |_| {});
            kinds.add(&ran.batches);
        }
    } else {
        let engine = spawn(built)?;
        // What is only done once, such as choosing algorithms for a shape, is not a step's time: the first round does not count.
        let rounds = args.repeats + 1;
        let total = rounds * rows.iter().map(|row| row.count).sum::<usize>();
        let mut done = 0;
        let mut bar = RunProgress::start("Measuring", total, args.no_progress);
        for index in 0..rounds * rows.len() {
            let row = rows[index % rows.len()];
            bar.show(done, total, || format!("{} x {} tokens", row.count, row.len));
            let workload = row.workload(args.output_len, index)?;
            done += row.count;
            let silent = &mut |_: Progress| {};
            let ran = in_real_time(&engine, &workload, &run, &recorder, silent);
            if let Some(error) = ran.requests.iter().find_map(|request| request.error()) {
                bail!("a request of {} tokens failed: {error}", row.len);
            }
            if index >= rows.len() {
                kinds.add(&ran.batches);
            }
        }
    }
    Ok(Measurement { steps: kinds.steps(), device, kv_tokens })
}

fn spawn(built: Built) -> Result<ThreadedEngine> {
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    ThreadedEngine::spawn(built.engine, clock, usize::MAX)
        .context("the engine's thread can't be started")
}

/// Single tokens whose contexts differ by less than this are of one kind.
const CONTEXT: usize = 32;

/// Times of steps by what they computed: chunks as [`Step::chunks`], and how many tokens they sampled.
#[derive(Debug, Default)]
struct Kinds(BTreeMap<(Vec<[usize; 3]>, usize), Vec<f64>>);

impl Kinds {
    /// Adds the batches of a run that began with nothing.
    fn add(&mut self, batches: &[BatchRecord]) {
        let mut computed: SeqMap<usize> = SeqMap::default();
        let mut before = None;
        for batch in batches {
            // What a preempted sequence has left is not in the records.
            if batch.num_preempted > 0 {
                return;
            }
            let mut chunks: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            for chunk in &batch.chunks {
                let tokens = (chunk.num_prefill_tokens + chunk.num_decode_tokens) as usize;
                let before = computed.entry(chunk.seq).or_default();
                let context = match tokens {
                    1 => *before / CONTEXT * CONTEXT + CONTEXT / 2,
                    _ => *before,
                };
                *chunks.entry((context, tokens)).or_default() += 1;
                *before += tokens;
            }
            // From the step before to this one, which is what a client sees of it.
            let begun = before.replace(batch.finished).unwrap_or(batch.started);
            let chunks = chunks.into_iter().map(|((after, tokens), count)| [count, after, tokens]);
            let kind = (chunks.collect(), batch.num_sampled as usize);
            self.0.entry(kind).or_default().push(batch.finished - begun);
        }
    }

    /// Returns the median of each kind.
    fn steps(self) -> Vec<Step> {
        let step = |((chunks, num_samples), mut times): ((Vec<[usize; 3]>, usize), Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            let seconds = times[times.len() / 2];
            Step { chunks, seconds, linear_s: None, num_samples: Some(num_samples) }
        };
        self.0.into_iter().map(step).filter(|step| step.seconds > 0.0).collect()
    }
}
