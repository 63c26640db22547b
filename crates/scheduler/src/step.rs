//! The verbs with which a policy plans a step.

use std::collections::HashMap;

use stallfree_core::{BlockId, Time};
use stallfree_kvcache::KvCacheManager;

use crate::queues::{Entry, Queues, Slot};
use crate::transfers::Reserved;
use crate::{Admission, Load, Ordering, Plan, PlannedChunk, SchedulerConfig, Sequence};

/// A step in the making.
///
/// Sequences are named by their place: `running(0)` came first, `waiting(0)` is to be admitted first. Whatever a policy does,
/// a sequence is in a step at most once, blocks suffice for every chunk, and a sequence that the step contains is not
/// preempted any more.
#[derive(Debug)]
pub struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) now: Time,
    pub(crate) plan: Plan,
    num_tokens: usize,
    out_of_blocks: bool,
}

/// What lasts from step to step, but for the policy.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: SchedulerConfig,
    pub(crate) admission: Admission,
    pub(crate) queues: Queues,
    pub(crate) kv: KvCacheManager,
    pub(crate) reserved: Reserved,
    /// Blocks that admission leaves free.
    pub(crate) watermark: usize,
    /// The number of the step in the making, or of the last one.
    pub(crate) step: u64,
    /// Counters; the gauges are filled in when asked for.
    pub(crate) load: Load,
}

impl State {
    /// Returns how many seats are taken: by who runs, and by those whose KV is on its way.
    pub(crate) const fn num_active(&self) -> usize {
        self.queues.running.len() + self.queues.num_fetching + self.reserved.num_expected
    }
}

impl<'a> Step<'a> {
    pub(crate) fn new(state: &'a mut State, now: Time) -> Self {
        state.step += 1;
        let plan =
            Plan { chunks: Vec::with_capacity(state.queues.running.len()), ..Plan::default() };
        Self { state, now, plan, num_tokens: 0, out_of_blocks: false }
    }

    /// Returns the moment for which this step is planned.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Returns how many tokens the step has so far.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Returns whether nothing is scheduled so far.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.plan.chunks.is_empty()
    }

    /// Returns how many sequences run.
    #[must_use]
    pub const fn num_running(&self) -> usize {
        self.state.queues.running.len()
    }

    /// Returns how many sequences wait.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.state.queues.waiting.len()
    }

    /// Returns the `index`-th running sequence.
    #[must_use]
    pub fn running(&self, index: usize) -> Option<&Sequence> {
        let slot = *self.state.queues.running.get(index)?;
        Some(&self.state.queues.at(slot).seq)
    }

    /// Returns the `index`-th waiting sequence.
    #[must_use]
    pub fn waiting(&self, index: usize) -> Option<&Sequence> {
        let slot = *self.state.queues.waiting.get(index)?;
        Some(&self.state.queues.at(slot).seq)
    }

    /// Returns how many tokens of the `index`-th running sequence can be scheduled: 1 if it decodes, more if it prefills, 0 if it is
    /// in this step already or waits for its token from a batch in flight.
    #[must_use]
    pub fn work(&self, index: usize) -> usize {
        let Some(&slot) = self.state.queues.running.get(index) else { return 0 };
        self.work_of(self.state.queues.at(slot))
    }

    fn work_of(&self, entry: &Entry) -> usize {
        let awaits = entry.seq.num_pending > 0 && !self.state.config.decode_pending;
        if awaits || entry.planned_in == self.state.step { 0 } else { entry.seq.num_uncomputed() }
    }

    /// Schedules the next `num_tokens` tokens (or as many as there are) of the `index`-th running sequence.
    ///
    /// While there are too few blocks, it preempts the last running sequence that is not in this step, down to the
    /// `index`-th itself: then it returns `false`, and every later sequence is either in this step or preempted.
    pub fn run(&mut self, index: usize, num_tokens: usize) -> bool {
        let Some(&slot) = self.state.queues.running.get(index) else { return false };
        let num_tokens = num_tokens.min(self.work(index));
        if num_tokens == 0 {
            return true;
        }
        loop {
            let entry = self.state.queues.at_mut(slot);
            let end = entry.seq.num_computed_tokens + num_tokens;
            if self.state.kv.allocate(&mut entry.table, end) {
                self.commit(slot, num_tokens);
                return true;
            }
            self.out_of_blocks = true;
            let victim = self.last_unplanned().unwrap_or(index).max(index);
            self.preempt(victim);
            if victim == index {
                return false;
            }
        }
    }

    /// Returns whether any sequence may be admitted: there is a seat, and no sequence of this step lacked blocks. (What was
    /// just preempted would be admitted first, to be recomputed and preempted again.)
    #[must_use]
    pub fn may_admit(&self) -> bool {
        self.state.num_active() < self.state.config.max_num_seqs && !self.out_of_blocks
    }

    /// Returns how many tokens of the `index`-th waiting sequence would have to be computed, the cached prefix left out; `None` if
    /// there is no such sequence, or it may not be admitted in this step.
    #[must_use]
    pub fn uncached(&mut self, index: usize) -> Option<usize> {
        let slot = self.admissible(index)?;
        let Entry { seq, table, .. } = self.state.queues.at_mut(slot);
        let share = seq.reads_prefix_cache;
        let cached = if share { self.state.kv.find_prefix(table, &seq.tokens) } else { 0 };
        Some(seq.num_tokens() - cached)
    }

    /// Lets the `index`-th waiting sequence run and schedules its first `limit` uncached tokens (or as many as there are).
    ///
    /// Returns how many tokens that is; `None`, with nothing changed, if the sequence cannot be admitted: no seat, no token, or
    /// not the blocks that the policy declares and the watermark above them.
    pub fn admit(&mut self, index: usize, limit: usize) -> Option<usize> {
        let slot = self.admissible(index).filter(|_| limit > 0)?;
        let reserve = if self.num_running() == 0 { 0 } else { self.state.watermark };
        let (admission, max_model_len) = (self.state.admission, self.state.config.max_model_len);
        let Entry { seq, table, .. } = self.state.queues.at_mut(slot);
        let num_tokens = seq.num_tokens();
        let room = |cached: usize| match admission {
            Admission::ThisChunk => num_tokens.min(limit.saturating_add(cached)),
            Admission::WholePrompt => num_tokens,
            Admission::MaxTokens => seq.max_total_len,
            Admission::MaxModelLen => max_model_len,
        };
        let share = seq.reads_prefix_cache;
        let cached = self.state.kv.start(table, &seq.tokens, share, room, reserve)?;
        seq.num_computed_tokens = cached;
        if seq.scheduled.is_none() {
            seq.scheduled = Some(self.now);
            seq.num_cached_tokens = cached;
            self.state.load.prefix_cache_queries += num_tokens as u64;
            self.state.load.prefix_cache_hits += cached as u64;
            self.plan.admitted.push(seq.id);
        }
        self.state.queues.run(index);
        let num_tokens = limit.min(num_tokens - cached);
        self.commit(slot, num_tokens);
        Some(num_tokens)
    }

    fn admissible(&self, index: usize) -> Option<Slot> {
        let slot = *self.state.queues.waiting.get(index).filter(|_| self.may_admit())?;
        // A preempted sequence's newest token may still be in flight; it must be known before it can be recomputed.
        (self.state.queues.at(slot).seq.num_pending == 0).then_some(slot)
    }

    /// Preempts running sequences for which a waiting one of strictly lower priority value has no seat or no blocks.
    pub(crate) fn yield_to_priority(&mut self) {
        let never_preempts =
            matches!(self.state.admission, Admission::MaxTokens | Admission::MaxModelLen);
        if self.state.config.ordering != Ordering::Priority || never_preempts {
            return;
        }
        for _ in 0..self.num_to_yield() {
            self.preempt(self.num_running() - 1);
        }
    }

    /// Returns how many of the last running sequences have to go before the first waiting one has its seat and blocks; none if
    /// it is there already, or if not even all of strictly lower priority would do.
    fn num_to_yield(&mut self) -> usize {
        let State { config, admission, queues, kv, .. } = &mut *self.state;
        let Some(&slot) = queues.waiting.front() else { return 0 };
        let Entry { seq, table, .. } = queues.at_mut(slot);
        if seq.num_pending > 0 {
            return 0;
        }
        let share = seq.reads_prefix_cache;
        let mut prefix = if share { kv.prefix_blocks(table, &seq.tokens) } else { Vec::new() };
        let num_tokens = match admission {
            Admission::ThisChunk => {
                let cached = prefix.len() * kv.block_size();
                seq.num_tokens().min(config.max_num_batched_tokens + cached)
            }
            _ => seq.num_tokens(),
        };
        let priority = seq.priority;
        let num_held = prefix.iter().filter(|&&block| kv.num_users(block) > 0).count();
        let needed = kv.blocks_for(num_tokens).saturating_sub(num_held);
        prefix.sort_unstable();
        let num_seats = config.max_num_seqs.saturating_sub(self.state.num_active());
        let State { queues, kv, .. } = &*self.state;
        let mut num_blocks = kv.num_free_blocks();
        let lower = queues.running.iter().rev().map(|&slot| queues.at(slot));
        let mut lower = lower.take_while(|entry| priority < entry.seq.priority);
        // Most often it is plain that they would not do.
        let most = lower.clone().map(|entry| entry.table.num_blocks()).sum::<usize>();
        if needed > num_blocks + most {
            return 0;
        }
        // How many still hold a block once the victims are gone. What the waiting one shares is never free for anything else.
        let mut users: HashMap<BlockId, usize> = HashMap::new();
        for num_victims in 0..=queues.running.len() {
            let reserve =
                if num_victims == queues.running.len() { 0 } else { self.state.watermark };
            if num_seats + num_victims > 0 && needed + reserve <= num_blocks {
                return num_victims;
            }
            let Some(victim) = lower.next() else { return 0 };
            for &block in victim.table.blocks() {
                let left = users.entry(block).or_insert_with(|| {
                    let stays = prefix.binary_search(&block).is_ok();
                    if stays { usize::MAX } else { kv.num_users(block) }
                });
                *left -= 1;
                num_blocks += usize::from(*left == 0);
            }
        }
        0
    }

    /// Returns the place of the last running sequence that is not in this step.
    fn last_unplanned(&self) -> Option<usize> {
        let queues = &self.state.queues;
        queues.running.iter().rposition(|&slot| queues.at(slot).planned_in != self.state.step)
    }

    fn preempt(&mut self, index: usize) {
        let slot = self.state.queues.preempt(index);
        let Entry { seq, table, .. } = self.state.queues.at_mut(slot);
        seq.num_computed_tokens = 0;
        seq.num_preemptions += 1;
        self.plan.preempted.push(seq.id);
        self.state.kv.free(table);
        self.state.load.num_preemptions += 1;
    }

    /// Puts the next `num_tokens` tokens of a sequence, whose blocks are there, into the plan.
    ///
    /// Counting them as computed now, before they are, lets the next step be planned while this one runs.
    fn commit(&mut self, slot: Slot, num_tokens: usize) {
        let step = self.state.step;
        let entry = self.state.queues.at_mut(slot);
        entry.planned_in = step;
        let seq = &mut entry.seq;
        let start = seq.num_computed_tokens;
        let samples = start + num_tokens == seq.num_tokens();
        self.plan.chunks.push(PlannedChunk { seq: seq.id, start, num_tokens, samples });
        self.num_tokens += num_tokens;
        seq.num_computed_tokens += num_tokens;
        seq.num_pending += usize::from(samples);
        seq.in_flight += 1;
        self.state.kv.index(&mut entry.table, &entry.seq.tokens, entry.seq.num_computed_tokens);
    }
}
