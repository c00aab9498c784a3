//! The local file system: the one place of this crate that needs `unsafe`.
#![expect(unsafe_code, reason = "memory maps cannot be had without")]

use std::io::{self, Read, Seek, Write};
use std::path::Path;

use arrow_buffer::Buffer;
use bytes::Bytes;
use fs_err as fs;
use memmap2::Mmap;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::{Disk, Entry, File, Lock};
use crate::Error;

const LOCK_FILE: &str = "LOCK";

/// Read buffer of files that are not mapped.
const READ_BUFFER: usize = 1 << 20;

/// Bytes that are written again at a time.
const REWRITE_BUFFER: usize = 1 << 18;

/// The file system of the machine.
#[derive(Debug)]
pub(crate) struct LocalDisk;

impl Disk for LocalDisk {
    fn lock(&self, dir: &Path) -> Result<Box<dyn Lock>, Error> {
        Ok(Box::new(DirLock::take(dir)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in fs::read_dir(path)? {
            let found = found?;
            let metadata = match found.metadata() {
                // Another thread removed it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            entries.push(Entry {
                name: found.file_name().to_string_lossy().into_owned(),
                len: metadata.len(),
                is_dir: metadata.is_dir(),
            });
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn look(&self, path: &Path) -> io::Result<Entry> {
        let metadata = fs::metadata(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Entry { name, len: metadata.len(), is_dir: metadata.is_dir() })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(LocalFile(fs::File::create(path)?)))
    }

    fn read(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let file = fs::File::open(path)?;
        Ok(Box::new(io::BufReader::with_capacity(READ_BUFFER, file)))
    }

    fn map(&self, path: &Path) -> io::Result<Buffer> {
        let file = fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Buffer::from(&[]));
        }
        // SAFETY: a published file is never written or cut again by this process, which holds the
        // lock on the directory, and unlinking it leaves the mapping valid. The map is as long as
        // the file, so every page of it is backed. Someone who changes the file from outside in
        // spite of the lock can still fault us, as with any map.
        let map = unsafe { Mmap::map(file.file()) }?;
        Ok(Buffer::from(Bytes::from_owner(map)))
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn rewrite(&self, path: &Path, from: u64) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = vec![0; REWRITE_BUFFER];
        let mut at = from;
        loop {
            file.seek(io::SeekFrom::Start(at))?;
            let read = file.read(&mut bytes)?;
            if read == 0 {
                return file.sync_data();
            }
            file.seek(io::SeekFrom::Start(at))?;
            file.write_all(&bytes[..read])?;
            at += read as u64;
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        let disk = statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok((bytes(disk.f_bavail), bytes(disk.f_blocks)))
    }

    fn reserve(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = fs::File::create(path)?;
        Ok(fallocate(file.file(), FallocateFlags::empty(), 0, len)?)
    }
}

struct LocalFile(fs::File);

impl Write for LocalFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl File for LocalFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.seek(io::SeekFrom::Start(len)).map(|_| ())
    }
}

/// The right to a data directory of the machine.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: fs::File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started at this moment by
        // another thread holds a copy of it until it executes, and the lock with it.
        if let Err(error) = flock(self.file.file(), FlockOperation::Unlock) {
            tracing::warn!(%error, "the data directory's lock ends with the process");
        }
    }
}

impl DirLock {
    fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(LOCK_FILE);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        Self::lock(dir, file)
    }

    /// Takes the lock without writing anything; `None` where there is none to take, because no
    /// process ever opened the directory.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process id.
    pub(crate) fn take_if_there(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(LOCK_FILE);
        match fs::File::open(&path) {
            Ok(file) => Self::lock(dir, file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path, error)),
        }
    }

    fn lock(dir: &Path, mut file: fs::File) -> Result<Self, Error> {
        let path = dir.join(LOCK_FILE);
        let failed = |error| Error::io(&path, error);
        if let Err(error) = flock(file.file(), FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            let mut pid = String::new();
            // The holder may be about to write it.
            let _ = Read::take(&mut file, 32).read_to_string(&mut pid);
            let pid = pid.trim();
            let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
            return Err(Error::Locked { path: dir.to_owned(), pid });
        }
        Ok(Self { file })
    }
}

impl Lock for DirLock {
    fn tell_holder(&self) {
        let mut file = &self.file;
        let told = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = told {
            tracing::warn!(%error, "the lock does not name its holder");
        }
    }
}
