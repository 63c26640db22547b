//! How far a download is: a bar where somebody watches, else a line every few seconds.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use stallfree_core::{Clock as _, Time, WallClock};

use crate::console;

/// How often a line appears where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Smaller files come and go without a word.
const SMALL: u64 = 1 << 20;

/// One file's progress.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    total: Option<u64>,
    done: u64,
    /// What was there before: it doesn't count for the speed.
    resumed: u64,
    clock: WallClock,
    last_line: Time,
    bar: Option<ProgressBar>,
    is_small: bool,
}

impl Progress {
    /// Starts to show a file whose first `resumed` bytes are here.
    pub(crate) fn start(name: &str, total: Option<u64>, resumed: u64) -> Self {
        let is_small = total.is_some_and(|total| total < SMALL);
        let bar = (console::is_interactive() && !is_small).then(|| bar(name, total, resumed));
        let progress = Self {
            name: name.to_owned(),
            total,
            done: resumed,
            resumed,
            clock: WallClock::start(),
            last_line: Time::ZERO,
            bar,
            is_small,
        };
        if progress.bar.is_none() && !is_small {
            let size = total.map_or_else(|| "size unknown".to_owned(), console::bytes);
            let from = match resumed {
                0 => String::new(),
                _ => format!(", going on from {}", console::bytes(resumed)),
            };
            console::note(format_args!("Downloading {name} ({size}{from})"));
        }
        progress
    }

    /// Returns how much is there.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    /// Learns the size.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// Takes note of how much is there now; less than before where the server made it start over.
    pub(crate) fn set_done(&mut self, done: u64) {
        self.done = done;
        self.resumed = self.resumed.min(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let now = self.clock.now();
        if now - self.last_line >= LINE_EVERY {
            self.last_line = now;
            console::note(self.line(now.since_start()));
        }
    }

    /// Says that it is complete.
    pub(crate) fn finish(self) {
        let took = self.clock.now().since_start();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.is_small {
            return;
        }
        console::note(format_args!(
            "Downloaded {}: {} in {:.1} s ({}/s)",
            self.name,
            console::bytes(self.done),
            took.as_secs_f64(),
            console::bytes(self.speed(took)),
        ));
    }

    /// Returns bytes a second, so far.
    fn speed(&self, elapsed: Duration) -> u64 {
        ((self.done - self.resumed) as f64 / elapsed.as_secs_f64().max(1e-3)) as u64
    }

    fn line(&self, elapsed: Duration) -> String {
        let speed = self.speed(elapsed);
        let Some(total) = self.total else {
            return format!(
                "  {}: {}, {}/s",
                self.name,
                console::bytes(self.done),
                console::bytes(speed)
            );
        };
        let eta = match speed {
            0 => "unknown".to_owned(),
            _ => format!("{} s", total.saturating_sub(self.done) / speed),
        };
        format!(
            "  {}: {} of {} ({:.0} %), {}/s, ETA {eta}",
            self.name,
            console::bytes(self.done),
            console::bytes(total),
            100.0 * self.done as f64 / total.max(1) as f64,
            console::bytes(speed),
        )
    }
}

fn bar(name: &str, total: Option<u64>, resumed: u64) -> ProgressBar {
    const TEMPLATE: &str = "{msg} {wide_bar:.cyan/dim} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
    let bar =
        ProgressBar::new(total.unwrap_or(0)).with_position(resumed).with_message(name.to_owned());
    bar.reset_eta();
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Progress;

    #[test]
    fn a_line_tells_bytes_speed_and_eta() {
        let mut progress = Progress::start("weights", Some(10 << 20), 2 << 20);
        progress.bar = None;
        progress.set_done(6 << 20);
        assert_eq!(
            progress.line(Duration::from_secs(2)),
            "  weights: 6.0 MiB of 10.0 MiB (60 %), 2.0 MiB/s, ETA 2 s"
        );
        progress.total = None;
        assert_eq!(progress.line(Duration::from_secs(2)), "  weights: 6.0 MiB, 2.0 MiB/s");
    }
}
