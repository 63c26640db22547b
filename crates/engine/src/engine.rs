//! The step loop as a state machine.
//!
//! [`Engine::step`] is all there is: it knows no thread, no channel and no clock, so that serving, tests and simulations
//! run the same code. On the main path it comes after the tokenizer; the policy that it asks, `scheduler/policy/sarathi.rs`, is
//! next.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::task::Waker;
use std::time::Duration;

use stallfree_core::{
    BatchId, Executor, FinishReason, Request, SampledToken, SeqId, StepOutput, Time, TokenLogprob,
};
use stallfree_scheduler::{Plan, Planner, Sequence};

use crate::batch::build_batch;
use crate::live::Live;
use crate::{EngineInfo, EngineStats, OutputSender, StepChunk, StepObserver, StepRecord};

/// How long a step may take beyond ten times its prediction, which knows nothing at first.
const HANG_GRACE: Duration = Duration::from_secs(30);

/// Plans steps, submits them and hands out what they produce.
pub struct Engine {
    planner: Planner,
    executor: Box<dyn Executor>,
    observer: Option<Box<dyn StepObserver>>,
    info: EngineInfo,
    live: HashMap<SeqId, Live>,
    in_flight: VecDeque<InFlight>,
    next_batch: u64,
    stats: EngineStats,
    dead: Option<String>,
    was_idle: bool,
}

/// What the outside tells an engine.
#[derive(Debug)]
pub enum Command {
    /// Run a request.
    Add {
        /// The number of its sequence, never used before.
        id: SeqId,
        /// What to run.
        request: Request,
        /// When it came.
        arrived: Time,
        /// Where its output goes.
        output: OutputSender,
    },
    /// Forget a sequence, wherever it is.
    Cancel(SeqId),
}

/// When to call [`Engine::step`] again; a command is always a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Once the executor wakes its waker.
    Output,
    /// At this moment.
    At(Time),
    /// There is nothing to do.
    Idle,
}

/// A batch that the executor works on.
#[derive(Debug)]
struct InFlight {
    batch: BatchId,
    plan: Plan,
    started: Time,
    /// After this moment the step counts as hung.
    deadline: Time,
    record: StepRecord,
}

impl Engine {
    /// Makes an engine. `info` says what `planner` was made with.
    #[must_use]
    pub fn new(
        planner: Planner,
        executor: Box<dyn Executor>,
        observer: Option<Box<dyn StepObserver>>,
        info: EngineInfo,
    ) -> Self {
        Self {
            planner,
            executor,
            observer,
            info,
            live: HashMap::new(),
            in_flight: VecDeque::new(),
            next_batch: 0,
            stats: EngineStats::default(),
            dead: None,
            was_idle: true,
        }
    }

    /// Takes commands, takes finished batches, plans and submits the next ones.
    pub fn step(&mut self, now: Time, inbox: impl IntoIterator<Item = Command>) -> Wake {
        for command in inbox {
            self.obey(command);
        }
        if let Err(reason) = self.collect(now) {
            self.fail(reason);
        }
        self.submit(now);
        self.refresh_stats();
        self.check_when_idle();
        match (self.in_flight.is_empty(), self.executor.ready_at()) {
            (true, _) => Wake::Idle,
            (false, Some(ready)) => Wake::At(ready),
            (false, None) => Wake::Output,
        }
    }

    /// Returns what does not change.
    #[must_use]
    pub const fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Returns counters and gauges as of the last step.
    #[must_use]
    pub const fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Returns why the engine is lost, if it is.
    #[must_use]
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// Returns when the oldest batch in flight counts as hung.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.in_flight.front().map(|batch| batch.deadline)
    }

    /// Sets who is woken when the executor has an output.
    pub fn set_waker(&mut self, waker: Waker) {
        self.executor.set_waker(waker);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add { output, .. } if self.dead.is_some() => {
                output.fail(self.dead.as_deref().unwrap_or_default());
            }
            Command::Add { id, request, arrived, output } => self.add(id, request, arrived, output),
            Command::Cancel(id) => {
                self.planner.abort(id);
                self.live.remove(&id);
            }
        }
    }

    fn add(&mut self, id: SeqId, request: Request, arrived: Time, output: OutputSender) {
        let Request { prompt, sampling, stop, priority } = request;
        let max_total_len = prompt.len().saturating_add(stop.max_tokens);
        let mut seq = Sequence::new(id, prompt, max_total_len, priority, arrived);
        seq.reads_prefix_cache = sampling.prompt_logprobs.is_none();
        match self.planner.add(seq) {
            Ok(()) => {
                self.live.insert(id, Live::new(sampling, stop, arrived, output));
            }
            Err(error) => output.fail(&error.to_string()),
        }
    }

    fn collect(&mut self, now: Time) -> Result<(), String> {
        while !self.in_flight.is_empty() {
            let Some(output) = self.executor.collect(now).map_err(|error| error.to_string())?
            else {
                break;
            };
            if let Some(batch) = self.in_flight.pop_front() {
                self.emit(batch, output, now);
            }
        }
        Ok(())
    }

    fn emit(&mut self, batch: InFlight, output: StepOutput, now: Time) {
        self.planner.complete(&batch.plan.chunks);
        for (id, logprobs) in output.prompt_logprobs {
            let chunk = batch.plan.chunks.iter().find(|chunk| chunk.seq == id);
            self.emit_prompt_logprobs(id, chunk.map_or(0, |chunk| chunk.start), logprobs);
        }
        for sampled in output.tokens {
            self.emit_token(sampled, now);
        }
        self.stats.num_steps += 1;
        if let Some(observer) = &mut self.observer {
            observer.on_step(&StepRecord { finished: now, ..batch.record });
        }
    }

    fn emit_prompt_logprobs(&mut self, id: SeqId, start: usize, logprobs: Vec<Vec<TokenLogprob>>) {
        if let (Some(live), Some(seq)) = (self.live.get_mut(&id), self.planner.sequence(id)) {
            live.emit_prompt_logprobs(seq, start, logprobs);
        }
    }

    fn emit_token(&mut self, sampled: SampledToken, now: Time) {
        // A sequence that is gone by now was cancelled, or had ended before its last batch was done.
        let id = sampled.seq;
        let Some(seq) = self.planner.append_token(id, sampled.token) else { return };
        let Some(live) = self.live.get_mut(&id) else { return };
        self.stats.generation_tokens += 1;
        if seq.output().len() == 1 {
            self.stats.prompt_tokens += seq.prompt_len as u64;
        }
        if live.emit_token(seq, sampled, now) {
            self.planner.finish(id);
            self.live.remove(&id);
        }
    }

    fn submit(&mut self, now: Time) {
        while self.dead.is_none() && self.in_flight.len() < self.executor.max_in_flight() {
            let plan = self.planner.schedule(now);
            for id in &plan.preempted {
                tracing::debug!(
                    seq = id.0,
                    "preempted for want of blocks; its KV will be recomputed"
                );
            }
            if plan.is_empty() {
                return;
            }
            let id = BatchId(self.next_batch);
            self.next_batch += 1;
            let batch = build_batch(id, &plan, &self.planner, &self.live);
            let deadline = now + self.executor.predict(&batch) * 10 + HANG_GRACE;
            let record = self.record(id, &plan, now);
            self.executor.submit(batch, now);
            self.in_flight.push_back(InFlight { batch: id, plan, started: now, deadline, record });
        }
    }

    fn record(&self, batch: BatchId, plan: &Plan, now: Time) -> StepRecord {
        let load = self.planner.load();
        let chunk = |chunk: &stallfree_scheduler::PlannedChunk| {
            let prompt_len = self.planner.sequence(chunk.seq).map_or(0, |seq| seq.prompt_len);
            let decodes = chunk.num_tokens == 1 && chunk.start >= prompt_len;
            StepChunk {
                seq: chunk.seq,
                num_prompt_tokens: if decodes { 0 } else { chunk.num_tokens },
                num_output_tokens: usize::from(decodes),
            }
        };
        StepRecord {
            batch,
            started: now,
            finished: now,
            num_sampled: plan.chunks.iter().filter(|chunk| chunk.samples).count(),
            chunks: plan.chunks.iter().map(chunk).collect(),
            preempted: plan.preempted.clone(),
            num_waiting: load.num_waiting,
            num_running: load.num_running,
        }
    }

    /// Ends everything: an executor that failed is lost with all that was in flight.
    fn fail(&mut self, reason: String) {
        tracing::error!(reason, "the engine is lost");
        for (id, live) in self.live.drain() {
            self.planner.abort(id);
            live.output.fail(&reason);
        }
        self.in_flight.clear();
        self.dead = Some(reason);
    }

    fn refresh_stats(&mut self) {
        let load = self.planner.load();
        let stats = &mut self.stats;
        stats.num_running = load.num_running;
        stats.num_waiting = load.num_waiting;
        stats.num_used_blocks = load.num_used_blocks;
        stats.num_blocks = load.num_blocks;
        stats.prefix_cache_queries = load.prefix_cache_queries;
        stats.prefix_cache_hits = load.prefix_cache_hits;
        stats.num_preemptions = load.num_preemptions;
    }

    /// Checks the books whenever the engine falls idle, when nobody waits for it.
    fn check_when_idle(&mut self) {
        let idle = self.planner.is_idle() && self.in_flight.is_empty();
        if idle
            && !self.was_idle
            && self.dead.is_none()
            && let Err(what) = self.planner.check_integrity()
        {
            self.fail(format!("the KV cache's books disagree: {what}"));
        }
        self.was_idle = idle;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.in_flight.iter().map(|batch| (batch.batch, batch.started));
        f.debug_struct("Engine")
            .field("info", &self.info)
            .field("in_flight", &in_flight.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Ends a sequence's life in words that its reader understands.
pub(crate) fn finish_reason(seq: &Sequence, stops: bool) -> Option<FinishReason> {
    if stops {
        Some(FinishReason::Stop)
    } else if seq.tokens.len() >= seq.max_total_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}
