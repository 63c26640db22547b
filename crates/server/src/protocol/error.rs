//! The body of a failed request.

use serde::Serialize;

/// The whole body.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorResponse {
    /// The error.
    pub error: ErrorBody,
}

/// The error.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    /// What went wrong, for people.
    pub message: String,
    /// The kind of error, for programs.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter to blame.
    pub param: Option<String>,
    /// The HTTP status once more.
    pub code: u16,
}
