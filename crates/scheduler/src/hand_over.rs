//! Sequences that come from another instance, and those whose KV is kept for one.

use std::sync::Arc;

use stallfree_core::{BlockId, KvFetch, KvLease, KvOffer, SeqId, Time, TokenId};
use stallfree_kvcache::{BlockTable, KvCacheManager};

use crate::queues::Entry;
use crate::step::State;
use crate::transfers::{Transfer, Whose};
use crate::{Admission, Planner, Sequence};

/// Blocks for a sequence whose KV is elsewhere.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// Its tokens, as far as they are known.
    tokens: &'a [TokenId],
    /// How many of them there will be KV of.
    num_computed: usize,
    max_total_len: usize,
    reads_prefix_cache: bool,
}

/// What has become of a sequence that waited for its KV.
#[derive(Debug)]
pub struct EndedTransfer {
    /// What it was fetched under; of no more use.
    pub lease: Arc<KvLease>,
    /// When its first block was asked for.
    pub began: Time,
    /// Whether it is there.
    pub arrived: bool,
}

/// What a reservation has to keep to.
#[derive(Clone, Copy)]
struct Limits {
    admission: Admission,
    max_model_len: usize,
    has_seat: bool,
    /// Blocks that are to stay free.
    reserve: usize,
}

impl State {
    const fn limits(&self) -> Limits {
        let num_active = self.num_active();
        Limits {
            admission: self.admission,
            max_model_len: self.config.max_model_len,
            has_seat: num_active < self.config.max_num_seqs,
            reserve: if num_active == 0 { 0 } else { self.watermark },
        }
    }
}

impl Wanted<'_> {
    /// Takes the blocks, as the policy declares for an admission, if there are a seat and blocks. Returns them with how many hold
    /// cached tokens.
    fn reserve(self, limits: Limits, kv: &mut KvCacheManager) -> Option<(BlockTable, usize)> {
        if !limits.has_seat {
            return None;
        }
        let room = match limits.admission {
            Admission::ThisChunk => self.num_computed,
            Admission::WholePrompt => self.tokens.len().max(self.num_computed + 1),
            Admission::MaxTokens => self.max_total_len,
            Admission::MaxModelLen => limits.max_model_len,
        };
        // One more than there is KV for, so that all of it may be found here.
        let known = &self.tokens[..self.tokens.len().min(self.num_computed + 1)];
        let mut table = BlockTable::default();
        let share = self.reads_prefix_cache;
        let cached = kv.start(&mut table, known, share, |_| room, limits.reserve)?;
        Some((table, cached / kv.block_size()))
    }
}

impl Planner {
    /// Reserves blocks for a sequence that another instance is still prefilling, if there is room and nobody waits for it, and
    /// returns what can be fetched already; later offers for the sequence go on from there. Nothing depends on an offer's being
    /// taken.
    pub fn expect(&mut self, offer: &KvOffer, now: Time) -> Option<KvFetch> {
        let state = &mut self.state;
        let id = offer.kv.id.seq;
        if state.reserved.transfer(id).is_none() {
            if state.queues.find(id).is_some() || !state.queues.remote.is_empty() {
                return None;
            }
            let wanted = Wanted {
                tokens: &offer.tokens,
                num_computed: offer.tokens.len(),
                max_total_len: offer.max_total_len.min(state.config.max_model_len),
                reads_prefix_cache: offer.reads_prefix_cache,
            };
            let (table, num_blocks) = wanted.reserve(state.limits(), &mut state.kv)?;
            let lease = Arc::clone(&offer.kv);
            let expected = (Whose::Expected, now);
            state.reserved.add(id, Transfer::new(table, num_blocks, lease, expected));
        }
        let transfer = state.reserved.transfer(id)?;
        let goes_on = transfer.whose == Whose::Expected && transfer.goes_on_with(&offer.kv);
        (goes_on && transfer.num_missing(&offer.kv) > 0).then(|| transfer.fetch(&offer.kv))
    }

    /// Takes note that a sequence will not come that was expected.
    pub fn retract(&mut self, id: SeqId) {
        let State { reserved, kv, .. } = &mut self.state;
        if reserved.transfer(id).is_some_and(|transfer| transfer.whose == Whose::Expected) {
            reserved.abandon(id, kv);
        }
    }

    /// Gives blocks to sequences whose KV is elsewhere, in their order and as the policy declares for an admission, while there
    /// are seats and blocks; those that were expected have theirs. The executor is to do what is returned and
    /// [`end_fetch`](Self::end_fetch) to be told of each end.
    pub fn start_fetches(&mut self, now: Time) -> Vec<KvFetch> {
        let mut fetches = self.adopt(now);
        let state = &mut self.state;
        while let Some(&slot) = state.queues.remote.front() {
            let limits = state.limits();
            let seq = &state.queues.at(slot).seq;
            let (id, Some(lease)) = (seq.id, seq.kv.clone()) else { break };
            // What an earlier transfer still fills has to come to an end first.
            if state.reserved.transfer(id).is_some() {
                break;
            }
            let wanted = Wanted {
                tokens: &seq.tokens,
                num_computed: lease.num_tokens,
                max_total_len: seq.max_total_len,
                reads_prefix_cache: seq.reads_prefix_cache,
            };
            let Some((table, num_blocks)) = wanted.reserve(limits, &mut state.kv) else { break };
            let fetching = (Whose::Fetching, now);
            let transfer = Transfer::new(table, num_blocks, Arc::clone(&lease), fetching);
            fetches.push(state.reserved.add(id, transfer).fetch(&lease));
            state.queues.fetch(slot, now);
        }
        fetches
    }

    /// Lets the first sequence whose KV has no room here be computed instead, if nothing runs or comes and this instance keeps KV for
    /// others; returns what it gave up. Two instances that keep KV for each other could else wait for each other's room for ever.
    pub fn give_up_fetch(&mut self) -> Option<Arc<KvLease>> {
        let state = &mut self.state;
        let is_stuck = state.num_active() == 0 && !state.reserved.kept.is_empty();
        let slot = state.queues.remote.front().copied().filter(|_| is_stuck)?;
        let lease = state.queues.at_mut(slot).seq.kv.take()?;
        state.queues.give_up_fetch(slot);
        Some(lease)
    }

    /// Goes on with transfers whose sequences have come. Those that others gave up under way are not of use any more.
    fn adopt(&mut self, now: Time) -> Vec<KvFetch> {
        let State { queues, reserved, kv, .. } = &mut self.state;
        let mut fetches = Vec::new();
        if reserved.num_expected == 0 {
            return fetches;
        }
        for slot in Vec::from(queues.remote.clone()) {
            let seq = &queues.at(slot).seq;
            let (id, Some(lease)) = (seq.id, seq.kv.clone()) else { continue };
            match reserved.transfer(id) {
                Some(transfer) if transfer.whose != Whose::Expected => {}
                Some(transfer) if transfer.goes_on_with(&lease) => {
                    fetches.push(transfer.fetch(&lease));
                    reserved.adopt(id);
                    queues.fetch(slot, now);
                }
                Some(_) => reserved.abandon(id, kv),
                None => {}
            }
        }
        fetches
    }

    /// Takes note that a fetch has ended. After the last one of a sequence that is here, it runs from now on, or, if its KV did not
    /// `arrive`, waits to be computed: then this returns what has become of it.
    pub fn end_fetch(&mut self, id: SeqId, arrived: bool) -> Option<EndedTransfer> {
        let State { queues, reserved, kv, .. } = &mut self.state;
        let mut transfer = reserved.end_fetch(id, arrived, kv)?;
        let arrived = !transfer.failed;
        let slot = queues.find(id)?;
        let Entry { seq, table, .. } = queues.at_mut(slot);
        let lease = seq.kv.clone()?;
        if arrived {
            *table = transfer.table;
            seq.num_computed_tokens = lease.num_tokens;
            kv.index(table, &seq.tokens, seq.num_computed_tokens);
        } else {
            kv.free(&mut transfer.table);
        }
        queues.end_fetch(slot, arrived);
        Some(EndedTransfer { lease, began: transfer.began, arrived })
    }

    /// Lets a sequence get no more tokens than those in flight, or one if none is.
    pub fn limit_to_next_token(&mut self, id: SeqId) {
        if let Some(slot) = self.state.queues.find(id) {
            let seq = &mut self.state.queues.at_mut(slot).seq;
            seq.max_total_len = seq.max_total_len.min(seq.tokens.len() + seq.num_pending.max(1));
        }
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
        !self.state.reserved.is_empty()
    }

    /// Returns whether a fetch is under way.
    #[must_use]
    pub fn awaits_fetches(&self) -> bool {
        self.state.reserved.awaits_fetches()
    }

    /// Frees a sequence's blocks, also those that were reserved before it came; if they are being filled, when that comes to an end.
    pub(crate) fn free(&mut self, seq: &Sequence, mut table: BlockTable) {
        let State { reserved, kv, .. } = &mut self.state;
        kv.free(&mut table);
        reserved.abandon(seq.id, kv);
    }
}
