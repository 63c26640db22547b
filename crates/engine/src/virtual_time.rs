//! Engines on a virtual clock, as whoever gives them requests sees them: one, or a deployment of several.

use stallfree_core::{Request, Time};

use crate::{EngineStats, OutputStream, Replay};

/// Engines whose time jumps from event to event. The same requests at the same moments give the same outputs.
pub trait VirtualTime {
    /// Returns the current moment.
    fn now(&self) -> Time;

    /// Submits a request that came at `arrived`, which is now or was since the last step. Dropping the stream cancels it.
    fn submit_as_of(&mut self, arrived: Time, request: Request) -> OutputStream;

    /// Lets what is due happen and moves on to the next event, but no further than `limit`. Returns whether anything is left to do.
    fn step(&mut self, limit: Time) -> bool;

    /// Runs until `limit`, which is the current moment afterwards.
    fn run_until(&mut self, limit: Time);

    /// Returns how many sequences have ended, ever.
    fn num_finished(&self) -> u64;

    /// Returns the counters and gauges of all engines together.
    fn stats(&self) -> EngineStats;
}

impl VirtualTime for Replay {
    fn now(&self) -> Time {
        self.now()
    }

    fn submit_as_of(&mut self, arrived: Time, request: Request) -> OutputStream {
        self.submit_as_of(arrived, request)
    }

    fn step(&mut self, limit: Time) -> bool {
        self.step(limit)
    }

    fn run_until(&mut self, limit: Time) {
        self.run_until(limit);
    }

    fn num_finished(&self) -> u64 {
        self.engine().num_finished()
    }

    fn stats(&self) -> EngineStats {
        self.engine().stats().clone()
    }
}
