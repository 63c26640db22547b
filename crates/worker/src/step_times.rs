//! How long steps take, learned from those that were.

use std::time::Duration;

/// How much weight a step keeps as each later one is recorded.
const DECAY: f64 = 0.98;

/// A line through recent steps: a fixed part, and a part a token.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepTimes {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
}

impl StepTimes {
    /// Takes note of a step.
    pub(crate) fn record(&mut self, num_tokens: usize, time: Duration) {
        let (tokens, seconds) = (num_tokens as f64, time.as_secs_f64());
        self.weight = self.weight * DECAY + 1.0;
        self.tokens = self.tokens * DECAY + tokens;
        self.seconds = self.seconds * DECAY + seconds;
        self.tokens_squared = self.tokens_squared * DECAY + tokens * tokens;
        self.tokens_seconds = self.tokens_seconds * DECAY + tokens * seconds;
    }

    /// Returns about how long a step of `num_tokens` takes, zero before any was recorded.
    pub(crate) fn predict(&self, num_tokens: usize) -> Duration {
        if self.weight == 0.0 {
            return Duration::ZERO;
        }
        let spread = self.tokens_squared - self.tokens * self.tokens / self.weight;
        let covariance = self.tokens_seconds - self.tokens * self.seconds / self.weight;
        // Steps of one size say nothing of the slope; then time goes with the tokens.
        let (fixed, slope) = if spread > 1e-9 && covariance > 0.0 {
            let slope = covariance / spread;
            ((self.seconds - slope * self.tokens) / self.weight, slope)
        } else {
            (0.0, self.seconds / self.tokens.max(1.0))
        };
        Duration::from_secs_f64((fixed.max(0.0) + slope * num_tokens as f64).min(1e6))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::StepTimes;

    #[test]
    fn a_line_is_learned() {
        let mut times = StepTimes::default();
        assert_eq!(times.predict(10), Duration::ZERO);
        times.record(10, Duration::from_millis(20));
        assert_eq!(times.predict(20).as_millis(), 40);
        for tokens in 1..100 {
            times.record(tokens, Duration::from_millis(10 + 2 * tokens as u64));
        }
        let predicted = times.predict(1000).as_secs_f64();
        assert!((1.9..2.1).contains(&predicted), "{predicted}");
    }
}
