//! How long steps take, learned from those that were.
//!
//! Two sums of squares that forget: one over steps with prompt tokens, one over steps of decodes alone. It knows nothing of batches or
//! devices; the engine feeds it with what was planned and how long that took.

use std::time::Duration;

/// How much weight a step keeps as each later one of its kind is observed.
const DECAY: f64 = 0.995;

/// Holds coefficients near zero that no step has told anything of.
const RIDGE: f64 = 1e-9;

/// What a step had to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepLoad {
    /// Tokens, of prompts and decodes.
    tokens: usize,
    /// Pairs of a query and a key in chunks of several tokens.
    pairs: f64,
    /// Chunks of one token.
    decodes: usize,
    /// Tokens whose keys and values these read.
    context: usize,
}

/// Predicts steps: `a * pairs + b * tokens + c` with prompt tokens, which is a polynomial of the second degree in the length of a prompt
/// that is computed whole; `a * context + b * sequences + c` of decodes alone.
///
/// # Source
/// DistServe (OSDI '24), appendix A; Tropical (2026) routes by the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepModel {
    /// `a`, `b` and `c` of steps with prompt tokens, in seconds.
    pub prefill: [f64; 3],
    /// Those of decodes alone.
    pub decode: [f64; 3],
    /// The most prompt tokens of a step; 0 sets no limit.
    pub max_chunk: usize,
}

/// Learns a [`StepModel`].
#[derive(Clone, Debug, Default)]
pub(crate) struct StepFit {
    prefill: LinearFit,
    decode: LinearFit,
    max_chunk: usize,
}

impl StepLoad {
    /// Adds a chunk of `num_tokens` after `num_computed` others.
    pub(crate) const fn add(&mut self, num_computed: usize, num_tokens: usize) {
        self.tokens += num_tokens;
        if num_tokens == 1 {
            self.decodes += 1;
            self.context += num_computed + 1;
        } else {
            self.pairs += pairs(num_computed, num_tokens);
        }
    }

    const fn is_prefill(&self) -> bool {
        self.tokens > self.decodes
    }
}

/// Returns how many keys the queries of a chunk see together.
const fn pairs(num_computed: usize, num_tokens: usize) -> f64 {
    let (before, count) = (num_computed as f64, num_tokens as f64);
    count * (before + 0.5 * (count + 1.0))
}

impl StepModel {
    /// Returns how long it takes to compute `num_tokens` of a prompt, after `num_computed` others, with no other work.
    #[must_use]
    pub fn prefill_time(&self, num_computed: usize, num_tokens: usize) -> Duration {
        let [a, b, c] = self.prefill;
        let num_steps = match self.max_chunk {
            0 => 1,
            max_chunk => num_tokens.div_ceil(max_chunk).max(1),
        };
        let seconds = a * pairs(num_computed, num_tokens) + b * num_tokens as f64;
        seconds_to_duration(seconds + c * num_steps as f64)
    }

    /// Returns how long a step of `num_seqs` decodes takes, which have `num_tokens` tokens together.
    #[must_use]
    pub fn decode_time(&self, num_seqs: usize, num_tokens: usize) -> Duration {
        let [a, b, c] = self.decode;
        seconds_to_duration(a * num_tokens as f64 + b * num_seqs as f64 + c)
    }
}

fn seconds_to_duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(0.0, 1e6) } else { 0.0 })
}

impl StepFit {
    /// Starts with nothing known. `max_chunk` as in [`StepModel`].
    pub(crate) fn new(max_chunk: usize) -> Self {
        Self { max_chunk, ..Self::default() }
    }

    /// Takes note of how long a step took.
    pub(crate) fn observe(&mut self, load: &StepLoad, time: Duration) {
        let seconds = time.as_secs_f64();
        if load.tokens == 0 || seconds <= 0.0 {
            return;
        }
        if load.is_prefill() {
            self.prefill.observe([load.pairs, load.tokens as f64, 1.0], seconds);
        } else {
            self.decode.observe([load.context as f64, load.decodes as f64, 1.0], seconds);
        }
    }

    /// Returns what the steps so far say.
    pub(crate) fn model(&self) -> StepModel {
        StepModel {
            prefill: self.prefill.solve(),
            decode: self.decode.solve(),
            max_chunk: self.max_chunk,
        }
    }
}

/// The least relative squares of `y ≈ w · x`, in which older observations count less.
#[derive(Clone, Copy, Debug, Default)]
struct LinearFit {
    products: [[f64; 3]; 3],
    targets: [f64; 3],
}

/// Makes the three features about equally large: pairs in millions, tokens in thousands.
const SCALE: [f64; 3] = [1e-6, 1e-3, 1.0];

impl LinearFit {
    fn observe(&mut self, features: [f64; 3], seconds: f64) {
        // Divided by the time: a short step's error counts as much as a long one's.
        let x: [f64; 3] = std::array::from_fn(|i| features[i] * SCALE[i] / seconds);
        for (i, row) in self.products.iter_mut().enumerate() {
            for (j, product) in row.iter_mut().enumerate() {
                *product = *product * DECAY + x[i] * x[j];
            }
            self.targets[i] = self.targets[i] * DECAY + x[i];
        }
    }

    /// Returns the coefficients, none below zero: one that would be is left out, the most negative first.
    fn solve(&self) -> [f64; 3] {
        let mut used = [true; 3];
        loop {
            let solution = self.solve_with(used);
            let worst =
                (0..3).filter(|&i| used[i]).min_by(|&i, &j| solution[i].total_cmp(&solution[j]));
            match worst {
                Some(i) if solution[i] < 0.0 => used[i] = false,
                _ => return std::array::from_fn(|i| solution[i] * SCALE[i]),
            }
        }
    }

    /// Solves the normal equations for the `used` coefficients by Gaussian elimination; the others are zero.
    fn solve_with(&self, used: [bool; 3]) -> [f64; 3] {
        let mut rows: [[f64; 4]; 3] = std::array::from_fn(|i| {
            let [x, y, z] = self.products[i];
            [x, y, z, self.targets[i]]
        });
        for (i, row) in rows.iter_mut().enumerate() {
            if used[i] {
                row[i] += RIDGE * (1.0 + row[i]);
                (0..3).filter(|&j| !used[j]).for_each(|j| row[j] = 0.0);
            } else {
                *row = [0.0; 4];
                row[i] = 1.0;
            }
        }
        // The matrix is symmetric and positive definite: no pivot is zero.
        for pivot in 0..3 {
            for below in pivot + 1..3 {
                let factor = rows[below][pivot] / rows[pivot][pivot];
                let upper = rows[pivot];
                for (value, above) in rows[below].iter_mut().zip(upper).skip(pivot) {
                    *value -= factor * above;
                }
            }
        }
        let mut solution = [0.0; 3];
        for i in (0..3).rev() {
            let known: f64 = (i + 1..3).map(|j| rows[i][j] * solution[j]).sum();
            solution[i] = (rows[i][3] - known) / rows[i][i];
        }
        solution
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(num_computed: usize, num_tokens: usize) -> StepLoad {
        let mut load = StepLoad::default();
        load.add(num_computed, num_tokens);
        load
    }

    #[test]
    fn coefficients_are_found_again() {
        let real = StepModel {
            prefill: [4e-9, 1.1e-4, 0.02],
            decode: [6e-7, 1.2e-4, 0.018],
            max_chunk: 0,
        };
        let mut fit = StepFit::new(0);
        assert_eq!(fit.model().prefill_time(0, 100), Duration::ZERO);
        for num_tokens in [30, 500, 2000, 7000, 20_000] {
            fit.observe(&prompt(0, num_tokens), real.prefill_time(0, num_tokens));
            let mut decodes = StepLoad::default();
            let count = num_tokens / 20 + 1;
            (0..count).for_each(|i| decodes.add(100 * i, 1));
            fit.observe(&decodes, real.decode_time(count, decodes.context));
        }
        let close = |a: Duration, b: Duration| {
            assert!((a.as_secs_f64() / b.as_secs_f64() - 1.0).abs() < 0.01, "{a:?} {b:?}");
        };
        let found = fit.model();
        close(found.prefill_time(0, 3000), real.prefill_time(0, 3000));
        close(found.prefill_time(3000, 300), real.prefill_time(3000, 300));
        close(found.decode_time(40, 100_000), real.decode_time(40, 100_000));
        let chunked = StepModel { max_chunk: 512, ..found };
        assert!(
            chunked.prefill_time(0, 3000) > found.prefill_time(0, 3000) + Duration::from_millis(90)
        );
    }

    /// Steps all of one size say how long such a step takes, and nothing is below zero.
    #[test]
    fn too_little_is_no_harm() {
        let mut fit = StepFit::new(0);
        for _ in 0..2000 {
            fit.observe(&prompt(0, 100), Duration::from_millis(50));
        }
        let model = fit.model();
        assert!((model.prefill_time(0, 100).as_secs_f64() - 0.05).abs() < 1e-3, "{model:?}");
        assert!(model.prefill.iter().all(|&c| c >= 0.0), "{model:?}");
        fit.observe(&prompt(0, 200), Duration::from_millis(1));
        assert!(fit.model().prefill.iter().all(|&c| c >= 0.0));
    }
}
