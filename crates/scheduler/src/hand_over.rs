//! Sequences that come from another instance, and those whose KV is kept for one.

use std::sync::Arc;

use stallfree_core::{BlockId, KvFetch, KvLease, SeqId, SeqMap, Time};
use stallfree_kvcache::BlockTable;

use crate::queues::Entry;
use crate::{Admission, Planner, Sequence, Status};

/// Blocks that no sequence here holds, but that must not be used for anything else.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// What is kept until others have fetched it.
    kept: SeqMap<BlockTable>,
    /// What a fetch still fills whose sequence is gone.
    landing: SeqMap<BlockTable>,
}

impl Reserved {
    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        self.kept.values().chain(self.landing.values())
    }

    /// Takes the blocks of a sequence that goes away while they are being filled.
    pub(crate) fn land(&mut self, id: SeqId, table: BlockTable) {
        self.landing.insert(id, table);
    }
}

impl Planner {
    /// Gives blocks to sequences whose KV is elsewhere, in their order and as the policy declares for an admission, while there
    /// are seats and blocks. The executor is to do what is returned and [`end_fetch`](Self::end_fetch) to be told of the end.
    pub fn start_fetches(&mut self, now: Time) -> Vec<KvFetch> {
        let state = &mut self.state;
        let mut fetches = Vec::new();
        while let Some(&slot) = state.queues.remote.front() {
            let num_active = state.queues.running.len() + state.queues.num_fetching;
            if num_active >= state.config.max_num_seqs {
                break;
            }
            let reserve = if num_active == 0 { 0 } else { state.watermark };
            let Entry { seq, table, .. } = state.queues.at_mut(slot);
            let Some(lease) = seq.kv.clone() else { break };
            let room = match state.admission {
                Admission::ThisChunk => lease.num_tokens,
                Admission::WholePrompt => seq.tokens.len(),
                Admission::MaxTokens => seq.max_total_len,
                Admission::MaxModelLen => state.config.max_model_len,
            };
            // One more than there is KV for, so that all of it may be found here.
            let known = &seq.tokens[..seq.tokens.len().min(lease.num_tokens + 1)];
            let share = seq.reads_prefix_cache;
            let Some(cached) = state.kv.start(table, known, share, |_| room, reserve) else {
                break;
            };
            seq.scheduled = seq.scheduled.or(Some(now));
            let first = cached / state.kv.block_size();
            let blocks = table.blocks()[first..lease.blocks.len()].to_vec();
            fetches.push(KvFetch { seq: seq.id, lease, first, blocks });
            state.queues.fetch();
        }
        fetches
    }

    /// Takes note that a fetch has ended: the sequence runs from now on, or, if its KV did not `arrive`, waits to be computed.
    /// Returns the lease, which is of no more use; `None` if the sequence is gone.
    pub fn end_fetch(&mut self, id: SeqId, arrived: bool) -> Option<Arc<KvLease>> {
        let state = &mut self.state;
        if let Some(mut table) = state.reserved.landing.remove(&id) {
            state.kv.free(&mut table);
            return None;
        }
        let slot = state.queues.find(id)?;
        let Entry { seq, table, .. } = state.queues.at_mut(slot);
        if seq.status != Status::Fetching {
            return None;
        }
        let lease = seq.kv.clone();
        if arrived {
            seq.num_computed_tokens = lease.as_ref().map_or(0, |lease| lease.num_tokens);
            state.kv.index(table, &seq.tokens, seq.num_computed_tokens);
        } else {
            state.kv.free(table);
        }
        state.queues.end_fetch(slot, arrived);
        lease
    }

    /// Takes a sequence away, but keeps the blocks with its KV until [`release`](Self::release). Returns the sequence and these
    /// blocks.
    pub fn keep(&mut self, id: SeqId) -> Option<(Sequence, Vec<BlockId>)> {
        let Entry { seq, mut table, .. } = self.state.queues.remove(id)?;
        self.state.kv.shrink(&mut table, seq.num_computed_tokens);
        let blocks = table.blocks().to_vec();
        self.state.reserved.kept.insert(id, table);
        Some((seq, blocks))
    }

    /// Frees the blocks that were kept of a sequence; returns whether there were any.
    pub fn release(&mut self, id: SeqId) -> bool {
        let Some(mut table) = self.state.reserved.kept.remove(&id) else { return false };
        self.state.kv.free(&mut table);
        true
    }

    /// Returns whether blocks are expected to become free, or sequences to run, without a step: what is kept will be released,
    /// what is fetched will be there.
    #[must_use]
    pub fn awaits_others(&self) -> bool {
        let (queues, reserved) = (&self.state.queues, &self.state.reserved);
        queues.num_fetching > 0 || !reserved.kept.is_empty() || !reserved.landing.is_empty()
    }

    /// Returns whether a fetch is under way.
    #[must_use]
    pub fn awaits_fetches(&self) -> bool {
        self.state.queues.num_fetching > 0 || !self.state.reserved.landing.is_empty()
    }
}
