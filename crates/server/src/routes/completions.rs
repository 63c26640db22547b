//! `POST /v1/completions`: continues prompts. As `chat.rs`, without a chat template.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::answer::completion::CompletionFormat;
use crate::answer::{self, Head, TokenNames};
use crate::generate::Generation;
use crate::input::body::Body;
use crate::input::completion;
use crate::state::LoadGuard;
use crate::{ApiError, AppState};

/// Continues one or several prompts.
pub(crate) async fn create(
    State(state): State<AppState>,
    load: LoadGuard,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = body.read(&state, move |state, fields| {
        Ok((Head::read(state, "cmpl", fields, &headers)?, completion::read(state, fields)?))
    });
    let (head, request) = read.await?;
    let names = TokenNames::new(&state, &request);
    let format = CompletionFormat::new(head, names, request.seeds.len());
    let generation = Generation::start(&state, request, load)?;
    answer::respond(generation, format).await
}
