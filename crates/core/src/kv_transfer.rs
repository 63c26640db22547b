//! KV that moves from one instance to another.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BlockId, InstanceId, SeqId};

/// Computed KV that an instance keeps for another one to fetch, until it is released or the lease runs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLease {
    /// Where it is.
    pub instance: InstanceId,
    /// Whose it is. Sequences' numbers are never used twice, so this is the lease's number too.
    pub seq: SeqId,
    /// How many of the sequence's first tokens it is of.
    pub num_tokens: usize,
    /// The blocks that hold it, in order; the last one perhaps partly.
    pub blocks: Vec<BlockId>,
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

/// Which leases an instance has granted. Its engine grants and revokes them; its executor reads blocks for others only while the
/// lease lasts, so that nobody ever gets what was written into a block later.
#[derive(Clone, Debug, Default)]
pub struct LeaseBook(Arc<Mutex<HashSet<SeqId>>>);

impl LeaseBook {
    /// Grants a lease.
    pub fn grant(&self, seq: SeqId) {
        self.lock().insert(seq);
    }

    /// Ends a lease, once nobody reads under it. Its blocks may be used for something else afterwards.
    pub fn revoke(&self, seq: SeqId) {
        self.lock().remove(&seq);
    }

    /// Reads under a lease; `None` if it has ended.
    pub fn read<T>(&self, seq: SeqId, read: impl FnOnce() -> T) -> Option<T> {
        let granted = self.lock();
        granted.contains(&seq).then(read)
    }

    /// The set is whole after every operation, so that a poisoned lock is as good as new.
    fn lock(&self) -> MutexGuard<'_, HashSet<SeqId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
