//! A run whose time jumps from event to event: for executors that know when they will be done.

use std::time::Duration;

use stallfree_core::Time;
use stallfree_engine::VirtualTime;

use super::intake::{Intake, sent};
use super::{Progress, Recorder, RunConfig, RunOutcome};
use crate::workload::Workload;

/// Streams are read when this share of the requests under way may have ended, so that reading costs little each.
const READ_SHARE: u64 = 16;

/// Gives a workload to an engine in virtual time, or to several. `recorder` is the one whose observers they were made with.
///
/// The same workload gives the same records, bit for bit. With an executor that can't tell ahead when it is done, no time passes:
/// use [`in_real_time`](super::in_real_time) for those.
pub fn in_virtual_time(
    engine: &mut dyn VirtualTime,
    workload: &Workload,
    config: &RunConfig,
    recorder: &Recorder,
    progress: &mut dyn FnMut(Progress),
) -> RunOutcome {
    let mut run = Run {
        engine,
        intake: Intake::new(recorder.clone(), config.limit(), 0.0),
        finished_when_read: 0,
        total: workload.items.len(),
        progress,
    };
    for (id, item) in workload.items.iter().enumerate() {
        run.advance(moment(item.at));
        let place = loop {
            if let Some(place) = run.intake.place() {
                break place;
            }
            if !run.wait_for_an_end() {
                break 0.0;
            }
        };
        // The engine is already at its next event; a client that waited has sent its request when the one before it ended.
        let at = place.max(item.at);
        let stream = run.engine.submit_as_of(moment(at), config.request(item));
        run.intake.watch(sent(id, item, at, at), stream);
    }
    while run.step(Time::MAX) {}
    let now = run.engine.now().as_secs_f64();
    let Run { engine, intake, .. } = run;
    RunOutcome {
        requests: intake.into_records(now),
        batches: recorder.take_batches(0.0),
        stats: engine.stats(),
    }
}

struct Run<'a> {
    engine: &'a mut dyn VirtualTime,
    intake: Intake,
    finished_when_read: u64,
    total: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl Run<'_> {
    /// Lets the engine run until `at`.
    fn advance(&mut self, at: Time) {
        while self.engine.now() < at {
            if !self.step(at) {
                self.engine.run_until(at);
            }
        }
    }

    /// Takes a step and reads streams if enough may have ended. Returns whether anything is left to do.
    fn step(&mut self, limit: Time) -> bool {
        let more = self.engine.step(limit);
        let ended = self.engine.num_finished() - self.finished_when_read;
        if ended > self.intake.num_under_way() as u64 / READ_SHARE {
            self.read();
        }
        more
    }

    /// Steps until a request under way has ended; returns whether one has.
    fn wait_for_an_end(&mut self) -> bool {
        if self.read() > 0 {
            return true;
        }
        while self.engine.step(Time::MAX) {
            if self.engine.num_finished() > self.finished_when_read {
                return self.read() > 0;
            }
        }
        self.read() > 0
    }

    fn read(&mut self) -> usize {
        self.finished_when_read = self.engine.num_finished();
        let ended = self.intake.read();
        if ended > 0 {
            let now = self.engine.now().as_secs_f64();
            (self.progress)(Progress { done: self.intake.num_ended(), total: self.total, now });
        }
        ended
    }
}

fn moment(seconds: f64) -> Time {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(Time::MAX, Time::from_start)
}
