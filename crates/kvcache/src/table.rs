//! Where one sequence's KV lies.

use stallfree_core::BlockId;

use crate::prefix::BlockHash;

/// The blocks that hold one sequence's KV, in the order of its tokens.
///
/// A table is filled and emptied by the [`KvCacheManager`](crate::KvCacheManager) only; it must be given back with
/// [`free`](crate::KvCacheManager::free), for dropping it keeps its blocks in use forever.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    pub(crate) blocks: Vec<BlockId>,
    /// The chained hashes of the sequence's first full blocks of tokens, as far as they were needed. They follow from the
    /// tokens alone, so they outlive a preemption.
    pub(crate) hashes: Vec<BlockHash>,
    /// How many of the first blocks the prefix index has seen.
    pub(crate) num_indexed: usize,
    /// Set once a hash was found to stand for other tokens: nothing after it may be shared.
    pub(crate) collided: bool,
}

impl BlockTable {
    /// Returns the blocks; block `i` holds the tokens from `i * block_size` on.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Returns how many blocks there are.
    #[must_use]
    pub const fn num_blocks(&self) -> usize {
        self.blocks.len()
    }
}
