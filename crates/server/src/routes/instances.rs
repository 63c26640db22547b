//! `/admin/instances`: what the instances of a deployment are for, and which of them drain.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use stallfree_core::InstanceId;
use stallfree_engine::{InstanceChange, InstanceStatus, Role};

use crate::input::body::Body;
use crate::input::fields::Fields;
use crate::{ApiError, AppState};

/// Answers with all instances.
pub(crate) async fn list(State(state): State<AppState>) -> Json<Value> {
    let instances: Vec<Value> = state.engine().instances().iter().map(to_json).collect();
    Json(json!({ "object": "list", "data": instances }))
}

/// Changes an instance's `role`, or lets it drain, and answers with how it is from then on.
pub(crate) async fn change(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::invalid(error.to_string()))?;
    let change = body.read(&state, |_, fields| read_change(fields)).await?;
    let number = id.parse().map(InstanceId).ok();
    let changed = number.and_then(|number| state.engine().change_instance(number, change));
    changed.as_ref().map(to_json).map(Json).ok_or_else(|| {
        let count = state.engine().instances().len();
        ApiError::UnknownInstance { id, count }
    })
}

fn read_change(fields: &Fields) -> Result<InstanceChange, ApiError> {
    let role = fields.string("role")?.map(str::parse::<Role>).transpose();
    let role = role.map_err(|message| ApiError::param("role", format!("`role`: {message}.")))?;
    let draining = fields.value("draining").map(|_| fields.bool("draining", false)).transpose()?;
    if role.is_none() && draining.is_none() {
        return Err(ApiError::invalid("The body has neither `role` nor `draining`."));
    }
    Ok(InstanceChange { role, draining })
}

fn to_json(status: &InstanceStatus) -> Value {
    json!({
        "id": status.instance.0,
        "object": "instance",
        "role": status.role.to_string(),
        "draining": status.is_draining,
        "lost": status.is_lost,
        "num_requests": status.num_seqs,
        "num_prefills": status.num_prefills,
        "num_tokens": status.num_tokens,
        "num_kept": status.num_kept,
    })
}
