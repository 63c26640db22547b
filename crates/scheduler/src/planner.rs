//! Keeps the queues, the sequences and their blocks, and asks the policy for the next step.
//!
//! It knows neither the device nor what tokens mean: the engine tells it what was sampled and which sequences are done.
//! Policies are in `policy/`.

use std::hash::{BuildHasher, Hasher, RandomState};

use stallfree_core::{BlockId, KvGeometry, SeqId, Time, TokenId};
use stallfree_kvcache::KvCacheManager;

use crate::queues::{Entry, Queues};
use crate::step::State;
use crate::transfers::Reserved;
use crate::{
    Admission, Declaration, Error, Load, Plan, PlannedChunk, Registry, Scheduler, SchedulerConfig,
    Sequence, Step,
};

/// Plans steps: the part of scheduling that all policies share.
///
/// For each batch, in this order: [`schedule`](Self::schedule) plans it; when its output is there,
/// [`complete`](Self::complete), then for each chunk that samples [`append_token`](Self::append_token) and, if that ended the
/// sequence, [`finish`](Self::finish). A sequence may end or be aborted while batches in flight contain it: its
/// blocks are free at once, since a later batch that takes them is computed later, and what still comes for it is ignored.
#[derive(Debug)]
pub struct Planner {
    pub(crate) state: State,
    scheduler: Box<dyn Scheduler>,
    declaration: Declaration,
    num_in_flight: usize,
}

impl Planner {
    /// Makes a planner with a policy of this crate.
    ///
    /// # Errors
    /// The policy or one of its settings is unknown, or a limit does not work.
    pub fn new(
        config: SchedulerConfig,
        geometry: KvGeometry,
        policy_name: &str,
    ) -> Result<Self, Error> {
        let scheduler = Registry::default().build(policy_name, &config)?;
        Self::with_scheduler(config, geometry, scheduler)
    }

    /// Makes a planner with any policy.
    ///
    /// # Errors
    /// A limit does not work.
    pub fn with_scheduler(
        config: SchedulerConfig,
        geometry: KvGeometry,
        scheduler: Box<dyn Scheduler>,
    ) -> Result<Self, Error> {
        config.check(geometry)?;
        let declaration = scheduler.declares();
        let grows = matches!(declaration.admission, Admission::ThisChunk | Admission::WholePrompt);
        let share = if grows { config.watermark.clamp(0.0, 1.0) } else { 0.0 };
        let seed = RandomState::new().build_hasher().finish();
        let state = State {
            admission: declaration.admission,
            queues: Queues::new(config.ordering),
            kv: KvCacheManager::new(geometry, config.enable_prefix_caching, seed),
            watermark: (share * geometry.num_blocks as f64) as usize,
            reserved: Reserved::default(),
            step: 0,
            load: Load::default(),
            config,
        };
        Ok(Self { state, scheduler, declaration, num_in_flight: 0 })
    }

    /// Returns what the policy keeps to.
    #[must_use]
    pub const fn declaration(&self) -> Declaration {
        self.declaration
    }

    /// Returns the limits.
    #[must_use]
    pub const fn config(&self) -> &SchedulerConfig {
        &self.state.config
    }

    /// Lets a sequence wait for its turn. Its `max_total_len` is cut to `max_model_len`. One with the same number, if there
    /// is one, is aborted.
    ///
    /// # Errors
    /// It has no tokens, or no room for another.
    pub fn add(&mut self, mut seq: Sequence) -> Result<(), Error> {
        let (len, max_model_len) = (seq.tokens.len(), self.state.config.max_model_len);
        if len == 0 || len >= max_model_len {
            return Err(Error::BadLength { len, max_model_len });
        }
        seq.max_total_len = seq.max_total_len.clamp(len + 1, max_model_len);
        self.remove(seq.id);
        if seq.kv.is_none() {
            self.retract(seq.id);
        }
        self.state.queues.add(seq);
        Ok(())
    }

    /// Takes a sequence away, wherever it is; `None` if it is not here (any more).
    pub fn abort(&mut self, id: SeqId) -> Option<Sequence> {
        self.remove(id)
    }

    /// Takes a sequence away that has all its tokens; what it computed stays in the prefix cache while there is room.
    pub fn finish(&mut self, id: SeqId) -> Option<Sequence> {
        self.remove(id)
    }

    /// Takes a sequence away whose KV may be unsound: nobody finds it in the prefix cache.
    pub fn discard(&mut self, id: SeqId) -> Option<Sequence> {
        let slot = self.state.queues.find(id)?;
        let Entry { seq, table, .. } = self.state.queues.at_mut(slot);
        self.state.kv.forget(table, &seq.tokens);
        self.remove(id)
    }

    fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let Entry { seq, table, .. } = self.state.queues.remove(id)?;
        self.free(&seq, table);
        Some(seq)
    }

    /// Plans the next step; its tokens count as computed from now on. The plan is empty if nothing can be done, or as
    /// many batches are in flight as may be.
    pub fn schedule(&mut self, now: Time) -> Plan {
        if self.num_in_flight >= self.state.config.max_in_flight || self.state.queues.is_empty() {
            return Plan::default();
        }
        let mut step = Step::new(&mut self.state, now);
        step.yield_to_priority();
        self.scheduler.schedule(&mut step);
        let plan = step.plan;
        self.num_in_flight += usize::from(!plan.is_empty());
        plan
    }

    /// Takes note that a planned batch was computed; `chunks` are its plan's, without those of sequences that have left and come back
    /// since.
    pub fn complete(&mut self, chunks: &[PlannedChunk]) {
        self.num_in_flight = self.num_in_flight.saturating_sub(1);
        for chunk in chunks {
            if let Some(slot) = self.state.queues.find(chunk.seq) {
                let seq = &mut self.state.queues.at_mut(slot).seq;
                seq.in_flight = seq.in_flight.saturating_sub(1);
            }
        }
    }

    /// Takes note of the token that was sampled for a sequence. Returns the sequence; `None` if it is gone.
    pub fn append_token(&mut self, id: SeqId, token: TokenId) -> Option<&Sequence> {
        let slot = self.state.queues.find(id)?;
        let Entry { seq, table, .. } = self.state.queues.at_mut(slot);
        seq.tokens.push(token);
        seq.num_pending = seq.num_pending.saturating_sub(1);
        self.state.kv.index(table, &seq.tokens, seq.num_computed_tokens);
        Some(seq)
    }

    /// Returns a sequence.
    #[must_use]
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.state.queues.get(id).map(|entry| &entry.seq)
    }

    /// Returns a sequence's blocks, which cover all its planned tokens and perhaps more; none if it waits or is gone.
    #[must_use]
    pub fn block_table(&self, id: SeqId) -> &[BlockId] {
        self.with_blocks(id).map_or(&[], |(_, blocks)| blocks)
    }

    /// Returns a sequence with its [`block_table`](Self::block_table), found at once.
    #[must_use]
    pub fn with_blocks(&self, id: SeqId) -> Option<(&Sequence, &[BlockId])> {
        self.state.queues.get(id).map(|entry| (&entry.seq, entry.table.blocks()))
    }

    /// Returns how busy the planner is.
    #[must_use]
    pub fn load(&self) -> Load {
        let State { queues, kv, load, .. } = &self.state;
        Load {
            num_running: queues.running.len() + queues.num_fetching,
            num_waiting: queues.waiting.len() + queues.remote.len(),
            num_used_blocks: kv.num_blocks() - kv.num_free_blocks(),
            num_blocks: kv.num_blocks(),
            ..*load
        }
    }

    /// Returns whether there is no sequence.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.queues.is_empty()
    }

    /// Checks queues, tables and cache against each other; takes time in proportion to all of them.
    ///
    /// # Errors
    /// What disagrees, in words.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.state.queues.check_integrity()?;
        let tables = self.state.queues.tables().chain(self.state.reserved.tables());
        self.state.kv.check_integrity(tables)
    }
}
