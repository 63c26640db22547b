//! Counts what was asked and how it was answered.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::AppState;
use crate::metrics::HttpKey;

/// Counts a request by its route.
pub(crate) async fn count(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let handler = request.extensions().get::<MatchedPath>();
    let handler = handler.map_or("none", MatchedPath::as_str).to_owned();
    // A method is the client's text: unknown ones share a name, so that nobody can grow the table.
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH") => known,
        _ => "other",
    };
    let method = method.to_owned();
    let started = state.engine().now();
    let response = next.run(request).await;
    let key = HttpKey { handler, method, status_class: response.status().as_u16() / 100 };
    state.metrics().count_http(key, state.engine().now() - started);
    response
}
