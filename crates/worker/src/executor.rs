//! Runs a [`Runner`] on a thread of its own, behind [`Executor`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use stallfree_core::{
    Batch, BatchId, Clock, Executor, ExecutorError, KvGeometry, StepOutput, Time, WallClock,
};
use stallfree_kernels::Backend;

use crate::Runner;
use crate::step_times::StepTimes;

type Outcome = Result<StepOutput, ExecutorError>;

/// An executor whose batches run one after the other on one thread.
#[derive(Debug)]
pub struct ThreadExecutor {
    geometry: KvGeometry,
    batches: Option<SyncSender<Batch>>,
    outcomes: Receiver<Outcome>,
    waker: Arc<Mutex<Option<Waker>>>,
    thread: Option<JoinHandle<()>>,
    in_flight: Option<(BatchId, usize)>,
    times: StepTimes,
}

impl ThreadExecutor {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn<B: Backend + 'static>(
        runner: Runner<B>,
        geometry: KvGeometry,
    ) -> std::io::Result<Self> {
        let (batches, work) = sync_channel(1);
        let (done, outcomes) = sync_channel(1);
        let waker = Arc::new(Mutex::new(None));
        let to_wake = Arc::clone(&waker);
        let thread = std::thread::Builder::new()
            .name("stallfree-worker".to_owned())
            .spawn(move || work_through(runner, &work, &done, &to_wake))?;
        let thread = Some(thread);
        let (batches, times) = (Some(batches), StepTimes::default());
        Ok(Self { geometry, batches, outcomes, waker, thread, in_flight: None, times })
    }

    fn lost(&self, reason: &str) -> ExecutorError {
        let batch = self.in_flight.map_or(BatchId(0), |(batch, _)| batch);
        ExecutorError { batch, reason: reason.to_owned() }
    }
}

fn work_through<B: Backend>(
    mut runner: Runner<B>,
    work: &Receiver<Batch>,
    done: &SyncSender<Outcome>,
    waker: &Mutex<Option<Waker>>,
) {
    let clock = WallClock::start();
    for batch in work {
        let started = clock.now();
        // The runner is dropped after a panic, so nobody sees what it left behind.
        let ran = catch_unwind(AssertUnwindSafe(|| runner.run(&batch)));
        let outcome = match ran {
            Ok(Ok(output)) => Ok(StepOutput { device_time: clock.now() - started, ..output }),
            Ok(Err(error)) => Err(ExecutorError { batch: batch.id, reason: error.to_string() }),
            Err(panic) => Err(ExecutorError { batch: batch.id, reason: panic_text(&*panic) }),
        };
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
        1
    }

    fn submit(&mut self, batch: Batch, _now: Time) {
        self.in_flight = Some((batch.id, batch.num_tokens()));
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
                if let Some((_, num_tokens)) = self.in_flight.take() {
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
}

impl Drop for ThreadExecutor {
    fn drop(&mut self) {
        self.batches = None; // ends the thread's loop
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the worker's thread panicked");
        }
    }
}
