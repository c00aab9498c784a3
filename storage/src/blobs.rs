//! The files of a data directory: small documents by put-if-absent, large ones to be mapped.
//!
//! Both are written beside their final name, synced, given that name, and the directory synced,
//! so that a name either means the whole file or nothing. A document gets its name with a link,
//! which fails where the name is taken. A published file is never written again; it is unlinked
//! when it is [doomed](Published::doom) and its last reader gone.
//!
//! This module does not know what is in the files. The commit log keeps its own.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_buffer::Buffer;

use crate::Error;
use crate::disk::{self, Disk};
use crate::shared::{Doomable, Kept, Outside};

/// Ending of files that are not published yet.
const UNPUBLISHED: &str = "tmp";

/// Write buffer of large files.
const WRITE_BUFFER: usize = 1 << 20;

/// The files of one data directory. All calls block; none is made on a tokio worker.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Blobs {
    /// Opens a directory that exists.
    pub(crate) fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, Error> {
        // Errors should name files in a way that does not depend on the working directory.
        let root = std::path::absolute(root).map_err(|error| Error::io(root, error))?;
        Ok(Self { root, disk })
    }

    /// Where the file of that key lies.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// A file or directory that is there, to be shared.
    pub(crate) fn published(&self, key: &str) -> Published {
        Published::new(Arc::clone(&self.disk), self.path(key))
    }

    /// Reads a document.
    pub(crate) fn read(&self, key: &str) -> Result<Vec<u8>, Error> {
        let path = self.path(key);
        let mut bytes = Vec::new();
        self.disk
            .read(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|error| Error::io(&path, error))?;
        Ok(bytes)
    }

    /// Publishes a document under a key that must not exist; durable on return. Whether the
    /// document exists after an error is unknown.
    pub(crate) fn publish(&self, key: &str, content: &[u8]) -> Result<(), Error> {
        let (path, unpublished) = (self.path(key), self.unpublished(key));
        if let Some(parent) = path.parent() {
            disk::create_dir(&*self.disk, parent)?;
        }
        let write = |to: &mut dyn Write| {
            to.write_all(content).map_err(|error| Error::io(&unpublished, error))
        };
        let linked = self.write_synced(&unpublished, write).and_then(|_| {
            self.disk.link(&unpublished, &path).map_err(|error| Error::io(&path, error))
        });
        // Best effort: recovery removes what is left here.
        let _ = self.disk.remove_file(&unpublished);
        linked?;
        disk::sync_parent(&*self.disk, &path)
    }

    /// Deletes a document; one that does not exist is fine.
    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        disk::remove_file(&*self.disk, &self.path(key))
    }

    /// Makes deletions in a directory durable.
    pub(crate) fn sync_dir(&self, dir: &str) -> Result<(), Error> {
        let path = self.path(dir);
        self.disk.sync_dir(&path).map_err(|error| Error::io(&path, error))
    }

    /// Writes a file to be mapped and publishes it; durable on return. Returns its length.
    pub(crate) fn write_file(
        &self,
        key: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let (path, unpublished) = (self.path(key), self.unpublished(key));
        let result = self.write_synced(&unpublished, write).and_then(|len| {
            self.disk.rename(&unpublished, &path).map_err(|error| Error::io(&path, error))?;
            disk::sync_parent(&*self.disk, &path)?;
            Ok(len)
        });
        if result.is_err() {
            // Best effort: recovery removes what is left here.
            let _ = self.disk.remove_file(&unpublished);
        }
        result
    }

    fn unpublished(&self, key: &str) -> PathBuf {
        self.path(&format!("{key}.{UNPUBLISHED}"))
    }

    fn write_synced(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let failed = |error| Error::io(path, error);
        let file = self.disk.create(path).map_err(failed)?;
        let mut counted = Counted { to: BufWriter::with_capacity(WRITE_BUFFER, file), len: 0 };
        write(&mut counted)?;
        let mut file = counted.to.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync().map_err(failed)?;
        Ok(counted.len)
    }

    /// Length of a file.
    pub(crate) fn len(&self, key: &str) -> Result<u64, Error> {
        let path = self.path(key);
        self.disk.look(&path).map(|found| found.len).map_err(|error| Error::io(&path, error))
    }

    /// What is in a directory, in order of names; nothing where it does not exist.
    pub(crate) fn list(&self, dir: &str) -> Result<Vec<disk::Entry>, Error> {
        disk::list(&*self.disk, &self.path(dir))
    }

    /// Removes a directory with all that is in it; one that does not exist is fine.
    pub(crate) fn remove_dir(&self, dir: &str) -> Result<(), Error> {
        let path = self.path(dir);
        disk::remove_dir_all(&*self.disk, &path)?;
        match disk::sync_parent(&*self.disk, &path) {
            // Where nothing could be removed, not even the parent need exist.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }
}

/// A writer that counts.
struct Counted<W> {
    to: W,
    len: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file or directory that others may hold; removed with its last holder once it is doomed.
#[derive(Debug)]
pub(crate) struct Published(Kept<Place>);

#[derive(Debug)]
struct Place {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Published {
    fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self(Kept::new(Place { disk, path }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.what().path
    }

    /// A file in this directory.
    pub(crate) fn file(&self, name: &str) -> Self {
        let Place { disk, path } = self.0.what();
        Self::new(Arc::clone(disk), path.join(name))
    }

    /// Maps it.
    ///
    /// # Errors
    /// As [`disk::map`].
    pub(crate) fn map(&self, len: u64) -> Result<Buffer, Error> {
        let Place { disk, path } = self.0.what();
        disk::map(&**disk, path, len)
    }

    /// Nothing refers to it any more: remove it when the last holder lets go.
    pub(crate) fn doom(&self) {
        self.0.doom();
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.0.is_doomed()
    }
}

impl Outside for Place {
    fn remove(&self) {
        let is_dir = self.disk.look(&self.path).is_ok_and(|found| found.is_dir);
        let removed = if is_dir {
            disk::remove_dir_all(&*self.disk, &self.path)
        } else {
            disk::remove_file(&*self.disk, &self.path)
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "a dropped file stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::LocalDisk;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(Arc::new(LocalDisk), dir.path()).unwrap();
        (dir, blobs)
    }

    #[test]
    fn a_document_is_published_once() {
        let (_dir, blobs) = blobs();
        blobs.publish("a/b/1.json", b"one").unwrap();
        let again = blobs.publish("a/b/1.json", b"two").unwrap_err();
        assert!(
            matches!(&again, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
            "{again}"
        );
        assert_eq!(blobs.read("a/b/1.json").unwrap(), b"one");
        let entry = |name: &str, len| disk::Entry { name: name.into(), len, is_dir: false };
        assert_eq!(blobs.list("a/b").unwrap(), vec![entry("1.json", 3)]);
        blobs.delete("a/b/1.json").unwrap();
        blobs.delete("a/b/1.json").unwrap();
        assert!(blobs.list("a/b").unwrap().is_empty());
        assert!(blobs.list("nowhere").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_could_not_be_written_has_no_name() {
        let (_dir, blobs) = blobs();
        let len = blobs
            .write_file("f", |to| to.write_all(b"abc").map_err(|e| Error::io(Path::new("f"), e)));
        assert_eq!(len.unwrap(), 3);
        blobs.write_file("g", |_| Err(Error::Closed)).unwrap_err();
        let names: Vec<_> = blobs.list("").unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, vec!["f"]);
    }

    #[test]
    fn a_doomed_file_goes_with_its_last_holder() {
        let (dir, blobs) = blobs();
        blobs.write_file("f", |_| Ok(())).unwrap();
        let first = Arc::new(blobs.published("f"));
        let second = Arc::clone(&first);
        first.doom();
        drop(first);
        assert!(dir.path().join("f").exists());
        drop(second);
        assert!(!dir.path().join("f").exists());
    }
}
