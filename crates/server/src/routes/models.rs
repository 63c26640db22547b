//! `/v1/models`: what is served.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::{ApiError, AppState};

/// Lists the model under each of its names.
pub(crate) async fn list(State(state): State<AppState>) -> Json<Value> {
    let names = &state.config().served_model_names;
    let data: Vec<Value> = names.iter().map(|name| card(&state, name)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// Describes one model.
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::invalid(error.to_string()))?;
    state.check_model(Some(&name))?;
    Ok(Json(card(&state, &name)))
}

fn card(state: &AppState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.created(),
        "owned_by": "stallfree",
        "root": state.config().model_root,
        "parent": null,
        "max_model_len": state.engine().info().max_model_len,
    })
}
