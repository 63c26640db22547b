//! How logprobs name tokens.

use std::sync::Arc;

use stallfree_core::TokenId;
use stallfree_tokenizer::Tokenizer;

use crate::AppState;
use crate::protocol::chat::TopEntry;
use crate::request::GenerationRequest;

/// Names tokens, by their text or as `token_id:N`.
#[derive(Clone, Debug)]
pub(crate) struct TokenNames {
    /// The vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether ids stand for texts, which need not be unique.
    pub as_ids: bool,
}

impl TokenNames {
    /// Names tokens the way that a request wants.
    pub(crate) fn new(state: &AppState, request: &GenerationRequest) -> Self {
        let as_ids = request.report.return_tokens_as_token_ids;
        Self { tokenizer: state.tokenizer().clone(), as_ids }
    }

    /// Returns a token's name.
    pub(crate) fn name(&self, id: TokenId) -> String {
        if self.as_ids { format!("token_id:{id}") } else { self.tokenizer.token_text(id) }
    }

    /// Returns a token in the shape of a chat's logprobs.
    pub(crate) fn entry(&self, id: TokenId, logprob: f32) -> TopEntry {
        TopEntry {
            token: self.name(id),
            logprob: finite(logprob),
            bytes: self.tokenizer.token_bytes(id).to_vec(),
        }
    }
}

/// Returns a logprob that JSON can express; an impossible token gets what OpenAI's API gives it.
pub(crate) const fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}
