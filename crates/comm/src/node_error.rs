//! Why processes did not meet.

use std::io;

/// The processes of a model did not meet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A connection failed, or nobody came.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// One of them does not start.
    #[error("node {node} does not start: {reason}")]
    Declined {
        /// Which one.
        node: usize,
        /// Why not.
        reason: String,
    },
    /// They don't belong together.
    #[error("{0}; start every node with the same flags but for --node-rank")]
    Refused(String),
}

impl NodeError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
