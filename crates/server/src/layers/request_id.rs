//! The client's own name for a request.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use crate::input::fields::Fields;
use crate::{ApiError, AppState};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ones are not names any more.
const MAX_BYTES: usize = 128;

/// Returns the request's id, if it came with a usable one in its headers.
pub(crate) fn of(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= MAX_BYTES).then_some(id)
}

/// Returns the id that the answer is to have, if the client names one: in the body, or else in the headers.
pub(crate) fn named<'a>(
    fields: &'a Fields,
    headers: &'a HeaderMap,
) -> Result<Option<&'a str>, ApiError> {
    match fields.string("request_id")? {
        Some(id) if id.is_empty() || id.len() > MAX_BYTES => {
            let message = format!("`request_id` must have from 1 to {MAX_BYTES} bytes.");
            Err(ApiError::param("request_id", message))
        }
        id => Ok(id.or_else(|| of(headers))),
    }
}

/// Sends the request's id back; one without gets one.
pub(crate) async fn echo(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if !state.config().report.enable_request_id_headers {
        return next.run(request).await;
    }
    let id = of(request.headers())
        .and_then(|id| HeaderValue::from_str(id).ok())
        .or_else(|| HeaderValue::from_str(&Uuid::new_v4().simple().to_string()).ok());
    let Some(id) = id else { return next.run(request).await };
    request.headers_mut().insert(HEADER, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(HEADER, id);
    response
}
