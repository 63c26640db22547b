//! Tells from outside whether the step loop hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stallfree_core::Time;

/// Since when a step is under way, and by when it should be over.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// In nanoseconds since the clock's start.
    since: AtomicU64,
    /// Likewise; never passes if nothing is under way.
    deadline: AtomicU64,
}

impl Heartbeat {
    const NEVER: u64 = u64::MAX;

    /// Returns the heartbeat of an engine that has nothing to do.
    pub(crate) const fn idle() -> Self {
        Self { since: AtomicU64::new(0), deadline: AtomicU64::new(Self::NEVER) }
    }

    /// A step is under way since `since` and may take as long as `allowed`.
    pub(crate) fn beat(&self, since: Time, allowed: Duration) {
        // A reader between the two stores sees a younger step with an older deadline, which has not passed unless that step was late.
        self.since.store(nanos(since.since_start()), Ordering::Relaxed);
        let deadline = since.since_start().saturating_add(allowed);
        self.deadline.store(nanos(deadline), Ordering::Release);
    }

    /// Nothing is under way.
    pub(crate) fn rest(&self) {
        self.deadline.store(Self::NEVER, Ordering::Release);
    }

    /// Returns for how long the step has been under way, if that is too long.
    pub(crate) fn late(&self, now: Time) -> Option<Duration> {
        let now = nanos(now.since_start());
        let is_late = now > self.deadline.load(Ordering::Acquire);
        let since = self.since.load(Ordering::Relaxed);
        is_late.then(|| Duration::from_nanos(now.saturating_sub(since)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}
