//! The date and time (UTC) that results are named by.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns `20261125-101500`, as vLLM writes it into results.
#[must_use]
pub fn date(now: SystemTime) -> String {
    let [year, month, day, hour, minute, second] = fields(now);
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
    let [year, month, day, hour, minute, second] = fields(now);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

fn fields(now: SystemTime) -> [u64; 6] {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    [year, month, day, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60]
}

/// Returns year, month and day of a day counted from 1970-01-01. Years begin in March here, so that the leap day ends one; 146,097
/// days are 400 years.
const fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (year, month) = (year + era * 400, if month < 10 { month + 3 } else { month - 9 });
    (if month <= 2 { year + 1 } else { year }, month, day - first + 1)
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
