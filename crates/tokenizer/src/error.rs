//! What can go wrong between text and tokens.

use std::path::PathBuf;

/// Loading a tokenizer, encoding a text or rendering a conversation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tokenizer file could not be read or understood.
    #[error("{}: not a usable tokenizer.json: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A vocabulary is incomplete, contradicts itself or is too large.
    #[error("the tokenizer's vocabulary is unusable: {0}")]
    Vocab(String),
    /// The vocabulary or its way of splitting text is of a kind that this crate does not know.
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        /// What was looked at.
        what: &'static str,
        /// What it says.
        found: String,
        /// What would have been understood.
        supported: &'static str,
    },
    /// A text could not be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// The chat template has a syntax error.
    #[error("the chat template is malformed: {0}")]
    TemplateSyntax(String),
    /// The chat template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The conversation does not have the form that a template needs.
    #[error("messages: {0}")]
    Messages(String),
    /// The chat template failed on this conversation.
    #[error("the chat template failed: {0}")]
    Render(String),
}

impl Error {
    /// Returns whether the conversation or text is to blame, not the model's files: a server answers 400.
    #[must_use]
    pub const fn is_clients(&self) -> bool {
        matches!(self, Self::Encode(_) | Self::Refused(_) | Self::Messages(_) | Self::Render(_))
    }
}
