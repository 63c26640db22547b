//! Sequences that no instance is to have yet, the one first that has waited for longest.

use std::time::Duration;

use stallfree_core::{SeqId, Time};
use stallfree_engine::HandedOver;

use crate::SeqView;

/// Sequences that no instance is to have yet, the one first that has waited for longest.
#[derive(Debug, Default)]
pub(crate) struct WaitingList {
    seqs: Vec<Waiting>,
    /// At most as much as the smallest of them.
    least: Option<SeqView>,
}

/// A sequence that no instance is to have yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) seq: HandedOver,
    pub(crate) view: SeqView,
    pub(crate) since: Time,
}

impl WaitingList {
    pub(crate) const fn len(&self) -> usize {
        self.seqs.len()
    }

    /// Adds one that has waited for no longer than those that are there.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        let view = waiting.view;
        let least = self.least.get_or_insert(view);
        least.num_tokens = least.num_tokens.min(view.num_tokens);
        least.num_uncomputed = least.num_uncomputed.min(view.num_uncomputed);
        self.seqs.push(waiting);
    }

    /// Takes all out.
    pub(crate) fn take(&mut self) -> Vec<Waiting> {
        self.least = None;
        std::mem::take(&mut self.seqs)
    }

    /// Takes one out, if it is there.
    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Waiting> {
        let place = self.seqs.iter().position(|waiting| waiting.seq.id == id)?;
        Some(self.seqs.remove(place))
    }

    /// Returns a sequence that takes no more than any that waits; `None` if none does.
    pub(crate) fn least(&self) -> Option<&SeqView> {
        self.least.as_ref().filter(|_| !self.seqs.is_empty())
    }

    /// Returns when the first of them will have waited for `timeout`.
    pub(crate) fn next_timeout(&self, timeout: Duration) -> Option<Time> {
        self.seqs.first().map(|first| first.since + timeout)
    }

    /// Returns what is known of each.
    pub(crate) fn views(&self) -> impl Iterator<Item = SeqView> {
        self.seqs.iter().map(|waiting| waiting.view)
    }
}
