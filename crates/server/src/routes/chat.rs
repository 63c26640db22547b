//! `POST /v1/chat/completions`: where a request enters. The first file of the main path.
//!
//! The body becomes a [`GenerationRequest`](crate::request::GenerationRequest), in which nothing is left to decide: the messages
//! are rendered by the chat template and tokenized, and every parameter is checked (`input/chat.rs`). The generation loop hands
//! its choices to the engine and turns the tokens that come back into text (`generate.rs`, `choice.rs`). The text leaves as
//! one body or as a stream of events (`answer.rs`, `sse.rs`).
//!
//! It knows nothing of scheduling and nothing of models: only [`EngineHandle`](stallfree_engine::EngineHandle). Next on the main path: `generate.rs`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::answer::chat::ChatFormat;
use crate::answer::{self, Head, TokenNames};
use crate::generate::Generation;
use crate::input::body::Body;
use crate::input::chat;
use crate::state::LoadGuard;
use crate::{ApiError, AppState};

/// Continues a conversation.
pub(crate) async fn create(
    State(state): State<AppState>,
    load: LoadGuard,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = body.read(&state, move |state, fields| {
        Ok((Head::read(state, "chatcmpl", fields, &headers)?, chat::read(state, fields)?))
    });
    let (head, request) = read.await?;
    let format = ChatFormat {
        head,
        names: TokenNames::new(&state, &request.generation),
        role: request.role,
        prefix: request.prefix,
    };
    let generation = Generation::start(&state, request.generation, load)?;
    answer::respond(generation, format).await
}
