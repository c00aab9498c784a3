//! The files of the log: `<first lsn>.log`, appended to in turn and removed from the front.
//!
//! [`LogDir`] is the seam between the log and the disk, so that tests can make either fail.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::Lsn;
use super::frame::{FILE_HEADER, file_header};
use crate::Error;
use crate::disk::{self, Disk, File};

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
    /// Makes durable what a process left that ended in disorder: what lies from `from` on is
    /// written again, because the kernel may hold it for written although that failed.
    fn settle(&self, first: Lsn, from: u64) -> Result<(), Error>;
    /// Removes a file, durably; one that does not exist is fine.
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

/// Log files in a directory of a disk.
#[derive(Debug)]
pub(crate) struct DiskLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl DiskLog {
    /// Opens or creates the directory.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, Error> {
        disk::create_dir(&*disk, &dir)?;
        Ok(Self::at(disk, dir))
    }

    /// A directory that may be missing, to be read only.
    pub(crate) fn at(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir }
    }
}

impl LogDir for DiskLog {
    fn list(&self) -> Result<Vec<(Lsn, u64)>, Error> {
        let entries = disk::list(&*self.disk, &self.dir)?;
        Ok(entries
            .iter()
            .filter_map(|entry| Some((entry.name.strip_suffix(".log")?.parse().ok()?, entry.len)))
            .collect())
    }

    fn read(&self, first: Lsn) -> Result<Box<dyn Read>, Error> {
        let path = self.path(first);
        self.disk.read(&path).map_err(|error| Error::io(&path, error))
    }

    fn create(&self, first: Lsn) -> Result<Box<dyn LogFile>, Error> {
        let path = self.path(first);
        let file = self.disk.create(&path).map_err(|error| Error::io(&path, error))?;
        disk::sync_parent(&*self.disk, &path)?;
        Ok(Box::new(DiskFile(file)))
    }

    fn truncate(&self, first: Lsn, len: u64) -> Result<(), Error> {
        let path = self.path(first);
        self.disk.truncate(&path, len).map_err(|error| Error::io(&path, error))
    }

    fn settle(&self, first: Lsn, from: u64) -> Result<(), Error> {
        let path = self.path(first);
        self.disk.rewrite(&path, from).map_err(|error| Error::io(&path, error))
    }

    fn remove(&self, first: Lsn) -> Result<(), Error> {
        let path = self.path(first);
        disk::remove_file(&*self.disk, &path)?;
        disk::sync_parent(&*self.disk, &path)
    }

    fn path(&self, first: Lsn) -> PathBuf {
        self.dir.join(format!("{first:020}.log"))
    }
}

struct DiskFile(Box<dyn File>);

impl LogFile for DiskFile {
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
        self.0.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
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
    /// A file that could not be begun, and may be there all the same.
    unfinished: Option<Lsn>,
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
        Ok(Self {
            dir,
            finished: finished.into(),
            active,
            active_first: next,
            active_len: FILE_HEADER as u64,
            unfinished: None,
        })
    }

    /// Makes sure that a file which could not be begun is not there: recovery would take it for
    /// the one that goes on where the active file ends.
    fn settle(&mut self) -> Result<(), Error> {
        if let Some(first) = self.unfinished {
            self.dir.remove(first)?;
            self.unfinished = None;
        }
        Ok(())
    }

    /// Appends to the active file. After an error the file is as before, durably, or the second
    /// value of the error says that it is not.
    pub(crate) fn append(
        &mut self,
        parts: &mut [IoSlice<'_>],
    ) -> Result<(), (Error, Option<Error>)> {
        self.settle().map_err(|error| (error, None))?;
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
        // Even where there was no room for the file: recovery looks for one that begins here.
        if next == self.active_first {
            return Ok(());
        }
        self.unfinished = Some(next);
        let active = match create(&*self.dir, next) {
            Ok(active) => active,
            Err(error) => {
                // If it cannot be taken back now, then before the next write.
                let _ = self.settle();
                return Err(error);
            }
        };
        self.unfinished = None;
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
