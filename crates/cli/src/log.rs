//! The log on standard error: one line an event, with the time of day and the level.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::console;

/// Starts the log; `filter` is in the form of `RUST_LOG`.
pub(crate) fn start(filter: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_timer(TimeOfDay)
        .with_target(false)
        .with_ansi(console::is_interactive())
        .with_writer(std::io::stderr)
        // A line that can't be written is lost: to complain about it on the same stream would panic.
        .log_internal_errors(false)
        .init();
}

/// `HH:MM:SS`, UTC.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        write!(writer, "{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }
}
