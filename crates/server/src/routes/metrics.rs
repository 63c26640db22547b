//! `/metrics`: what Prometheus scrapes.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::AppState;

/// Answers with all metrics.
pub(crate) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let page = state.metrics().render(&state.engine().stats(), state.engine().info());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
}
