//! `/v1/chat/completions`.

use serde::Serialize;
use stallfree_core::TokenId;

use super::common::{ChunkUsage, PromptLogprobs, StopReason, Usage};

/// The body of a response.
#[derive(Debug, Serialize)]
pub(crate) struct ChatCompletion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub system_fingerprint: Option<String>,
    pub usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
}

/// One whole choice.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub index: usize,
    pub message: Message,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

/// What the model said.
#[derive(Debug, Serialize)]
pub(crate) struct Message {
    pub role: String,
    pub content: String,
    pub refusal: Option<String>,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunk<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<ChunkUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
}

/// What one choice has newly produced.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunkChoice {
    pub index: usize,
    pub delta: DeltaMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

/// A piece of the message; the role comes with the first piece.
#[derive(Debug, Serialize)]
pub(crate) struct DeltaMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub content: String,
}

/// Logprobs, one entry a token.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    pub content: Vec<TokenEntry>,
    pub refusal: Option<Vec<TokenEntry>>,
}

/// A produced token and the most likely ones in its place.
#[derive(Debug, Serialize)]
pub(crate) struct TokenEntry {
    #[serde(flatten)]
    pub token: TopEntry,
    pub top_logprobs: Vec<TopEntry>,
}

/// A token and how likely it was.
#[derive(Debug, Serialize)]
pub(crate) struct TopEntry {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}
