//! What the KV cache's bookkeeping costs: a step of decodes, prompts that are found or not, and blocks that have to be evicted.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stallfree_core::KvGeometry;
use stallfree_kvcache::{BlockTable, KvCacheManager};

const BLOCK_SIZE: usize = 16;
const NUM_SEQS: usize = 1024;
const CONTEXT: usize = 512;
/// A long prompt, as of a document with a question.
const PROMPT: usize = 8192;

fn manager(num_tokens: usize, enable_prefix_caching: bool) -> KvCacheManager {
    let geometry = KvGeometry { num_blocks: num_tokens / BLOCK_SIZE, block_size: BLOCK_SIZE };
    KvCacheManager::new(geometry, enable_prefix_caching, 1)
}

fn tokens(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|at| (at ^ seed.wrapping_mul(2_654_435_761)) % 50_000).collect()
}

/// Takes blocks for all of a prompt and makes them findable, as its prefill does; returns how many of its tokens were found.
fn fill(manager: &mut KvCacheManager, table: &mut BlockTable, prompt: &[u32]) -> usize {
    let found = manager.start(table, prompt, true, |_| prompt.len(), 0).expect("blocks are free");
    manager.index(table, prompt, prompt.len());
    found
}

/// A cache, its sequences with their tokens, and how many steps they have taken.
type State = (KvCacheManager, Vec<(BlockTable, Vec<u32>)>, usize);

/// Gives each sequence a token and returns how long that took.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn step((manager, seqs, done): &mut State) -> Duration {
    *done += 1;
    let start = Instant::now();
    for (table, tokens) in seqs {
        tokens.push(7);
        assert!(manager.allocate(table, tokens.len()));
        manager.index(table, tokens, tokens.len());
    }
    start.elapsed()
}

/// Each of 1,024 sequences gets room for one token more: one in sixteen takes a block, and makes the one before it findable.
fn decode_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kv_cache/decode_step");
    group.throughput(Throughput::Elements(NUM_SEQS as u64));
    for (name, enable_prefix_caching) in [("prefix_cache", true), ("plain", false)] {
        let steps = 4096;
        let start = || -> State {
            let mut manager = manager(NUM_SEQS * (CONTEXT + steps + 16), enable_prefix_caching);
            let mut seqs = Vec::new();
            for id in 0..NUM_SEQS {
                let mut table = BlockTable::default();
                let tokens = tokens(CONTEXT + id % BLOCK_SIZE, id as u32);
                fill(&mut manager, &mut table, &tokens);
                seqs.push((table, tokens));
            }
            (manager, seqs, 0)
        };
        let mut state = start();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|num_steps| {
                let mut total = Duration::ZERO;
                for _ in 0..num_steps {
                    if state.2 == steps {
                        state = start();
                    }
                    total += step(&mut state);
                }
                total
            });
        });
    }
    group.finish();
}

/// A prompt of 8,192 tokens: all of it in the cache, none of it, and none of it with every block to be taken from another prefix.
fn prompt(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kv_cache/prompt_8192");
    group.throughput(Throughput::Elements(PROMPT as u64));
    let start_and_free = |manager: &mut KvCacheManager, prompt: &[u32], expected: usize| {
        let mut table = BlockTable::default();
        assert_eq!(black_box(fill(manager, &mut table, prompt)), expected);
        manager.free(&mut table);
    };

    let mut warm = manager(2 * PROMPT, true);
    let cached = tokens(PROMPT, 1);
    start_and_free(&mut warm, &cached, 0);
    group.bench_function("found", |bencher| {
        bencher.iter(|| start_and_free(&mut warm, &cached, PROMPT - BLOCK_SIZE));
    });
    group.bench_function("not_found", |bencher| {
        bencher.iter_batched_ref(
            || manager(2 * PROMPT, true),
            |manager| start_and_free(manager, &cached, 0),
            BatchSize::LargeInput,
        );
    });
    let mut full = manager(PROMPT, true);
    let mut seed = 1;
    group.bench_function("evicts", |bencher| {
        bencher.iter_batched(
            || {
                seed += 1;
                tokens(PROMPT, seed)
            },
            |prompt| start_and_free(&mut full, &prompt, 0),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = decode_step, prompt
}
criterion_main!(benches);
