//! `/version`.

use axum::Json;
use serde_json::{Value, json};

/// Answers with this program's version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}
