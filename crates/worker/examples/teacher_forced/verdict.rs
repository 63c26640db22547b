//! How far two sets of logits are apart, and how far they may be.

use std::fmt;

use stallfree_device::Dtype;

use crate::forced::Logits;

/// Where the likeliest token leads by more than this, in logprob, both must name it.
const MARGIN: f32 = 0.1;
/// The most that the Kullback-Leibler divergence from the reference may be on average, in nats.
const MEAN_DIVERGENCE: f64 = 1e-3;

/// How far logits are from the reference.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    rows: usize,
    sum: f64,
    most: f64,
    /// Rows where the likeliest token leads by more than the margin, and those of them where another one is named.
    clear: usize,
    differing: usize,
    /// Rows that are not all numbers, or missing.
    unsound: usize,
}

impl Agreement {
    /// Compares rows of `vocab_size` logits, a sequence on each processor.
    pub(crate) fn between(expected: &[Logits], got: &[Logits], vocab_size: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = expected.len().div_ceil(threads).max(1);
        let pairs: Vec<_> = expected.iter().zip(got).collect();
        std::thread::scope(|scope| {
            let workers: Vec<_> = pairs
                .chunks(share)
                .map(|pairs| scope.spawn(move || Self::of_sequences(pairs, vocab_size)))
                .collect();
            let found = workers.into_iter().map(|worker| worker.join().unwrap_or_default());
            let found = found.fold(Self::default(), |sum, part| sum.and(&part));
            let rows: usize = expected.iter().map(|logits| logits.len() / vocab_size).sum();
            Self { unsound: found.unsound + (rows - found.rows), ..found }
        })
    }

    fn of_sequences(pairs: &[(&Logits, &Logits)], vocab_size: usize) -> Self {
        let mut found = Self::default();
        for (expected, got) in pairs {
            for (p, q) in expected.chunks_exact(vocab_size).zip(got.chunks_exact(vocab_size)) {
                found.add(p, q);
            }
        }
        found
    }

    fn add(&mut self, p: &[f32], q: &[f32]) {
        self.rows += 1;
        let divergence = divergence(p, q);
        if !divergence.is_finite() {
            self.unsound += 1;
            return;
        }
        self.sum += divergence;
        self.most = self.most.max(divergence);
        let (best, lead) = top(p);
        if lead > MARGIN {
            self.clear += 1;
            self.differing += usize::from(top(q).0 != best);
        }
    }

    fn and(self, other: &Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            sum: self.sum + other.sum,
            most: self.most.max(other.most),
            clear: self.clear + other.clear,
            differing: self.differing + other.differing,
            unsound: self.unsound + other.unsound,
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.rows.max(1) as f64
    }

    /// Says whether that is near enough for a device that computes in `dtype`. In bf16, whose steps are eight times those of f16,
    /// tokens that nearly tie change places: they are counted, but only the divergence is held to.
    pub(crate) fn is_enough(&self, dtype: Dtype) -> bool {
        let names_the_same = self.differing == 0 || dtype == Dtype::Bf16;
        self.unsound == 0 && self.rows > 0 && names_the_same && self.mean() < MEAN_DIVERGENCE
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, most, clear, differing, unsound, .. } = self;
        write!(
            f,
            "KL {:.2e} on average, {most:.2e} at most; top-1 differs in {differing} of {clear} clear rows (of {rows}); \
             {unsound} rows unsound",
            self.mean(),
        )
    }
}

/// Returns the sum of `p (log p - log q)` of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let sum = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>();
    let (sum_p, sum_q) = (sum(p), sum(q));
    let parts = p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q)));
    parts.sum::<f64>() / sum_p - sum_p.ln() + sum_q.ln()
}

/// Returns the likeliest token and by how much it leads.
fn top(logits: &[f32]) -> (usize, f32) {
    let (mut token, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &value) in logits.iter().enumerate() {
        if value > first {
            (token, first, second) = (index, value, first);
        } else if value > second {
            second = value;
        }
    }
    (token, first - second)
}
