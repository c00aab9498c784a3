//! The files of the log: `<first lsn>.log`, appended to in turn and removed from the front.
//!
//! [`LogDir`] is the seam between the log and the disk, so that tests can make either fail.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::Lsn;
use super::frame::{FILE_HEADER, file_header};
use crate::Error;
use crate::blobs;

/// A directory of log files.
pub(crate) trait LogDir: Send {
    /// First lsn and length of each file, in order.
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error>;
    /// Reads a file from its beginning.
    fn read(&self, first: Lsn) -> Result<Box<dyn Read>, Error>;
    /// Creates an empty file whose name is durable.
    fn create(&self, first: Lsn) -> Result<Box<dyn LogFile>, Error>;
    /// Cuts a file to a length, durably.
    fn truncate(&self, first: Lsn, len: u64) -> Result<(), Error>;
    /// Removes a file.
    fn remove(&self, first: Lsn) -> Result<(), Error>;
    /// Where a file lies, for messages.
    fn path(&self, first: Lsn) -> PathBuf;
}

/// The file that is appended to.
pub(crate) trait LogFile: Send {
    /// Writes at the end.
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to a length and goes on there.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// Log files on the local file system.
#[derive(Debug)]
pub(crate) struct LocalLog {
    dir: PathBuf,
}

impl LocalLog {
    /// Opens or creates the directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        blobs::create_dir(dir)?;
        Ok(Self::at(dir))
    }

    /// A directory that may be missing, to be read only.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
}

impl LogDir for LocalLog {
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error> {
        let names = blobs::list(&self.dir)?;
        Ok(names
            .iter()
            .filter_map(|(name, len)| Some((name.strip_suffix(".log")?.parse().ok()?, *len)))
            .collect())
    }

    fn read(&self, first: Lsn) -> Result<Box<dyn Read>, Error> {
        let path = self.path(first);
        let file = fs::File::open(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Box::new(io::BufReader::with_capacity(1 << 20, file)))
    }

    fn create(&self, first: Lsn) -> Result<Box<dyn LogFile>, Error> {
        let path = self.path(first);
        let file = fs::File::create(&path).map_err(|error| Error::io(&path, error))?;
        blobs::sync_parent(&path)?;
        Ok(Box::new(LocalFile(file)))
    }

    fn truncate(&self, first: Lsn, len: u64) -> Result<(), Error> {
        let path = self.path(first);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| {
                file.set_len(len)?;
                file.sync_all()
            })
            .map_err(|error| Error::io(&path, error))
    }

    fn remove(&self, first: Lsn) -> Result<(), Error> {
        blobs::remove_file(&self.path(first))
    }

    fn path(&self, first: Lsn) -> PathBuf {
        self.dir.join(format!("{first:020}.log"))
    }
}

struct LocalFile(fs::File);

impl LogFile for LocalFile {
    fn append(&mut self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !parts.is_empty() {
            match self.0.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        io::Seek::seek(&mut self.0, io::SeekFrom::Start(len)).map(|_| ())
    }
}

/// The files of an open log: finished ones, and the one that is appended to.
pub(crate) struct Files {
    dir: Box<dyn LogDir>,
    /// First lsn and length, in order.
    finished: VecDeque<(Lsn, u64)>,
    /// `None` while there was no room for one: the next append tries again.
    active: Option<Box<dyn LogFile>>,
    /// The first lsn of the active file, whether it is there or not.
    active_first: Lsn,
    active_len: u64,
}

impl Files {
    /// Starts a new file after the finished ones. On a full disk it is started later.
    pub(crate) fn start(
        dir: Box<dyn LogDir>,
        finished: Vec<(Lsn, u64)>,
        next: Lsn,
    ) -> Result<Self, Error> {
        let active = match create(&*dir, next) {
            Err(Error::DiskFull(_)) => None,
            created => Some(created?),
        };
        let active_len = FILE_HEADER as u64;
        Ok(Self { dir, finished: finished.into(), active, active_first: next, active_len })
    }

    /// Appends to the active file. After an error the file is as before, durably, or the second
    /// value of the error says that it is not.
    pub(crate) fn append(
        &mut self,
        parts: &mut [IoSlice<'_>],
    ) -> Result<(), (Error, Option<Error>)> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let active = match &mut self.active {
            Some(active) => active,
            none => {
                none.insert(create(&*self.dir, self.active_first).map_err(|error| (error, None))?)
            }
        };
        match active.append(parts) {
            Ok(()) => {
                self.active_len += bytes as u64;
                Ok(())
            }
            Err(error) => {
                let path = self.dir.path(self.active_first);
                // Without the sync, frames that were refused could be back after a power cut.
                let undone = active.truncate(self.active_len).and_then(|()| active.sync());
                Err((Error::io(&path, error), undone.err().map(|error| Error::io(&path, error))))
            }
        }
    }

    /// Makes everything appended so far durable.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        let Some(active) = &mut self.active else { return Ok(()) };
        active.sync().map_err(|error| Error::io(&self.dir.path(self.active_first), error))
    }

    /// Finishes the active file, which must be synced, and starts the next; does nothing while
    /// the active file holds no frame.
    pub(crate) fn rotate(&mut self, next: Lsn) -> Result<(), Error> {
        if next == self.active_first && self.active.is_some() {
            return Ok(());
        }
        let active = create(&*self.dir, next)?;
        if self.active.replace(active).is_some() {
            self.finished.push_back((self.active_first, self.active_len));
        }
        self.active_first = next;
        self.active_len = FILE_HEADER as u64;
        Ok(())
    }

    /// Removes the finished files that hold only frames below `floor`.
    pub(crate) fn remove_below(&mut self, floor: Lsn) -> Result<(), Error> {
        while let Some(&(first, _)) = self.finished.front() {
            if self.later_firsts().next().is_none_or(|next| next > floor) {
                break;
            }
            self.dir.remove(first)?;
            self.finished.pop_front();
        }
        Ok(())
    }

    /// The first lsn that would stay if files below `floor` were removed, if any were.
    pub(crate) fn start_above(&self, floor: Lsn) -> Option<Lsn> {
        self.later_firsts()
            .take_while(|&first| first <= floor)
            .last()
            .filter(|&start| self.finished.front().is_some_and(|&(oldest, _)| oldest < start))
    }

    /// First lsns of all files but the oldest finished one.
    fn later_firsts(&self) -> impl Iterator<Item = Lsn> {
        let finished = self.finished.iter().skip(1).map(|&(first, _)| first);
        finished.chain(self.active.is_some().then_some(self.active_first))
    }

    /// Length of the active file.
    pub(crate) fn active_len(&self) -> u64 {
        self.active_len
    }

    /// Length of all files.
    pub(crate) fn total_len(&self) -> u64 {
        self.active_len + self.finished.iter().map(|&(_, len)| len).sum::<u64>()
    }
}

fn create(dir: &dyn LogDir, first: Lsn) -> Result<Box<dyn LogFile>, Error> {
    let mut file = dir.create(first)?;
    file.append(&mut [IoSlice::new(&file_header(first))])
        .map_err(|error| Error::io(&dir.path(first), error))?;
    Ok(file)
}
