//! What can go wrong, told apart by what a caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use arrow_schema::ArrowError;

use crate::filter::FilterError;
use crate::schema::SchemaError;

/// An error of the storage engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No database of that name.
    #[error("database not found: `{0}`")]
    DatabaseNotFound(String),
    /// The name is taken.
    #[error("database already exists: `{0}`")]
    DatabaseExists(String),
    /// A database with collections cannot be dropped.
    #[error("database `{0}` still has collections; drop them first")]
    DatabaseNotEmpty(String),
    /// No collection (and no alias) of that name.
    #[error("collection not found: `{name}` in database `{db}`")]
    CollectionNotFound {
        /// Database that was searched.
        db: String,
        /// Name or id asked for.
        name: String,
    },
    /// The name is taken by a collection.
    #[error("collection already exists: `{name}` in database `{db}`")]
    CollectionExists {
        /// Database of the collection.
        db: String,
        /// The taken name.
        name: String,
    },
    /// No partition of that name or id.
    #[error("partition not found: `{0}`")]
    PartitionNotFound(String),
    /// The name is taken.
    #[error("partition already exists: `{0}`")]
    PartitionExists(String),
    /// No alias of that name.
    #[error("alias not found: `{0}`")]
    AliasNotFound(String),
    /// The alias is taken.
    #[error("alias already exists: `{0}`")]
    AliasExists(String),
    /// An alias and a collection of one database cannot share a name.
    #[error("`{0}` is the name of both a collection and an alias")]
    AliasNameConflict(String),
    /// No index of that name.
    #[error("index not found: `{0}`")]
    IndexNotFound(String),
    /// The field or the name already has another index.
    #[error("{0}")]
    IndexExists(String),
    /// The request breaks a rule; the text says which.
    #[error("{0}")]
    Invalid(String),
    /// The rows were made for what the schema was before; worth a retry with rows for what it is.
    #[error(
        "the schema of the collection changed while the rows were on their way; write them again"
    )]
    SchemaChanged,
    /// A filter expression that cannot be compiled or evaluated.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A search that the index refused or that was cancelled.
    #[error(transparent)]
    Search(#[from] elanus_index::Error),
    /// A failed sync made the log unusable: no writes until a restart, reads go on.
    #[error("writes are refused since the commit log failed: {0}; restart the node")]
    LogPoisoned(String),
    /// No space left; worth a retry after space was freed.
    #[error("no space left on the data disk: {0}")]
    DiskFull(String),
    /// Bytes on disk are not what was written there.
    #[error("{}: {detail}; run `elanus verify`", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// Another process has the directory open.
    #[error("data directory {} is in use by process {pid}; stop it or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The holder's process id as it wrote it, or `unknown`.
        pid: String,
    },
    /// Too much unsealed data in memory; worth a retry.
    #[error("memory limit exceeded: {0}")]
    MemoryLimit(String),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The engine was shut down.
    #[error("the storage engine is shut down")]
    Closed,
    /// A broken assumption of our own.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An I/O error with its file; a full disk becomes [`Error::DiskFull`].
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let kind = source.kind();
        if kind == io::ErrorKind::StorageFull || kind == io::ErrorKind::QuotaExceeded {
            return Self::DiskFull(format!("{}: {source}", path.display()));
        }
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, detail: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), detail: detail.into() }
    }

    /// A fresh error that says the same, for telling it to many callers.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Self::LogPoisoned(reason) => Self::LogPoisoned(reason.clone()),
            Self::DiskFull(detail) => Self::DiskFull(detail.clone()),
            Self::Corrupt { path, detail } => {
                Self::Corrupt { path: path.clone(), detail: detail.clone() }
            }
            Self::MemoryLimit(detail) => Self::MemoryLimit(detail.clone()),
            Self::Io { path, source } => Self::Io {
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Self::CollectionNotFound { db, name } => {
                Self::CollectionNotFound { db: db.clone(), name: name.clone() }
            }
            Self::Invalid(text) => Self::Invalid(text.clone()),
            Self::Closed => Self::Closed,
            Self::SchemaChanged => Self::SchemaChanged,
            Self::DatabaseNotFound(_)
            | Self::DatabaseExists(_)
            | Self::DatabaseNotEmpty(_)
            | Self::CollectionExists { .. }
            | Self::PartitionNotFound(_)
            | Self::PartitionExists(_)
            | Self::AliasNotFound(_)
            | Self::AliasExists(_)
            | Self::AliasNameConflict(_)
            | Self::IndexNotFound(_)
            | Self::IndexExists(_)
            | Self::Filter(_)
            | Self::Search(_)
            | Self::Locked { .. }
            | Self::Internal(_) => Self::Internal(self.to_string()),
        }
    }
}

/// Arrow refuses only what a caller should have checked, so its errors are ours.
impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        Self::Internal(format!("arrow: {error}"))
    }
}

impl From<SchemaError> for Error {
    fn from(error: SchemaError) -> Self {
        Self::Invalid(error.to_string())
    }
}
