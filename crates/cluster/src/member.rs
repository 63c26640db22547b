//! An instance, as far as dispatching goes: what it was given, and what follows from that.

use std::time::Duration;

use stallfree_core::{InstanceId, SeqId, Time};
use stallfree_engine::{Ordering, Report, Role};

use crate::SeqView;

/// An instance, as far as dispatching goes. The counts are of what it was given and has not ended or handed over: no report of
/// its own can be staler.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which one.
    pub instance: InstanceId,
    /// What it is for.
    pub role: Role,
    /// Whether it is lost, or not there yet.
    pub is_lost: bool,
    /// Whether it is to be left alone.
    pub is_draining: bool,
    /// Its sequences.
    pub num_seqs: usize,
    /// The tokens that these had when they came.
    pub num_tokens: usize,
    /// Of these, the tokens that are still to be computed before a sequence's next token.
    pub num_uncomputed: usize,
    /// Sequences that are still to be computed up to their next token.
    pub prefills: Vec<Prefill>,
    /// What it told after its last step, and what was given to it since.
    pub report: Report,
}

/// A sequence that an instance computes, or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Its number.
    pub seq: SeqId,
    /// What is known of it.
    pub view: SeqView,
    /// Since when nothing is before it.
    pub begun: Option<Time>,
}

/// When a prefill is predicted to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Whose; `None` for the one that was only asked about.
    pub seq: Option<SeqId>,
    /// When.
    pub at: Time,
    /// When it should.
    pub deadline: Option<Time>,
}

impl Member {
    pub(crate) fn new(instance: InstanceId, role: Role) -> Self {
        Self {
            instance,
            role,
            is_lost: true,
            is_draining: false,
            num_seqs: 0,
            num_tokens: 0,
            num_uncomputed: 0,
            prefills: Vec::new(),
            report: Report::default(),
        }
    }

    /// Returns whether it may be given sequences.
    #[must_use]
    pub const fn is_available(&self) -> bool {
        !self.is_lost && !self.is_draining
    }

    /// Returns how long a sequence takes to its next token where nothing else is to be done.
    #[must_use]
    pub fn prefill_time(&self, view: &SeqView) -> Duration {
        let num_computed = view.num_tokens - view.num_uncomputed;
        self.report.steps.prefill_time(num_computed, view.num_uncomputed)
    }

    /// Predicts when its prefills end, one after the other in the `order` of its queue, with one more if it were given that now.
    #[must_use]
    pub fn ends(&self, order: Ordering, with: Option<&SeqView>, now: Time) -> Vec<End> {
        let known = self.prefills.iter().map(|prefill| (Some(prefill), &prefill.view));
        let mut queue: Vec<_> = known.chain(with.map(|view| (None, view))).collect();
        queue.sort_by_key(|(prefill, view)| {
            let is_new = prefill.is_none_or(|prefill| prefill.begun.is_none());
            (is_new, order.rank(&view.standing(self.prefill_time(view))), view.arrived)
        });
        let mut at = now;
        let mut ends = Vec::with_capacity(queue.len());
        for (prefill, view) in queue {
            let began = prefill.and_then(|prefill| prefill.begun).unwrap_or(at);
            at = at.max(began + self.prefill_time(view));
            ends.push(End {
                seq: prefill.map(|prefill| prefill.seq),
                at,
                deadline: view.deadline(),
            });
        }
        ends
    }

    /// Counts a sequence that is here or will be.
    pub(crate) const fn count(&mut self, view: &SeqView) {
        self.num_seqs += 1;
        self.num_tokens += view.num_tokens;
        self.num_uncomputed += view.num_uncomputed;
    }

    /// Counts it no more.
    pub(crate) const fn uncount(&mut self, view: &SeqView) {
        self.num_seqs -= 1;
        self.num_tokens -= view.num_tokens;
        self.num_uncomputed -= view.num_uncomputed;
    }

    /// Adds a sequence to the books.
    pub(crate) fn give(&mut self, seq: SeqId, view: &SeqView, order: Ordering, now: Time) {
        self.count(view);
        if view.is_prompt() {
            self.prefills.push(Prefill { seq, view: *view, begun: None });
            self.begin_next(order, now);
        } else {
            self.report.num_decodes += 1;
            self.report.decode_tokens += view.num_tokens;
            let until = view.slack_until();
            self.report.slack_until = [self.report.slack_until, until].into_iter().flatten().min();
        }
    }

    /// Takes a sequence off the books.
    pub(crate) fn take_back(&mut self, seq: SeqId, view: &SeqView, order: Ordering, now: Time) {
        self.uncount(view);
        self.prefills.retain(|prefill| prefill.seq != seq);
        self.begin_next(order, now);
    }

    /// Takes note of the instance's own account; sequences that have their first token from it have nothing more to be computed.
    pub(crate) fn hear(&mut self, report: Report, order: Ordering) {
        let now = report.at;
        self.prefills.retain(|prefill| !report.first_tokens.contains(&prefill.seq));
        self.report = report;
        self.begin_next(order, now);
    }

    /// Without anything begun, the first in the queue begins.
    fn begin_next(&mut self, order: Ordering, now: Time) {
        if self.prefills.iter().any(|prefill| prefill.begun.is_some()) {
            return;
        }
        let rank = |prefill: &Prefill| {
            let standing = prefill.view.standing(self.prefill_time(&prefill.view));
            (order.rank(&standing), prefill.view.arrived)
        };
        let first = (0..self.prefills.len()).min_by_key(|&index| rank(&self.prefills[index]));
        if let Some(first) = first {
            self.prefills[first].begun = Some(now);
        }
    }
}
