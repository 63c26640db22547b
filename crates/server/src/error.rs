//! Every way a request can fail, and the one place where that becomes a status and a body.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use stallfree_engine::SubmitError;

use crate::protocol::error::{ErrorBody, ErrorResponse};

/// Why a request is not answered with a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// A parameter, or the body as a whole, is not acceptable.
    #[error("{message}")]
    Invalid {
        /// What is wrong and what would be right.
        message: String,
        /// The parameter, where one is to blame.
        param: Option<String>,
    },
    /// No model of that name is served.
    #[error("The model `{0}` does not exist.")]
    UnknownModel(String),
    /// No such instance.
    #[error(
        "There is no instance `{id}`: the server has {count} that can be changed, counted from 0."
    )]
    UnknownInstance {
        /// Its number, as it was given.
        id: String,
        /// How many there are.
        count: usize,
    },
    /// No such route.
    #[error("There is no route {0}.")]
    UnknownRoute(String),
    /// The route exists, but not for this method.
    #[error("The method {0} is not allowed here.")]
    MethodNotAllowed(String),
    /// The API key is missing or wrong.
    #[error("Invalid or missing API key: send `Authorization: Bearer KEY`.")]
    Unauthorized,
    /// The body is over the limit.
    #[error("The request body is larger than {limit} bytes.")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The body took too long to arrive.
    #[error("The request body did not arrive within {} seconds.", limit.as_secs_f32())]
    TooSlow {
        /// How long it may take.
        limit: Duration,
    },
    /// The body is not JSON by its own account.
    #[error("Unsupported media type: only application/json is accepted.")]
    UnsupportedMediaType,
    /// More requests than the server takes at once.
    #[error("{message}")]
    Overloaded {
        /// What is full.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The engine is draining, late or lost.
    #[error("{0}")]
    Unavailable(String),
    /// The engine failed while it worked on the request.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// Returns the refusal of one parameter's value.
    #[must_use]
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()) }
    }

    /// Returns the refusal of a body for a reason that no single parameter names.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: None }
    }

    /// Returns the refusal of a parameter that exists elsewhere, but not here.
    #[must_use]
    pub fn unsupported(param: &str) -> Self {
        Self::param(param, format!("`{param}` is not supported yet."))
    }

    /// Returns the HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::UnknownModel(_) | Self::UnknownRoute(_) | Self::UnknownInstance { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the body that clients of OpenAI's API expect.
    #[must_use]
    pub(crate) fn body(&self) -> ErrorResponse {
        let kind = match self {
            Self::UnknownModel(_) | Self::UnknownRoute(_) | Self::UnknownInstance { .. } => {
                "NotFoundError"
            }
            Self::MethodNotAllowed(_) => "MethodNotAllowedError",
            Self::Unauthorized => "AuthenticationError",
            Self::TooSlow { .. } => "RequestTimeoutError",
            Self::Overloaded { .. } => "RateLimitError",
            Self::Unavailable(_) => "ServiceUnavailableError",
            Self::Internal(_) => "InternalServerError",
            Self::Invalid { .. } | Self::TooLarge { .. } | Self::UnsupportedMediaType => {
                "BadRequestError"
            }
        };
        let param = match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::UnknownModel(_) => Some("model".to_owned()),
            _ => None,
        };
        let code = self.status().as_u16();
        ErrorResponse { error: ErrorBody { message: self.to_string(), kind, param, code } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        match &self {
            Self::Overloaded { retry_after, .. } => {
                let seconds = retry_after.as_secs().max(1);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::Unauthorized => {
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            _ => {}
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after, .. }
            | SubmitError::TooLate { retry_after, .. } => Self::Overloaded { message, retry_after },
            SubmitError::TooLong { .. } | SubmitError::Empty | SubmitError::UnknownToken { .. } => {
                Self::param("prompt", message)
            }
            SubmitError::Draining | SubmitError::Dead(_) => Self::Unavailable(message),
            // A reason that this crate does not know: nothing shows that the client is to blame.
            _ => Self::Internal(message),
        }
    }
}
