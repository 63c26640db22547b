//! `/health`, `/ping` and `/load`: whether and how busily the server serves.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use stallfree_engine::Health;

use crate::{ApiError, AppState};

/// Answers 200 if the engine steps, else 503.
pub(crate) async fn health(State(state): State<AppState>) -> Result<StatusCode, ApiError> {
    match state.engine().health() {
        Health::Healthy => Ok(StatusCode::OK),
        Health::Late { since } => Err(ApiError::Unavailable(format!(
            "The engine's step has been running for {:.1} s, far longer than predicted.",
            since.as_secs_f64()
        ))),
        Health::Dead(reason) => Err(ApiError::Unavailable(format!("The engine is dead: {reason}"))),
    }
}

/// Answers with the number of requests under way.
pub(crate) async fn load(State(state): State<AppState>) -> Json<Value> {
    Json(json!({ "server_load": state.load() }))
}
