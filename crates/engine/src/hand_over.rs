//! Sequences that go from one engine to another: prefilled here and decoded there, or saved from an engine that was lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    FinishReason, InstanceId, KvLease, KvOffer, LeaseBook, Request, SeqId, Time, TokenId,
};
use stallfree_scheduler::{EndedTransfer, PlannedChunk, Sequence, Status};

use crate::state::{Departure, Early};
use crate::{Engine, OutputSender, Report, SeqTimes, Until};

/// How long KV is kept for another engine unless the lease is renewed: vLLM's NIXL connector has the same.
pub const LEASE: Duration = Duration::from_secs(30);

/// A sequence between two engines. Its reader notices nothing: the stream goes along.
#[derive(Debug)]
pub struct HandedOver {
    /// Its number, the same wherever it is.
    pub id: SeqId,
    /// What was asked.
    pub request: Request,
    /// When it came.
    pub arrived: Time,
    /// What it has produced, all of it passed on to the reader.
    pub output_tokens: Vec<TokenId>,
    /// The KV of its first tokens, if that is worth fetching.
    pub kv: Option<Arc<KvLease>>,
    /// Where its output goes.
    pub output: OutputSender,
    /// Its life so far.
    pub progress: Progress,
}

/// What a reader knows already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Its moments.
    pub times: SeqTimes,
    /// Prompt tokens found in the prefix cache when it was first admitted.
    pub num_cached_tokens: usize,
    /// How many prompt tokens' logprobs it has been given.
    pub num_prompt_logprobs: usize,
    /// How often it was preempted, or moved without its KV.
    pub num_preemptions: usize,
}

impl HandedOver {
    /// Makes a request into a sequence that no engine has seen.
    #[must_use]
    pub fn new(id: SeqId, request: Request, arrived: Time, output: OutputSender) -> Self {
        let times = SeqTimes { arrived, ..SeqTimes::default() };
        let progress = Progress { times, ..Progress::default() };
        Self { id, request, arrived, output_tokens: Vec::new(), kv: None, output, progress }
    }
}

/// The other engines, as one of them sees them. Called in the step loop: must be quick.
pub trait Peers: Send {
    /// Takes a sequence on: prefilled, or, if `lost` says why, left behind by an engine that is lost.
    fn take(&mut self, seq: HandedOver, lost: Option<&str>);

    /// Takes note that this engine needs no more what another one keeps.
    fn release(&mut self, lease: &KvLease);

    /// Takes note that a sequence has ended here.
    fn ended(&mut self, seq: SeqId);

    /// Takes note of how the engine is after a step.
    fn report(&mut self, report: Report);

    /// Takes note that this is all of a step: readers and peers have been told what there is to tell.
    fn told_all(&mut self) {}

    /// Lets the engine that will go on with a sequence fetch what there is of its KV.
    fn offer(&mut self, offer: KvOffer);

    /// Takes note that a sequence that was offered has ended, or has given up its blocks.
    fn take_back(&mut self, seq: SeqId);
}

/// An engine's place among others.
pub struct Membership {
    /// Its own number.
    pub instance: InstanceId,
    /// The others.
    pub peers: Box<dyn Peers>,
    /// What it keeps for them; its executor looks there before it gives anything away.
    pub leases: LeaseBook,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes the engine one of several. Without this it never hands anything over.
    pub fn join(&mut self, membership: Membership) {
        self.fit.ask(&*self.executor, self.info().max_model_len);
        self.membership = Some(membership);
        // How long its steps will take matters to the first sequence already.
        self.has_news = true;
        self.report(Time::ZERO);
    }

    /// Lets a sequence leave that has all the tokens that it gets here, if it goes on elsewhere. Its KV is kept.
    pub(crate) fn depart(
        &mut self,
        id: SeqId,
        reason: FinishReason,
        now: Time,
    ) -> Option<Box<Departure>> {
        let membership = self.membership.as_ref()?;
        let (seq, state) = self.planner.sequence(id).zip(self.seqs.get(&id))?;
        let most = seq.prompt_len.saturating_add(state.stop.max_tokens);
        let has_more = seq.tokens.len() < most.min(self.info().max_model_len);
        if state.until != Until::NextToken || reason != FinishReason::Length || !has_more {
            return None;
        }
        if seq.status != Status::Running {
            // It lost its blocks while its token was in flight.
            let seq = self.planner.finish(id)?;
            return Some(Box::new(Departure { seq, kv: None }));
        }
        let (seq, blocks) = self.planner.keep(id)?;
        self.leases.insert(id, now + LEASE);
        let instance = membership.instance;
        let lease = match state.early {
            Early::Offered(lease, _) => lease,
            Early::NotYet | Early::Never => membership.leases.grant(id),
        };
        let kv = KvLease { instance, id: lease, num_tokens: seq.num_computed_tokens, blocks };
        Some(Box::new(Departure { seq, kv: Some(kv) }))
    }

    /// Offers what a step has computed of sequences that go on elsewhere, and are not through yet.
    pub(crate) fn offer(&mut self, chunks: &[PlannedChunk]) {
        let block_size = self.info().kv.block_size;
        let Some(membership) = &mut self.membership else { return };
        for chunk in chunks.iter().filter(|chunk| !chunk.samples) {
            let seq = self.planner.sequence(chunk.seq).zip(self.seqs.get_mut(&chunk.seq));
            let Some((seq, state)) = seq else { continue };
            let num_blocks = (chunk.start + chunk.num_tokens) / block_size;
            let goes_on = state.until == Until::NextToken && seq.status == Status::Running;
            if num_blocks == 0 || !goes_on {
                continue;
            }
            if matches!(state.early, Early::NotYet) {
                let lease = membership.leases.grant(chunk.seq);
                state.early = Early::Offered(lease, seq.tokens.as_slice().into());
            }
            let Early::Offered(id, tokens) = &state.early else { continue };
            let blocks = self.planner.block_table(chunk.seq)[..num_blocks].to_vec();
            let num_tokens = num_blocks * block_size;
            let kv = KvLease { instance: membership.instance, id: *id, num_tokens, blocks };
            membership.peers.offer(KvOffer {
                kv: Arc::new(kv),
                tokens: Arc::clone(tokens),
                max_total_len: seq.prompt_len.saturating_add(state.stop.max_tokens),
                reads_prefix_cache: seq.reads_prefix_cache,
            });
        }
    }

    /// Takes back what was offered of a sequence, whose blocks are free from now on.
    pub(crate) fn take_back(&mut self, id: SeqId) {
        let Some((membership, state)) = self.membership.as_mut().zip(self.seqs.get_mut(&id)) else {
            return;
        };
        if matches!(std::mem::replace(&mut state.early, Early::Never), Early::Offered(..)) {
            membership.leases.revoke(id);
            membership.peers.take_back(id);
        }
    }

    /// Reserves blocks for a sequence that another engine is still prefilling, and fetches what there is.
    pub(crate) fn expect(&mut self, offer: &KvOffer, now: Time) {
        if !offer.kv.fits(offer.tokens.len(), self.info().kv.block_size) {
            tracing::warn!(seq = %offer.kv.id.seq, instance = %offer.kv.instance, "KV was offered that is none of the sequence");
            return;
        }
        let Some(fetch) = self.planner.expect(offer, now) else { return };
        if let Err(reason) = self.executor.fetch(fetch, now) {
            self.end_fetch(offer.kv.id.seq, Some(&reason), now);
        }
    }

    /// Returns what a sequence has to fetch. What this engine itself has kept for it is freed, and found in the prefix cache if
    /// there is one: an engine that fetched from itself could wait for ever for the room that this takes.
    pub(crate) fn reclaim(
        &mut self,
        id: SeqId,
        kv: Option<Arc<KvLease>>,
        num_known_tokens: usize,
    ) -> Option<Arc<KvLease>> {
        let kv = kv?;
        // A last token is left to compute, of which the next one comes.
        let num_computable = num_known_tokens.saturating_sub(1);
        let fits = kv.id.seq == id && kv.fits(num_computable, self.info().kv.block_size);
        let membership = self.membership.as_mut()?;
        if kv.instance != membership.instance && fits {
            return Some(kv);
        }
        membership.peers.release(&kv);
        if kv.instance == membership.instance {
            self.release(kv.id.seq);
        } else {
            tracing::warn!(seq = %kv.id.seq, instance = %kv.instance, "its KV is none of the sequence; it is computed again");
        }
        None
    }

    /// Leaves a sequence to the others.
    pub(crate) fn leave(&mut self, Departure { seq, kv }: Departure) {
        let state = self.seqs.remove(&seq.id);
        if let Some((membership, state)) = self.membership.as_mut().zip(state) {
            membership.peers.take(state.hand_over(seq, kv.map(Arc::new)), None);
        }
    }

    /// Takes no sequence on any more: another engine may, else its reader hears why.
    pub(crate) fn refuse(&mut self, seq: HandedOver, reason: &str) {
        match &mut self.membership {
            Some(membership) => membership.peers.take(seq, Some(reason)),
            None => seq.output.fail(reason),
        }
    }

    /// Starts what there is room for.
    pub(crate) fn start_fetches(&mut self, now: Time) {
        for fetch in self.planner.start_fetches(now) {
            let id = fetch.seq;
            if let Err(reason) = self.executor.fetch(fetch, now) {
                self.end_fetch(id, Some(&reason), now);
            }
        }
        let given_up = self.planner.give_up_fetch();
        if let Some((membership, lease)) = self.membership.as_mut().zip(given_up) {
            tracing::debug!(seq = %lease.id.seq, "no room for its KV beside what is kept for others; it is computed again");
            membership.peers.release(&lease);
        }
    }

    pub(crate) fn end_fetches(&mut self, now: Time) {
        for (id, result) in self.executor.fetched(now) {
            self.end_fetch(id, result.as_ref().err().map(String::as_str), now);
        }
    }

    fn end_fetch(&mut self, id: SeqId, failure: Option<&str>, now: Time) {
        if let Some(reason) = failure {
            tracing::warn!(seq = %id, reason, "KV could not be fetched; it is computed again");
        }
        let ended = self.planner.end_fetch(id, failure.is_none());
        let Some(EndedTransfer { lease, began, arrived }) = ended else { return };
        if let Some(state) = self.seqs.get_mut(&id) {
            state.times.kv_transfer_started = Some(began);
            state.times.kv_transfer_ended = arrived.then_some(now);
        }
        if let Some(membership) = &mut self.membership {
            membership.peers.release(&lease);
        }
    }

    /// Lets others free what they keep for a sequence that has ended.
    pub(crate) fn let_go(&mut self, seq: &Sequence) {
        if let Some((membership, lease)) = self.membership.as_mut().zip(seq.kv.as_deref()) {
            membership.peers.release(lease);
        }
    }

    /// Frees what was kept of a sequence.
    pub(crate) fn release(&mut self, id: SeqId) {
        self.leases.remove(&id);
        if let Some(membership) = &self.membership {
            // Nobody reads its blocks from here on.
            membership.leases.revoke(id);
        }
        self.planner.release(id);
    }

    pub(crate) fn renew(&mut self, ids: &[SeqId], now: Time) {
        for id in ids {
            if let Some(ends) = self.leases.get_mut(id) {
                *ends = now + LEASE;
            }
        }
    }

    /// Frees what nobody has fetched or asked to keep for too long.
    pub(crate) fn end_leases(&mut self, now: Time) {
        let ended: Vec<SeqId> =
            self.leases.iter().filter(|(_, ends)| **ends <= now).map(|(&id, _)| id).collect();
        for id in ended {
            tracing::warn!(seq = %id, "nobody has fetched its KV for {} s", LEASE.as_secs());
            self.release(id);
        }
    }
}
