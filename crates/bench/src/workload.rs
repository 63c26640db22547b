//! Which requests come when.

mod arrivals;
mod lengths;
mod prompt;
mod stand_in;
mod trace;

use std::time::Duration;

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use stallfree_core::Slo;

pub use arrivals::{Arrivals, RampShape};
pub use lengths::{Lengths, Power};
pub use prompt::{Prompt, PromptTokens};
pub use stand_in::{ARXIV, LONGBENCH, LONGBENCH_2K, MOONCAKE, SHAREGPT, SHAREGPT_2K, StandIn};
pub use trace::{CountTokens, Trace, TraceRow};

use crate::{Error, Result};

/// How many tokens a hashed prefix block of a Mooncake trace stands for.
pub const PREFIX_BLOCK: usize = 512;

/// The most requests of a workload. All of them and their records are in memory, which is several gigabytes for so many.
pub const MAX_REQUESTS: usize = 10_000_000;

/// The most tokens of a prompt.
pub const MAX_PROMPT_LEN: usize = 1 << 24;

/// Requests in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// What it is, for titles and file names.
    pub name: String,
    /// Whether its lengths are drawn from a fit instead of measured: whoever shows its results says so.
    pub is_synthetic: bool,
    /// The requests; `at` never falls.
    pub items: Vec<Item>,
    /// How many of them were cut to the recipe's `max_total_len`.
    pub num_cut: usize,
}

/// One request to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// When.
    pub at: f64,
    /// What it says.
    pub prompt: Prompt,
    /// How many tokens it wants.
    pub output_len: usize,
    /// What it is promised.
    pub slo: Slo,
}

/// How to make a workload.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    /// Where lengths come from.
    pub source: Source,
    /// When requests come.
    pub arrivals: Arrivals,
    /// How many; `None` takes all that a trace has.
    pub num_requests: Option<usize>,
    /// The most tokens of a request, prompt and output together; longer ones are cut on both sides in proportion.
    pub max_total_len: Option<usize>,
    /// Replaces every output's length.
    pub output_len: Option<Lengths>,
    /// Tokens that every prompt begins with, on top of its own.
    pub shared_prefix_len: usize,
    /// The same seed gives the same workload.
    pub seed: u64,
}

/// Where lengths come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Drawn, prompt and output apart.
    Drawn {
        /// What to call it.
        name: String,
        /// Prompt lengths.
        prompt: Lengths,
        /// Output lengths.
        output: Lengths,
    },
    /// Drawn from a fit to a data set that is not here.
    StandIn(StandIn),
    /// Read.
    Trace(Trace),
}

impl WorkloadConfig {
    /// Makes the workload.
    ///
    /// # Errors
    /// There is nothing to take it from, or the arrivals can't be had.
    pub fn generate(&self) -> Result<Workload> {
        let mut rng = generator(self.seed, Stream::Lengths);
        let (name, is_synthetic, rows) = match &self.source {
            Source::Drawn { name, prompt, output } => {
                let draw = |_| TraceRow::of(prompt.sample(&mut rng), output.sample(&mut rng));
                (name.clone(), false, (0..self.count()?).map(draw).collect())
            }
            Source::StandIn(stand_in) => {
                let rows = (0..self.count()?).map(|_| stand_in.sample(&mut rng)).collect();
                (stand_in.name.to_owned(), true, rows)
            }
            Source::Trace(trace) => (trace.name.clone(), false, self.rows_of(trace)?),
        };
        let times = self.times(&rows)?;
        let times = times.into_iter().map(to_nanoseconds);
        let mut rows: Vec<(f64, TraceRow)> = times.zip(rows).collect();
        rows.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut seeds = generator(self.seed, Stream::Tokens);
        let items = rows.into_iter().map(|(at, row)| self.item(at, row, seeds.random(), &mut rng));
        let (items, are_cut): (Vec<Item>, Vec<bool>) = items.unzip();
        if let Some(len) =
            items.iter().map(|item| item.prompt.len).find(|&len| len > MAX_PROMPT_LEN)
        {
            return Err(Error::Workload(format!(
                "a prompt of {len} tokens is too long: it may have {MAX_PROMPT_LEN}; lower prompt lengths (--random-input-len, --input-len) or --random-prefix-len"
            )));
        }
        let num_cut = are_cut.into_iter().filter(|&is_cut| is_cut).count();
        Ok(Workload { name, is_synthetic, items, num_cut })
    }

    fn count(&self) -> Result<usize> {
        match self.num_requests.unwrap_or(1000) {
            0 => Err(Error::Workload("no requests were asked for".to_owned())),
            count if count > MAX_REQUESTS => Err(Error::Workload(format!(
                "{count} requests are too many: all are kept in memory, and there may be {MAX_REQUESTS}; lower --num-prompts"
            ))),
            count => Ok(count),
        }
    }

    /// Takes rows from a trace: the first ones where its own times count, else in an order drawn with the seed; from the front again
    /// where it has too few.
    fn rows_of(&self, trace: &Trace) -> Result<Vec<TraceRow>> {
        if trace.rows.is_empty() {
            return Err(Error::Workload(format!("the trace {} has no requests", trace.name)));
        }
        let count = self.num_requests.map_or(Ok(trace.rows.len()), |_| self.count())?;
        if matches!(self.arrivals, Arrivals::Replay { .. }) {
            return Ok(trace.rows.iter().take(count).cloned().collect());
        }
        let mut order: Vec<usize> = (0..trace.rows.len()).collect();
        order.shuffle(&mut generator(self.seed, Stream::Order));
        Ok(order.into_iter().cycle().take(count).map(|index| trace.rows[index].clone()).collect())
    }

    fn times(&self, rows: &[TraceRow]) -> Result<Vec<f64>> {
        let mut rng = generator(self.seed, Stream::Arrivals);
        match &self.arrivals {
            Arrivals::Replay { speed, jitter } => {
                let start = rows.iter().filter_map(|row| row.at).reduce(f64::min);
                let start = start.ok_or_else(|| {
                    Error::Workload(
                        "the trace has no times to replay; choose a request rate".into(),
                    )
                })?;
                let at = |row: &TraceRow| {
                    let late = if *jitter > 0.0 { rng.random_range(0.0..*jitter) } else { 0.0 };
                    (row.at.unwrap_or(start) - start + late) / speed
                };
                Ok(rows.iter().map(at).collect())
            }
            arrivals => arrivals.times(rows.len(), &mut rng),
        }
    }

    /// Returns a request, and whether it was cut.
    fn item(&self, at: f64, row: TraceRow, seed: u64, rng: &mut Pcg64) -> (Item, bool) {
        let (mut prompt_len, mut output_len) = (row.prompt_len, row.output_len);
        if let Some(lengths) = &self.output_len {
            output_len = lengths.sample(rng);
        }
        let total = prompt_len.saturating_add(output_len);
        let limit = self.max_total_len.filter(|&limit| total > limit && limit > 1);
        if let Some(limit) = limit {
            let share = |len: usize| (len as u128 * limit as u128).div_ceil(total as u128) as usize;
            // Rounding up on both sides may give one token too many, which the prompt has to spare.
            output_len = share(output_len).clamp(1, limit - 1);
            prompt_len = share(prompt_len).min(limit - output_len);
        }
        let prompt = Prompt {
            len: prompt_len.max(1).saturating_add(self.shared_prefix_len),
            num_shared: self.shared_prefix_len,
            blocks: row.blocks,
            text: row.text,
            seed,
        };
        (Item { at, prompt, output_len: output_len.max(1), slo: row.slo }, limit.is_some())
    }
}

impl Workload {
    /// Promises `slo` to every request that is promised nothing.
    pub fn promise(&mut self, slo: Slo) {
        let unpromised = self.items.iter_mut().filter(|item| item.slo == Slo::default());
        unpromised.for_each(|item| item.slo = slo);
    }

    /// Gives every prompt other tokens, so that a server's prefix cache finds nothing of an earlier run; lengths, times, and what
    /// prompts share stay as they are.
    pub fn redraw_prompts(&mut self, seed: u64) {
        let mut seeds = generator(seed, Stream::Tokens);
        for item in &mut self.items {
            item.prompt.seed = seeds.random();
        }
    }
}

/// Rounds a time as clocks do, so that a request's own time is never later than the moment it is sent.
fn to_nanoseconds(seconds: f64) -> f64 {
    Duration::try_from_secs_f64(seconds).map_or(seconds, |time| time.as_secs_f64())
}

/// What a run of random numbers is for: each use has its own, so that another rate leaves the lengths as they are.
#[derive(Clone, Copy, Debug)]
enum Stream {
    Lengths = 1,
    Arrivals = 2,
    Order = 3,
    Tokens = 4,
}

fn generator(seed: u64, stream: Stream) -> Pcg64 {
    seeded(seed, stream as u64)
}

/// Returns a generator whose numbers have nothing to do with those of another seed or stream.
fn seeded(seed: u64, stream: u64) -> Pcg64 {
    let mut seeds = Pcg64::seed_from_u64(seed);
    seeds.advance(u128::from(stream) << 64);
    Pcg64::from_rng(&mut seeds)
}

#[cfg(test)]
mod tests;
