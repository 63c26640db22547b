//! Allocates, shares, frees and evicts blocks.
//!
//! On the main path after the scheduler's `policy/sarathi.rs`, before the worker's `runner.rs`. It does not know sequences
//! or policies: whoever owns a [`BlockTable`] passes it in.

use stallfree_core::{BlockId, KvGeometry, TokenId};

use crate::BlockTable;
use crate::pool::BlockPool;
use crate::prefix::{BlockHash, Indexed, PrefixIndex};

/// Decides which block of the paged KV cache holds what.
///
/// A block is in use by the tables that hold it, or waits in a queue to be taken, least recently used first. With prefix
/// caching, a block that is full of computed tokens can be found by its content, in use or not, until it is taken for something else.
///
/// # Order of the device
/// Blocks may be freed, taken and made findable for batches that the device has not computed yet, because it computes batches
/// in the order in which they were planned, and within a batch writes a layer's KV before it reads any of that layer.
///
/// # Source
/// Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention", section 4.3; the
/// prefix index is by chained hashes of full blocks.
#[derive(Debug)]
pub struct KvCacheManager {
    block_size: usize,
    pool: BlockPool,
    /// Absent if prefix caching is off: then nothing is hashed.
    prefixes: Option<PrefixIndex>,
}

impl KvCacheManager {
    /// Makes a manager of an empty cache.
    ///
    /// `hash_seed` makes hashes hard to guess from outside; it changes nothing else.
    ///
    /// # Panics
    /// If blocks hold no tokens.
    #[must_use]
    pub fn new(geometry: KvGeometry, enable_prefix_caching: bool, hash_seed: u64) -> Self {
        let KvGeometry { num_blocks, block_size } = geometry;
        assert!(block_size > 0, "a block holds at least one token");
        let prefixes =
            enable_prefix_caching.then(|| PrefixIndex::new(num_blocks, block_size, hash_seed));
        Self { block_size, pool: BlockPool::new(num_blocks), prefixes }
    }

    /// Returns how many blocks there are.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// Returns how many blocks no table holds; those with findable content count as free.
    #[must_use]
    pub const fn num_free_blocks(&self) -> usize {
        self.pool.num_free()
    }

    /// Returns how many tokens a block holds.
    #[must_use]
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// Returns how many blocks `num_tokens` tokens fill, the last one perhaps partly.
    #[must_use]
    pub const fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// Returns how many of the first `tokens` are in the cache: full blocks only, and never all of the tokens, since at least
    /// one must be computed for there to be logits.
    #[must_use]
    pub fn find_prefix(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> usize {
        self.walk_prefix(table, tokens, |_| ()) * self.block_size
    }

    /// Returns the blocks that they are in.
    #[must_use]
    pub fn prefix_blocks(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> Vec<BlockId> {
        let mut blocks = Vec::new();
        self.walk_prefix(table, tokens, |block| blocks.push(block));
        blocks
    }

    /// Fills an empty table: cached blocks for the longest cached prefix of `tokens`, new ones up to `num_tokens(cached)` tokens,
    /// where `cached` is how many tokens that prefix has (none unless `share`).
    ///
    /// Returns `cached`; `None`, with nothing changed, if fewer than `reserve` blocks would remain free.
    pub fn start(
        &mut self,
        table: &mut BlockTable,
        tokens: &[TokenId],
        share: bool,
        num_tokens: impl FnOnce(usize) -> usize,
        reserve: usize,
    ) -> Option<usize> {
        debug_assert!(table.blocks.is_empty(), "a started table grows by `allocate`");
        let hits = if share { self.prefix_blocks(table, tokens) } else { Vec::new() };
        let num_revived = hits.iter().filter(|&&block| self.num_users(block) == 0).count();
        let cached = hits.len() * self.block_size;
        let num_new = self.blocks_for(num_tokens(cached)).saturating_sub(hits.len());
        if self.pool.num_free() < num_revived + num_new + reserve {
            return None;
        }
        for &block in &hits {
            self.pool.share(block);
        }
        table.num_indexed = hits.len();
        table.blocks = hits;
        self.extend(table, num_new);
        Some(cached)
    }

    /// Makes room in a table for `num_tokens` tokens in all. Returns `false`, with nothing changed, if there are too few free
    /// blocks.
    #[must_use]
    pub fn allocate(&mut self, table: &mut BlockTable, num_tokens: usize) -> bool {
        if num_tokens <= table.blocks.len() * self.block_size {
            return true;
        }
        let num_new = self.blocks_for(num_tokens) - table.blocks.len();
        if self.pool.num_free() < num_new {
            return false;
        }
        self.extend(table, num_new);
        true
    }

    /// Makes the table's full blocks findable, as far as they are computed, in this batch at the latest, and as their tokens
    /// are known.
    pub fn index(&mut self, table: &mut BlockTable, tokens: &[TokenId], num_computed: usize) {
        let num_full = tokens.len().min(num_computed) / self.block_size;
        if num_full <= table.num_indexed || table.collided {
            return;
        }
        let Some(prefixes) = &mut self.prefixes else { return };
        for index in table.num_indexed..num_full {
            let block_tokens = &tokens[index * self.block_size..(index + 1) * self.block_size];
            let (parent, hash) = hash_of(prefixes, table, index, block_tokens);
            if prefixes.add(table.blocks[index], hash, parent, block_tokens) == Indexed::Collided {
                table.collided = true;
                break;
            }
            table.num_indexed += 1;
        }
    }

    /// Gives a table's blocks back. Findable ones remain so until they are taken, the sequence's last block first.
    pub fn free(&mut self, table: &mut BlockTable) {
        self.shrink(table, 0);
    }

    /// Gives back what a table has beyond the blocks of its first `num_tokens` tokens.
    pub fn shrink(&mut self, table: &mut BlockTable, num_tokens: usize) {
        let num_blocks = self.blocks_for(num_tokens).min(table.blocks.len());
        for block in table.blocks.drain(num_blocks..).rev() {
            let keep = self.prefixes.as_ref().is_some_and(|prefixes| prefixes.contains(block));
            self.pool.release(block, keep);
        }
        table.num_indexed = table.num_indexed.min(num_blocks);
    }

    /// Returns how many tables hold a block.
    #[must_use]
    pub fn num_users(&self, block: BlockId) -> usize {
        self.pool.num_users(block) as usize
    }

    /// Forgets what is cached of `tokens`, whoever holds the blocks.
    pub fn forget(&mut self, table: &mut BlockTable, tokens: &[TokenId]) {
        let Some(prefixes) = &mut self.prefixes else { return };
        for (index, block_tokens) in tokens.chunks_exact(self.block_size).enumerate() {
            let (parent, hash) = hash_of(prefixes, table, index, block_tokens);
            if let Some(block) = prefixes.find(hash, parent, block_tokens) {
                prefixes.remove(block);
            }
        }
    }

    /// Checks that `tables`, which must be all there are, the users' counts, the queue of free blocks and the prefix index
    /// agree. Takes time in proportion to the cache: for tests and idle moments.
    ///
    /// # Errors
    /// What disagrees, in words.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Result<(), String> {
        let mut num_users = vec![0; self.num_blocks()];
        for table in tables {
            for block in &table.blocks {
                match num_users.get_mut(block.0 as usize) {
                    Some(users) => *users += 1,
                    None => {
                        return Err(format!("a table holds block {block}, which does not exist"));
                    }
                }
            }
        }
        self.pool.check_integrity(&num_users)?;
        self.prefixes.as_ref().map_or(Ok(()), PrefixIndex::check_integrity)
    }

    /// Calls `visit` for each block of the longest cached prefix and returns how many there are.
    fn walk_prefix(
        &mut self,
        table: &mut BlockTable,
        tokens: &[TokenId],
        mut visit: impl FnMut(BlockId),
    ) -> usize {
        let Some(prefixes) = &mut self.prefixes else { return 0 };
        let most = tokens.len().saturating_sub(1) / self.block_size;
        for (index, block_tokens) in tokens.chunks_exact(self.block_size).take(most).enumerate() {
            let (parent, hash) = hash_of(prefixes, table, index, block_tokens);
            let Some(block) = prefixes.find(hash, parent, block_tokens) else { return index };
            visit(block);
        }
        most
    }

    /// Adds `num_new` blocks to a table; there are as many.
    fn extend(&mut self, table: &mut BlockTable, num_new: usize) {
        for _ in 0..num_new {
            let Some(block) = self.pool.take() else { return };
            if let Some(prefixes) = &mut self.prefixes {
                prefixes.remove(block);
            }
            table.blocks.push(block);
        }
    }
}

/// Returns the hashes of the block before `index` and of block `index`, whose tokens are `tokens`; all earlier blocks' are
/// known already.
fn hash_of(
    prefixes: &mut PrefixIndex,
    table: &mut BlockTable,
    index: usize,
    tokens: &[TokenId],
) -> (BlockHash, BlockHash) {
    let parent = if index == 0 { BlockHash::ROOT } else { table.hashes[index - 1] };
    if table.hashes.len() == index {
        table.hashes.push(prefixes.hash(parent, tokens));
    }
    (parent, table.hashes[index])
}
