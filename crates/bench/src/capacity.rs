//! Capacity: the highest rate of requests that keeps to limits (Sarathi-Serve, OSDI '24, §5.1; the search is its artifact's).

/// What a rate has to keep to, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CapacityLimits {
    /// On the P99 time between tokens.
    pub p99_tbt: f64,
    /// On the median delay until a request's first chunk.
    pub median_scheduling_delay: f64,
}

/// What was measured at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Requests a second.
    pub rate: f64,
    /// The P99 time between tokens, in seconds.
    pub p99_tbt: f64,
    /// The median delay until a request's first chunk, in seconds.
    pub median_scheduling_delay: f64,
    /// Whether all requests had come before the first of them had a token: they would hardly be closer together at a higher rate.
    pub is_all_at_once: bool,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// The highest rate that kept to the limits; `None` if none did.
    pub rate: Option<f64>,
    /// Whether another rate failed: where none did, the capacity is at least `rate`.
    pub is_limited: bool,
    /// Everything that was tried, in order.
    pub trials: Vec<Trial>,
}

/// The search ends after so many trials.
const MAX_TRIALS: usize = 20;

/// A median delay beyond this many seconds is far from the capacity.
const HOPELESS: f64 = 500.0;

impl CapacityLimits {
    /// Returns whether a trial kept to the limits.
    #[must_use]
    pub fn are_kept(&self, trial: &Trial) -> bool {
        trial.p99_tbt <= self.p99_tbt
            && trial.median_scheduling_delay <= self.median_scheduling_delay
    }

    /// How close the bounds of the artifact's search are in the end, relative to the rate.
    pub const GRANULARITY: f64 = 0.025;

    /// Searches between 0 and twice `start`, and beyond where that passes easily, until the bounds are as close as `granularity`,
    /// relative to the rate. Ends where all requests at once keep to the limits. `measure` tries a rate.
    ///
    /// # Errors
    /// The first error of `measure`.
    pub fn search<E>(
        &self,
        start: f64,
        granularity: f64,
        mut measure: impl FnMut(f64) -> Result<Trial, E>,
    ) -> Result<Capacity, E> {
        let (mut low, mut high, mut least_failed) = (0.0, 2.0 * start, f64::INFINITY);
        let mut found = Capacity { rate: None, is_limited: false, trials: Vec::new() };
        for _ in 0..MAX_TRIALS {
            let rate = rounded(f64::midpoint(low, high));
            let is_known = found.trials.iter().any(|trial| trial.rate.total_cmp(&rate).is_eq());
            if is_known || rate <= 0.0 || (high - low).abs() < granularity * rate {
                break;
            }
            let trial = measure(rate)?;
            found.trials.push(trial);
            let delay = trial.median_scheduling_delay;
            if self.are_kept(&trial) {
                let stretch = match delay / self.median_scheduling_delay {
                    share if share < 0.125 => 4.0,
                    share if share < 0.25 => 2.0,
                    _ if rate > 0.8 * high => 2.0,
                    _ => 1.0,
                };
                high = (stretch * high).min(least_failed);
                low = rate;
                found.rate = Some(found.rate.map_or(rate, |best| best.max(rate)));
                if trial.is_all_at_once && !found.is_limited {
                    break;
                }
            } else {
                found.is_limited = true;
                least_failed = least_failed.min(rate);
                // Never below what has passed already, where the artifact would end too low.
                let halved = Some(rate / 2.0).filter(|&half| delay > HOPELESS && half > low);
                high = halved.unwrap_or(rate);
            }
        }
        Ok(found)
    }
}

/// Rounds to two decimals, or to three digits where those would say too little.
fn rounded(rate: f64) -> f64 {
    let digits = if rate >= 1.0 { 2 } else { 2 - rate.max(1e-9).log10().floor() as i32 };
    let scale = 10_f64.powi(digits);
    (rate * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::{CapacityLimits, Trial};

    const LIMITS: CapacityLimits = CapacityLimits { p99_tbt: 0.2, median_scheduling_delay: 2.0 };

    /// A system whose latency is fine up to `capacity`, where its queue starts to grow.
    fn check(capacity: f64, start: f64) {
        let found = LIMITS.search(start, CapacityLimits::GRANULARITY, |rate| {
            let over = (rate / capacity - 1.0).max(0.0);
            let median_scheduling_delay =
                if over > 0.0 { 3.0 + 1e4 * over } else { 0.3 * rate / capacity };
            let p99_tbt = 0.1 + over;
            Ok::<Trial, ()>(Trial { rate, p99_tbt, median_scheduling_delay, is_all_at_once: false })
        });
        let found = found.unwrap();
        assert!(found.is_limited);
        let rate = found.rate.unwrap_or_default();
        assert!(rate <= capacity && rate > capacity * 0.94, "{capacity} from {start}: {found:?}");
        assert!(found.trials.len() <= 20);
    }

    #[test]
    fn the_highest_passing_rate_is_found_from_far_and_near() {
        for capacity in [0.037, 0.5, 1.0, 3.3, 40.0] {
            for factor in [0.2, 0.7, 1.0, 1.5, 6.0] {
                check(capacity, capacity * factor);
            }
        }
    }

    #[test]
    fn what_never_passes_has_no_capacity() {
        let found = LIMITS.search(1.0, CapacityLimits::GRANULARITY, |rate| {
            let (p99_tbt, median_scheduling_delay) = (1.0, 0.0);
            Ok::<Trial, ()>(Trial { rate, p99_tbt, median_scheduling_delay, is_all_at_once: false })
        });
        assert_eq!(found.unwrap().rate, None);
        assert_eq!(
            LIMITS.search(1.0, CapacityLimits::GRANULARITY, |_| Err::<Trial, u8>(3)),
            Err(3)
        );
    }

    #[test]
    fn where_nothing_fails_the_search_ends_with_all_requests_at_once() {
        let found = LIMITS.search(1.0, CapacityLimits::GRANULARITY, |rate| {
            let (p99_tbt, median_scheduling_delay) = (0.1, 0.0);
            let is_all_at_once = rate > 100.0;
            Ok::<Trial, ()>(Trial { rate, p99_tbt, median_scheduling_delay, is_all_at_once })
        });
        let found = found.unwrap();
        assert!(!found.is_limited && found.trials.len() < 6, "{found:?}");
        assert!(found.rate.is_some_and(|rate| rate > 100.0 && rate < 1000.0), "{found:?}");
    }
}
