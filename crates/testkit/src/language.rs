//! A made-up language in which every token depends on all tokens before it.

use stallfree_core::{Request, SamplingParams, TokenId, TokenLogprob};

/// How many tokens the language has.
pub const VOCAB_SIZE: u32 = 1000;

/// What a text means so far.
///
/// A token's KV is [`of`](Self::of) the meaning before it, so it can only be right if all earlier KV was; the next token
/// comes from all KV, read back in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Language(pub u64);

impl Language {
    /// Returns the meaning after one more token.
    #[must_use]
    pub const fn of(self, token: TokenId) -> Self {
        Self(mix(self.0 ^ mix(token as u64 + 1)))
    }

    /// Returns the meaning of many tokens' KV, given in their order.
    #[must_use]
    pub fn of_all(kv: impl IntoIterator<Item = Self>) -> Self {
        kv.into_iter().fold(Self::default(), |all, kv| Self(mix(all.0.rotate_left(1) ^ kv.0)))
    }

    /// Returns draw `number` of the token that follows.
    #[must_use]
    pub fn next(self, params: &SamplingParams, number: usize, banned: &[TokenId]) -> TokenId {
        let mut state = match params.temperature > 0.0 {
            true => mix(self.0 ^ params.seed.wrapping_add(number as u64)),
            false => self.0,
        };
        loop {
            state = mix(state);
            let token = (state % u64::from(VOCAB_SIZE)) as TokenId;
            if !banned.contains(&token) {
                return token;
            }
        }
    }

    /// Returns the logprobs of `token`, then of `num_top` others.
    #[must_use]
    pub fn logprobs(self, token: TokenId, num_top: u32) -> Vec<TokenLogprob> {
        let logprob = |token: TokenId| -((mix(self.0 ^ u64::from(token)) % 1000) as f32 / 100.0);
        let others = (0..num_top).map(|i| (token + i + 1) % VOCAB_SIZE);
        let entry =
            |(rank, token)| TokenLogprob { token, logprob: logprob(token), rank: rank as u32 + 1 };
        std::iter::once(token).chain(others).enumerate().map(entry).collect()
    }

    /// Returns what a request's answer must be, computed without any cache.
    #[must_use]
    pub fn answer(request: &Request, max_model_len: usize) -> Vec<TokenId> {
        let (stop, params) = (&request.stop, &request.sampling);
        let mut kv = Vec::new();
        let push = |kv: &mut Vec<Self>, token| {
            kv.push(kv.last().copied().unwrap_or_default().of(token));
        };
        request.prompt.iter().for_each(|&token| push(&mut kv, token));
        let mut answer = Vec::new();
        while answer.len() < stop.max_tokens && kv.len() < max_model_len {
            let banned: &[TokenId] =
                if answer.len() < stop.min_tokens { &stop.stop_token_ids[..] } else { &[] };
            let token = Self::of_all(kv.iter().copied()).next(params, answer.len(), banned);
            answer.push(token);
            push(&mut kv, token);
            if stop.stop_token_ids.contains(&token) {
                break;
            }
        }
        answer
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}
