//! A notation for traffic.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{Request, SamplingParams, Slo, StopRules, Time, TokenId};

use crate::VOCAB_SIZE;

/// Returns requests with the moments at which they come, from words `at:prompt+output`, in seconds and tokens: `0.5:100+8` is a
/// prompt of 100 tokens at 0.5 s that is to be continued by 8. `3x0.5:100+8` is three of them; `0.5:100+8~64` begins with
/// 64 tokens that all prompts with a `~` begin with.
///
/// # Panics
/// If a word cannot be read.
#[must_use]
pub fn traffic(words: &str) -> Vec<(Time, Request)> {
    let mut requests = Vec::new();
    for word in words.split_whitespace() {
        let (count, rest) = word.split_once('x').unwrap_or(("1", word));
        let (rest, shared) = rest.split_once('~').unwrap_or((rest, "0"));
        let (at, lengths) = rest.split_once(':').unwrap_or((rest, ""));
        let (prompt, output) = lengths.split_once('+').unwrap_or((lengths, ""));
        let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| unreadable(word));
        let at = Duration::from_secs_f64(at.parse().unwrap_or_else(|_| unreadable(word)));
        for _ in 0..number(count) {
            let prompt = prompt_of(requests.len(), number(prompt), number(shared));
            requests.push((Time::from_start(at), greedy(prompt, number(output))));
        }
    }
    requests
}

/// Returns a request for exactly `max_tokens` tokens, drawn greedily.
#[must_use]
pub fn greedy(prompt: Vec<TokenId>, max_tokens: usize) -> Request {
    Request {
        prompt,
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopRules { max_tokens, min_tokens: 0, stop_token_ids: Arc::default() },
        priority: 0,
        slo: Slo::default(),
    }
}

/// Returns a prompt whose tokens, but for the first `shared`, no prompt with another `index` has at the same place.
fn prompt_of(index: usize, len: usize, shared: usize) -> Vec<TokenId> {
    let token = |i: usize| if i < shared { i * 7 } else { index * 13 + i * 31 + 5 };
    (0..len).map(|i| token(i) as TokenId % VOCAB_SIZE).collect()
}

fn unreadable<T>(word: &str) -> T {
    panic!("`{word}` is not like `3x0.5:100+8~64`")
}
