//! Why a download failed.

use std::io;
use std::path::PathBuf;

/// Why a download failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// No connection, no answer.
    #[error("{host} can't be reached: {reason}")]
    Unreachable {
        /// Who.
        host: String,
        /// What the network said.
        reason: String,
    },
    /// The hub wants to know who asks, or doesn't let them in.
    #[error(
        "{repo} is gated or private (status {status}): ask for access on its page, then set HF_TOKEN to a token of \
         yours{}", if *.had_token { "; the HF_TOKEN that is set was not accepted" } else { "" }
    )]
    Gated {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        had_token: bool,
    },
    /// There is no such thing on the hub.
    #[error("{0}")]
    NotFound(String),
    /// The server answered with something else.
    #[error("{url} answered with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// What arrived is not what was announced.
    #[error(
        "{what} is corrupt after the download: {expected} was announced, {found} arrived; it was deleted"
    )]
    Corrupt {
        /// The file.
        what: String,
        /// Its announced hash or size.
        expected: String,
        /// What came.
        found: String,
    },
    /// The transfer broke off again and again.
    #[error(
        "the transfer of {url} broke off {attempts} times without progress: {reason}; run the command again to go on from there"
    )]
    BrokenOff {
        /// What was asked for.
        url: String,
        /// How often.
        attempts: u32,
        /// The last reason.
        reason: String,
    },
    /// The repository has nothing that can be served.
    #[error("{0}")]
    Unusable(String),
    /// `pip` is missing or failed.
    #[error("{0}")]
    Pip(String),
    /// The disk said no.
    #[error("{path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Names the path in an input or output error.
pub(crate) trait OnDisk<T> {
    /// Makes it a [`DownloadError::Disk`].
    fn at(self, path: &std::path::Path) -> Result<T, DownloadError>;
}

impl<T> OnDisk<T> for io::Result<T> {
    fn at(self, path: &std::path::Path) -> Result<T, DownloadError> {
        self.map_err(|source| DownloadError::Disk { path: path.to_owned(), source })
    }
}
