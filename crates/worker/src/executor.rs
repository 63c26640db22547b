//! Runs a [`Runner`] behind [`Executor`]: one thread starts batches, another waits for them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use stallfree_comm::Control;
use stallfree_comm::nccl::Communicator;
use stallfree_core::{
    Batch, BatchId, Clock, Executor, ExecutorError, InstanceId, KvFetch, KvGeometry, LeaseBook,
    SeqId, StepOutput, Time, WallClock, lock, panic_message,
};
use stallfree_kernels::{Backend, Choice};
use stallfree_transfer::{Copier, KvMemory, Ports, RankMemory, Stuck};

use crate::in_flight::InFlight;
use crate::kv_port::{Fetches, RankPort, RankSenders};
use crate::movers::{Move, Movers};
use crate::nodes::{hear_all, tell_all};
use crate::step_times::StepTimes;
use crate::watchdog::{Breaker, Wait, Watch};
use crate::{Runner, Submitted};

pub(crate) type Outcome = Result<StepOutput, ExecutorError>;

/// An executor whose batches run one after the other on one device, or in step on the ranks of a model.
///
/// On a device that runs beside the host, the next batch is submitted while one runs, so that the device never waits. Of several
/// stages, each has its own batch. The first rank of the last stage answers; what fails on any rank is the loss of all.
#[derive(Debug)]
pub struct ThreadExecutor {
    geometry: KvGeometry,
    max_in_flight: usize,
    vocab_size: usize,
    /// To each rank; gone when the executor ends.
    ranks: RankSenders,
    /// Who copies blocks on their way from and to others.
    movers: Movers,
    /// The ranks' caches, if all of them are where others can copy from; until the executor joins others.
    memory: Option<Vec<RankMemory>>,
    fetches: Fetches,
    /// What is fetched once a batch is done that still writes into the blocks.
    held: Vec<(BatchId, KvFetch)>,
    /// What ranks put outcomes into.
    sender: Sender<Outcome>,
    outcomes: Receiver<Outcome>,
    waker: SharedWaker,
    threads: Vec<JoinHandle<()>>,
    /// What a failure pulls.
    breaker: Breaker,
    /// By which ranks wait for others on GPUs: ended once their threads have, and what those recorded is gone.
    communicators: Vec<Arc<Communicator>>,
    waits: Vec<Wait>,
    /// Gone when the watchdog is to end.
    watchdog: Option<Sender<()>>,
    in_flight: VecDeque<InFlight>,
    times: StepTimes,
    clock: WallClock,
    /// A rank took no batch.
    is_lost: bool,
}

/// Who is woken when an outcome is there.
pub(crate) type SharedWaker = Arc<Mutex<Option<Waker>>>;

/// What a rank is to do, in order.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// A batch, and when it came.
    Step(Arc<Batch>, Time),
    /// Copies blocks for another instance, or from one.
    Move(Move),
}

/// A batch that was started.
struct Started<C> {
    batch: BatchId,
    at: Time,
    submitted: Submitted<C>,
}

/// Where ranks put what the engine collects.
#[derive(Clone)]
pub(crate) struct Outbox {
    outcomes: Sender<Outcome>,
    waker: SharedWaker,
    /// Says whose failure it is, where there are several ranks.
    rank: String,
    breaker: Breaker,
}

impl Outbox {
    /// Returns whether anybody may still read it. A failure frees whoever waits for the one that failed: what their steps then bring
    /// comes after it, and so to nobody.
    pub(crate) fn put(&self, outcome: Outcome) -> bool {
        let failed = outcome.is_err();
        let outcome = outcome
            .map_err(|error| ExecutorError { reason: self.rank.clone() + &error.reason, ..error });
        let is_open = self.outcomes.send(outcome).is_ok();
        if failed {
            self.breaker.pull();
        }
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake_by_ref();
        }
        is_open
    }
}

impl ThreadExecutor {
    /// Starts the threads of `runners`, the ranks of a model in order.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn<B: Backend + 'static>(
        runners: Vec<Runner<B>>,
        geometry: KvGeometry,
    ) -> std::io::Result<Self> {
        let num_stages = runners.first().map_or(1, |runner| runner.part().stage.of);
        let max_in_flight = if num_stages > 1 { num_stages } else { B::MAX_IN_FLIGHT };
        let (sender, outcomes) = channel();
        let ranks = RankSenders::default();
        let mut this = Self {
            geometry,
            max_in_flight,
            vocab_size: runners.first().map_or(0, Runner::vocab_size),
            movers: Movers::Ranks(Arc::clone(&ranks)),
            ranks,
            memory: runners.iter().map(Runner::kv_memory).collect(),
            fetches: Fetches::default(),
            held: Vec::new(),
            sender,
            outcomes,
            waker: SharedWaker::default(),
            threads: Vec::new(),
            breaker: Breaker::default(),
            communicators: Vec::new(),
            waits: Vec::new(),
            watchdog: None,
            in_flight: VecDeque::new(),
            times: StepTimes::default(),
            clock: WallClock::start(),
            is_lost: false,
        };
        for runner in runners {
            this.add_rank(runner)?;
        }
        Ok(this)
    }

    /// Starts the threads of ranks in other processes, `controls` leading to one node each, beside those of `runners` here.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn spawn_with_nodes<B: Backend + 'static>(
        runners: Vec<Runner<B>>,
        geometry: KvGeometry,
        controls: Vec<Control>,
    ) -> std::io::Result<Self> {
        let mut this = Self::spawn(runners, geometry)?;
        for (place, Control { sender, receiver }) in controls.into_iter().enumerate() {
            let node = place + 1;
            let (batches, work) = channel();
            this.breaker.add_node(sender.clone());
            let outbox = this.outbox(String::new());
            let telling = outbox.clone();
            let teller = std::thread::Builder::new()
                .name(format!("stallfree-tell-{node}"))
                .spawn(move || tell_all(node, &work, &sender, &telling))?;
            let hearer = std::thread::Builder::new()
                .name(format!("stallfree-hear-{node}"))
                .spawn(move || hear_all(node, receiver, &outbox))?;
            lock(&this.ranks).push(batches);
            this.threads.extend([teller, hearer]);
        }
        Ok(this)
    }

    /// Looks after ranks that wait for others by these communicators, which end when any rank fails.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn watched(
        mut self,
        communicators: Vec<Arc<Communicator>>,
    ) -> std::io::Result<Self> {
        if communicators.is_empty() {
            return Ok(self);
        }
        self.breaker.add_communicators(&communicators);
        self.communicators.clone_from(&communicators);
        let (stop, stopped) = channel();
        let outbox = self.outbox(String::new());
        let watch = Watch { communicators, waits: self.waits.clone(), clock: self.clock };
        let thread = std::thread::Builder::new()
            .name("stallfree-watchdog".to_owned())
            .spawn(move || watch.run(&stopped, &outbox))?;
        self.threads.push(thread);
        self.watchdog = Some(stop);
        Ok(self)
    }

    fn outbox(&self, rank: String) -> Outbox {
        let (outcomes, waker) = (self.sender.clone(), Arc::clone(&self.waker));
        Outbox { outcomes, waker, rank, breaker: self.breaker.clone() }
    }

    /// Takes out what the ranks answer, for who reads it instead of the engine; it ends with the last rank.
    pub(crate) fn take_outcomes(&mut self) -> Receiver<Outcome> {
        self.sender = channel().0;
        std::mem::replace(&mut self.outcomes, channel().1)
    }

    /// Passes a batch on to the ranks, whoever reads what they answer.
    pub(crate) fn pass_on(&mut self, batch: Batch) {
        let (batch, at) = (Arc::new(batch), self.clock.now());
        // A thread that is gone shows at the next `collect`.
        for rank in lock(&self.ranks).iter() {
            self.is_lost |= rank.send(Work::Step(Arc::clone(&batch), at)).is_err();
        }
        if let Some(waker) = lock(&self.waker).as_ref().filter(|_| self.is_lost) {
            waker.wake_by_ref();
        }
    }

    fn add_rank<B: Backend + 'static>(&mut self, runner: Runner<B>) -> std::io::Result<()> {
        let (part, clock) = (runner.part(), self.clock);
        let name = |role: &str| match part.world_size() {
            1 => format!("stallfree-{role}"),
            _ => format!("stallfree-{role}-{}", part.rank()),
        };
        let mut rank = match part.world_size() {
            1 => String::new(),
            size => format!("rank {} of {size}: ", part.rank()),
        };
        if let Some(memory) = runner.kv_memory() {
            rank += &format!("GPU {}: ", memory.cache.device().ordinal());
        }
        let outbox = self.outbox(rank);
        let wait = Wait::default();
        self.waits.push(wait.clone());
        let answers = part.stage.is_last() && part.tensor.is_first();
        // The engine bounds the batches; reads and writes are as many as sequences.
        let (batches, work) = channel();
        let (start, started) = sync_channel(self.max_in_flight);
        let failures = outbox.clone();
        let worker = std::thread::Builder::new()
            .name(name("worker"))
            .spawn(move || submit_all(runner, &work, &start, &failures))?;
        let collector = std::thread::Builder::new()
            .name(name("collector"))
            .spawn(move || collect_all(&started, &outbox, answers, (clock, &wait)))?;
        lock(&self.ranks).push(batches);
        self.threads.extend([worker, collector]);
        Ok(())
    }

    /// Predicts from steps that were timed before the first batch comes.
    pub(crate) fn expecting(mut self, times: StepTimes) -> Self {
        self.times = times;
        self
    }

    /// Makes the executor one of a deployment's: others may read the blocks that are leased to them, and it may read theirs.
    ///
    /// # Errors
    /// A GPU refuses a queue, the host page-locked memory, or the system a thread.
    pub fn join(
        &mut self,
        ports: &Ports,
        instance: InstanceId,
        leases: LeaseBook,
    ) -> std::io::Result<()> {
        let outbox = self.outbox(String::new());
        let stuck: Stuck = Arc::new(move |reason| {
            outbox.put(Err(ExecutorError { batch: BatchId(0), reason }));
        });
        let memory = self.memory.take().filter(|ranks| !ranks.is_empty());
        if let Some(memory) = &memory {
            let (movers, threads) = Movers::start(memory)?;
            self.movers = movers;
            self.threads.extend(threads);
        }
        let copier = memory.and_then(|ranks| start_copier(ranks, &stuck));
        let memory = copier
            .as_ref()
            .map(|copier| KvMemory { ranks: Arc::clone(copier.ranks()), leases: leases.clone() });
        let (movers, num_blocks) = (self.movers.clone(), self.geometry.num_blocks);
        let port = RankPort { instance, movers, leases, num_blocks, memory };
        ports.open(instance, Arc::new(port));
        self.fetches.join(ports.clone(), instance, copier);
        Ok(())
    }

    /// Returns whether what this fetches is written beside the steps, and not between them.
    fn is_beside_steps(&self, fetch: &KvFetch) -> bool {
        self.movers.are_beside_steps() || self.fetches.is_direct(fetch)
    }

    /// Starts what had to wait for a batch.
    fn start_held(&mut self, done: BatchId) {
        for (_, fetch) in self.held.extract_if(.., |(batch, _)| *batch == done) {
            if let Err(reason) = self.fetches.start(&fetch, &self.movers, &self.waker) {
                self.fetches.fail(fetch.seq, reason, &self.waker);
            }
        }
    }

    fn lost(&self, reason: &str) -> ExecutorError {
        let batch = self.in_flight.front().map_or(BatchId(0), |oldest| oldest.id);
        ExecutorError { batch, reason: reason.to_owned() }
    }
}

/// Starts what copies from others' memory; without it, blocks go through the host's. `stuck` hears of a copy that does not end.
fn start_copier(ranks: Vec<RankMemory>, stuck: &Stuck) -> Option<Copier> {
    Copier::start(ranks, stuck)
        .inspect_err(|error| tracing::warn!(%error, "KV is not copied from GPU to GPU"))
        .ok()
}

/// Starts batches as they come; ends with the executor, or after a failure.
fn submit_all<B: Backend>(
    mut runner: Runner<B>,
    work: &Receiver<Work>,
    start: &SyncSender<Started<B::Choice>>,
    failures: &Outbox,
) {
    for work in work {
        // The runner is dropped after a panic, so nobody sees what it left behind.
        let done = match work {
            Work::Step(batch, at) => guarded(batch.id, || runner.submit(&batch))
                .map(|submitted| start.send(Started { batch: batch.id, at, submitted }).is_ok()),
            Work::Move(part) => beside_steps(|| part.take_part(&mut runner)),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return,
            // Told before the runner is dropped, by which other ranks learn of it: the cause comes first.
            Err(error) => {
                failures.put(Err(error));
                return;
            }
        }
    }
}

/// Does what belongs to no batch; a panic is the loss of the executor here, too.
fn beside_steps(work: impl FnOnce()) -> Result<bool, ExecutorError> {
    guarded(BatchId(0), || {
        work();
        true
    })
}

/// Waits for batches in the order in which they were started.
fn collect_all<C: Choice>(
    started: &Receiver<Started<C>>,
    outbox: &Outbox,
    answers: bool,
    (clock, wait): (WallClock, &Wait),
) {
    let mut last_done = Time::ZERO;
    for Started { batch, at, submitted } in started {
        let outcome = wait.during(clock, || guarded(batch, || submitted.wait()));
        // The device began it when it was started, or when the one before was done.
        let (began, now) = (at.max(last_done), clock.now());
        last_done = now;
        let outcome = outcome.map(|output| StepOutput { device_time: now - began, ..output });
        let failed = outcome.is_err();
        if (answers || failed) && !outbox.put(outcome) {
            return;
        }
        if failed {
            return;
        }
    }
}

/// Does a part of a batch's work; a panic is the loss of the executor, not of the process.
fn guarded<T>(batch: BatchId, work: impl FnOnce() -> T) -> Result<T, ExecutorError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let reason = format!("the worker panicked: {}", panic_message(&*panic));
        ExecutorError { batch, reason }
    })
}

impl Executor for ThreadExecutor {
    fn kv_geometry(&self) -> KvGeometry {
        self.geometry
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn submit(&mut self, batch: Batch, _now: Time) {
        self.in_flight.push_back(InFlight::new(&batch, self.geometry.block_size));
        self.pass_on(batch);
    }

    fn collect(&mut self, _now: Time) -> Result<Option<StepOutput>, ExecutorError> {
        match self.outcomes.try_recv() {
            Ok(outcome) => {
                let output = outcome?;
                if let Some(done) = self.in_flight.pop_front() {
                    self.times.record(done.num_tokens, output.device_time);
                    self.start_held(done.id);
                }
                Ok(Some(output))
            }
            Err(TryRecvError::Empty) if !self.is_lost => Ok(None),
            Err(_) => Err(self.lost("the worker's thread is gone")),
        }
    }

    fn fetch(&mut self, fetch: KvFetch, _now: Time) -> Result<(), String> {
        let mut newest_first = self.in_flight.iter().rev();
        match newest_first.find(|batch| batch.writes_any(&fetch.blocks)) {
            Some(batch) if self.is_beside_steps(&fetch) => {
                self.held.push((batch.id, fetch));
                Ok(())
            }
            _ => self.fetches.start(&fetch, &self.movers, &self.waker),
        }
    }

    fn fetched(&mut self, _now: Time) -> Vec<(SeqId, Result<(), String>)> {
        self.fetches.take_ended()
    }

    fn ready_at(&self) -> Option<Time> {
        None
    }

    fn set_waker(&mut self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
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
        self.fetches.leave();
        self.movers.stop();
        self.watchdog = None;
        lock(&self.ranks).clear(); // ends the workers' loops, and those the collectors'
        let _in_time = self.breaker.pull_later();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the worker panicked");
            }
        }
        for communicator in &self.communicators {
            if !communicator.end() {
                tracing::warn!(
                    "NCCL does not give back what it holds; the process may crash when it ends"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::beside_steps;

    #[test]
    fn what_panics_beside_steps_is_a_failure_too() {
        let error = beside_steps(|| panic!("the GPU is gone")).expect_err("a failure");
        assert!(error.reason.contains("the GPU is gone"), "{error}");
        assert_eq!(beside_steps(|| ()).ok(), Some(true));
    }
}
