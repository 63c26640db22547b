//! From deltas to bodies: each endpoint's shape, streamed or whole.

pub(crate) mod chat;
pub(crate) mod completion;
mod names;

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use stallfree_core::TokenLogprob;
use stallfree_tokenizer::Tokenizer;
use uuid::Uuid;

use crate::choice::Delta;
use crate::generate::Generation;
use crate::input::fields::Fields;
use crate::layers::request_id;
use crate::protocol::common::{ChunkUsage, PromptLogprob, PromptLogprobs, Usage};
use crate::request::GenerationRequest;
use crate::{ApiError, AppState, sse};
pub(crate) use names::TokenNames;

/// What all bodies of one answer have in common.
#[derive(Debug)]
pub(crate) struct Head {
    /// The answer's id.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// The model's name, as the client wrote it.
    pub model: String,
}

/// One endpoint's way of writing an answer.
pub(crate) trait Format: Send + 'static {
    /// Returns the body of a whole answer, given one delta a choice.
    fn whole(&mut self, request: &GenerationRequest, deltas: Vec<Delta>, usage: Usage) -> String;

    /// Returns the body of a stream's event.
    fn chunk(
        &mut self,
        request: &GenerationRequest,
        delta: Delta,
        usage: Option<ChunkUsage>,
    ) -> String;

    /// Returns the body of the event without choices that ends a stream with its usage.
    fn usage_chunk(&self, usage: Usage) -> String;
}

/// Answers with what a generation produces: an event stream if that was asked for, else one body.
pub(crate) async fn respond(
    mut generation: Generation,
    mut format: impl Format,
) -> Result<Response, ApiError> {
    if let Some(options) = generation.request().stream {
        return Ok(sse::respond(generation, format, options));
    }
    let deltas = generation.collect().await?;
    let body = format.whole(generation.request(), deltas, generation.usage());
    Ok(([(axum::http::header::CONTENT_TYPE, "application/json")], body).into_response())
}

impl Head {
    /// Starts an answer by the model that the request names, with the client's own id for it if it has one.
    pub(crate) fn read(
        state: &AppState,
        prefix: &str,
        fields: &Fields,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let model = fields.string("model")?;
        state.check_model(model)?;
        let id = request_id::named(fields, headers)?;
        let id = id.map_or_else(|| Uuid::new_v4().simple().to_string(), str::to_owned);
        Ok(Self {
            id: format!("{prefix}-{id}"),
            created: crate::state::unix_seconds(),
            model: model.unwrap_or(state.config().model_name()).to_owned(),
        })
    }
}

/// Writes a body; one of our own types cannot fail to be written.
fn to_json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).unwrap_or_else(|e| {
        let error = ApiError::Internal(format!("the answer could not be written: {e}"));
        serde_json::to_string(&error.body()).unwrap_or_default()
    })
}

/// Returns a prompt's logprobs in vLLM's shape.
fn prompt_logprobs(tokenizer: &Arc<Tokenizer>, entries: &[Vec<TokenLogprob>]) -> PromptLogprobs {
    let rest = entries.iter().map(|entry| {
        let of_token = |lp: &TokenLogprob| {
            let value = PromptLogprob {
                logprob: names::finite(lp.logprob),
                rank: lp.rank,
                decoded_token: tokenizer.token_text(lp.token),
            };
            (lp.token.to_string(), serde_json::to_value(value).unwrap_or_default())
        };
        // The token itself comes first and may come again among the most likely ones: the map keeps one.
        Some(entry.iter().map(of_token).collect())
    });
    std::iter::once(None).chain(rest).collect()
}
