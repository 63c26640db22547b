//! The extractor of JSON bodies.

use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::fields::Fields;
use crate::{ApiError, AppState};

/// The most bytes of a body.
pub(crate) const MAX_BODY_BYTES: usize = 16 << 20;
/// Longer bodies share [`LongBodies`].
const SHORT_BYTES: usize = 64 << 10;
/// The most bytes that long bodies take together.
const MAX_LONG_BYTES: usize = 1 << 30;

/// A request's body, declared as JSON, within the size limit and in time.
pub(crate) struct Body {
    bytes: Bytes,
    room: Option<OwnedSemaphorePermit>,
}

/// The memory for long bodies, from before they are received until they are read; those that it has no room for wait.
#[derive(Debug)]
pub(crate) struct LongBodies(Arc<Semaphore>);

impl Body {
    /// Parses the body and reads its fields; those of a long one where that holds up no connection.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        state: &AppState,
        read: impl FnOnce(&AppState, &Fields) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (shared, len) = (state.clone(), self.bytes.len());
        let work = move || {
            let Self { bytes, room: _room } = self;
            let value = serde_json::from_slice(&bytes).map_err(|e| {
                ApiError::invalid(format!("The request body is not valid JSON: {e}."))
            })?;
            read(&shared, &Fields::new(value)?)
        };
        state.computing().run(len, work).await?
    }
}

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(ApiError::UnsupportedMediaType);
        }
        let declared = request.body().size_hint().upper();
        let declared = declared.and_then(|bytes| usize::try_from(bytes).ok());
        if declared.is_some_and(|bytes| bytes > MAX_BODY_BYTES) {
            return Err(ApiError::TooLarge { limit: MAX_BODY_BYTES });
        }
        let limit = state.config().limits.body_timeout;
        let room = state.long_bodies().room(declared.unwrap_or(MAX_BODY_BYTES));
        let room = timeout(limit, room).await.map_err(|_| ApiError::Overloaded {
            message: "too many long bodies are on their way".to_owned(),
            retry_after: limit,
        })?;
        let bytes = timeout(limit, Bytes::from_request(request, state)).await;
        let bytes = bytes.map_err(|_| ApiError::TooSlow { limit })?.map_err(|e| rejection(&e))?;
        Ok(Self { bytes, room })
    }
}

impl LongBodies {
    /// Waits until there is room for a body of so many bytes; a short one needs none.
    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = bytes.min(MAX_BODY_BYTES).div_ceil(SHORT_BYTES);
        let units = u32::try_from(units).ok().filter(|&units| units > 1)?;
        Arc::clone(&self.0).acquire_many_owned(units).await.ok()
    }
}

impl Default for LongBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LONG_BYTES / SHORT_BYTES)))
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let media_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn rejection(error: &BytesRejection) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::TooLarge { limit: MAX_BODY_BYTES }
    } else {
        ApiError::invalid(format!("The request body could not be read: {}.", error.body_text()))
    }
}
