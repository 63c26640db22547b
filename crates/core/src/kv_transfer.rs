//! KV that moves from one instance to another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::lock;
use crate::{BlockId, InstanceId, SeqId, TokenId};

/// Which lease of an instance: one is granted for a sequence, ends, and another may be granted for the same sequence later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId {
    /// Whose KV it is.
    pub seq: SeqId,
    /// The number of the grant: no two of an instance have the same.
    pub generation: u64,
}

/// Computed KV that an instance keeps for another one to fetch, until it is released or the lease runs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLease {
    /// Where it is.
    pub instance: InstanceId,
    /// Under which lease it is kept there.
    pub id: LeaseId,
    /// How many of the sequence's first tokens it is of.
    pub num_tokens: usize,
    /// The blocks that hold it, in order; the last one perhaps partly.
    pub blocks: Vec<BlockId>,
}

impl KvLease {
    /// Returns whether it can be of a sequence with so many known tokens: what comes from another process may be anything.
    #[must_use]
    pub fn fits(&self, num_known_tokens: usize, block_size: usize) -> bool {
        self.num_tokens <= num_known_tokens
            && self.blocks.len() == self.num_tokens.div_ceil(block_size)
    }
}

/// An order to fetch what another instance keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvFetch {
    /// For whom.
    pub seq: SeqId,
    /// What is kept.
    pub lease: Arc<KvLease>,
    /// The first of the lease's blocks that is wanted; those before are here already.
    pub first: usize,
    /// Where the lease's blocks from `first` on go.
    pub blocks: Vec<BlockId>,
}

impl KvFetch {
    /// Returns the blocks to read, one for each of [`blocks`](Self::blocks).
    #[must_use]
    pub fn sources(&self) -> &[BlockId] {
        &self.lease.blocks[self.first..]
    }
}

/// What an instance has computed so far of a sequence that another one will go on with: full blocks can be fetched while it computes
/// the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvOffer {
    /// The full blocks there are. The lease ends early if the sequence does, or gives up its blocks.
    pub kv: Arc<KvLease>,
    /// All tokens that are to be computed.
    pub tokens: Arc<[TokenId]>,
    /// The most tokens that the sequence may come to have.
    pub max_total_len: usize,
    /// Whether it may take computed tokens from the prefix cache.
    pub reads_prefix_cache: bool,
}

/// Which leases an instance has granted. Its engine grants and revokes them; its executor reads blocks for others only while the
/// lease lasts, so that nobody ever gets what was written into a block later.
#[derive(Clone, Debug, Default)]
pub struct LeaseBook(Arc<Mutex<Leases>>);

#[derive(Debug, Default)]
struct Leases {
    num_granted: u64,
    /// The generation that is granted.
    granted: HashMap<SeqId, u64>,
}

impl LeaseBook {
    /// Grants a lease. An earlier one of the same sequence ends.
    #[must_use]
    pub fn grant(&self, seq: SeqId) -> LeaseId {
        let mut leases = self.lock();
        leases.num_granted += 1;
        let generation = leases.num_granted;
        leases.granted.insert(seq, generation);
        LeaseId { seq, generation }
    }

    /// Ends a sequence's lease, once nobody reads under it. Its blocks may be used for something else afterwards.
    pub fn revoke(&self, seq: SeqId) {
        self.lock().granted.remove(&seq);
    }

    /// Returns whether a lease lasts. What was copied out is good only if it still does afterwards.
    #[must_use]
    pub fn holds(&self, lease: LeaseId) -> bool {
        self.lock().granted.get(&lease.seq) == Some(&lease.generation)
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockId, InstanceId, KvLease, LeaseBook, LeaseId, SeqId};

    #[test]
    fn a_lease_fits_what_it_can_be_of() {
        let check = |num_tokens, num_blocks: u32, num_known, fits| {
            let id = LeaseId { seq: SeqId(1), generation: 1 };
            let blocks = (0..num_blocks).map(BlockId).collect();
            let lease = KvLease { instance: InstanceId(0), id, num_tokens, blocks };
            assert_eq!(lease.fits(num_known, 16), fits, "{lease:?} of {num_known}");
        };
        check(32, 2, 32, true);
        check(33, 3, 40, true);
        check(0, 0, 5, true);
        check(33, 2, 40, false);
        check(32, 3, 40, false);
        check(32, 2, 31, false);
        check(usize::MAX, 1, 40, false);
    }

    #[test]
    fn a_lease_ends_also_if_another_is_granted_for_the_sequence() {
        let book = LeaseBook::default();
        let first = book.grant(SeqId(7));
        assert!(book.holds(first));
        book.revoke(SeqId(7));
        assert!(!book.holds(first));
        let second = book.grant(SeqId(7));
        assert!(!book.holds(first));
        assert!(book.holds(second));
        let third = book.grant(SeqId(7));
        assert!(!book.holds(second) && book.holds(third));
    }
}
