//! The sequences, and who waits and who runs, in order.

use std::collections::VecDeque;

use stallfree_core::{SeqId, SeqMap, Time};
use stallfree_kvcache::BlockTable;

use crate::{Ordering, Sequence, Status};

/// Where a sequence lies; indexing by it instead of by [`SeqId`] keeps hashing out of the planning loop.
pub(crate) type Slot = u32;

/// A sequence with what only the planner needs of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: Sequence,
    pub(crate) table: BlockTable,
    /// The step that last planned it.
    pub(crate) planned_in: u64,
}

/// All sequences. Both queues are always sorted, so that the last to have come is the first to go, and a preempted sequence
/// finds its old place.
#[derive(Debug)]
pub(crate) struct Queues {
    ordering: Ordering,
    entries: Vec<Option<Entry>>,
    vacant: Vec<Slot>,
    by_id: SeqMap<Slot>,
    pub(crate) running: Vec<Slot>,
    pub(crate) waiting: VecDeque<Slot>,
    /// Sequences whose KV is elsewhere, as long as there is no room for it.
    pub(crate) remote: VecDeque<Slot>,
    /// How many sequences wait for KV that is being fetched; they are in no queue.
    pub(crate) num_fetching: usize,
}

impl Queues {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self {
            ordering,
            entries: Vec::new(),
            vacant: Vec::new(),
            by_id: SeqMap::default(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            remote: VecDeque::new(),
            num_fetching: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn find(&self, id: SeqId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn get(&self, id: SeqId) -> Option<&Entry> {
        self.find(id).map(|slot| self.at(slot))
    }

    pub(crate) fn at(&self, slot: Slot) -> &Entry {
        self.entries[slot as usize].as_ref().expect("invariant: queues hold occupied slots")
    }

    pub(crate) fn at_mut(&mut self, slot: Slot) -> &mut Entry {
        self.entries[slot as usize].as_mut().expect("invariant: queues hold occupied slots")
    }

    /// Lets a sequence wait: for its turn, or for room for its KV.
    pub(crate) fn add(&mut self, mut seq: Sequence) {
        let id = seq.id;
        let is_remote = seq.kv.is_some();
        seq.status = if is_remote { Status::Remote } else { Status::Waiting };
        let entry = Entry { seq, table: BlockTable::default(), planned_in: 0 };
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as Slot
        });
        self.entries[slot as usize] = Some(entry);
        self.by_id.insert(id, slot);
        if is_remote {
            let place = self.key(slot);
            let at = self.remote.partition_point(|&other| self.key(other) < place);
            self.remote.insert(at, slot);
        } else {
            self.wait(slot);
        }
    }

    /// Takes a sequence out of its queue and away.
    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Entry> {
        let slot = self.find(id)?;
        let place = self.key(slot);
        match self.at(slot).seq.status {
            Status::Running => {
                let index = self.running.partition_point(|&other| self.key(other) < place);
                self.running.remove(index);
            }
            Status::Waiting | Status::Preempted => {
                let index = self.waiting.partition_point(|&other| self.key(other) < place);
                self.waiting.remove(index);
            }
            Status::Remote => {
                let index = self.remote.partition_point(|&other| self.key(other) < place);
                self.remote.remove(index);
            }
            Status::Fetching => self.num_fetching -= 1,
        }
        self.by_id.remove(&id);
        self.vacant.push(slot);
        self.entries[slot as usize].take()
    }

    /// Moves the waiting sequence at `index` to the running ones.
    pub(crate) fn run(&mut self, index: usize) {
        if let Some(slot) = self.waiting.remove(index) {
            self.start(slot);
        }
    }

    /// Lets a sequence whose KV is elsewhere fetch it.
    pub(crate) fn fetch(&mut self, slot: Slot, now: Time) {
        self.remote.retain(|&other| other != slot);
        let seq = &mut self.at_mut(slot).seq;
        seq.status = Status::Fetching;
        seq.scheduled = seq.scheduled.or(Some(now));
        self.num_fetching += 1;
    }

    /// Lets a sequence whose KV is elsewhere wait to be computed.
    pub(crate) fn give_up_fetch(&mut self, slot: Slot) {
        self.remote.retain(|&other| other != slot);
        self.at_mut(slot).seq.status = Status::Preempted;
        self.wait(slot);
    }

    /// Lets a sequence that was fetching run, or wait if its KV did not come.
    pub(crate) fn end_fetch(&mut self, slot: Slot, runs: bool) {
        self.num_fetching -= 1;
        self.at_mut(slot).seq.kv = None;
        if runs {
            self.start(slot);
        } else {
            self.at_mut(slot).seq.status = Status::Preempted;
            self.wait(slot);
        }
    }

    fn start(&mut self, slot: Slot) {
        self.at_mut(slot).seq.status = Status::Running;
        let place = self.key(slot);
        let is_last = self.running.last().is_none_or(|&last| self.key(last) < place);
        if is_last {
            self.running.push(slot);
        } else {
            let at = self.running.partition_point(|&other| self.key(other) < place);
            self.running.insert(at, slot);
        }
    }

    /// Moves the running sequence at `index` back to the waiting ones.
    pub(crate) fn preempt(&mut self, index: usize) -> Slot {
        let slot = self.running.remove(index);
        self.at_mut(slot).seq.status = Status::Preempted;
        self.wait(slot);
        slot
    }

    fn wait(&mut self, slot: Slot) {
        let place = self.key(slot);
        let is_last = self.waiting.back().is_none_or(|&last| self.key(last) < place);
        if is_last {
            self.waiting.push_back(slot);
        } else {
            let at = self.waiting.partition_point(|&other| self.key(other) < place);
            self.waiting.insert(at, slot);
        }
    }

    /// Returns a sequence's place among all.
    fn key(&self, slot: Slot) -> (i64, Time, SeqId) {
        let seq = &self.at(slot).seq;
        (self.ordering.rank(&seq.standing()), seq.arrived, seq.id)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        self.entries.iter().flatten().map(|entry| &entry.table)
    }

    /// Checks that each sequence is in the queue that it says it is in, and that queues are sorted.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let waiting: Vec<Slot> = self.waiting.iter().copied().collect();
        let remote: Vec<Slot> = self.remote.iter().copied().collect();
        for (name, queue) in
            [("running", &self.running), ("waiting", &waiting), ("remote", &remote)]
        {
            if !queue.is_sorted_by(|&a, &b| self.key(a) < self.key(b)) {
                return Err(format!("the {name} sequences are out of order"));
            }
            for &slot in queue {
                let Entry { seq, table, .. } = self.at(slot);
                let id = seq.id;
                if self.find(id) != Some(slot) {
                    return Err(format!("sequence {id} is queued, but not known"));
                }
                let belongs = match seq.status {
                    Status::Running => "running",
                    Status::Waiting | Status::Preempted => "waiting",
                    Status::Remote => "remote",
                    Status::Fetching => "fetching",
                };
                if belongs != name {
                    return Err(format!(
                        "sequence {id} is {:?}, but among the {name} ones",
                        seq.status
                    ));
                }
                if name != "running" && (table.num_blocks() > 0 || seq.num_computed_tokens > 0) {
                    return Err(format!("sequence {id} waits with {} blocks", table.num_blocks()));
                }
            }
        }
        let num_queued =
            self.running.len() + self.waiting.len() + self.remote.len() + self.num_fetching;
        let num_entries = self.entries.iter().flatten().count();
        if num_queued != self.by_id.len() || num_entries != num_queued {
            return Err(format!(
                "{num_queued} sequences are queued, {} known, {num_entries} kept",
                self.by_id.len()
            ));
        }
        Ok(())
    }
}
