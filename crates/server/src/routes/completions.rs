//! `POST /v1/completions`: continues prompts. As `chat.rs`, without a chat template.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::answer::completion::CompletionFormat;
use crate::answer::{self, Head, TokenNames};
use crate::generate::Generation;
use crate::input::body::Body;
use crate::input::completion;
use crate::layers::request_id;
use crate::{ApiError, AppState};

/// Continues one or several prompts.
pub(crate) async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let load = state.admit()?;
    let model = fields.string("model")?;
    state.check_model(model)?;
    let id = request_id::named(&fields, &headers)?;
    let request = completion::read(&state, &fields).await?;
    let head = Head::new(&state, "cmpl", id, model);
    let names = TokenNames::new(&state, &request);
    let format = CompletionFormat::new(head, names, request.seeds.len());
    let generation = Generation::start(&state, request, load)?;
    answer::respond(&state, generation, format).await
}
