//! Text for people: what commands print, and how sizes, times and tables look.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use stallfree_core::{Clock as _, Time, WallClock, lock};

/// Writes text to standard output. A reader that has gone away (`stallfree schedulers | head`) is no error.
///
/// # Errors
/// Standard output can't be written.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to standard error; where that fails, nobody is there to be told.
pub(crate) fn note(text: impl Display) {
    let _written = writeln!(io::stderr().lock(), "{text}");
}

/// Returns how this process was started, as one line for a shell.
pub(crate) fn command_line() -> String {
    let mut args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let name = args.first().and_then(|path| Path::new(path).file_name());
    if let Some(name) = name.map(|name| name.to_string_lossy().into_owned()) {
        args[0] = name;
    }
    quoted(args)
}

/// Joins arguments to a line that a shell takes apart again.
pub(crate) fn quoted(args: impl IntoIterator<Item = String>) -> String {
    let quoted = |arg: String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
        let plain = !arg.is_empty() && arg.chars().all(is_plain);
        if plain { arg } else { format!("'{}'", arg.replace('\'', r"'\''")) }
    };
    args.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Formats a time of any length: `45 s`, `12 min`, `3.5 h`.
pub(crate) fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Returns whether a person watches standard error.
pub(crate) fn is_interactive() -> bool {
    io::stderr().is_terminal()
}

/// Says how far a long load is, in a line every few seconds; a short one passes silently.
#[derive(Debug)]
pub(crate) struct LoadProgress {
    what: &'static str,
    clock: WallClock,
    /// Unset until the load begins.
    last_line: Mutex<Option<Time>>,
}

impl LoadProgress {
    const LINE_EVERY: Duration = Duration::from_secs(3);

    /// Starts the clock.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, clock: WallClock::start(), last_line: Mutex::new(None) }
    }

    /// Takes note that `done` of `total` are there: bytes, or whatever is counted.
    pub(crate) fn show(&self, done: u64, total: u64) {
        let now = self.clock.now();
        let mut last_line = lock(&self.last_line);
        match *last_line {
            Some(last) if now - last >= Self::LINE_EVERY => {
                tracing::info!("{}: {} %", self.what, 100 * done / total.max(1));
            }
            Some(_) => return,
            None => {}
        }
        *last_line = Some(now);
    }
}

/// Formats a size: `93.8 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Formats a count with its thousands apart: `1,587,648`.
pub(crate) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Breaks text into lines of at most `width` characters at its spaces, each after `indent` spaces.
pub(crate) fn wrap(text: &str, indent: usize, width: usize) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push('\n');
            used = 0;
        }
        if used == 0 {
            lines.extend(std::iter::repeat_n(' ', indent));
            used = indent;
        } else {
            lines.push(' ');
            used += 1;
        }
        lines.push_str(word);
        used += length;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::{bytes, thousands, wrap};

    #[test]
    fn sizes_and_counts_read_well() {
        for (value, expected) in
            [(0, "0 B"), (1023, "1023 B"), (98_362_432, "93.8 MiB"), (1 << 40, "1.0 TiB")]
        {
            assert_eq!(bytes(value), expected);
        }
        for (value, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_587_648, "1,587,648")]
        {
            assert_eq!(thousands(value), expected);
        }
    }

    #[test]
    fn wrapped_lines_keep_to_the_width() {
        let text = "a policy that never lets a long prompt stall the decodes of others";
        for width in 12..40 {
            let lines = wrap(text, 4, width);
            assert!(
                lines.lines().all(|line| line.starts_with("    ") && line.len() <= width),
                "{lines}"
            );
            assert_eq!(
                lines.split_whitespace().collect::<Vec<_>>(),
                text.split(' ').collect::<Vec<_>>()
            );
        }
    }
}
