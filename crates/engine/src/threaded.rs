//! Runs an [`Engine`] on a thread of its own, behind [`EngineHandle`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{Clock, Request, SeqId, Time};

use crate::engine::{Command, Wake};
use crate::output::Unpark;
use crate::{
    Engine, EngineHandle, EngineInfo, EngineStats, Health, OutputStream, SubmitError, output_stream,
};

/// An engine on a thread. Dropping it ends the thread; what still runs then fails.
#[derive(Debug)]
pub struct ThreadedEngine {
    shared: Arc<Shared>,
    info: EngineInfo,
    max_waiting: usize,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shares with its handle and the streams.
struct Shared {
    clock: Arc<dyn Clock>,
    inbox: Mutex<Inbox>,
    stats: Mutex<EngineStats>,
    dead: Mutex<Option<String>>,
    /// Nanoseconds at which the oldest batch counts as hung; `u64::MAX` if none is in flight.
    deadline: AtomicU64,
    next_seq: AtomicU64,
    draining: AtomicBool,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    commands: Vec<Command>,
    num_added: usize,
    engine: Option<Waker>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Locks what a panic leaves whole: every critical section here is a few moves.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, command: Command) {
        let mut inbox = lock(&self.inbox);
        inbox.num_added += usize::from(matches!(command, Command::Add { .. }));
        inbox.commands.push(command);
        if let Some(engine) = &inbox.engine {
            engine.wake_by_ref();
        }
    }

    fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut lock(&self.inbox).commands)
    }

    /// Makes the last step's results visible. Requests taken from the inbox count as waiting until then.
    fn publish(&self, engine: &Engine) {
        let deadline = engine.deadline().map(|time| time.since_start().as_nanos());
        let deadline = deadline.and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or(u64::MAX);
        self.deadline.store(deadline, Ordering::Relaxed);
        let mut inbox = lock(&self.inbox);
        *lock(&self.stats) = engine.stats().clone();
        let added = |command: &&Command| matches!(command, Command::Add { .. });
        inbox.num_added = inbox.commands.iter().filter(added).count();
        drop(inbox);
        if let Some(reason) = engine.dead() {
            lock(&self.dead).get_or_insert_with(|| reason.to_owned());
        }
    }
}

impl ThreadedEngine {
    /// Starts the thread. At most `max_waiting` requests wait; further ones are refused.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn(
        engine: Engine,
        clock: Arc<dyn Clock>,
        max_waiting: usize,
    ) -> std::io::Result<Self> {
        let info = engine.info().clone();
        let shared = Arc::new(Shared {
            clock,
            inbox: Mutex::default(),
            stats: Mutex::new(EngineStats {
                num_blocks: info.kv.num_blocks,
                ..EngineStats::default()
            }),
            dead: Mutex::default(),
            deadline: AtomicU64::new(u64::MAX),
            next_seq: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        });
        let here = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("stallfree-engine".to_owned()).spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| run(engine, &here))).is_err() {
                    let reason = "the engine's thread panicked; its log says where".to_owned();
                    lock(&here.dead).get_or_insert(reason);
                    here.take_commands();
                }
            })?;
        Ok(Self { shared, info, max_waiting, thread: Some(thread) })
    }
}

fn run(mut engine: Engine, shared: &Shared) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    engine.set_waker(waker.clone());
    lock(&shared.inbox).engine = Some(waker);
    while !shared.stopping.load(Ordering::Relaxed) {
        let now = shared.clock.now();
        let wake = engine.step(now, shared.take_commands());
        shared.publish(&engine);
        // An unpark that came since the step began makes park return at once, so nothing is missed.
        match wake {
            Wake::At(time) => thread::park_timeout(time - shared.clock.now()),
            Wake::Output | Wake::Idle => thread::park(),
        }
    }
}

impl EngineHandle for ThreadedEngine {
    fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        let shared = &self.shared;
        if let Some(reason) = lock(&shared.dead).clone() {
            return Err(SubmitError::Dead(reason));
        }
        if shared.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        let (prompt, limit) = (request.prompt.len(), self.info.max_model_len);
        if prompt == 0 {
            return Err(SubmitError::Empty);
        }
        if prompt >= limit {
            return Err(SubmitError::TooLong { prompt, limit });
        }
        let waiting = self.stats().num_waiting;
        if waiting >= self.max_waiting {
            // About a second for every hundred that wait.
            let retry_after = Duration::from_secs((waiting as u64 / 100).clamp(1, 60));
            return Err(SubmitError::QueueFull { waiting, retry_after });
        }
        let id = SeqId(shared.next_seq.fetch_add(1, Ordering::Relaxed));
        let cancel = Arc::clone(shared);
        let (output, stream) = output_stream(id, move || cancel.send(Command::Cancel(id)));
        shared.send(Command::Add { id, request, arrived: shared.clock.now(), output });
        Ok(stream)
    }

    fn stats(&self) -> EngineStats {
        let inbox = lock(&self.shared.inbox);
        let mut stats = lock(&self.shared.stats).clone();
        stats.num_waiting += inbox.num_added;
        stats
    }

    fn health(&self) -> Health {
        if let Some(reason) = lock(&self.shared.dead).clone() {
            return Health::Dead(reason);
        }
        let deadline = Duration::from_nanos(self.shared.deadline.load(Ordering::Relaxed));
        match self.shared.clock.now().saturating_since(Time::from_start(deadline)) {
            Duration::ZERO => Health::Healthy,
            since => Health::Late { since },
        }
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }
}

impl Drop for ThreadedEngine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the engine's thread panicked");
            }
        }
    }
}
