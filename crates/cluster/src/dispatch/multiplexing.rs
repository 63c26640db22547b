//! Prefills where they are in time; on instances that decode, too, where those can spare the time.
//!
//! # Source
//! Tropical (2026), the multiplexing toggle: first an idle instance that prefills, or one on which all prompts are in time with this
//! one among them; else an instance that decodes, if no decode loses its objective by it; else nobody for now. Tropical has no mixed
//! instances beside others: here, one is an instance that prefills as long as no decode there loses its objective by that.

use std::time::Duration;

use stallfree_core::Time;
use stallfree_engine::{Ordering, Role};

use crate::{Choice, Dispatch, DispatchConfig, Member, SeqView};

/// What predicted times are multiplied by, so that a little more is in time as well.
const MARGIN: f64 = 1.02;

#[derive(Debug)]
pub(super) struct Multiplexing {
    order: Ordering,
    max_length: usize,
    tokens_watermark: usize,
    step_watermark: Duration,
}

impl Multiplexing {
    pub(super) const fn new(config: &DispatchConfig) -> Self {
        Self {
            order: config.prefill_order,
            max_length: config.max_multiplexing_length,
            tokens_watermark: config.decode_tokens_watermark,
            step_watermark: config.decode_step_watermark,
        }
    }

    /// Returns when a prompt's first token is there, if the instance is idle or all prompts are in time with this one among them.
    fn prefills(&self, member: &Member, seq: &SeqView, now: Time) -> Option<Time> {
        let alone = now + member.prefill_time(seq);
        if member.prefills.is_empty() {
            return Some(alone);
        }
        let in_time = |at: Time, deadline: Option<Time>| {
            deadline.is_none_or(|deadline| now + (at - now).mul_f64(MARGIN) < deadline)
        };
        // Most of what waits for long is late wherever it goes.
        if !in_time(alone, seq.deadline()) {
            return None;
        }
        let ends = member.ends(self.order, Some(seq), now);
        let own = ends.iter().find(|end| end.seq.is_none())?.at;
        ends.iter().all(|end| in_time(end.at, end.deadline)).then_some(own)
    }

    /// Returns whether no decode of an instance loses its objective while a prompt is computed there.
    fn keeps_promises(member: &Member, seq: &SeqView, now: Time) -> bool {
        let pending: Duration =
            member.prefills.iter().map(|prefill| member.prefill_time(&prefill.view)).sum();
        let stall = (pending + member.prefill_time(seq)).mul_f64(MARGIN);
        member.report.slack_until.is_none_or(|until| now + stall <= until)
    }

    /// Returns whether an instance that decodes can compute a prompt between its steps.
    fn can_spare(&self, member: &Member, seq: &SeqView, now: Time) -> bool {
        let report = &member.report;
        let pending_tokens: usize =
            member.prefills.iter().map(|prefill| prefill.view.num_tokens).sum();
        let step = report.steps.decode_time(report.num_decodes, report.decode_tokens);
        seq.num_tokens < self.max_length
            && report.decode_tokens + pending_tokens + seq.num_tokens <= self.tokens_watermark
            && step <= self.step_watermark
            && Self::keeps_promises(member, seq, now)
    }
}

impl Dispatch for Multiplexing {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], now: Time) -> Choice {
        let fewest = |(_, member): &(usize, &&Member)| member.report.decode_tokens;
        let of_all = || candidates.iter().enumerate();
        let least_loaded = of_all().min_by_key(fewest).map_or(0, |(index, _)| index);
        if !seq.is_prompt() {
            return Choice::Candidate(least_loaded);
        }
        let prefilling = || of_all().filter(|(_, member)| member.role != Role::Decode);
        let in_time = prefilling().filter_map(|(index, member)| {
            // A mixed instance is one that decodes, too.
            let may = member.role == Role::Prefill || Self::keeps_promises(member, seq, now);
            let at = self.prefills(member, seq, now).filter(|_| may)?;
            Some((at, index))
        });
        let spare = of_all()
            .filter(|(_, member)| member.role == Role::Decode && self.can_spare(member, seq, now));
        let spare = || spare.min_by_key(fewest).map(|(index, _)| index);
        match in_time.min().map(|(_, index)| index).or_else(spare) {
            Some(index) => Choice::Candidate(index),
            None if of_all().any(|(_, member)| member.role == Role::Prefill) => Choice::Wait,
            // Where nobody only prefills there is nothing to wait for.
            None => {
                let own = |member: &Member| {
                    let ends = member.ends(self.order, Some(seq), now);
                    ends.iter().find(|end| end.seq.is_none()).map(|end| end.at)
                };
                let first = prefilling().min_by_key(|(_, member)| own(member));
                Choice::Candidate(first.map_or(least_loaded, |(index, _)| index))
            }
        }
    }

    /// A prompt that is under way holds others up for as long as before.
    fn may_take(&self, member: &Member, least: &SeqView, now: Time) -> bool {
        match member.role {
            Role::Prefill => member.prefills.is_empty(),
            Role::Decode => self.can_spare(member, least, now),
            Role::Mixed => Self::keeps_promises(member, least, now),
        }
    }

    fn multiplexes(&self) -> bool {
        true
    }
}
