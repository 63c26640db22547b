//! The instance that leaves its sequences the most slack: time between when something is predicted to be done and when it is due.

use std::cmp::Reverse;

use stallfree_core::Time;
use stallfree_engine::Ordering;

use crate::{Choice, Dispatch, DispatchConfig, Member, SeqView};

#[derive(Debug)]
pub(super) struct Slack {
    order: Ordering,
}

impl Slack {
    pub(super) const fn new(config: &DispatchConfig) -> Self {
        Self { order: config.prefill_order }
    }

    /// Returns the least slack of all prefills there, in nanoseconds, and when the last of them ends, with `seq` among them.
    fn with_prompt(&self, member: &Member, seq: &SeqView, now: Time) -> (i128, Time) {
        let ends = member.ends(self.order, Some(seq), now);
        let slacks = ends.iter().filter_map(|end| Some(nanos(end.deadline?) - nanos(end.at)));
        let last = ends.iter().map(|end| end.at).max().unwrap_or(now);
        (slacks.min().unwrap_or(i128::MAX), last)
    }
}

fn nanos(time: Time) -> i128 {
    i128::try_from(time.since_start().as_nanos()).unwrap_or(i128::MAX)
}

impl Dispatch for Slack {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], now: Time) -> Choice {
        let indices = 0..candidates.len();
        let index = if seq.is_prompt() {
            // Where nothing is promised, or all are equally late, the earliest end.
            indices.min_by_key(|&index| {
                let (slack, last) = self.with_prompt(candidates[index], seq, now);
                (Reverse(slack), last)
            })
        } else {
            indices.min_by_key(|&index| {
                let report = &candidates[index].report;
                (Reverse(report.slack_until.unwrap_or(Time::MAX)), report.decode_tokens)
            })
        };
        Choice::Candidate(index.unwrap_or(0))
    }
}
