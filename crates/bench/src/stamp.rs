//! The date and time (UTC) that results are named by.

use std::time::SystemTime;

use stallfree_core::DateTime;

/// Returns `20261125-101500`, as vLLM writes it into results.
#[must_use]
pub fn date(now: SystemTime) -> String {
    let DateTime { year, month, day, hour, minute, second, .. } = DateTime::of(now);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Returns `20261125_101500`, as result folders are named.
#[must_use]
pub fn stamp(now: SystemTime) -> String {
    date(now).replace('-', "_")
}

/// Returns `2026-11-25 10:15:00`, for people.
#[must_use]
pub fn moment(now: SystemTime) -> String {
    let DateTime { year, month, day, hour, minute, second, .. } = DateTime::of(now);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{date, moment, stamp};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (1_709_251_199, "20240229-235959"),
            (1_709_251_200, "20240301-000000"),
            (1_798_761_599, "20261231-235959"),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(date(now), expected);
            assert_eq!(stamp(now), expected.replace('-', "_"));
        }
        let now = UNIX_EPOCH + Duration::from_secs(951_782_461);
        assert_eq!(moment(now), "2000-02-29 00:01:01");
    }
}
