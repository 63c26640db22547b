//! Runs a [`Runner`] behind [`Executor`]: one thread starts batches, another waits for them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use stallfree_core::{
    Batch, BatchId, Clock, Executor, ExecutorError, KvGeometry, StepOutput, Time, WallClock,
};
use stallfree_kernels::{Backend, Choice};

use crate::step_times::StepTimes;
use crate::{Runner, SamplerError, Submitted};

type Outcome = Result<StepOutput, ExecutorError>;

/// An executor whose batches run one after the other on one device.
///
/// On a device that runs beside the host, the next batch is submitted while one runs, so that the device never waits.
#[derive(Debug)]
pub struct ThreadExecutor {
    geometry: KvGeometry,
    max_in_flight: usize,
    vocab_size: usize,
    batches: Option<SyncSender<Batch>>,
    outcomes: Receiver<Outcome>,
    waker: SharedWaker,
    threads: Vec<JoinHandle<()>>,
    in_flight: VecDeque<(BatchId, usize)>,
    times: StepTimes,
}

/// Who is woken when an outcome is there.
type SharedWaker = Arc<Mutex<Option<Waker>>>;

/// A batch that was started, or why it was not.
struct Started<C> {
    batch: BatchId,
    at: Time,
    submitted: Result<Submitted<C>, ExecutorError>,
}

impl ThreadExecutor {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn<B: Backend + 'static>(
        runner: Runner<B>,
        geometry: KvGeometry,
    ) -> std::io::Result<Self> {
        let max_in_flight = B::MAX_IN_FLIGHT;
        let (batches, work) = sync_channel(max_in_flight);
        let (start, started) = sync_channel(max_in_flight);
        let (done, outcomes) = sync_channel(max_in_flight);
        let waker = SharedWaker::default();
        let to_wake = Arc::clone(&waker);
        let vocab_size = runner.vocab_size();
        let clock = WallClock::start();
        let worker = std::thread::Builder::new()
            .name("stallfree-worker".to_owned())
            .spawn(move || submit_all(runner, &work, &start, clock))?;
        let collector = std::thread::Builder::new()
            .name("stallfree-collector".to_owned())
            .spawn(move || collect_all(&started, &done, &to_wake, clock))?;
        Ok(Self {
            geometry,
            max_in_flight,
            vocab_size,
            batches: Some(batches),
            outcomes,
            waker,
            threads: vec![worker, collector],
            in_flight: VecDeque::new(),
            times: StepTimes::default(),
        })
    }

    /// Predicts from steps that were timed before the first batch comes.
    pub(crate) fn expecting(mut self, times: StepTimes) -> Self {
        self.times = times;
        self
    }

    fn lost(&self, reason: &str) -> ExecutorError {
        let batch = self.in_flight.front().map_or(BatchId(0), |&(batch, _)| batch);
        ExecutorError { batch, reason: reason.to_owned() }
    }
}

/// Starts batches as they come; ends with the executor, or after a failure.
fn submit_all<B: Backend>(
    mut runner: Runner<B>,
    work: &Receiver<Batch>,
    start: &SyncSender<Started<B::Choice>>,
    clock: WallClock,
) {
    for batch in work {
        let at = clock.now();
        // The runner is dropped after a panic, so nobody sees what it left behind.
        let submitted = guarded(batch.id, || runner.submit(&batch));
        let failed = submitted.is_err();
        if start.send(Started { batch: batch.id, at, submitted }).is_err() || failed {
            return;
        }
    }
}

/// Waits for batches in the order in which they were started.
fn collect_all<C: Choice>(
    started: &Receiver<Started<C>>,
    done: &SyncSender<Outcome>,
    waker: &Mutex<Option<Waker>>,
    clock: WallClock,
) {
    let mut last_done = Time::ZERO;
    for Started { batch, at, submitted } in started {
        let outcome = submitted.and_then(|submitted| guarded(batch, || submitted.wait()));
        // The device began it when it was started, or when the one before was done.
        let (began, now) = (at.max(last_done), clock.now());
        last_done = now;
        let outcome = outcome.map(|output| StepOutput { device_time: now - began, ..output });
        let failed = outcome.is_err();
        if done.send(outcome).is_err() {
            return;
        }
        if let Some(waker) = waker.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            waker.wake_by_ref();
        }
        if failed {
            return;
        }
    }
}

/// Does a part of a batch's work; a panic is the loss of the executor, not of the process.
fn guarded<T>(
    batch: BatchId,
    work: impl FnOnce() -> Result<T, SamplerError>,
) -> Result<T, ExecutorError> {
    let reason = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_text(&*panic),
    };
    Err(ExecutorError { batch, reason })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the worker panicked: {}", text.unwrap_or("no message"))
}

impl Executor for ThreadExecutor {
    fn kv_geometry(&self) -> KvGeometry {
        self.geometry
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn submit(&mut self, batch: Batch, _now: Time) {
        self.in_flight.push_back((batch.id, batch.num_tokens()));
        // A thread that is gone shows at the next `collect`.
        if let Some(batches) = &self.batches
            && batches.try_send(batch).is_err()
        {
            tracing::error!("the worker takes no batch");
        }
    }

    fn collect(&mut self, _now: Time) -> Result<Option<StepOutput>, ExecutorError> {
        match self.outcomes.try_recv() {
            Ok(outcome) => {
                let output = outcome?;
                if let Some((_, num_tokens)) = self.in_flight.pop_front() {
                    self.times.record(num_tokens, output.device_time);
                }
                Ok(Some(output))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.lost("the worker's thread is gone")),
        }
    }

    fn ready_at(&self) -> Option<Time> {
        None
    }

    fn set_waker(&mut self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    fn predict(&self, batch: &Batch) -> Duration {
        self.times.predict(batch.num_tokens())
    }

    fn vocab_size(&self) -> Option<usize> {
        Some(self.vocab_size)
    }
}

impl Drop for ThreadExecutor {
    fn drop(&mut self) {
        self.batches = None; // ends the worker's loop, and that the collector's
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the worker panicked");
            }
        }
    }
}
