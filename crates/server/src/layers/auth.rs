//! API keys.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;

use crate::{ApiError, AppState};

/// Where keys are asked for.
const GUARDED: [&str; 2] = ["v1", "admin"];

/// Lets a request under `/v1` or `/admin` through only with one of the keys, if there are any.
pub(crate) async fn check(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &state.config().api_keys;
    let first = request.uri().path().split('/').nth(1);
    let is_guarded = first.is_some_and(|first| GUARDED.contains(&first));
    if keys.is_empty() || !is_guarded || has_key(&request, keys) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::Unauthorized)
    }
}

fn has_key(request: &Request, keys: &[String]) -> bool {
    let header = request.headers().get(header::AUTHORIZATION);
    let Some((scheme, given)) = header.and_then(|value| value.to_str().ok()?.split_once(' '))
    else {
        return false;
    };
    // All keys are compared in full, so that the time tells nothing about how much of one was right.
    let matches = keys.iter().fold(false, |found, key| found | equal(key, given.trim()));
    scheme.eq_ignore_ascii_case("bearer") && matches
}

fn equal(key: &str, given: &str) -> bool {
    let differences = key.bytes().zip(given.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differences) == 0 && key.len() == given.len()
}
