//! Cross-origin rules for browsers.

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::config::CorsConfig;

/// Builds the layer; values that can't stand in a header are left out, as no request could match them.
pub(crate) fn layer(config: &CorsConfig) -> CorsLayer {
    // Browsers refuse `*` together with credentials: then the request's own value is sent back instead.
    let credentials = config.allow_credentials;
    let origins = if has_all(&config.allowed_origins) {
        if credentials { AllowOrigin::mirror_request() } else { AllowOrigin::any() }
    } else {
        AllowOrigin::list(parsed::<HeaderValue>(&config.allowed_origins))
    };
    let methods = if has_all(&config.allowed_methods) {
        if credentials { AllowMethods::mirror_request() } else { AllowMethods::any() }
    } else {
        AllowMethods::list(parsed::<Method>(&config.allowed_methods))
    };
    let headers = if has_all(&config.allowed_headers) {
        // `*` does not cover `Authorization`, which every client with a key sends.
        AllowHeaders::mirror_request()
    } else {
        AllowHeaders::list(parsed::<HeaderName>(&config.allowed_headers))
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(methods)
        .allow_headers(headers)
        .allow_credentials(credentials)
}

fn has_all(values: &[String]) -> bool {
    values.iter().any(|value| value == "*")
}

fn parsed<T: std::str::FromStr>(values: &[String]) -> Vec<T> {
    values.iter().filter_map(|value| value.parse().ok()).collect()
}
