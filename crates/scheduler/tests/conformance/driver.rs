//! Runs a planner without a device: tokens follow from a sequence and a position, and a model of the cache's content checks
//! every step.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use stallfree_core::{BlockId, KvGeometry, SeqId, Time, TokenId};
use stallfree_scheduler::{
    Admission, Ordering, Plan, PlannedChunk, Planner, SchedulerConfig, Sequence, Standing, Status,
};

/// A sequence to come.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// The step before which it arrives.
    pub(crate) step: usize,
    pub(crate) prompt_len: usize,
    pub(crate) max_tokens: usize,
    pub(crate) priority: i32,
    /// How many steps after its arrival its first token is due, if it matters.
    pub(crate) due: Option<usize>,
    /// The first step before which its client has left, if it does.
    pub(crate) leaves: Option<usize>,
    /// How many of its tokens it shares with all others.
    pub(crate) num_common: usize,
}

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepRecord {
    pub(crate) plan: Plan,
}

/// Where a token comes from: its position, and the sequence unless all sequences share it. Two tokens of the same origin have
/// the same origins before them, so an origin stands for a prefix.
type Origin = (usize, Option<SeqId>);

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) planner: Planner,
    geometry: KvGeometry,
    arrivals: Vec<Arrival>,
    in_flight: VecDeque<Vec<PlannedChunk>>,
    /// What the device has in each slot of the cache, all batches in flight computed.
    slots: Vec<Option<Origin>>,
    /// How many tokens of each sequence are computed, by the plans.
    computed: BTreeMap<SeqId, usize>,
    pub(crate) finished: BTreeMap<SeqId, Sequence>,
    pub(crate) admitted: Vec<SeqId>,
    step: usize,
}

impl Driver {
    pub(crate) fn new(planner: Planner, geometry: KvGeometry, arrivals: &[Arrival]) -> Self {
        Self {
            planner,
            geometry,
            arrivals: arrivals.to_vec(),
            in_flight: VecDeque::new(),
            slots: vec![None; geometry.num_tokens()],
            computed: BTreeMap::new(),
            finished: BTreeMap::new(),
            admitted: Vec::new(),
            step: 0,
        }
    }

    /// Runs until nothing is left to do; panics if that takes more than `most` steps.
    pub(crate) fn drain(&mut self, most: usize) -> Vec<StepRecord> {
        let last = self.arrivals.iter().map(|arrival| arrival.step).max().unwrap_or(0);
        let mut steps = Vec::new();
        while self.step <= last || !self.planner.is_idle() || !self.in_flight.is_empty() {
            assert!(self.step < most, "not drained after {most} steps: {:?}", self.planner.load());
            steps.push(self.step());
        }
        let load = self.planner.load();
        assert_eq!((load.num_used_blocks, load.num_running, load.num_waiting), (0, 0, 0));
        steps
    }

    /// Lets arrive who arrives, plans a step, and completes the oldest batch once no more can be in flight.
    pub(crate) fn step(&mut self) -> StepRecord {
        self.arrive_and_leave();
        let now = Time::from_start(Duration::from_millis(self.step as u64));
        let before = self.in_flight.len();
        let plan = self.planner.schedule(now);
        self.check_integrity();
        for seq in &plan.preempted {
            self.computed.remove(seq);
        }
        if plan.is_empty() {
            assert!(before > 0 || self.planner.is_idle(), "nothing planned: {:?}", self.planner);
        } else {
            self.check_plan(&plan);
            self.in_flight.push_back(plan.chunks.clone());
        }
        self.admitted.extend(&plan.admitted);
        if plan.is_empty() || self.in_flight.len() >= self.planner.config().max_in_flight {
            self.complete();
        }
        self.step += 1;
        StepRecord { plan }
    }

    fn arrive_and_leave(&mut self) {
        for (index, arrival) in self.arrivals.iter().enumerate() {
            let id = SeqId(index as u64);
            if arrival.step == self.step {
                let prompt = (0..arrival.prompt_len).map(|at| self.token(id, at)).collect();
                let arrived = Time::from_start(Duration::from_millis(self.step as u64));
                let len = arrival.prompt_len + arrival.max_tokens;
                let mut seq = Sequence::new(id, prompt, len, arrival.priority, arrived);
                let standing = standing(arrival);
                (seq.deadline, seq.prefill_time) = (standing.deadline, standing.prefill_time);
                self.planner.add(seq).expect("a prompt that fits");
            }
            if arrival.leaves == Some(self.step) && arrival.step <= self.step {
                let left = self.planner.abort(id);
                assert_eq!(left.is_some(), !self.finished.contains_key(&id));
            }
        }
        self.check_integrity();
    }

    fn complete(&mut self) {
        let Some(chunks) = self.in_flight.pop_front() else { return };
        self.planner.complete(&chunks);
        for chunk in chunks.iter().filter(|chunk| chunk.samples) {
            let at = chunk.start + chunk.num_tokens;
            let token = self.token(chunk.seq, at);
            let Some(seq) = self.planner.append_token(chunk.seq, token) else { continue };
            assert_eq!(seq.tokens.len(), at + 1, "a token came out of order");
            if seq.tokens.len() == seq.max_total_len {
                let seq = self.planner.finish(chunk.seq).expect("it is here");
                self.finished.insert(chunk.seq, seq);
            }
            self.check_integrity();
        }
    }

    fn check_integrity(&self) {
        self.planner.check_integrity().expect("everything agrees");
    }

    fn origin(&self, seq: SeqId, position: usize) -> Origin {
        let common = self.arrivals[seq.0 as usize].num_common;
        (position, (position >= common).then_some(seq))
    }

    /// Returns the token at a position of a sequence, of the prompt or to be sampled; distinct for distinct origins.
    pub(crate) fn token(&self, seq: SeqId, position: usize) -> TokenId {
        let (position, seq) = self.origin(seq, position);
        (position * 1000) as TokenId + seq.map_or(0, |seq| seq.0 as TokenId + 1)
    }

    fn check_plan(&mut self, plan: &Plan) {
        let declared = self.planner.declaration();
        let config = self.planner.config();
        assert!(declared.token_bound.is_none_or(|bound| plan.num_tokens() <= bound));
        assert!(self.planner.load().num_running <= config.max_num_seqs);
        let mut seen = HashSet::new();
        for chunk in &plan.chunks {
            assert!(seen.insert(chunk.seq), "{} is in the step twice", chunk.seq);
            self.check_chunk(chunk, config);
        }
        // Within a batch a layer's KV is written before it is read.
        for chunk in &plan.chunks {
            self.write(chunk);
        }
        for chunk in &plan.chunks {
            self.check_content(chunk);
        }
    }

    fn check_chunk(&self, chunk: &PlannedChunk, config: &SchedulerConfig) {
        let seq = self.planner.sequence(chunk.seq).expect("planned sequences are here");
        let end = chunk.start + chunk.num_tokens;
        assert!(chunk.num_tokens > 0 && end < seq.max_total_len, "{chunk:?} of {seq:?}");
        assert_eq!((seq.status, seq.num_computed_tokens), (Status::Running, end));
        let len = seq.num_tokens() - usize::from(chunk.samples);
        assert_eq!(chunk.samples, end == len, "{chunk:?} of {seq:?}");
        if !config.decode_pending {
            assert_eq!(seq.num_pending, usize::from(chunk.samples));
        }
        let num_blocks = self.planner.block_table(chunk.seq).len();
        assert!(num_blocks * self.geometry.block_size >= end);
        match self.computed.get(&chunk.seq) {
            Some(&computed) => assert_eq!(chunk.start, computed),
            None => self.check_admission(chunk, seq, num_blocks),
        }
    }

    fn check_admission(&self, chunk: &PlannedChunk, seq: &Sequence, num_blocks: usize) {
        let config = self.planner.config();
        assert!(config.enable_prefix_caching || chunk.start == 0);
        let num_tokens = match self.planner.declaration().admission {
            Admission::ThisChunk => chunk.start + chunk.num_tokens,
            Admission::WholePrompt => seq.tokens.len(),
            Admission::MaxTokens => seq.max_total_len,
            Admission::MaxModelLen => config.max_model_len,
        };
        assert_eq!(num_blocks, num_tokens.div_ceil(self.geometry.block_size));
    }

    fn slot(&self, table: &[BlockId], position: usize) -> usize {
        let block = table[position / self.geometry.block_size];
        block.0 as usize * self.geometry.block_size + position % self.geometry.block_size
    }

    fn write(&mut self, chunk: &PlannedChunk) {
        let end = chunk.start + chunk.num_tokens;
        let table = self.planner.block_table(chunk.seq).to_vec();
        for position in chunk.start..end {
            let slot = self.slot(&table, position);
            self.slots[slot] = Some(self.origin(chunk.seq, position));
        }
        self.computed.insert(chunk.seq, end);
    }

    /// Checks that a chunk attends to its own sequence's KV and no other.
    fn check_content(&self, chunk: &PlannedChunk) {
        let table = self.planner.block_table(chunk.seq);
        for position in 0..chunk.start + chunk.num_tokens {
            let found = self.slots[self.slot(table, position)];
            assert_eq!(found, Some(self.origin(chunk.seq, position)), "{chunk:?} at {position}");
        }
    }
}

/// Returns what a sequence's place depends on; a prompt token is taken to take a third of a step.
fn standing(arrival: &Arrival) -> Standing {
    let ms = |count: usize| Duration::from_millis(count as u64);
    Standing {
        priority: arrival.priority,
        prompt_len: arrival.prompt_len,
        deadline: arrival.due.map(|after| Time::from_start(ms(arrival.step + after))),
        prefill_time: ms(arrival.prompt_len) / 3,
    }
}

/// Returns in which order sequences of `arrivals` that arrived together are to start.
pub(crate) fn in_order(arrivals: &[Arrival], ordering: Ordering) -> Vec<SeqId> {
    let mut ids: Vec<SeqId> = (0..arrivals.len() as u64).map(SeqId).collect();
    ids.sort_by_key(|id| {
        let arrival = &arrivals[id.0 as usize];
        (ordering.rank(&standing(arrival)), arrival.step, *id)
    });
    ids
}
