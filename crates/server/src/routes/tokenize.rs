//! `/tokenize` and `/detokenize`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::input::body::Body;
use crate::input::chat::Conversation;
use crate::input::fields::Fields;
use crate::input::prompt;
use crate::state::LoadGuard;
use crate::{ApiError, AppState};

/// Returns a text's tokens; a conversation's, if it has `messages` instead of a `prompt`.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    _load: LoadGuard,
    body: Body,
) -> Result<Response, ApiError> {
    body.read(&state, tokens_of).await
}

/// Returns the text of tokens.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    _load: LoadGuard,
    body: Body,
) -> Result<Response, ApiError> {
    body.read(&state, text_of).await
}

fn tokens_of(state: &AppState, fields: &Fields) -> Result<Response, ApiError> {
    state.check_model(fields.string("model")?)?;
    let is_chat = fields.value("messages").is_some();
    let text = if is_chat {
        Conversation::read(fields, state)?.render(state)?
    } else {
        let prompt = fields.string("prompt")?;
        prompt.ok_or_else(|| ApiError::param("prompt", "`prompt` is required."))?.to_owned()
    };
    let add_special_tokens = fields.bool("add_special_tokens", !is_chat)?;
    let with_texts = fields.bool("return_token_strs", false)?;
    let tokens = prompt::encode(state, &text, add_special_tokens)?;
    let token_strs: Option<Vec<_>> = with_texts.then(|| {
        let name = |&id| state.tokenizer().id_to_token(id).unwrap_or_default();
        tokens.iter().map(name).collect()
    });
    let answer = json!({
        "count": tokens.len(),
        "max_model_len": state.engine().info().max_model_len,
        "tokens": tokens,
        "token_strs": token_strs,
    });
    Ok(Json(answer).into_response())
}

fn text_of(state: &AppState, fields: &Fields) -> Result<Response, ApiError> {
    state.check_model(fields.string("model")?)?;
    let tokens = fields
        .token_ids("tokens", state.tokenizer().vocab_size())?
        .ok_or_else(|| ApiError::param("tokens", "`tokens` is required."))?;
    Ok(Json(json!({ "prompt": state.tokenizer().decode(&tokens, false) })).into_response())
}
