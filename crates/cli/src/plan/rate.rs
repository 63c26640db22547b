//! The highest rate at which something still holds.

/// Rates are found to within this share of themselves.
const PRECISION: f64 = 0.02;

/// After so many trials what has held so far is taken.
const MAX_TRIALS: usize = 24;

/// Returns the highest rate at which `holds`, as far as it holds up to some rate and nowhere beyond: doubles or halves `start` until
/// that rate is between two others, then halves their ratio. 0 if it holds at none down to `lowest`.
///
/// # Errors
/// The first error of `holds`.
pub(super) fn highest<E>(
    start: f64,
    lowest: f64,
    mut holds: impl FnMut(f64) -> Result<bool, E>,
) -> Result<f64, E> {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut rate = start.max(lowest);
    for _ in 0..MAX_TRIALS {
        if holds(rate)? {
            low = rate;
        } else {
            high = rate;
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
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::highest;

    #[test]
    fn the_highest_rate_is_found_from_far_and_near() {
        for truth in [0.013, 0.3, 1.0, 7.7, 900.0] {
            for start in [0.02, 1.0, 50.0] {
                let mut trials = 0;
                let found = highest(start, 0.01, |rate| {
                    trials += 1;
                    Ok::<_, ()>(rate <= truth)
                });
                let found = found.unwrap();
                assert!(found <= truth && found > truth * 0.97, "{truth} from {start}: {found}");
                assert!(trials <= 24);
            }
        }
        assert_eq!(highest(1.0, 0.01, |_| Ok::<_, ()>(false)), Ok(0.0));
        assert_eq!(highest(1.0, 0.01, |_| Err::<bool, u8>(3)), Err(3));
    }
}
