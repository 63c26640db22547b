//! The instance with the fewest sequences, the first of equals.

use stallfree_core::Time;

use crate::{Choice, Dispatch, Member, SeqView};

#[derive(Debug)]
pub(super) struct LeastRequests;

impl Dispatch for LeastRequests {
    fn pick(&mut self, _: &SeqView, candidates: &[&Member], _: Time) -> Choice {
        let index = (0..candidates.len()).min_by_key(|&index| candidates[index].num_seqs);
        Choice::Candidate(index.unwrap_or(0))
    }
}
