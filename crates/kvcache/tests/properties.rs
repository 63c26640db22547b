//! Random operations against a naive model of the cache: lists of tables and of prefixes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stallfree_core::{BlockId, KvGeometry, TokenId};
use stallfree_kvcache::{BlockTable, KvCacheManager};

/// What a table's owner may do; `usize`s pick a sequence and are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Op {
    /// A sequence with this prompt starts, with blocks for a part of it, leaving some free.
    Start {
        prompt: Vec<TokenId>,
        part: usize,
        reserve: usize,
    },
    /// It computes tokens up to its end, and one is sampled.
    Grow {
        which: usize,
        token: TokenId,
    },
    Free {
        which: usize,
    },
    /// What is cached of its tokens is to be found no more.
    Discard {
        which: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    // Few different tokens, so that prompts share prefixes.
    let start = (prop::collection::vec(0_u32..2, 1..14), 0_usize..14, 0_usize..4);
    prop_oneof![
        4 => start.prop_map(|(prompt, part, reserve)| Op::Start { prompt, part, reserve }),
        6 => (any::<usize>(), 0_u32..2).prop_map(|(which, token)| Op::Grow { which, token }),
        3 => any::<usize>().prop_map(|which| Op::Free { which }),
        1 => any::<usize>().prop_map(|which| Op::Discard { which }),
    ]
}

#[derive(Debug)]
struct Model {
    kv: KvCacheManager,
    caching: bool,
    block_size: usize,
    seqs: Vec<Seq>,
    /// Which block holds the last tokens of which prefix: the first that did, until it is taken for something else.
    index: BTreeMap<Vec<TokenId>, BlockId>,
}

#[derive(Debug)]
struct Seq {
    table: BlockTable,
    tokens: Vec<TokenId>,
    num_indexed: usize,
}

impl Model {
    fn new(geometry: KvGeometry, caching: bool) -> Self {
        let kv = KvCacheManager::new(geometry, caching, 1);
        let block_size = geometry.block_size;
        Self { kv, caching, block_size, seqs: Vec::new(), index: BTreeMap::new() }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Start { prompt, part, reserve } => self.start(prompt, part, reserve),
            Op::Grow { which, token } if !self.seqs.is_empty() => {
                self.grow(which % self.seqs.len(), token);
            }
            Op::Free { which } if !self.seqs.is_empty() => {
                let mut seq = self.seqs.swap_remove(which % self.seqs.len());
                self.kv.free(&mut seq.table);
                assert_eq!(seq.table.num_blocks(), 0);
            }
            Op::Discard { which } if !self.seqs.is_empty() => {
                let mut seq = self.seqs.swap_remove(which % self.seqs.len());
                self.kv.forget(&mut seq.table, &seq.tokens);
                self.kv.free(&mut seq.table);
                self.index.retain(|prefix, _| !seq.tokens.starts_with(prefix));
            }
            Op::Grow { .. } | Op::Free { .. } | Op::Discard { .. } => {}
        }
        let tables = self.seqs.iter().map(|seq| &seq.table);
        self.kv.check_integrity(tables).expect("everything agrees");
        self.check_counts();
    }

    /// Returns the blocks of the longest cached prefix.
    fn prefix(&self, tokens: &[TokenId]) -> Vec<BlockId> {
        let ends = (self.block_size..tokens.len()).step_by(self.block_size);
        ends.map_while(|end| self.index.get(&tokens[..end]).copied()).collect()
    }

    fn start(&mut self, prompt: Vec<TokenId>, part: usize, reserve: usize) {
        let mut table = BlockTable::default();
        let hits = self.prefix(&prompt);
        let cached = hits.len() * self.block_size;
        assert_eq!(self.kv.find_prefix(&mut table, &prompt), cached);
        let used = self.used();
        let num_tokens = part.min(prompt.len()).max(cached);
        let num_new = num_tokens.div_ceil(self.block_size) - hits.len();
        let num_revived = hits.iter().filter(|block| !used.contains(block)).count();
        let free = self.kv.num_free_blocks();
        let started = self.kv.start(&mut table, &prompt, true, |_| num_tokens, reserve);
        if free < num_new + num_revived + reserve {
            assert_eq!(started, None);
            assert_eq!((table.num_blocks(), self.kv.num_free_blocks()), (0, free));
            return;
        }
        assert_eq!(started, Some(cached));
        assert_eq!(self.kv.num_free_blocks(), free - num_new - num_revived);
        assert_eq!(table.blocks()[..hits.len()], hits);
        assert_eq!(table.num_blocks(), hits.len() + num_new);
        self.forget(&table.blocks()[hits.len()..]);
        self.seqs.push(Seq { table, tokens: prompt, num_indexed: hits.len() });
    }

    fn grow(&mut self, which: usize, token: TokenId) {
        let free = self.kv.num_free_blocks();
        let Seq { table, tokens, num_indexed } = &mut self.seqs[which];
        let had = table.num_blocks();
        let num_new = tokens.len().div_ceil(self.block_size).saturating_sub(had);
        let grown = self.kv.allocate(table, tokens.len());
        assert_eq!(grown, num_new <= free);
        if !grown {
            assert_eq!((table.num_blocks(), self.kv.num_free_blocks()), (had, free));
            return;
        }
        assert_eq!(self.kv.num_free_blocks(), free - num_new);
        let new = table.blocks()[had..].to_vec();
        self.index.retain(|_, block| !new.contains(block));
        self.kv.index(table, tokens, tokens.len());
        while self.caching && (*num_indexed + 1) * self.block_size <= tokens.len() {
            let block = table.blocks()[*num_indexed];
            *num_indexed += 1;
            let prefix = tokens[..*num_indexed * self.block_size].to_vec();
            self.index.entry(prefix).or_insert(block);
        }
        tokens.push(token);
    }

    fn forget(&mut self, taken: &[BlockId]) {
        self.index.retain(|_, block| !taken.contains(block));
    }

    fn used(&self) -> Vec<BlockId> {
        self.seqs.iter().flat_map(|seq| seq.table.blocks().to_vec()).collect()
    }

    fn check_counts(&self) {
        let mut used = self.used();
        let held = used.len();
        used.sort_unstable();
        used.dedup();
        assert!(self.caching || used.len() == held, "a block was shared without prefix caching");
        assert_eq!(self.kv.num_blocks() - self.kv.num_free_blocks(), used.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_cache_agrees_with_a_naive_model(
        num_blocks in 1_usize..16,
        block_size in 1_usize..5,
        caching: bool,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut model = Model::new(KvGeometry { num_blocks, block_size }, caching);
        for op in ops {
            model.apply(op);
        }
        for mut seq in std::mem::take(&mut model.seqs) {
            model.kv.free(&mut seq.table);
        }
        prop_assert_eq!(model.kv.num_free_blocks(), num_blocks);
        model.kv.check_integrity([]).unwrap();
    }
}

/// Computes all of `tokens` in a new table.
fn compute(kv: &mut KvCacheManager, tokens: &[TokenId]) -> BlockTable {
    let mut table = BlockTable::default();
    kv.start(&mut table, tokens, true, |_| tokens.len(), 0).expect("there is room");
    kv.index(&mut table, tokens, tokens.len());
    table
}

fn found(kv: &mut KvCacheManager, tokens: &[TokenId]) -> usize {
    kv.find_prefix(&mut BlockTable::default(), tokens)
}

fn cache(num_blocks: usize) -> KvCacheManager {
    KvCacheManager::new(KvGeometry { num_blocks, block_size: 2 }, true, 0)
}

#[test]
fn a_prefix_is_found_in_full_blocks_but_never_whole() {
    let mut kv = cache(8);
    let mut table = compute(&mut kv, &[1, 2, 3, 4, 5]);
    for freed in [false, true] {
        if freed {
            kv.free(&mut table);
        }
        assert_eq!(found(&mut kv, &[1, 2, 3, 4, 5, 6, 7]), 4);
        assert_eq!(found(&mut kv, &[1, 2, 3, 4]), 2, "one token must be computed");
        assert_eq!(found(&mut kv, &[1, 2, 9, 4, 5]), 2);
        assert_eq!(found(&mut kv, &[9, 2, 3, 4, 5]), 0, "a block counts only after its prefix");
    }
}

#[test]
fn tokens_that_are_not_computed_are_not_found() {
    let mut kv = cache(8);
    let mut table = BlockTable::default();
    let tokens = [1, 2, 3, 4, 5, 6];
    kv.start(&mut table, &tokens, true, |_| 6, 0).unwrap();
    for (computed, expected) in [(0, 0), (1, 0), (3, 2), (4, 4)] {
        kv.index(&mut table, &tokens, computed);
        assert_eq!(found(&mut kv, &tokens), expected);
    }
}

#[test]
fn the_end_of_the_least_recently_used_sequence_is_evicted_first() {
    let mut kv = cache(6);
    let (old, new) = ([1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]);
    let mut tables = [compute(&mut kv, &old), compute(&mut kv, &new)];
    tables.iter_mut().for_each(|table| kv.free(table));
    let mut taken = BlockTable::default();
    for (num_blocks, expected) in
        [(0, (4, 4)), (1, (4, 4)), (2, (2, 4)), (3, (0, 4)), (4, (0, 4)), (5, (0, 2))]
    {
        assert!(kv.allocate(&mut taken, 2 * num_blocks));
        assert_eq!((found(&mut kv, &old), found(&mut kv, &new)), expected, "{num_blocks} taken");
    }
}

#[test]
fn found_blocks_that_are_unused_count_as_taken() {
    let mut kv = cache(4);
    let prompt = [1, 2, 3, 4, 5, 6];
    let mut table = compute(&mut kv, &prompt);
    kv.free(&mut table);
    assert_eq!(kv.start(&mut table, &prompt, true, |_| 6, 2), None, "2 found, 1 new, 1 left");
    assert_eq!(kv.start(&mut table, &prompt, true, |_| 6, 1), Some(4));
    assert_eq!(kv.num_free_blocks(), 1);
}

#[test]
fn damage_is_noticed() {
    let mut kv = cache(4);
    let table = compute(&mut kv, &[1, 2, 3, 4]);
    kv.check_integrity([&table]).unwrap();
    assert!(kv.check_integrity([]).is_err(), "a table went missing");
    assert!(kv.check_integrity([&table, &table]).is_err(), "a table was counted twice");
}
