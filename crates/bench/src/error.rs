//! What can go wrong before or after a run.

use std::io;
use std::path::{Path, PathBuf};

/// The result of what reads or writes.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong before or after a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A description of lengths, arrivals or the like can't be read.
    #[error("{what} `{text}`: expected {expected}")]
    Syntax {
        /// What was described.
        what: &'static str,
        /// What stood there.
        text: String,
        /// What should have.
        expected: &'static str,
    },
    /// A workload can't be made as described.
    #[error("{0}")]
    Workload(String),
    /// A file can't be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path}: {reason}", path = path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
}

impl Error {
    /// Returns what turns an I/O error into one that names the file.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    pub(crate) fn content(path: &Path, reason: &(impl ToString + ?Sized)) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.to_string() }
    }
}
