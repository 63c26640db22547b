//! Blocks that no running sequence holds, but that must not be used for anything else: kept for others, or being filled.

use std::sync::Arc;

use stallfree_core::{InstanceId, KvFetch, KvLease, LeaseId, SeqId, SeqMap, Time};
use stallfree_kvcache::{BlockTable, KvCacheManager};

/// All such blocks.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// What is kept until others have fetched it.
    pub(crate) kept: SeqMap<BlockTable>,
    /// What KV is coming into.
    transfers: SeqMap<Transfer>,
    /// How many transfers are for sequences that others are still prefilling. Each has a seat here.
    pub(crate) num_expected: usize,
}

/// KV on its way into blocks.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) table: BlockTable,
    pub(crate) lease: Arc<KvLease>,
    pub(crate) whose: Whose,
    pub(crate) began: Time,
    /// How many of the sequence's first blocks are here or on their way.
    num_blocks: usize,
    /// Fetches under way.
    num_pending: usize,
    /// Whether one of them failed.
    pub(crate) failed: bool,
}

/// Who gets what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A sequence that another instance is still prefilling.
    Expected,
    /// A sequence that is here and waits for it.
    Fetching,
    /// Nobody any more: the blocks are free once nothing writes to them.
    Nobody,
}

impl Transfer {
    /// Makes a transfer into `table`, whose first `num_blocks` blocks hold what is wanted already.
    pub(crate) const fn new(
        table: BlockTable,
        num_blocks: usize,
        lease: Arc<KvLease>,
        (whose, began): (Whose, Time),
    ) -> Self {
        Self { table, lease, whose, began, num_blocks, num_pending: 0, failed: false }
    }

    /// Returns whether it can go on with what a lease keeps by now.
    pub(crate) fn goes_on_with(&self, lease: &KvLease) -> bool {
        let key = |lease: &KvLease| -> (InstanceId, LeaseId) { (lease.instance, lease.id) };
        let fits = lease.blocks.len() <= self.table.num_blocks();
        fits && key(lease) == key(&self.lease) && !self.failed
    }

    /// Returns how many blocks of a lease are neither here nor on their way.
    pub(crate) fn num_missing(&self, lease: &KvLease) -> usize {
        lease.blocks.len().saturating_sub(self.num_blocks)
    }

    /// Returns the order to fetch what is missing of a lease.
    pub(crate) fn fetch(&mut self, lease: &Arc<KvLease>) -> KvFetch {
        let end = lease.blocks.len();
        let first = self.num_blocks.min(end);
        let blocks = self.table.blocks()[first..end].to_vec();
        self.lease = Arc::clone(lease);
        self.num_blocks = end.max(first);
        self.num_pending += 1;
        KvFetch { seq: lease.id.seq, lease: Arc::clone(lease), first, blocks }
    }
}

impl Reserved {
    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        self.kept.values().chain(self.transfers.values().map(|transfer| &transfer.table))
    }

    pub(crate) fn transfer(&mut self, id: SeqId) -> Option<&mut Transfer> {
        self.transfers.get_mut(&id)
    }

    pub(crate) fn add(&mut self, id: SeqId, transfer: Transfer) -> &mut Transfer {
        self.num_expected += usize::from(transfer.whose == Whose::Expected);
        self.transfers.entry(id).insert_entry(transfer).into_mut()
    }

    /// Takes note that what was expected belongs to a sequence that is here now.
    pub(crate) fn adopt(&mut self, id: SeqId) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            self.num_expected -= usize::from(transfer.whose == Whose::Expected);
            transfer.whose = Whose::Fetching;
        }
    }

    /// Takes note that a fetch has ended. Returns the transfer if a sequence here has waited for it, and this was the last one.
    pub(crate) fn end_fetch(
        &mut self,
        id: SeqId,
        arrived: bool,
        kv: &mut KvCacheManager,
    ) -> Option<Transfer> {
        let transfer = self.transfers.get_mut(&id)?;
        transfer.num_pending = transfer.num_pending.saturating_sub(1);
        transfer.failed |= !arrived;
        match transfer.whose {
            _ if transfer.num_pending > 0 => None,
            Whose::Fetching => self.transfers.remove(&id),
            Whose::Expected if !transfer.failed => None,
            Whose::Expected | Whose::Nobody => {
                self.abandon(id, kv);
                None
            }
        }
    }

    /// Takes note that nobody wants what comes: its blocks are free when the last fetch has ended.
    pub(crate) fn abandon(&mut self, id: SeqId, kv: &mut KvCacheManager) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        self.num_expected -= usize::from(transfer.whose == Whose::Expected);
        transfer.whose = Whose::Nobody;
        if transfer.num_pending == 0 {
            kv.free(&mut transfer.table);
            self.transfers.remove(&id);
        }
    }

    /// Returns whether a fetch is under way.
    pub(crate) fn awaits_fetches(&self) -> bool {
        self.transfers.values().any(|transfer| transfer.num_pending > 0)
    }

    /// Returns whether anything is reserved.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.transfers.is_empty()
    }
}
