//! The kinds of rows.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use stallfree_core::Time;
use stallfree_models::ModelConfig;

use super::Measured;
use super::drive::{Driver, Outcome};
use super::floor::Floor;
use super::threads::CpuTimes;

/// What stands over the rows: among others, microseconds of CPU time a step, and what they are without the readers' switching.
pub(super) const HEADER: &str = "row                        ms      tokens/s   floor ms  of floor  engine inputs results  text  = step  wakes  second computation";

/// How many sequences of a decode row are computed a second time.
const NUM_CHECKED: usize = 4;
/// How much less likely than the best one a greedy token may look in the second computation. Rounding to bf16 explains it: the worst of
/// some 500 tokens misses by 0.14 to 0.27 with dummy weights, whose best logits stand 5 to 6 above the mean.
const MAX_MARGIN: f32 = 0.5;

/// Returns the largest margin for a model: logits spread with the root of the hidden size, and what layers round off adds up with the
/// root of their number. [`MAX_MARGIN`] is that of 32 layers of 4,096 elements, and of smaller ones.
pub(super) fn max_margin(model: &ModelConfig) -> f32 {
    let size = (model.hidden_size * model.num_layers) as f32 / (4096 * 32) as f32;
    MAX_MARGIN * size.sqrt().max(1.0)
}

/// Parses a flag's list; a dash stands for none.
pub(super) fn parse_all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    texts.iter().filter(|text| *text != "-").map(|text| parse(text)).collect()
}

fn number(text: &str, whole: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.with_context(|| format!("{whole:?} is no row; write 8x2048, for example"))
}

/// Sequences that get one token a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decode {
    batch: usize,
    context: usize,
    len: usize,
}

impl Decode {
    pub(super) fn parse(text: &str, len: usize) -> Result<Self> {
        let (batch, context) = text.split_once('x').unwrap_or((text, "512"));
        if len < 4 {
            bail!("--decode-len {len} leaves no steps to measure; take at least 4");
        }
        Ok(Self { batch: number(batch, text)?, context: number(context, text)?, len })
    }

    pub(super) fn name(&self) -> String {
        format!("decode {} at {}", self.batch, self.context)
    }

    /// Returns how many tokens a text has in the end: a token comes after it in the second computation.
    pub(super) const fn num_tokens(&self) -> usize {
        self.context + self.len + 1
    }

    pub(super) fn measure(
        &self,
        driver: &mut Driver<'_>,
        repeats: usize,
        (floor, max_margin): (Option<&Floor>, f32),
    ) -> Result<Measured> {
        let Self { batch, context, len } = *self;
        let mut windows = Vec::new();
        let mut last = None;
        for _ in 0..repeats {
            let prompts = (0..batch).map(|_| driver.prompt(context)).collect();
            let outcome = driver.run(prompts, len, None)?;
            windows.push(Window::new(&outcome));
            last = Some(outcome);
        }
        windows.sort_by(|a, b| a.median.total_cmp(&b.median));
        let Window { steps, seconds, median, work } = windows[windows.len() / 2];
        let verdict = Verdict::on(driver, last.as_ref(), max_margin)?;
        let mean = seconds / steps as f64;
        let floor = floor.map(|floor| floor.decode(batch, (context + len / 2) as f64));
        Ok(Measured {
            line: line(
                &self.name(),
                median,
                batch as f64 / median,
                floor,
                &format!("{work}  {verdict}"),
            ),
            json: json!({
                "batch": batch,
                "ctx": context,
                "steps": steps,
                "tok_s": batch as f64 / mean,
                "ms_step": mean * 1e3,
                "ms_step_median": median * 1e3,
                "events": steps,
                "wall_s": seconds,
                "floor_ms": floor.map(|floor| floor * 1e3),
                "of_floor": floor.map(|floor| floor / median),
                "engine_cpu_us_step": work.engine,
                "workers_cpu_us_step": work.inputs,
                "collectors_cpu_us_step": work.results,
                "detokenize_us_step": work.text,
                "wakes_cpu_us_step": work.wakes,
                "cpu_us_step": work.step(),
                "worst_margin": verdict.margin,
            }),
            is_sound: verdict.is_sound,
        })
    }
}

/// The steps between the moment when all had begun and that when the first had ended.
struct Window {
    steps: usize,
    seconds: f64,
    /// The median time from one step to the next.
    median: f64,
    work: Work,
}

/// What the CPU has to do for a step, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// Collects what was drawn, plans, makes batches, keeps the books, hands tokens to readers.
    engine: f64,
    /// Makes inputs and starts steps.
    inputs: f64,
    /// Takes what was drawn from the device.
    results: f64,
    /// Detokenizes.
    text: f64,
    /// What else readers' threads do: wake readers, and switch from one to the next.
    wakes: f64,
}

impl Work {
    fn new(outcome: &Outcome, num_steps: usize) -> Self {
        let CpuTimes { engine, workers, collectors, readers } = outcome.cpu_time;
        let us =
            |time: Duration, num_steps: usize| time.as_secs_f64() * 1e6 / num_steps.max(1) as f64;
        let [engine, inputs, results, readers] =
            [engine, workers, collectors, readers].map(|time| us(time, num_steps));
        // Each has a token a step; the whole answer counts here, not the window's part.
        let text =
            outcome.answers.iter().map(|answer| us(answer.text_time, answer.tokens.len())).sum();
        Self { engine, inputs, results, text, wakes: (readers - text).max(0.0) }
    }

    /// Returns what a step itself takes: scheduling, inputs, books, text.
    fn step(&self) -> f64 {
        self.engine + self.inputs + self.results + self.text
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, inputs, results, text, wakes } = self;
        let step = self.step();
        write!(f, "{engine:>6.0} {inputs:>6.0} {results:>7.0} {text:>5.0} {step:>7.0} {wakes:>6.0}")
    }
}

impl Window {
    fn new(outcome: &Outcome) -> Self {
        let answers = &outcome.answers;
        let begin = answers.iter().map(|answer| answer.first).max().unwrap_or(Time::ZERO);
        let end = answers.iter().map(|answer| answer.last).min().unwrap_or(Time::ZERO);
        let inside = |at: &&Time| **at >= begin && **at <= end;
        let moments: Vec<Time> = outcome.steps.iter().filter(inside).copied().collect();
        let mut gaps: Vec<f64> =
            moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        Self {
            steps: gaps.len().max(1),
            seconds: gaps.iter().sum(),
            median: gaps.get(gaps.len() / 2).copied().unwrap_or(f64::NAN),
            work: Work::new(outcome, gaps.len()),
        }
    }
}

/// What a second computation says of a row's tokens.
struct Verdict {
    margin: f32,
    is_sound: bool,
}

impl Verdict {
    fn on(driver: &Driver<'_>, outcome: Option<&Outcome>, max_margin: f32) -> Result<Self> {
        let margin = outcome.map_or(Ok(f32::NAN), |outcome| second_computation(driver, outcome))?;
        // Not for a margin that is no number.
        Ok(Self { margin, is_sound: margin <= max_margin })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_sound { "confirms" } else { "DIFFERS" };
        write!(f, "{word}, margin {:.3}", self.margin)
    }
}

/// Computes texts again, as prompts, and returns by how much the most doubtful of their tokens misses being the most likely.
fn second_computation(driver: &Driver<'_>, outcome: &Outcome) -> Result<f32> {
    let checked = outcome.answers.iter().take(NUM_CHECKED);
    let texts = checked.map(|answer| answer.prompt.iter().chain(&answer.tokens).copied().collect());
    let again = driver.run(texts.collect(), 1, Some(1))?;
    let mut worst = 0f32;
    for (answer, again) in outcome.answers.iter().zip(&again.answers) {
        // The first list belongs to the prompt's second token.
        let produced = again.prompt_logprobs.iter().skip(answer.prompt.len() - 1);
        let mut count = 0;
        for found in produced {
            let best = found.iter().map(|one| one.logprob).fold(f32::NEG_INFINITY, f32::max);
            let margin = found.first().map_or(f32::NAN, |own| best - own.logprob);
            worst = if margin.is_nan() { margin } else { worst.max(margin) };
            count += 1;
        }
        if count != answer.tokens.len() {
            bail!("the second computation has {count} tokens, not {}", answer.tokens.len());
        }
    }
    Ok(worst)
}

/// Prompts that come at once, and one token for each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefill {
    count: usize,
    len: usize,
}

impl Prefill {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (count, len) = text.split_once('x').unwrap_or(("", ""));
        Ok(Self { count: number(count, text)?, len: number(len, text)? })
    }

    pub(super) fn name(&self) -> String {
        format!("prefill {}x{}", self.count, self.len)
    }

    /// Returns how many tokens a text has in the end: a token comes after the answer in the second computation.
    pub(super) const fn num_tokens(&self) -> usize {
        self.len + 2
    }

    pub(super) fn measure(
        &self,
        driver: &mut Driver<'_>,
        repeats: usize,
        (floor, max_margin): (Option<&Floor>, f32),
    ) -> Result<Measured> {
        let Self { count, len } = *self;
        let mut times = Vec::new();
        let mut last = None;
        // The first run of a shape chooses algorithms, which serving does once.
        for run in 0..=repeats {
            let prompts = (0..count).map(|_| driver.prompt(len)).collect();
            let outcome = driver.run(prompts, 1, None)?;
            let done = outcome.answers.iter().map(|answer| answer.last).max();
            if run > 0 {
                times.push((done.unwrap_or(outcome.sent) - outcome.sent).as_secs_f64());
            }
            last = Some(outcome);
        }
        let verdict = Verdict::on(driver, last.as_ref(), max_margin)?;
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let rate = (count * len) as f64 / median;
        let floor = floor.map(|floor| floor.prefill(count, len));
        Ok(Measured {
            line: line(&self.name(), median, rate, floor, &format!("{:>42}  {verdict}", "")),
            json: json!({
                "batch": count,
                "len": len,
                "s_median": median,
                "s_min": times[0],
                "s_max": times[times.len() - 1],
                "tok_s": rate,
                "floor_s": floor,
                "of_floor": floor.map(|floor| floor / median),
                "worst_margin": verdict.margin,
            }),
            is_sound: verdict.is_sound,
        })
    }
}

/// Requests of all sizes that come at once, as an offline job has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub(super) num_requests: usize,
}

impl Mix {
    const PROMPT: std::ops::RangeInclusive<u64> = 128..=896;
    const ANSWER: usize = 256;
    pub(super) const NUM_TOKENS: usize = *Self::PROMPT.end() as usize + Self::ANSWER + 1;

    pub(super) fn name(&self) -> String {
        format!("mix of {}", self.num_requests)
    }

    pub(super) fn measure(&self, driver: &mut Driver<'_>, max_margin: f32) -> Result<Measured> {
        let spread = Self::PROMPT.end() - Self::PROMPT.start() + 1;
        let prompts: Vec<_> = (0..self.num_requests)
            .map(|_| {
                let len = Self::PROMPT.start() + driver.number() % spread;
                driver.prompt(len as usize)
            })
            .collect();
        let inputs: usize = prompts.iter().map(Vec::len).sum();
        let outputs = self.num_requests * Self::ANSWER;
        let outcome = driver.run(prompts, Self::ANSWER, None)?;
        let done = outcome.answers.iter().map(|answer| answer.last).max();
        let seconds = (done.unwrap_or(outcome.sent) - outcome.sent).as_secs_f64();
        let total = (inputs + outputs) as f64 / seconds;
        let verdict = Verdict::on(driver, Some(&outcome), max_margin)?;
        let made = format!("{verdict}; {:.0} of these tokens/s produced", outputs as f64 / seconds);
        Ok(Measured {
            line: line(&self.name(), seconds, total, None, &format!("{:>42}  {made}", "")),
            json: json!({
                "n": self.num_requests,
                "in_tokens": inputs,
                "out_tokens": outputs,
                "wall_s": seconds,
                "total_tok_s": total,
                "out_tok_s": outputs as f64 / seconds,
                "req_s": self.num_requests as f64 / seconds,
                "worst_margin": verdict.margin,
            }),
            is_sound: verdict.is_sound,
        })
    }
}

fn line(name: &str, seconds: f64, rate: f64, floor: Option<f64>, note: &str) -> String {
    let (floor_ms, share) = floor.map_or(("–".to_owned(), "–".to_owned()), |floor| {
        (format!("{:.2}", floor * 1e3), format!("{:.2}", floor / seconds))
    });
    format!("{name:<20} {:>8.2} {rate:>13.0} {floor_ms:>10} {share:>9}  {note}", seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::{Decode, Prefill, parse_all};

    #[test]
    fn rows_are_read() {
        let decode = Decode::parse("8x16384", 64).expect("a row");
        assert_eq!((decode.batch, decode.context, decode.len), (8, 16_384, 64));
        assert_eq!(Decode::parse("32", 64).expect("a row").context, 512);
        let prefill = Prefill::parse("8x2048").expect("a row");
        assert_eq!((prefill.count, prefill.len), (8, 2048));
        assert_eq!((decode.num_tokens(), prefill.num_tokens()), (16_449, 2050));
        for wrong in ["", "x", "8x", "0x5", "8x-1", "8,5"] {
            assert!(Prefill::parse(wrong).is_err(), "{wrong:?}");
        }
        let none = parse_all(&["-".to_owned()], Prefill::parse).expect("an empty list");
        assert!(none.is_empty());
    }
}
