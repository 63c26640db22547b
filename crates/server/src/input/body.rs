//! The extractor of JSON bodies.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};

use super::fields::Fields;
use crate::{ApiError, AppState};

/// A request's body: a JSON object, declared as one and within the size limit.
pub(crate) struct Body(pub Fields);

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(ApiError::UnsupportedMediaType);
        }
        let limit = state.config().limits.max_body_bytes;
        let bytes = Bytes::from_request(request, state).await.map_err(|e| rejection(&e, limit))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::invalid(format!("The request body is not valid JSON: {e}.")))?;
        Fields::new(value).map(Self)
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let media_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn rejection(error: &BytesRejection, limit: usize) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::TooLarge { limit }
    } else {
        ApiError::invalid(format!("The request body could not be read: {}.", error.body_text()))
    }
}
