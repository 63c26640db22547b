//! The engine: from requests to tokens, one step at a time.
//!
//! A state machine: [`Engine::step`] takes commands and the time and returns when it wants to be called again. It has no
//! thread, no channel and no clock of its own (the drivers `threaded.rs` and `replay.rs` bring those), knows no text
//! and no HTTP, and leaves the choice of who runs to the planner and all computing to the executor.
//!
//! On the main path after the tokenizer's `tokenizer.rs`, before the scheduler's `policy/sarathi.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::task::Waker;
use std::time::Duration;

use stallfree_core::{
    BatchId, Executor, FinishReason, KvLease, Request, SampledToken, SeqId, SeqMap, StepOutput,
    Time, UNSOUND,
};
use stallfree_scheduler::{Plan, Planner, Sequence};

use crate::batch_builder::BatchBuilder;
use crate::bell::Bell;
use crate::record::{InFlight, observe};
use crate::state::{After, News, SeqState};
use crate::step_model::StepFit;
use crate::{
    Command, EngineInfo, EngineStats, HandedOver, Membership, OutputSender, OutputToken,
    PromptLimits, StepObserver, Until, Wake,
};

/// How often the books are checked at most.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Runs sequences on an executor in the order that a policy chooses.
pub struct Engine {
    pub(crate) planner: Planner,
    pub(crate) executor: Box<dyn Executor>,
    builder: BatchBuilder,
    info: EngineInfo,
    pub(crate) seqs: SeqMap<SeqState>,
    in_flight: VecDeque<InFlight>,
    /// How long steps take.
    pub(crate) fit: StepFit,
    /// What the others are still to be told: whether anything, and whose first tokens came.
    pub(crate) has_news: bool,
    pub(crate) first_tokens: Vec<SeqId>,
    /// What collected outputs have for readers; passed on once the device has its next batch.
    news: Vec<(SeqId, News)>,
    observer: Option<Box<dyn StepObserver>>,
    stats: EngineStats,
    num_finished: u64,
    next_batch: u64,
    last_collected: Time,
    was_idle: bool,
    /// When the books were checked.
    checked: Option<Time>,
    dead: Option<String>,
    /// Absent if it is alone.
    pub(crate) membership: Option<Membership>,
    /// Until when the KV of sequences that left is kept, unless it is fetched earlier.
    pub(crate) leases: SeqMap<Time>,
    bell: Bell,
}

impl Engine {
    /// Makes an engine that computes on `executor`. `info` says what `planner` was made with.
    #[must_use]
    pub fn new(
        planner: Planner,
        executor: Box<dyn Executor>,
        observer: Option<Box<dyn StepObserver>>,
        info: EngineInfo,
    ) -> Self {
        let fit = StepFit::new(planner.declaration().token_bound.unwrap_or(0));
        let stats = EngineStats { num_blocks: info.kv.num_blocks, ..EngineStats::default() };
        Self {
            planner,
            executor,
            builder: BatchBuilder::new(info.kv.block_size),
            info,
            seqs: SeqMap::default(),
            in_flight: VecDeque::new(),
            fit,
            has_news: false,
            first_tokens: Vec::new(),
            news: Vec::new(),
            observer,
            stats,
            num_finished: 0,
            next_batch: 0,
            last_collected: Time::ZERO,
            was_idle: true,
            checked: None,
            dead: None,
            membership: None,
            leases: SeqMap::default(),
            bell: Bell::default(),
        }
    }

    /// Gives readers somebody who wakes them; until then it is the engine itself.
    pub(crate) fn set_bell(&mut self, bell: Bell) {
        self.bell = bell;
    }

    /// Does all that can be done now, and returns when there will be more.
    ///
    /// Planning comes right after collecting, and readers hear of tokens only when the device is busy again. With two
    /// batches in flight, planning step k + 1 overlaps computing step k.
    pub fn step(&mut self, now: Time, inbox: impl IntoIterator<Item = Command>) -> Wake {
        self.drain(inbox, now);
        self.collect(now);
        self.schedule(now);
        self.report(now);
        self.emit();
        self.refresh_stats();
        self.check_when_idle(now);
        self.wake()
    }

    fn drain(&mut self, inbox: impl IntoIterator<Item = Command>, now: Time) {
        for command in inbox {
            match command {
                Command::Run { seq, until } => self.take_on(*seq, until),
                Command::Cancel(seq) => self.end(seq, None, FinishReason::Abort, now),
                Command::Release(seq) => self.release(seq),
                Command::Offer(offer) => self.expect(&offer, now),
                Command::Retract(seq) => self.planner.retract(seq),
                Command::Renew(seqs) => self.renew(&seqs, now),
                Command::LeaveAll => self.leave_all(),
            }
        }
        self.end_leases(now);
    }

    /// Lets a sequence wait for its turn; one that others began goes on where it was.
    fn take_on(&mut self, seq: HandedOver, until: Until) {
        if let Some(reason) = self.dead.clone() {
            return self.refuse(seq, &reason);
        }
        let HandedOver { id, request, arrived, output_tokens, kv, output, progress } = seq;
        self.forget_in_flight(id);
        let kv = self.reclaim(id, kv, request.prompt.len() + output_tokens.len());
        if let Err(error) = self.limits().check(&request.prompt) {
            return self.turn_away(id, kv.as_deref(), &output, &error.to_string());
        }
        let Request { prompt, sampling, stop, priority, slo } = request;
        let max_total_len = prompt.len().saturating_add(stop.max_tokens);
        let mut seq = Sequence::new(id, prompt, max_total_len, priority, arrived);
        seq.tokens.extend(output_tokens);
        seq.kv.clone_from(&kv);
        seq.deadline = slo.ttft.map(|ttft| arrived + ttft);
        seq.prefill_time = self.fit.model().prefill_time(0, seq.tokens.len());
        if until == Until::NextToken {
            seq.max_total_len = max_total_len.min(seq.tokens.len() + 1);
        }
        // Tokens found in the cache are not computed, so nothing would know their logprobs.
        seq.reads_prefix_cache = sampling.prompt_logprobs.is_none();
        match self.planner.add(seq) {
            Ok(()) => {
                let mut state = SeqState::new(sampling, (stop, slo), output, (progress, until));
                state.awaits_token = kv.is_none();
                self.seqs.insert(id, state);
            }
            Err(error) => self.turn_away(id, kv.as_deref(), &output, &error.to_string()),
        }
    }

    /// Lets nothing come of what batches in flight still compute of a sequence that left while they did: it begins anew.
    fn forget_in_flight(&mut self, id: SeqId) {
        for batch in &mut self.in_flight {
            let num_chunks = batch.plan.chunks.len();
            batch.plan.chunks.retain(|chunk| chunk.seq != id);
            if batch.plan.chunks.len() < num_chunks {
                batch.stale.push(id);
            }
        }
    }

    fn collect(&mut self, now: Time) {
        self.end_fetches(now);
        // Also with nothing in flight: an executor may be lost at any time.
        while self.dead.is_none() {
            match self.executor.collect(now) {
                Ok(Some(output)) => self.complete(output, now),
                Ok(None) => return,
                Err(error) => return self.fail(&error.to_string()),
            }
        }
    }

    /// Takes the output of the oldest batch. What it has for sequences that ended meanwhile is ignored.
    fn complete(&mut self, output: StepOutput, now: Time) {
        let Some(batch) = self.in_flight.pop_front() else { return };
        let began = batch.submitted.max(self.last_collected);
        self.fit.observe(&batch.load, now - began);
        self.last_collected = now;
        self.has_news = true;
        self.stats.num_steps += 1;
        self.planner.complete(&batch.plan.chunks);
        self.offer(&batch.plan.chunks);
        let (num_sampled, device_time) = (output.tokens.len(), output.device_time);
        for id in output.unsound {
            if !batch.stale.contains(&id) {
                self.give_up(id);
            }
        }
        for (id, lists) in output.prompt_logprobs {
            let chunk = batch.plan.chunks.iter().find(|chunk| chunk.seq == id);
            let seq = self.planner.sequence(id).zip(self.seqs.get_mut(&id));
            if let Some((chunk, (seq, state))) = chunk.zip(seq) {
                self.news.push((id, state.take_prompt_logprobs(seq, chunk.start, lists)));
            }
        }
        for sampled in output.tokens {
            if !batch.stale.contains(&sampled.seq) {
                self.take_token(sampled, (began, now));
            }
        }
        if let Some((observer, record)) =
            self.observer.as_mut().zip(batch.into_record(now, num_sampled, device_time))
        {
            observer.on_step(&record);
        }
    }

    /// Takes a token of a step that began and ended then.
    fn take_token(&mut self, sampled: SampledToken, (began, now): (Time, Time)) {
        let SampledToken { seq: id, token, logprobs } = sampled;
        let Some(seq) = self.planner.append_token(id, token) else { return };
        let Some(state) = self.seqs.get_mut(&id) else { return };
        self.stats.generation_tokens += 1;
        self.stats.prompt_tokens += if seq.output().len() == 1 { seq.prompt_len as u64 } else { 0 };
        let token = OutputToken { token, logprobs, at: now };
        let is_first = std::mem::take(&mut state.awaits_token);
        let Some(reason) = state.take_token(seq, &token, began) else {
            self.first_tokens.extend(is_first.then_some(id));
            self.news.push((id, News::Token(token)));
            return;
        };
        match self.depart(id, reason, now) {
            Some(departure) => self.news.push((id, News::HandOver(token, departure))),
            None => self.end(id, Some(token), reason, now),
        }
    }

    /// Ends a sequence, whose blocks are free from now on.
    fn end(&mut self, id: SeqId, last: Option<OutputToken>, reason: FinishReason, now: Time) {
        let Some(seq) = self.planner.finish(id) else { return };
        self.let_go(&seq);
        self.take_back(id);
        let Some(state) = self.seqs.get_mut(&id) else { return };
        self.num_finished += 1;
        self.news.push((id, News::Last(last, state.finish(&seq, reason, now))));
    }

    /// Ends a sequence that the model can't go on with; the others do.
    fn give_up(&mut self, id: SeqId) {
        let Some(seq) = self.planner.discard(id) else { return };
        tracing::warn!(seq = %id, "{UNSOUND}");
        self.let_go(&seq);
        self.take_back(id);
        if let Some(state) = self.seqs.remove(&id) {
            self.num_finished += 1;
            self.turn_away(id, None, &state.output, UNSOUND);
        }
    }

    /// Ends a sequence with an error that it would meet anywhere; `kv` is what another instance keeps for it.
    fn turn_away(&mut self, id: SeqId, kv: Option<&KvLease>, output: &OutputSender, reason: &str) {
        if let Some(membership) = &mut self.membership {
            if let Some(lease) = kv {
                membership.peers.release(lease);
            }
            membership.peers.ended(id);
        }
        output.fail(reason);
    }

    /// Plans and submits until the executor has all the batches that it takes, or there is nothing to compute.
    fn schedule(&mut self, now: Time) {
        self.start_fetches(now);
        while self.in_flight.len() < self.executor.max_in_flight() {
            let plan = self.planner.schedule(now);
            self.note_preemptions(&plan);
            if plan.is_empty() {
                break;
            }
            let id = BatchId(self.next_batch);
            self.next_batch += 1;
            let batch = self.builder.build(id, &plan, &self.planner, &self.seqs);
            let predicted = self.executor.predict(&batch);
            self.executor.submit(batch, now);
            let observed = self.observer.is_some().then(|| observe(&plan, &self.planner));
            self.in_flight.push_back(InFlight::new(id, plan, (now, predicted), observed));
        }
        let waits = self.planner.is_idle() || self.planner.awaits_others();
        if self.in_flight.is_empty() && !waits {
            let load = self.planner.load();
            self.fail(&format!(
                "scheduler `{}` plans nothing, with nothing in flight, {} sequences running and {} waiting",
                self.info.scheduler, load.num_running, load.num_waiting
            ));
        }
    }

    /// Before a batch is submitted that may write into the blocks that were given up.
    fn note_preemptions(&mut self, plan: &Plan) {
        for id in &plan.preempted {
            self.take_back(*id);
            let Some(seq) = self.planner.sequence(*id) else { continue };
            let (num_tokens, num_preemptions) = (seq.tokens.len(), seq.num_preemptions);
            tracing::debug!(seq = %id, num_tokens, num_preemptions, "preempted for want of blocks");
        }
    }

    fn emit(&mut self) {
        let mut all_news = std::mem::take(&mut self.news);
        for (id, news) in all_news.drain(..) {
            let Some(state) = self.seqs.get_mut(&id) else { continue };
            match state.emit(news, &mut self.bell) {
                After::GoesOn => {}
                After::Leaves(departure) => self.leave(*departure),
                After::Ended => {
                    self.seqs.remove(&id);
                    if let Some(membership) = &mut self.membership {
                        membership.peers.ended(id);
                    }
                }
            }
        }
        debug_assert!(self.news.is_empty(), "nobody has news while they are passed on");
        // Its memory serves the next step.
        self.news = all_news;
        if let Some(membership) = &mut self.membership {
            membership.peers.told_all();
        }
        self.bell.ring();
    }

    fn wake(&self) -> Wake {
        let lease_ends = self.leases.values().min().copied();
        let is_busy = !self.in_flight.is_empty() || self.planner.awaits_fetches();
        match (is_busy, self.executor.ready_at(), lease_ends) {
            (true, Some(ready), Some(ends)) => Wake::At(ready.min(ends)),
            (true, Some(ready), None) => Wake::At(ready),
            (true, None, _) => Wake::Output,
            (false, _, Some(ends)) => Wake::At(ends),
            (false, _, None) => Wake::Idle,
        }
    }

    /// Ends every sequence with an error, because the engine is lost; it takes no more. What was in flight is forgotten.
    pub fn fail(&mut self, reason: &str) {
        if self.dead.is_none() {
            tracing::error!(reason, "the engine is lost");
        }
        self.shut_down(reason);
    }

    /// Does the same where nothing is wrong: the process has no more use for the engine.
    pub(crate) fn shut_down(&mut self, reason: &str) {
        self.dead = Some(reason.to_owned());
        self.in_flight.clear();
        // Readers get all tokens that others are to go on from.
        self.emit();
        for (id, state) in std::mem::take(&mut self.seqs) {
            let seq = self.planner.abort(id);
            match (seq, &mut self.membership) {
                (Some(seq), Some(membership)) => {
                    if let Some(lease) = &seq.kv {
                        membership.peers.release(lease);
                    }
                    membership.peers.take(state.hand_over(seq, None), Some(reason));
                }
                _ => state.output.fail(reason),
            }
        }
        self.refresh_stats();
    }

    /// Checks the books when the engine falls idle and nobody waits for it, but not all the time: a check looks at every block.
    fn check_when_idle(&mut self, now: Time) {
        let is_idle = self.planner.is_idle() && self.in_flight.is_empty();
        let is_due = self.checked.is_none_or(|last| now - last >= CHECK_EVERY);
        if is_idle && !self.was_idle && is_due {
            self.checked = Some(now);
            if let Err(error) = self.planner.check_integrity() {
                self.fail(&format!("the KV cache's books disagree: {error}"));
            }
        }
        self.was_idle = is_idle;
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

    /// Sets who is woken when an output is there to be collected.
    pub fn set_waker(&mut self, waker: Waker) {
        self.executor.set_waker(waker);
    }

    /// Returns what does not change while the engine runs.
    #[must_use]
    pub const fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Returns the counters and gauges as of the last step.
    #[must_use]
    pub const fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Returns which prompts it takes.
    #[must_use]
    pub fn limits(&self) -> PromptLimits {
        PromptLimits {
            max_model_len: self.info.max_model_len,
            vocab_size: self.executor.vocab_size(),
        }
    }

    /// Returns how many sequences have ended, ever.
    #[must_use]
    pub const fn num_finished(&self) -> u64 {
        self.num_finished
    }

    /// Returns since when the device has worked on the oldest batch in flight, and about how long that takes.
    #[must_use]
    pub fn current_step(&self) -> Option<(Time, Duration)> {
        let oldest = self.in_flight.front()?;
        Some((oldest.submitted.max(self.last_collected), oldest.predicted))
    }

    /// Returns why the engine is lost, if it is.
    #[must_use]
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// Checks the planner's bookkeeping.
    ///
    /// # Errors
    /// What disagrees, in words.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.planner.check_integrity()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.info).finish_non_exhaustive()
    }
}
