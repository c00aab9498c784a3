//! The files of a data directory: small documents by put-if-absent, large ones to be mapped.
//!
//! Documents (catalog, manifests) go through an [`object_store::ObjectStore`], whose
//! put-if-absent is atomic and durable on the local file system as on an object store. Files
//! that are mapped are written beside their final name, synced, renamed, and the directory
//! synced, so that a name either means the whole file or nothing. A published file is never
//! written again; it is unlinked when it is [doomed](Published::doom) and its last reader gone.
//!
//! This module does not know what is in the files. The commit log keeps its own.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use bytes::Bytes;
use fs_err as fs;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use crate::Error;

/// Ending of files that are not published yet.
const UNPUBLISHED: &str = "tmp";

/// Write buffer of large files.
const WRITE_BUFFER: usize = 1 << 20;

/// The files of one data directory. All calls block; none is made on a tokio worker.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
    documents: Arc<dyn ObjectStore>,
}

impl Blobs {
    /// Opens a directory that exists.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        // The store works with absolute paths; errors should show the same ones.
        let root = fs::canonicalize(root).map_err(|error| Error::io(root, error))?;
        let documents = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| store_error(&root, error))?
            .with_fsync(true);
        Ok(Self { root, documents: Arc::new(documents) })
    }

    /// Where the file of that key lies.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Reads a document.
    pub(crate) fn read(&self, key: &str) -> Result<Bytes, Error> {
        block_on(async { self.documents.get(&Key::from(key)).await?.bytes().await })
            .map_err(|error| store_error(&self.path(key), error))
    }

    /// Publishes a document under a key that must not exist; durable on return. Whether the
    /// document exists after an error is unknown.
    pub(crate) fn publish(&self, key: &str, content: Vec<u8>) -> Result<(), Error> {
        block_on(self.documents.put_opts(&Key::from(key), content.into(), PutMode::Create.into()))
            .map(|_| ())
            .map_err(|error| store_error(&self.path(key), error))
    }

    /// Deletes a document; one that does not exist is fine.
    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        remove_file(&self.path(key))
    }

    /// Writes a file to be mapped and publishes it; durable on return. Returns its length.
    pub(crate) fn write_file(
        &self,
        key: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let path = self.path(key);
        let unpublished = self.path(&format!("{key}.{UNPUBLISHED}"));
        let result = write_synced(&unpublished, write).and_then(|len| {
            fs::rename(&unpublished, &path).map_err(|error| Error::io(&path, error))?;
            sync_parent(&path)?;
            Ok(len)
        });
        if result.is_err() {
            // Best effort: recovery removes what is left here.
            let _ = fs::remove_file(&unpublished);
        }
        result
    }

    /// Names in a directory with their lengths, in order; none where it does not exist.
    pub(crate) fn list(&self, dir: &str) -> Result<Vec<(String, u64)>, Error> {
        list(&self.path(dir))
    }

    /// Removes a directory with all that is in it; one that does not exist is fine.
    pub(crate) fn remove_dir(&self, dir: &str) -> Result<(), Error> {
        let path = self.path(dir);
        match fs::remove_dir_all(&path) {
            Ok(()) => sync_parent(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(&path, error)),
        }
    }
}

/// A file or directory that others may hold; removed with its last holder once it is doomed.
#[derive(Debug)]
pub(crate) struct Published {
    path: PathBuf,
    doomed: AtomicBool,
}

impl Published {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, doomed: AtomicBool::new(false) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Nothing refers to it any more: remove it when the last holder lets go.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if !self.is_doomed() {
            return;
        }
        let removed = if self.path.is_dir() {
            fs::remove_dir_all(&self.path)
        } else {
            fs::remove_file(&self.path)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a dropped file stays until the next start");
            }
            _ => {}
        }
    }
}

/// Waits for a future on a thread that may block. On the local file system nothing ever waits:
/// the future is ready when it is first asked.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Names in a directory with their lengths, in order; none where it does not exist.
pub(crate) fn list(dir: &Path) -> Result<Vec<(String, u64)>, Error> {
    let failed = |error| Error::io(dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let len = entry.metadata().map_err(failed)?.len();
        names.push((entry.file_name().to_string_lossy().into_owned(), len));
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes a file; one that does not exist is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// Creates a directory and makes its existence durable.
pub(crate) fn create_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
    {
        create_dir(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io(path, error)),
        _ => sync_parent(path),
    }
}

/// Makes the name of a file or directory durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| Error::io(parent, error))
}

fn write_synced(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<u64, Error> {
    let failed = |error| Error::io(path, error);
    let file = fs::File::create(path).map_err(failed)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BUFFER, file);
    write(&mut buffered)?;
    let file = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(file.metadata().map_err(failed)?.len())
}

fn store_error(path: &Path, error: object_store::Error) -> Error {
    let kind = if matches!(error, object_store::Error::NotFound { .. }) {
        io::ErrorKind::NotFound
    } else if matches!(error, object_store::Error::AlreadyExists { .. }) {
        io::ErrorKind::AlreadyExists
    } else {
        io_kind(&error).unwrap_or(io::ErrorKind::Other)
    };
    Error::io(path, io::Error::new(kind, error))
}

/// The kind of the system's error that is hidden in the causes.
fn io_kind(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        (dir, blobs)
    }

    #[test]
    fn a_document_is_published_once() {
        let (_dir, blobs) = blobs();
        blobs.publish("a/b/1.json", b"one".to_vec()).unwrap();
        let again = blobs.publish("a/b/1.json", b"two".to_vec()).unwrap_err();
        assert!(
            matches!(&again, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
            "{again}"
        );
        assert_eq!(blobs.read("a/b/1.json").unwrap(), "one");
        assert_eq!(blobs.list("a/b").unwrap(), vec![("1.json".into(), 3)]);
        blobs.delete("a/b/1.json").unwrap();
        blobs.delete("a/b/1.json").unwrap();
        assert!(blobs.list("a/b").unwrap().is_empty());
        assert!(blobs.list("nowhere").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_could_not_be_written_has_no_name() {
        let (dir, blobs) = blobs();
        let len = blobs
            .write_file("f", |to| to.write_all(b"abc").map_err(|e| Error::io(Path::new("f"), e)));
        assert_eq!(len.unwrap(), 3);
        blobs.write_file("g", |_| Err(Error::Closed)).unwrap_err();
        assert_eq!(list(dir.path()).unwrap(), vec![("f".into(), 3)]);
    }

    #[test]
    fn a_doomed_file_goes_with_its_last_holder() {
        let (dir, blobs) = blobs();
        blobs.write_file("f", |_| Ok(())).unwrap();
        let first = Arc::new(Published::new(blobs.path("f")));
        let second = Arc::clone(&first);
        first.doom();
        drop(first);
        assert!(dir.path().join("f").exists());
        drop(second);
        assert!(!dir.path().join("f").exists());
    }
}
