//! What templates call: `raise_exception`, `strftime_now`, `tojson`.

use std::time::SystemTime;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use stallfree_core::DateTime;

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
    let now = DateTime::of(now);
    Value::from_function(move |format: String| strftime(&format, now))
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
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

fn strftime(format: &str, now: DateTime) -> String {
    let DateTime { year, month, day, day_of_year, weekday, hour, minute, second } = now;
    let (month_name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[weekday as usize]);
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
            Some('m') => out += &format!("{month:02}"),
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
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out += "UTC",
            Some('z') => out += "+0000",
            Some('%') | None => out.push('%'),
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{DateTime, strftime};

    fn at(seconds: u64) -> DateTime {
        DateTime::of(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn dates_are_formatted_as_c_does() {
        let check = |seconds, expected| {
            assert_eq!(strftime("%A %d %B %Y %H:%M:%S %j", at(seconds)), expected, "{seconds}");
        };
        check(0, "Thursday 01 January 1970 00:00:00 001");
        check(951_782_399, "Monday 28 February 2000 23:59:59 059");
        check(951_868_800, "Wednesday 01 March 2000 00:00:00 061");
        check(4_102_444_799, "Thursday 31 December 2099 23:59:59 365");
    }

    #[test]
    fn unknown_directives_stay_as_they_are() {
        assert_eq!(strftime("%d %b %y %Q 100%", at(1_700_000_000)), "14 Nov 23 %Q 100%");
    }
}
