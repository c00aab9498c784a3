//! What can go wrong between this machine and another, typed by what the caller can do about it.

use std::path::PathBuf;
use std::time::Duration;

/// An error of a call to another machine. No text in it holds a key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The parameters of the call make no sense; nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// No answer, or one that broke off.
    #[error("no answer from {url}: {detail}")]
    Unreachable {
        /// The address without its query.
        url: String,
        /// What happened.
        detail: String,
    },
    /// The server says no.
    #[error("{url} answered {status}: {detail}")]
    Refused {
        /// The address without its query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server says, shortened, or what to do.
        detail: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The server answers something that cannot be right.
    #[error("{url} gave an answer that is not understood: {detail}")]
    Garbage {
        /// The address without its query.
        url: String,
        /// What was expected, and what came.
        detail: String,
    },
    /// A file cannot be written or read.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        detail: String,
    },
}

impl Error {
    /// Whether the same call may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            Self::Invalid(_) | Self::Garbage { .. } | Self::File { .. } => false,
        }
    }

    /// When the server wants to be asked again, if it said so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Invalid(_)
            | Self::Unreachable { .. }
            | Self::Garbage { .. }
            | Self::File { .. } => None,
        }
    }
}
