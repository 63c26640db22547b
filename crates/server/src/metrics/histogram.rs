//! A cumulative histogram.

/// Counts values by upper bound.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: Vec<f64>,
    /// How many values fell at or under each bound and over the one before.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Starts empty, with these upper bounds in rising order.
    pub(super) fn new(bounds: Vec<f64>) -> Self {
        let counts = vec![0; bounds.len()];
        Self { bounds, counts, count: 0, sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    /// Returns each bound with the number of values at or under it.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(&self.counts).scan(0, |total, (bound, count)| {
            *total += count;
            Some((*bound, *total))
        })
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) const fn sum(&self) -> f64 {
        self.sum
    }
}
