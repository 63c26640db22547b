//! How the next token is drawn from the logits.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::TokenId;

/// Per-sequence sampling settings, already validated and resolved. The sequences of a request share its lists.
///
/// Order of application, as in vLLM: logit bias, allowed tokens, bad words and the ban on stop tokens before `min_tokens`;
/// repetition, frequency and presence penalties; temperature; min-p; top-k; top-p; draw. Logprobs are those of the raw logits'
/// softmax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 picks the most likely token.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens, the lower ones of those that are equally likely; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive (multiplies negative) logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token occurs in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to single tokens' logits.
    pub logit_bias: Arc<[(TokenId, f32)]>,
    /// The only tokens that may be drawn; empty allows all.
    pub allowed_token_ids: Arc<[TokenId]>,
    /// Runs of tokens of which the output must hold none; each has at least one.
    pub bad_words: Arc<[Vec<TokenId>]>,
    /// Makes the draws repeatable: draw `i` of a sequence depends on `seed` and `i` alone, never on batch mates.
    pub seed: u64,
    /// How many most likely tokens to report beside the sampled one; `None` reports no logprobs.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Returns settings that always pick the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::default(),
            allowed_token_ids: Arc::default(),
            bad_words: Arc::default(),
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
        }
    }

    /// Returns whether drawing needs to know which tokens came before.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "exactly the neutral value switches a penalty off")]
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.bad_words.iter().any(|word| word.len() > 1)
    }
}
