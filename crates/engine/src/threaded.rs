//! Drives an engine on a thread of its own: the driver for serving.
//!
//! It waits, and nothing else: for commands, for the executor's waker, or until the moment that the engine named. Requests
//! beyond the queue's limit are refused, so its inbox is bounded: by the limit, and by one cancellation a stream.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use stallfree_core::{Clock, Request, SeqId, Time, lock, panic_message};

use crate::bell::Bell;
use crate::heartbeat::Heartbeat;
use crate::output::unpark_this_thread;
use crate::{
    Command, Engine, EngineHandle, EngineInfo, EngineStats, Health, OutputStream, PromptLimits,
    Ringer, SubmitError, Wake, output_stream,
};

/// A step that takes no longer than this is never late.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// A step is late if it takes longer than this many times its prediction. Predictions know little at first.
const LATE_FACTOR: u32 = 10;

/// An engine that runs on its own thread; dropping it ends what still runs and joins the thread.
pub struct ThreadedEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    info: EngineInfo,
    limits: PromptLimits,
    max_waiting: usize,
    clock: Arc<dyn Clock>,
    next_seq: AtomicU64,
    heartbeat: Heartbeat,
    state: Mutex<State>,
}

/// What handles and the engine's thread share.
#[derive(Default)]
struct State {
    commands: Vec<Command>,
    /// Whom to unpark when there are commands.
    thread: Option<Thread>,
    /// As of the last step, but for `num_waiting`, which counts the commands too.
    stats: EngineStats,
    /// Per sequence, how long it took lately until the next one ended.
    finish_interval: Duration,
    /// Who is to wake readers from now on, until the engine knows.
    ringer: Option<Ringer>,
    draining: bool,
    quitting: bool,
    failure: Option<String>,
}

impl ThreadedEngine {
    /// Starts the thread. At most `max_waiting` requests wait; further ones are refused.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn(
        mut engine: Engine,
        clock: Arc<dyn Clock>,
        max_waiting: usize,
    ) -> io::Result<Self> {
        engine.set_bell(Bell::with_thread()?);
        let shared = Arc::new(Shared {
            info: engine.info().clone(),
            limits: engine.limits(),
            max_waiting,
            clock,
            next_seq: AtomicU64::new(0),
            heartbeat: Heartbeat::idle(),
            state: Mutex::new(State { stats: engine.stats().clone(), ..State::default() }),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("stallfree-engine".to_owned())
            .spawn(move || theirs.run_to_the_end(engine))?;
        shared.lock().thread = Some(thread.thread().clone());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns which prompts it takes.
    #[must_use]
    pub fn limits(&self) -> PromptLimits {
        self.shared.limits
    }

    /// Returns about how long the queue takes to become empty; between a second and a minute.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.shared.lock().retry_after()
    }

    /// Checks that another request would be taken now.
    ///
    /// # Errors
    /// The queue is full, or the engine is draining or lost.
    pub fn check_queue(&self) -> Result<(), SubmitError> {
        self.shared.lock().check(self.shared.max_waiting)
    }

    /// Sends a command. Sequences' numbers must not be those that [`submit`](EngineHandle::submit) gives: send all or submit all.
    ///
    /// # Errors
    /// The engine is lost; the command comes back.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        let mut state = self.shared.lock();
        if state.failure.is_some() {
            return Err(command);
        }
        state.send(command);
        Ok(())
    }
}

impl EngineHandle for ThreadedEngine {
    fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        let shared = &self.shared;
        shared.limits.check(&request.prompt)?;
        let mut state = shared.lock();
        state.check(shared.max_waiting)?;
        let id = SeqId(shared.next_seq.fetch_add(1, Ordering::Relaxed));
        let canceller = Arc::clone(shared);
        let (output, stream) = output_stream(id, move || canceller.send(Command::Cancel(id)));
        state.send(Command::run(id, request, shared.clock.now(), output));
        Ok(stream)
    }

    fn stats(&self) -> EngineStats {
        self.shared.lock().stats.clone()
    }

    fn health(&self) -> Health {
        if let Some(failure) = &self.shared.lock().failure {
            return Health::Dead(failure.clone());
        }
        match self.shared.heartbeat.late(self.shared.clock.now()) {
            Some(since) => Health::Late { since },
            None => Health::Healthy,
        }
    }

    fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn drain(&self) {
        self.shared.lock().draining = true;
    }

    fn set_ringer(&self, ringer: Ringer) {
        self.shared.lock().ringer = Some(ringer);
    }
}

impl Drop for ThreadedEngine {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.quitting = true;
        state.unpark();
        drop(state);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn send(&self, command: Command) {
        self.lock().send(command);
    }

    fn run_to_the_end(&self, mut engine: Engine) {
        let ran = catch_unwind(AssertUnwindSafe(|| self.run(&mut engine)));
        let was_told_to = ran.is_ok() && engine.dead().is_none();
        let reason = match ran {
            Ok(()) => engine.dead().unwrap_or("the engine was shut down").to_owned(),
            Err(panic) => format!("the engine's thread panicked: {}", panic_message(&*panic)),
        };
        tracing::debug!(reason, "the engine's thread ends");
        // First refuse, then fail: nothing comes in between.
        let commands = {
            let mut state = self.lock();
            state.failure = Some(reason.clone());
            std::mem::take(&mut state.commands)
        };
        self.heartbeat.rest();
        if was_told_to {
            engine.shut_down(&reason);
        } else {
            engine.fail(&reason);
        }
        for command in commands {
            match command {
                Command::Run { seq, .. } => engine.refuse(*seq, &reason),
                Command::Cancel(_)
                | Command::Release(_)
                | Command::Renew(_)
                | Command::Offer(_)
                | Command::Retract(_)
                | Command::LeaveAll => {}
            }
        }
        self.lock().stats = engine.stats().clone();
    }

    /// Steps until the engine fails or is told to quit.
    fn run(&self, engine: &mut Engine) {
        engine.set_waker(unpark_this_thread());
        let mut pace = Pace::default();
        let mut inbox = Vec::new();
        loop {
            let ringer = {
                let mut state = self.lock();
                if state.quitting {
                    return;
                }
                std::mem::swap(&mut state.commands, &mut inbox);
                state.ringer.take()
            };
            if let Some(ringer) = ringer {
                engine.set_bell(Bell::rung_by(ringer));
            }
            let now = self.clock.now();
            if engine.current_step().is_none() {
                self.heartbeat.beat(now, LATE_AFTER);
            }
            let wake = engine.step(now, inbox.drain(..));
            match engine.current_step() {
                Some((since, predicted)) => {
                    let allowed = predicted.saturating_mul(LATE_FACTOR);
                    self.heartbeat.beat(since, allowed.max(LATE_AFTER));
                }
                None => self.heartbeat.rest(),
            }
            self.publish(engine, &mut pace);
            if engine.dead().is_some() {
                return;
            }
            match wake {
                Wake::At(at) => thread::park_timeout(at - self.clock.now()),
                Wake::Output | Wake::Idle => thread::park(),
            }
        }
    }

    fn publish(&self, engine: &Engine, pace: &mut Pace) {
        let mut stats = engine.stats().clone();
        let interval = pace.interval(engine, self.clock.now());
        let mut state = self.lock();
        let queued = state.commands.iter();
        stats.num_waiting += queued.filter(|command| adds(command)).count();
        state.stats = stats;
        state.finish_interval = interval;
    }
}

/// Returns whether a sequence waits in a command.
const fn adds(command: &Command) -> bool {
    matches!(command, Command::Run { .. })
}

impl State {
    fn send(&mut self, command: Command) {
        self.stats.num_waiting += usize::from(adds(&command));
        self.commands.push(command);
        self.unpark();
    }

    /// Checks that another sequence would be taken.
    fn check(&self, max_waiting: usize) -> Result<(), SubmitError> {
        let waiting = self.stats.num_waiting;
        match &self.failure {
            Some(failure) => Err(SubmitError::Dead(failure.clone())),
            None if self.draining => Err(SubmitError::Draining),
            None if waiting >= max_waiting => {
                Err(SubmitError::QueueFull { waiting, retry_after: self.retry_after() })
            }
            None => Ok(()),
        }
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }

    /// Returns about how long the queue takes to become empty; between a second and a minute.
    fn retry_after(&self) -> Duration {
        let waiting = u32::try_from(self.stats.num_waiting).unwrap_or(u32::MAX);
        let estimate = self.finish_interval.saturating_mul(waiting);
        estimate.clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// How quickly sequences end since the engine was last idle.
#[derive(Default)]
struct Pace {
    busy_since: Option<(Time, u64)>,
}

impl Pace {
    fn interval(&mut self, engine: &Engine, now: Time) -> Duration {
        let (since, before) = *self.busy_since.get_or_insert((now, engine.num_finished()));
        let finished = u32::try_from(engine.num_finished() - before).unwrap_or(u32::MAX);
        if engine.current_step().is_none() {
            self.busy_since = None;
        }
        (now - since) / finished.max(1)
    }
}

impl fmt::Debug for ThreadedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadedEngine").field("info", &self.shared.info).finish_non_exhaustive()
    }
}
