//! Prefills where they are in time; on instances that decode, too, where those can spare the time.
//!
//! # Source
//! Tropical (2026), the multiplexing toggle: first an idle instance that prefills, or one on which all prompts are in time with this
//! one among them; else an instance that decodes, if no decode loses its objective by it; else nobody for now.

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

    /// Returns when a prompt is there if the instance is idle, or if all prompts there are in time with this one among them.
    fn prefills(&self, member: &Member, seq: &SeqView, now: Time) -> Option<Time> {
        let ends = member.ends(self.order, Some(seq), now);
        let in_time = |at: Time, deadline: Time| now + (at - now).mul_f64(MARGIN) < deadline;
        let are_in_time =
            ends.iter().all(|end| end.deadline.is_none_or(|deadline| in_time(end.at, deadline)));
        let own = ends.iter().find(|end| end.seq.is_none())?.at;
        (member.prefills.is_empty() || are_in_time).then_some(own)
    }

    /// Returns whether an instance that decodes can compute a prompt between its steps.
    fn can_spare(&self, member: &Member, seq: &SeqView, now: Time) -> bool {
        let report = &member.report;
        let pending: Duration =
            member.prefills.iter().map(|prefill| member.prefill_time(&prefill.view)).sum();
        let pending_tokens: usize =
            member.prefills.iter().map(|prefill| prefill.view.num_tokens).sum();
        let stall = (pending + member.prefill_time(seq)).mul_f64(MARGIN);
        let step = report.steps.decode_time(report.num_decodes, report.decode_tokens);
        seq.num_tokens < self.max_length
            && report.decode_tokens + pending_tokens + seq.num_tokens <= self.tokens_watermark
            && step <= self.step_watermark
            && report.slack_until.is_none_or(|until| now + stall <= until)
    }
}

impl Dispatch for Multiplexing {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], now: Time) -> Choice {
        let of_role = |decodes: bool| {
            let fits =
                move |&(_, member): &(usize, &&Member)| (member.role == Role::Decode) == decodes;
            candidates.iter().enumerate().filter(fits)
        };
        let fewest = |(_, member): &(usize, &&Member)| member.report.decode_tokens;
        let choice = |found: Option<usize>| found.map_or(Choice::Wait, Choice::Candidate);
        // Without a choice of roles there is nothing to wait for.
        if !seq.is_prompt() || of_role(false).next().is_none() {
            return choice(
                candidates.iter().enumerate().min_by_key(fewest).map(|(index, _)| index),
            );
        }
        let ends = of_role(false)
            .filter_map(|(index, member)| self.prefills(member, seq, now).map(|at| (at, index)));
        if let Some((_, index)) = ends.min() {
            return Choice::Candidate(index);
        }
        let spare = of_role(true).filter(|(_, member)| self.can_spare(member, seq, now));
        choice(spare.min_by_key(fewest).map(|(index, _)| index))
    }

    fn multiplexes(&self) -> bool {
        true
    }
}
