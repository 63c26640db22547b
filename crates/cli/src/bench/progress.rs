//! How far a run is: a bar with an estimate of the time left where somebody watches, else a line every few seconds.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use stallfree_core::{Clock as _, Time, WallClock};

use crate::console;

/// How often a line appears where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A run's progress; it clears its bar when it is dropped.
#[derive(Debug)]
pub(crate) struct RunProgress {
    bar: Option<ProgressBar>,
    what: String,
    unit: &'static str,
    clock: WallClock,
    last_line: Time,
}

impl RunProgress {
    /// Starts a bar of `total` requests; `quiet` shows nothing.
    pub(crate) fn start(what: &str, total: usize, quiet: bool) -> Self {
        Self::counting(what, "requests", total, quiet)
    }

    /// Does the same for something else than requests.
    pub(crate) fn counting(what: &str, unit: &'static str, total: usize, quiet: bool) -> Self {
        let bar = (console::is_interactive() && !quiet).then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} {wide_bar:.cyan} {pos}/{len} [{elapsed} < {eta}] {msg}",
            );
            let bar = ProgressBar::new(total as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.to_owned());
            bar
        });
        let clock = WallClock::start();
        let last_line = if quiet { Time::MAX } else { Time::ZERO };
        Self { bar, what: what.to_owned(), unit, clock, last_line }
    }

    /// Shows how far it is; `note` is a few words beside.
    pub(crate) fn show(&mut self, done: usize, total: usize, note: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(note());
            return;
        }
        let now = self.clock.now();
        if now - self.last_line >= LINE_EVERY {
            self.last_line = now;
            let (what, unit) = (&self.what, self.unit);
            console::note(format_args!("{what}: {done} of {total} {unit}, {}", note()));
        }
    }
}

impl Drop for RunProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
