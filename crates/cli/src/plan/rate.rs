//! The highest rate at which something still holds.

/// Rates are found to within this share of themselves.
const PRECISION: f64 = 0.02;

/// After so many trials what has held so far is taken.
const MAX_TRIALS: usize = 24;

/// What came of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is too high.
    Fails,
    /// It holds.
    Holds,
    /// It holds, and so would any other: all requests came at once.
    AtOnce,
}

/// A highest rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Highest {
    /// The highest that held; 0 if none did.
    pub(super) rate: f64,
    /// Whether a higher one failed; else `rate` is the least that it can be.
    pub(super) is_limited: bool,
}

/// Returns the highest rate at which `holds`, as far as it holds up to some rate and nowhere beyond: doubles or halves `start` until
/// that rate is between two others, then halves their ratio. 0 if it holds at none down to `lowest`. Ends where it holds for all
/// requests at once.
///
/// # Errors
/// The first error of `holds`.
pub(super) fn highest<E>(
    start: f64,
    lowest: f64,
    mut holds: impl FnMut(f64) -> Result<Outcome, E>,
) -> Result<Highest, E> {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut rate = start.max(lowest);
    for _ in 0..MAX_TRIALS {
        match holds(rate)? {
            Outcome::Fails => high = rate,
            Outcome::Holds => low = rate,
            Outcome::AtOnce => {
                low = rate;
                if high.is_infinite() {
                    break;
                }
            }
        }
        if low > 0.0 && high < low * (1.0 + PRECISION) || high <= lowest {
            break;
        }
        rate = match (low > 0.0, high.is_finite()) {
            (true, true) => (low * high).sqrt(),
            (true, false) => low * 2.0,
            (false, _) => (high / 2.0).max(lowest),
        };
    }
    Ok(Highest { rate: low, is_limited: high.is_finite() })
}

#[cfg(test)]
mod tests {
    use super::{Highest, Outcome, highest};

    #[test]
    fn the_highest_rate_is_found_from_far_and_near() {
        for truth in [0.013, 0.3, 1.0, 7.7, 900.0] {
            for start in [0.02, 1.0, 50.0] {
                let mut trials = 0;
                let found = highest(start, 0.01, |rate| {
                    trials += 1;
                    Ok::<_, ()>(if rate <= truth { Outcome::Holds } else { Outcome::Fails })
                });
                let Highest { rate, is_limited } = found.unwrap();
                assert!(rate <= truth && rate > truth * 0.97, "{truth} from {start}: {rate}");
                assert!(trials <= 24 && is_limited);
            }
        }
        let none = Highest { rate: 0.0, is_limited: true };
        assert_eq!(highest(1.0, 0.01, |_| Ok::<_, ()>(Outcome::Fails)), Ok(none));
        assert_eq!(highest(1.0, 0.01, |_| Err::<Outcome, u8>(3)), Err(3));
    }

    #[test]
    fn where_nothing_fails_the_search_ends_with_all_requests_at_once() {
        let at_once = |rate: f64| if rate > 100.0 { Outcome::AtOnce } else { Outcome::Holds };
        let found = highest(1.0, 0.01, |rate| Ok::<_, ()>(at_once(rate)));
        assert_eq!(found, Ok(Highest { rate: 128.0, is_limited: false }));
    }
}
