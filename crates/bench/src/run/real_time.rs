//! A run against the wall clock: for executors that compute.

use std::thread;
use std::time::Duration;

use stallfree_engine::{EngineHandle, Health};

use super::intake::{Intake, sent};
use super::{Progress, Recorder, RunConfig, RunOutcome};
use crate::workload::Workload;

/// How often streams are read. Tokens carry their own times, so reading late costs nothing but, with a limit on concurrency, a
/// successor's start.
const READ_EVERY: Duration = Duration::from_millis(2);

/// The shortest sleep that is worth the call.
const SHORTEST: Duration = Duration::from_micros(20);

/// How long nothing may end before the run looks whether the engine still lives.
const CHECK_EVERY: u32 = 500;

/// Gives a workload to a running engine, or to several behind one handle. `recorder` is the one whose observer it was made with.
pub fn in_real_time(
    engine: &dyn EngineHandle,
    workload: &Workload,
    config: &RunConfig,
    recorder: &Recorder,
    progress: &mut dyn FnMut(Progress),
) -> RunOutcome {
    let start = engine.now().as_secs_f64();
    let mut intake = Intake::new(recorder.clone(), config.limit(), start);
    let now = || engine.now().as_secs_f64() - start;
    let mut tell = |intake: &Intake| {
        progress(Progress { done: intake.num_ended(), total: workload.items.len(), now: now() });
    };
    for (id, item) in workload.items.iter().enumerate() {
        let request = config.request(item);
        let place = loop {
            let wait = item.at - now();
            if wait <= 0.0
                && let Some(place) = intake.place()
            {
                break place;
            }
            thread::sleep(Duration::from_secs_f64(wait.max(0.0)).min(READ_EVERY).max(SHORTEST));
            if intake.read() > 0 {
                tell(&intake);
            }
        };
        let record = sent(id, item, place.max(item.at), now());
        match engine.submit(request) {
            Ok(stream) => intake.watch(record, stream),
            Err(error) => intake.refuse(record, error.to_string()),
        }
    }
    let mut quiet = 0;
    while intake.num_under_way() > 0 {
        thread::sleep(READ_EVERY);
        quiet = if intake.read() > 0 { 0 } else { quiet + 1 };
        if quiet == 0 {
            tell(&intake);
        }
        if quiet >= CHECK_EVERY && matches!(engine.health(), Health::Dead(_)) {
            break;
        }
    }
    RunOutcome {
        requests: intake.into_records(now()),
        batches: recorder.take_batches(start),
        stats: engine.stats(),
    }
}
