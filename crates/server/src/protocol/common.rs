//! What both endpoints' bodies share.

use serde::Serialize;
use serde_json::{Map, Value};
use stallfree_core::TokenId;

/// How many tokens a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Tokens of all its prompts; a prompt counts once however many choices continue it.
    pub prompt_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Tokens produced.
    pub completion_tokens: usize,
    /// What is known about the prompt's tokens.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is known about a prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PromptTokensDetails {
    /// Of these, found in the prefix cache.
    pub cached_tokens: usize,
}

/// Usage in a stream's chunk: absent unless asked for, `null` before the last chunk, then the numbers.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ChunkUsage {
    /// Not yet.
    Null,
    /// The numbers so far.
    Known(Usage),
}

/// What stopped a choice, beside its finish reason: a token that is not the end-of-sequence token, or a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    /// One of `stop_token_ids`.
    Token(TokenId),
    /// One of `stop`.
    Text(String),
}

/// Logprobs of a prompt, in vLLM's shape: `null` for the first token, then a map from token id to its entry.
pub(crate) type PromptLogprobs = Vec<Option<Map<String, Value>>>;

/// One entry of a prompt token's map.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PromptLogprob {
    /// The natural logarithm of the token's probability.
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    /// The token's text.
    pub decoded_token: String,
}
