//! Time as the planning tower sees it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// A moment, counted from its clock's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The clock's start.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// Later than any other moment.
    pub const MAX: Self = Self(Duration::MAX);

    /// Returns the moment `since_start` after the clock's start.
    #[must_use]
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Returns how long after the clock's start this moment is.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Returns the seconds since the clock's start.
    #[must_use]
    pub const fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }

    /// Returns the time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0 + rhs)
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.saturating_since(rhs)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.as_secs_f64())
    }
}

/// A source of the current time; injected, so that runs replay.
pub trait Clock: Send + Sync {
    /// Returns the current moment; never earlier than a moment returned before.
    fn now(&self) -> Time;
}

/// The machine's monotonic clock, started when it is made.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    start: Instant,
}

impl WallClock {
    /// Starts a clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where real time enters")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for WallClock {
    fn now(&self) -> Time {
        Time(self.start.elapsed())
    }
}
