//! A clock that stands still until it is told otherwise.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stallfree_core::{Clock, Time};

/// A clock that a test moves on.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time::from_start(Duration::from_nanos(self.nanos.load(Ordering::Relaxed)))
    }
}
