//! Which path leads where.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::input::body::MAX_BODY_BYTES;
use crate::layers::{auth, cors, count, request_id};
use crate::routes::{
    chat, completions, health, instances, metrics, models, openapi, tokenize, version,
};
use crate::{ApiError, AppState};

/// Builds the whole front.
pub fn router(state: AppState) -> Router {
    let cors = cors::layer(&state.config().cors);
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::retrieve))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/ping", get(health::health).post(health::health))
        .route("/load", get(health::load))
        .route("/version", get(version::version))
        .route("/metrics", get(metrics::metrics))
        .route("/admin/instances", get(instances::list))
        .route("/admin/instances/{id}", post(instances::change))
        .route("/openapi.json", get(openapi::openapi))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(unknown_route)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(state.clone(), auth::check))
        .layer(from_fn_with_state(state.clone(), count::count))
        .layer(from_fn_with_state(state.clone(), request_id::echo))
        .layer(cors)
        .with_state(state)
}

async fn unknown_route(request: Request) -> ApiError {
    ApiError::UnknownRoute(format!("{} {}", request.method(), request.uri().path()))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(request.method().to_string())
}
