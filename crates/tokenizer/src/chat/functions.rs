//! What templates call: `raise_exception`, `strftime_now`, `tojson`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::json;

/// A template's own complaint.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn install(env: &mut Environment<'_>) {
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_filter("tojson", tojson);
}

/// Python's `json.dumps`: `, ` and `: ` between things, no HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
fn tojson(value: &Value, indent: Option<usize>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = json::Style {
        indent: kwargs.get::<Option<usize>>("indent")?.or(indent),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: kwargs.get::<Option<Vec<String>>>("separators")?.and_then(pair),
    };
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))?;
    Ok(Value::from_safe_string(json::dumps(&value, &style)))
}

fn pair(separators: Vec<String>) -> Option<(String, String)> {
    <[String; 2]>::try_from(separators).ok().map(Into::into)
}

/// Returns the function that formats `now` (UTC) as C's `strftime` does.
pub(super) fn strftime_at(now: SystemTime) -> Value {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Value::from_function(move |format: String| strftime(&format, seconds))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

fn strftime(format: &str, unix_seconds: u64) -> String {
    let (days, second_of_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let (month_name, weekday) = (MONTHS[month], WEEKDAYS[(days % 7) as usize]);
    let (hour, minute, second) =
        (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{:02}", month + 1),
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('j') => out += &format!("{day_of_year:03}"),
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{hour12:02}"),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('F') => out += &format!("{year}-{:02}-{day:02}", month + 1),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out += "UTC",
            Some('z') => out += "+0000",
            Some('%') | None => out.push('%'),
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

/// Returns year, month (from 0), day (from 1) and day of the year (from 1) of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, usize, u64, u64) {
    const CYCLE_DAYS: u64 = 146_097;
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    // Whole cycles of 400 years first, so that a far date costs no more than a near one.
    let mut year = 1970 + days / CYCLE_DAYS * 400;
    days %= CYCLE_DAYS;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_formatted_as_c_does() {
        let check = |seconds, expected| {
            assert_eq!(strftime("%A %d %B %Y %H:%M:%S %j", seconds), expected, "{seconds}");
        };
        check(0, "Thursday 01 January 1970 00:00:00 001");
        check(951_782_399, "Monday 28 February 2000 23:59:59 059");
        check(951_868_800, "Wednesday 01 March 2000 00:00:00 061");
        check(4_102_444_799, "Thursday 31 December 2099 23:59:59 365");
    }

    #[test]
    fn unknown_directives_stay_as_they_are() {
        assert_eq!(strftime("%d %b %y %Q 100%", 1_700_000_000), "14 Nov 23 %Q 100%");
    }
}
