//! The instance with the least work: tokens that it has to compute before a new one, or whose KV it reads in each step.

use crate::{Dispatch, Member, SeqView};

#[derive(Debug)]
pub(super) struct LeastTokens;

impl Dispatch for LeastTokens {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member]) -> usize {
        let work = |index: &usize| {
            let member = candidates[*index];
            // A prompt waits for others to be computed; a decode shares steps with all that are there.
            if seq.num_uncomputed > 1 {
                (member.num_uncomputed, member.num_tokens)
            } else {
                (member.num_tokens, member.num_uncomputed)
            }
        };
        (0..candidates.len()).min_by_key(work).unwrap_or(0)
    }
}
