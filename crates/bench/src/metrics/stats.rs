//! Means and quantiles.

/// A sample, sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    sorted: Vec<f64>,
}

impl Distribution {
    /// Sorts a sample.
    #[must_use]
    pub fn new(sample: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = sample.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Self { sorted }
    }

    /// Returns the values in order.
    #[must_use]
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// Returns the mean; 0 for an empty sample, as vLLM reports it.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.sorted.is_empty() { 0.0 } else { self.sum() / self.sorted.len() as f64 }
    }

    /// Returns the standard deviation of the sample itself (not an estimate for a population); 0 for an empty one.
    #[must_use]
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        let square: f64 = self.sorted.iter().map(|value| (value - mean).powi(2)).sum();
        if self.sorted.is_empty() { 0.0 } else { (square / self.sorted.len() as f64).sqrt() }
    }

    /// Returns the value below which a share of the sample lies, linear between neighbours; 0 for an empty sample.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.sorted, share)
    }

    /// Returns the largest value; 0 for an empty sample.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.sorted.last().copied().unwrap_or_default()
    }

    fn sum(&self) -> f64 {
        self.sorted.iter().sum()
    }
}

/// Returns the value below which a share of a sorted sample lies, linear between neighbours; 0 for an empty sample.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = (place as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}
