//! Numbers with a suffix, as vLLM reads them.

use std::str::FromStr;
use std::time::Duration;

/// A number of tokens or bytes: `2048`, `8k` (8,000), `8K` (8,192), `25.6k`, `1m`, `2G`.
///
/// # Errors
/// A sentence that names the text and what is understood.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let bad =
        || format!("'{text}' is not a number such as 2048, 8k (8,000), 8K (8,192), 25.6k or 2G");
    let (digits, unit): (&str, u64) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'm') => (&text[..text.len() - 1], 1_000_000),
        Some(b'g') => (&text[..text.len() - 1], 1_000_000_000),
        Some(b't') => (&text[..text.len() - 1], 1_000_000_000_000),
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        Some(b'T') => (&text[..text.len() - 1], 1 << 40),
        _ => (text, 1),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let fraction_fits = fraction.len() <= 9 && (unit % 10 == 0 || fraction.is_empty());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || !fraction_fits {
        return Err(bad());
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let fraction =
        if fraction.is_empty() { 0 } else { fraction.parse::<u64>().map_err(|_| bad())? };
    let value = whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit))
        .and_then(|whole| whole.checked_add(fraction.checked_mul(unit)? / scale));
    value.and_then(|value| usize::try_from(value).ok()).ok_or_else(bad)
}

/// Like [`count`], but at least 1.
///
/// # Errors
/// As [`count`].
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match count(text)? {
        0 => Err("it must be at least 1".to_owned()),
        value => Ok(value),
    }
}

/// Like [`positive`], but no more than ranks of any deployment.
///
/// # Errors
/// As [`positive`].
pub(crate) fn ranks(text: &str) -> Result<usize, String> {
    match positive(text)? {
        value if value > 1024 => Err("it must be at most 1024".to_owned()),
        value => Ok(value),
    }
}

/// Reads a share: more than 0, at most 1.
///
/// # Errors
/// A sentence that says so.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| format!("'{text}' is not a share such as 0.9: more than 0, at most 1"))
}

/// Reads a sampling temperature: 0 or more.
///
/// # Errors
/// A sentence that says so.
pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    let temperature = text.parse().ok().filter(|t: &f32| *t >= 0.0 && t.is_finite());
    temperature.ok_or_else(|| format!("'{text}' is not a temperature such as 0.7: 0 or more"))
}

/// Reads milliseconds: more than 0.
///
/// # Errors
/// A sentence that says so.
pub(crate) fn millis(text: &str) -> Result<Duration, String> {
    let ms = text.parse().ok().filter(|ms| *ms > 0.0 && *ms <= 1e9);
    ms.map(|ms: f64| Duration::from_secs_f64(ms / 1e3)).ok_or_else(|| {
        format!("'{text}' is not a time in milliseconds such as 250: more than 0, at most 1e9")
    })
}

/// A number, or leave to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auto {
    /// As much as fits.
    Fit,
    /// This many.
    Exactly(usize),
}

impl FromStr for Auto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" | "-1" => Ok(Self::Fit),
            _ => positive(text).map(Self::Exactly),
        }
    }
}
