//! What an engine that drains does with its sequences.

use stallfree_core::SeqId;
use stallfree_scheduler::Status;

use crate::{Engine, Until};

impl Engine {
    /// Leaves every sequence to the others, if there are any: one that waits at once; one that runs, or whose KV is coming, with its
    /// next token, so that others can fetch what is computed.
    pub(crate) fn leave_all(&mut self) {
        let Some(membership) = &mut self.membership else { return };
        let mut ids: Vec<SeqId> = self.seqs.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(seq) = self.planner.sequence(id) else { continue };
            if matches!(seq.status, Status::Running | Status::Fetching) {
                self.planner.limit_to_next_token(id);
                if let Some(state) = self.seqs.get_mut(&id) {
                    state.until = Until::NextToken;
                }
            } else if let Some((seq, state)) = self.planner.abort(id).zip(self.seqs.remove(&id)) {
                let kv = seq.kv.clone();
                membership.peers.take(state.hand_over(seq, kv), None);
            }
        }
    }
}
