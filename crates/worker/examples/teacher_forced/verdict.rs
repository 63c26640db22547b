//! How far two sets of logprobs are apart, and how far they may be.

use std::fmt;

/// Where the likeliest token leads by more than this, in logprob, both must name it.
const MARGIN: f32 = 0.1;
/// The most that the Kullback-Leibler divergence from the reference may be on average, in nats.
const MEAN_DIVERGENCE: f64 = 1e-3;

/// How far logprobs are from the reference.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    rows: usize,
    mean: f64,
    most: f64,
    /// Rows where the likeliest token leads by more than the margin, and those of them where another one is named.
    clear: usize,
    differing: usize,
    /// Rows that are not all numbers, or missing.
    unsound: usize,
}

impl Agreement {
    /// Compares rows of `vocab_size` logprobs.
    pub(crate) fn between(expected: &[Vec<f32>], got: &[Vec<f32>], vocab_size: usize) -> Self {
        let mut found = Self::default();
        let mut sum = 0.0;
        for (expected, got) in expected.iter().zip(got) {
            found.unsound += expected.len().abs_diff(got.len()).div_ceil(vocab_size);
            for (p, q) in expected.chunks_exact(vocab_size).zip(got.chunks_exact(vocab_size)) {
                found.rows += 1;
                let divergence = divergence(p, q);
                if !divergence.is_finite() {
                    found.unsound += 1;
                    continue;
                }
                sum += divergence;
                found.most = found.most.max(divergence);
                let (top, lead) = top(p);
                if lead > MARGIN {
                    found.clear += 1;
                    found.differing += usize::from(self::top(q).0 != top);
                }
            }
        }
        found.mean = sum / found.rows.max(1) as f64;
        found
    }

    /// Says whether that is near enough.
    pub(crate) const fn is_enough(&self) -> bool {
        self.unsound == 0 && self.rows > 0 && self.differing == 0 && self.mean < MEAN_DIVERGENCE
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, mean, most, clear, differing, unsound } = self;
        write!(
            f,
            "{} KL {mean:.2e} on average (limit {MEAN_DIVERGENCE:.0e}), {most:.2e} at most; top-1 differs in {differing} of \
             {clear} clear rows (of {rows}); {unsound} rows unsound",
            if self.is_enough() { "ok  " } else { "FAIL" },
        )
    }
}

/// Returns the sum of `p (log p - log q)`.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum()
}

/// Returns the likeliest token and by how much it leads.
fn top(logprobs: &[f32]) -> (usize, f32) {
    let (mut token, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &value) in logprobs.iter().enumerate() {
        if value > first {
            (token, first, second) = (index, value, first);
        } else if value > second {
            second = value;
        }
    }
    (token, first - second)
}
