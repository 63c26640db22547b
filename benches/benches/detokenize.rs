//! What turning tokens into text costs, a token at a time as a stream needs it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stallfree_benches::{FIRST_WORD, byte_token, tokenizer};
use stallfree_tokenizer::{Detokenizer, DetokenizerOptions, StopStrings, Tokenizer};

const LEN: usize = 4096;

/// Words, and characters whose bytes are a token each.
fn texts() -> [(&'static str, Vec<u32>); 2] {
    let words = (0..LEN as u32).map(|at| FIRST_WORD + at * 37 % 4000).collect();
    let emoji = "🚄🧱".bytes().cycle().take(LEN).map(byte_token).collect();
    [("words", words), ("bytes", emoji)]
}

fn stream(tokenizer: &Arc<Tokenizer>, tokens: &[u32], stops: &mut StopStrings) -> usize {
    let mut text = Detokenizer::new(Arc::clone(tokenizer), DetokenizerOptions::default());
    let mut len = 0;
    for &token in tokens {
        len += stops.feed(text.push(token)).text.len();
    }
    len + stops.feed(text.flush()).text.len() + stops.flush().len()
}

fn detokenize(criterion: &mut Criterion) {
    let tokenizer = Arc::new(tokenizer());
    let mut group = criterion.benchmark_group("detokenize");
    group.throughput(Throughput::Elements(LEN as u64));
    // Begun by many a word, never completed.
    let stops = vec![" w1 never".to_owned(), "\n\n".to_owned(), " w2 ever".to_owned()];
    for (name, tokens) in texts() {
        for (kind, stops) in [("plain", Vec::new()), ("stop_strings", stops.clone())] {
            let whole = tokenizer.decode(&tokens, true).len();
            group.bench_function(format!("{name}/{kind}"), |bencher| {
                bencher.iter(|| {
                    let mut stops = StopStrings::new(stops.clone(), false);
                    assert_eq!(stream(&tokenizer, black_box(&tokens), &mut stops), whole);
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = detokenize
}
criterion_main!(benches);
