//! A data directory whose node is stopped: is it sound, what is in it, and how to get it back.
//!
//! [`verify`] reads everything and changes nothing, [`repair`] goes back to the last good state,
//! [`inspect()`] shows what one file says. The first two take the directory's lock, so neither
//! works on a directory in use. They read files with the code that a node reads them with: what
//! is sound here opens there. All of it blocks, and is not for a thread of an async runtime.

mod inspect;
mod repair;
mod verify;

use std::cell::Cell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use serde::Serialize;

use crate::Error;
use crate::blobs::Blobs;
use crate::disk::LocalDisk;
use crate::log::Lsn;
use crate::log::files::{DiskLog, LogDir, LogFile};
use crate::segment::sealed::Repair;
pub use inspect::{Kind, inspect};
pub use repair::{Repaired, repair};
pub use verify::verify;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Data is lost or unreadable.
    Damage,
    /// What the node makes anew by itself: an index, or a column that nobody sees yet.
    Index,
    /// Left behind by a crash; the next start removes it.
    Leftover,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory.
    pub path: PathBuf,
    /// What was expected and what was found, with the offset where one is known.
    pub problem: String,
}

/// What [`verify`] looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Collections in the catalog.
    pub collections: usize,
    /// Sealed segments.
    pub segments: usize,
    /// Rows of the sealed segments.
    pub rows: u64,
    /// Records in the log.
    pub records: u64,
    /// Whether all checksums and all relations between files were checked.
    pub deep: bool,
    /// In the order in which they were found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is lost: no finding is [`Severity::Damage`].
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }

    fn note(&mut self, severity: Severity, path: &Path, problem: impl Into<String>) {
        self.findings.push(Finding { severity, path: path.to_owned(), problem: problem.into() });
    }

    fn note_error(&mut self, severity: Severity, path: &Path, error: &Error) {
        if let Error::Corrupt { path, detail } = error {
            self.note(severity, path, detail);
        } else {
            self.note(severity, path, error.to_string());
        }
    }
}

/// The files of a data directory, which must exist: nothing is created here.
fn open(dir: &Path) -> Result<Blobs, Error> {
    let dir = fs::canonicalize(dir).map_err(|error| Error::io(dir, error))?;
    Blobs::open(Arc::new(LocalDisk), &dir)
}

/// Damaged indexes are told, not rebuilt.
#[derive(Debug)]
struct NoRepair;

impl Repair for NoRepair {
    fn index_is_damaged(&self) {}
}

/// The log of a stopped node; remembers where its torn end would be cut off instead of cutting.
struct ReadOnlyLog {
    files: DiskLog,
    torn: Cell<Option<(Lsn, u64)>>,
}

impl ReadOnlyLog {
    fn at(dir: &Path) -> Self {
        Self { files: DiskLog::at(Arc::new(LocalDisk), dir.to_owned()), torn: Cell::new(None) }
    }
}

impl LogDir for ReadOnlyLog {
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error> {
        self.files.list()
    }

    fn read(&self, first: Lsn) -> Result<Box<dyn Read>, Error> {
        self.files.read(first)
    }

    fn create(&self, first: Lsn) -> Result<Box<dyn LogFile>, Error> {
        Err(Error::Internal(format!("{} is not to be written", self.path(first).display())))
    }

    fn truncate(&self, first: Lsn, len: u64) -> Result<(), Error> {
        self.torn.set(Some((first, len)));
        Ok(())
    }

    fn settle(&self, _: Lsn, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn remove(&self, first: Lsn) -> Result<(), Error> {
        Err(Error::Internal(format!("{} is not to be removed", self.path(first).display())))
    }

    fn path(&self, first: Lsn) -> PathBuf {
        self.files.path(first)
    }
}
