//! One time for all processes of a deployment: the server's.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stallfree_core::{Clock, Time, WallClock, lock};

/// For how long the quickest message counts: clocks of two machines drift apart.
const WINDOW: Duration = Duration::from_secs(20);

/// The server's clock, as far as an instance can tell from what the server says. Never goes back.
#[derive(Debug)]
pub(crate) struct SharedClock {
    own: WallClock,
    /// Nanoseconds that the server's clock is ahead, perhaps wrapped around zero.
    ahead: AtomicU64,
    /// The latest moment that anybody was told.
    latest: AtomicU64,
    estimate: Mutex<Estimate>,
}

impl SharedClock {
    /// Sets the clock by a question that was asked at `asked` on `own`, and answered with the server's time `server` just now.
    pub(crate) fn new(own: WallClock, asked: Time, server: Time) -> Self {
        let estimate = Estimate::new(asked, server, own.now());
        let ahead = AtomicU64::new(estimate.ahead.cast_unsigned());
        Self { own, ahead, latest: AtomicU64::new(0), estimate: Mutex::new(estimate) }
    }

    /// Takes note that the server said it was `server`.
    pub(crate) fn heard(&self, server: Time) {
        let mut estimate = lock(&self.estimate);
        estimate.heard(server, self.own.now());
        self.ahead.store(estimate.ahead.cast_unsigned(), Ordering::Relaxed);
    }
}

impl Clock for SharedClock {
    fn now(&self) -> Time {
        let ahead = self.ahead.load(Ordering::Relaxed).cast_signed();
        let now = nanos(self.own.now()).saturating_add(ahead);
        let now = now.max(0).cast_unsigned();
        let latest = self.latest.fetch_max(now, Ordering::Relaxed);
        Time::from_start(Duration::from_nanos(now.max(latest)))
    }
}

/// How far the server's clock is ahead.
///
/// A message that was sent at `s` on the server's clock and comes at `c` on this one's says that it is at least `s - c`, and the
/// quickest of many says it best; a round trip bounds it from above.
#[derive(Debug)]
struct Estimate {
    ahead: i64,
    round_trip: i64,
    /// The most that any message of this window, and of the one before, said.
    windows: [i64; 2],
    since: Time,
}

impl Estimate {
    fn new(asked: Time, server: Time, heard: Time) -> Self {
        let least = nanos(server) - nanos(heard);
        let round_trip = nanos(heard) - nanos(asked);
        Self { ahead: least + round_trip / 2, round_trip, windows: [least; 2], since: heard }
    }

    fn heard(&mut self, server: Time, heard: Time) {
        let least = nanos(server) - nanos(heard);
        if heard - self.since > WINDOW {
            self.windows = [least, self.windows[0]];
            self.since = heard;
        }
        self.windows[0] = self.windows[0].max(least);
        let least = self.windows[0].max(self.windows[1]);
        self.ahead = self.ahead.clamp(least, least + self.round_trip);
    }
}

/// As clocks count from when they were made, this is enough for 292 years.
fn nanos(time: Time) -> i64 {
    i64::try_from(time.since_start().as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn the_quickest_message_of_the_last_seconds_counts() {
        // The server is 1000 ms ahead; the question takes 2 ms there and 6 ms back.
        let mut estimate = Estimate::new(ms(10), ms(1012), ms(18));
        let check = |estimate: &Estimate, expected: i64| {
            assert_eq!(estimate.ahead, expected * 1_000_000, "{estimate:?}");
        };
        check(&estimate, 998);
        for late in [500, 7] {
            estimate.heard(ms(1100 - late), ms(100)); // late as the first answer, or later
            check(&estimate, 998);
        }
        estimate.heard(ms(1200), ms(200));
        check(&estimate, 1000);
        // The server's clock loses 50 ms in a minute; what was said before that is forgotten.
        for second in [25, 50, 75] {
            estimate.heard(ms(second * 1000 + 950), ms(second * 1000));
        }
        check(&estimate, 958);
    }

    #[test]
    fn time_never_goes_back() {
        let own = WallClock::start();
        let clock = SharedClock::new(own, own.now(), ms(5000));
        let before = clock.now();
        clock.ahead.store(0, Ordering::Relaxed);
        assert!(clock.now() >= before && before >= ms(5000));
    }
}
