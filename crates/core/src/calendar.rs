//! Moments as people write them: the Gregorian calendar, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment from 1970 on, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// The year.
    pub year: u64,
    /// The month, from 1.
    pub month: u64,
    /// The day of the month, from 1.
    pub day: u64,
    /// The day of the year, from 1.
    pub day_of_year: u64,
    /// The day of the week; Monday is 0.
    pub weekday: u64,
    /// The hour, below 24.
    pub hour: u64,
    /// The minute, below 60.
    pub minute: u64,
    /// The second, below 60.
    pub second: u64,
}

impl DateTime {
    /// Returns when `now` is; what is before 1970 counts as its beginning.
    #[must_use]
    pub fn of(now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::of_seconds(seconds)
    }

    /// Years begin in March here, so that the leap day ends one; 146,097 days are 400 years, and 719,468 those before 1970.
    const fn of_seconds(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let first = (153 * month + 2) / 5;
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year == 0);
        let from_march = month < 10;
        Self {
            year: year + era * 400 + !from_march as u64,
            month: if from_march { month + 3 } else { month - 9 },
            day: day - first + 1,
            day_of_year: if from_march { day + 60 + is_leap as u64 } else { day - 305 },
            weekday: (days + 3) % 7,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DateTime;

    /// Day by day over more than a cycle of 400 years, by the rules of the calendar.
    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = DateTime {
            year: 1970,
            month: 1,
            day: 1,
            day_of_year: 1,
            weekday: 3,
            hour: 23,
            minute: 59,
            second: 58,
        };
        for days in 0..200_000_u64 {
            assert_eq!(DateTime::of_seconds(days * 86_400 + 86_398), expected);
            let year = expected.year;
            let is_leap =
                year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            let february = 28 + u64::from(is_leap);
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            expected.weekday = (expected.weekday + 1) % 7;
            expected.day += 1;
            expected.day_of_year += 1;
            if expected.day > lengths[expected.month as usize - 1] {
                expected.day = 1;
                expected.month += 1;
            }
            if expected.month > 12 {
                (expected.year, expected.month, expected.day_of_year) = (year + 1, 1, 1);
            }
        }
        assert_eq!(expected.year, 2517);
    }
}
