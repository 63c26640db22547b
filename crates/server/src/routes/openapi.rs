//! `/openapi.json`: this server's interface, for programs.

use axum::http::header;
use axum::response::IntoResponse;

/// The document; a test holds it against the routes and the parameters that the server reads.
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// Answers with the document.
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}
