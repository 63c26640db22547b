//! One after the other.

use stallfree_core::Time;

use crate::{Choice, Dispatch, Member, SeqView};

#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// The instances that had the last prompt, and the last sequence that came with its KV.
    last: [Option<u32>; 2],
}

impl Dispatch for RoundRobin {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], _: Time) -> Choice {
        let last = &mut self.last[usize::from(seq.is_prompt())];
        let after = |member: &&Member| last.is_none_or(|last| member.instance.0 > last);
        let index = candidates.iter().position(after).unwrap_or(0);
        *last = candidates.get(index).map(|member| member.instance.0);
        Choice::Candidate(index)
    }
}
