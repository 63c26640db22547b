//! The instance with the least work: tokens that it has to compute before a new one, or whose KV it reads in each step.

use stallfree_core::Time;

use crate::{Choice, Dispatch, Member, SeqView};

#[derive(Debug)]
pub(super) struct LeastTokens;

impl Dispatch for LeastTokens {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], _: Time) -> Choice {
        let work = |index: &usize| {
            let member = candidates[*index];
            // A prompt waits for others to be computed; a decode shares steps with all that are there.
            if seq.is_prompt() {
                (member.num_uncomputed, member.num_tokens)
            } else {
                (member.num_tokens, member.num_uncomputed)
            }
        };
        Choice::Candidate((0..candidates.len()).min_by_key(work).unwrap_or(0))
    }
}
