//! Which block holds the KV of which tokens after which prefix.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use stallfree_core::{BlockId, TokenId};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The hash of a full block of tokens and of all tokens before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash(u128);

impl BlockHash {
    /// Stands before a sequence's first block.
    pub(crate) const ROOT: Self = Self(0);
}

/// What became of a block that was offered to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Indexed {
    /// Later sequences find the block.
    Added,
    /// They find another block with the same content.
    Known,
    /// Its hash stands for other tokens.
    Collided,
}

/// Finds blocks by content.
///
/// A hash chains over all tokens before the block, so one look-up a block walks down a prefix. What a block holds is kept
/// beside its hash and compared on every hit: two prompts with the same hash cannot see each other's KV.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    block_size: usize,
    seed: u64,
    by_hash: HashMap<BlockHash, BlockId, BuildHasherDefault<HashIsHash>>,
    /// For each block, its hash and its predecessor's, if the index holds it.
    entries: Vec<Option<Entry>>,
    /// For each block that the index holds, its tokens.
    tokens: Vec<TokenId>,
    /// Reused, so that hashing allocates nothing.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    hash: BlockHash,
    parent: BlockHash,
}

impl PrefixIndex {
    pub(crate) fn new(num_blocks: usize, block_size: usize, seed: u64) -> Self {
        Self {
            block_size,
            seed,
            by_hash: HashMap::default(),
            entries: vec![None; num_blocks],
            tokens: vec![0; num_blocks * block_size],
            bytes: Vec::new(),
        }
    }

    /// Returns the hash of `tokens`, a full block that follows `parent`.
    pub(crate) fn hash(&mut self, parent: BlockHash, tokens: &[TokenId]) -> BlockHash {
        self.bytes.clear();
        self.bytes.extend_from_slice(&parent.0.to_le_bytes());
        for token in tokens {
            self.bytes.extend_from_slice(&token.to_le_bytes());
        }
        BlockHash(xxh3_128_with_seed(&self.bytes, self.seed))
    }

    /// Returns the block that holds `tokens` after `parent`, where `hash` is their hash.
    pub(crate) fn find(
        &self,
        hash: BlockHash,
        parent: BlockHash,
        tokens: &[TokenId],
    ) -> Option<BlockId> {
        let block = *self.by_hash.get(&hash)?;
        self.holds(block, Entry { hash, parent }, tokens).then_some(block)
    }

    /// Makes a block findable, unless another one with its hash is.
    pub(crate) fn add(
        &mut self,
        block: BlockId,
        hash: BlockHash,
        parent: BlockHash,
        tokens: &[TokenId],
    ) -> Indexed {
        let entry = Entry { hash, parent };
        if let Some(&known) = self.by_hash.get(&hash) {
            let same = self.holds(known, entry, tokens);
            return if same { Indexed::Known } else { Indexed::Collided };
        }
        self.by_hash.insert(hash, block);
        self.entries[block.0 as usize] = Some(entry);
        let start = block.0 as usize * self.block_size;
        self.tokens[start..start + self.block_size].copy_from_slice(tokens);
        Indexed::Added
    }

    /// Forgets a block, whose content is about to change.
    pub(crate) fn remove(&mut self, block: BlockId) {
        if let Some(entry) = self.entries[block.0 as usize].take() {
            self.by_hash.remove(&entry.hash);
        }
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].is_some()
    }

    fn holds(&self, block: BlockId, entry: Entry, tokens: &[TokenId]) -> bool {
        let start = block.0 as usize * self.block_size;
        self.entries[block.0 as usize] == Some(entry)
            && self.tokens[start..start + self.block_size] == *tokens
    }

    /// Checks that hashes and blocks point at each other.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let num_entries = self.entries.iter().flatten().count();
        if num_entries != self.by_hash.len() {
            return Err(format!(
                "{} hashes lead to {num_entries} blocks of the prefix index",
                self.by_hash.len()
            ));
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if self.by_hash.get(&entry.hash) != Some(&BlockId(index as u32)) {
                return Err(format!("block {index} is in the prefix index, but its hash is not"));
            }
        }
        Ok(())
    }
}

/// Takes the low half of a [`BlockHash`] as it is: it is a hash already.
#[derive(Default)]
struct HashIsHash(u64);

impl Hasher for HashIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockHash, Indexed, PrefixIndex};
    use stallfree_core::BlockId;

    /// Collisions cannot be made to order, so the same hash is passed off as that of other content.
    #[test]
    fn a_hash_that_stands_for_other_content_finds_nothing() {
        let mut index = PrefixIndex::new(2, 2, 0);
        let hash = index.hash(BlockHash::ROOT, &[1, 2]);
        assert_eq!(index.add(BlockId(0), hash, BlockHash::ROOT, &[1, 2]), Indexed::Added);
        assert_eq!(index.find(hash, BlockHash::ROOT, &[1, 2]), Some(BlockId(0)));
        for (parent, tokens) in [(BlockHash::ROOT, [1, 3]), (hash, [1, 2])] {
            assert_eq!(index.find(hash, parent, &tokens), None);
            assert_eq!(index.add(BlockId(1), hash, parent, &tokens), Indexed::Collided);
        }
        assert_eq!(index.add(BlockId(1), hash, BlockHash::ROOT, &[1, 2]), Indexed::Known);
        index.remove(BlockId(0));
        assert_eq!(index.find(hash, BlockHash::ROOT, &[1, 2]), None);
        index.check_integrity().unwrap();
    }
}
