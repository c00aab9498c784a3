//! The seam between storage and the disk: the few calls of a file system that the engine makes.
//!
//! Everything that storage does to files goes through a [`Disk`], so that tests can run the whole
//! engine on one that forgets what was not synced and fails on demand. What the calls promise is
//! what POSIX does, and no more: a file's bytes are durable after [`File::sync`], its name after
//! [`Disk::sync_dir`] of its directory; closing a file makes nothing durable.

mod local;
#[cfg(test)]
pub(crate) mod memory;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

use arrow_buffer::Buffer;

pub(crate) use local::{DirLock, LocalDisk};

use crate::Error;

/// What a directory or a look at a path shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) is_dir: bool,
}

/// The right to a directory; given free on drop.
pub(crate) trait Lock: Send + Sync {
    /// Writes down who holds it. Who asks for it on a disk too full for that is told `unknown`.
    fn tell_holder(&self);
}

/// A file system. All calls block.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Takes the only right to write below `dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process id.
    fn lock(&self, dir: &Path) -> Result<Box<dyn Lock>, Error>;
    /// Creates a directory in one that exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable: new ones, and that others are gone.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// What is in a directory, in order of names.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// A look at a file or directory.
    fn look(&self, path: &Path) -> io::Result<Entry>;
    /// Creates an empty file, in place of one that exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Reads a file from its beginning.
    fn read(&self, path: &Path) -> io::Result<Box<dyn Read>>;
    /// Maps a whole file, which nobody writes to any more; the buffer begins at a multiple of 64.
    fn map(&self, path: &Path) -> io::Result<Buffer>;
    /// Cuts a file to a length, durably.
    fn truncate(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Writes what a file holds from `from` on once more, in its place, and makes it durable.
    fn rewrite(&self, path: &Path, from: u64) -> io::Result<()>;
    /// Gives a file another name, in place of one that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Free bytes and all bytes of the disk that a directory lies on.
    fn space(&self, dir: &Path) -> io::Result<(u64, u64)>;
    /// Creates a file that takes `len` bytes of the disk, if the disk can keep them for it.
    fn reserve(&self, path: &Path, len: u64) -> io::Result<()>;
}

/// A file that is being written, from its beginning on.
pub(crate) trait File: Write + Send {
    /// Makes everything written so far durable, under whatever name.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to a length and goes on there.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// Maps a published file of a known length.
///
/// # Errors
/// [`Error::Corrupt`] if the file is missing or has another length.
pub(crate) fn map(disk: &dyn Disk, path: &Path, len: u64) -> Result<Buffer, Error> {
    let bytes = disk.map(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Error::corrupt(path, "the file is missing")
        } else {
            Error::io(path, error)
        }
    })?;
    if bytes.len() as u64 != len || len == 0 {
        let detail = format!("the file has {} bytes, the manifest says {len}", bytes.len());
        return Err(Error::corrupt(path, detail));
    }
    Ok(bytes)
}

/// What is in a directory, in order of names; nothing where it does not exist.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<Entry>, Error> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| Error::io(dir, error)),
    }
}

/// Creates a directory with those above it and makes its existence durable.
pub(crate) fn create_dir(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    if disk.look(path).is_ok_and(|found| found.is_dir) {
        return Ok(());
    }
    if let Some(parent) = parent_of(path) {
        create_dir(disk, parent)?;
    }
    match disk.create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io(path, error)),
        _ => sync_parent(disk, path),
    }
}

/// Makes the name of a file or directory durable.
pub(crate) fn sync_parent(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let parent = parent_of(path).unwrap_or(Path::new("."));
    disk.sync_dir(parent).map_err(|error| Error::io(parent, error))
}

fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}

/// Removes a file; one that does not exist is fine.
pub(crate) fn remove_file(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; one that does not exist is fine.
pub(crate) fn remove_dir_all(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    for entry in list(disk, path)? {
        let inner = path.join(&entry.name);
        if entry.is_dir {
            remove_dir_all(disk, &inner)?;
        } else {
            remove_file(disk, &inner)?;
        }
    }
    match disk.remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}
