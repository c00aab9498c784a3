//! Room on the data disk: rows are refused while what frees space can still be done.
//!
//! Deletes, drops, checkpoints and changes of the catalog need a little room themselves, so a part
//! of the disk is kept back for them: half of it as free space that inserts may not touch, half in
//! a reserve file, which stands against other users of the disk and is given up when the free half
//! is nearly gone. Inserts come back, and then the reserve file, as soon as the disk has room.
//!
//! Nothing here waits or watches: who is about to write asks, and an answer is at most
//! [`FRESH_FOR`] old. This module does not know what is written.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::disk::{self, Disk};

/// The reserve file's name in the data directory.
const RESERVE_FILE: &str = "RESERVE";

/// Unless told otherwise this much is kept back, or [`DEFAULT_SHARE`] of a smaller disk: room for
/// changes of the catalog, for deletes, and for the checkpoints of small collections.
const DEFAULT_RESERVE: u64 = 256 << 20;

/// One part in so many of the disk.
const DEFAULT_SHARE: u64 = 20;

/// How old the known free space may be when an insert is let in.
const FRESH_FOR: Duration = Duration::from_millis(50);

/// Free bytes and all bytes of the disk.
type Probe = Box<dyn Fn() -> io::Result<(u64, u64)> + Send + Sync>;

/// The room on the data disk as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Free bytes.
    pub free: u64,
    /// Bytes kept back from inserts, the reserve file included.
    pub reserve: u64,
    /// Length of the reserve file; 0 while it is given up.
    pub held: u64,
}

impl DiskSpace {
    /// Whether there is room for `bytes` of rows beside what is kept back.
    fn has_room(&self, bytes: u64) -> bool {
        self.free.saturating_add(self.held) >= self.reserve.saturating_add(bytes)
    }

    /// Why inserts are refused, while they are.
    pub fn refusal(&self) -> Option<String> {
        (!self.has_room(0)).then(|| self.to_string())
    }
}

impl fmt::Display for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { free, reserve, held } = self;
        write!(
            f,
            "{} bytes are free, {reserve} are kept back for deletes, drops and checkpoints; \
             delete or drop data, or make room on the disk, and try again",
            free + held
        )
    }
}

struct State {
    known: DiskSpace,
    known_at: Instant,
    /// Bytes let in since.
    spent: u64,
}

/// The keeper of the room on the data disk.
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    file: PathBuf,
    reserve: u64,
    probe: Probe,
    state: Mutex<State>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("reserve", &self.reserve).finish_non_exhaustive()
    }
}

impl Space {
    /// Looks at the disk of a directory, before anything is written to it; on a full disk this
    /// gives up the reserve file. `reserve` of 0 chooses by the size of the disk.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, reserve: u64) -> Result<Self, Error> {
        let (probed, on) = (dir.to_owned(), Arc::clone(&disk));
        Self::with_probe(disk, dir, reserve, Box::new(move || on.space(&probed)))
    }

    fn with_probe(
        disk: Arc<dyn Disk>,
        dir: &Path,
        reserve: u64,
        probe: Probe,
    ) -> Result<Self, Error> {
        let file = dir.join(RESERVE_FILE);
        let (free, total) = probe().map_err(|error| Error::io(dir, error))?;
        let reserve = match reserve {
            0 => DEFAULT_RESERVE.min(total / DEFAULT_SHARE),
            bytes => bytes,
        };
        let held = disk.look(&file).map_or(0, |found| found.len);
        let known = DiskSpace { free, reserve, held };
        let state = Mutex::new(State { known, known_at: Instant::now(), spent: 0 });
        let space = Self { disk, file, reserve, probe, state };
        space.make_room()?;
        Ok(space)
    }

    /// Lets `bytes` of rows in.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if that would take from what is kept back.
    pub(crate) fn admit(&self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes as u64;
        let mut state = self.state();
        // Between two looks no more than an eighth of what is kept back may go unseen.
        if state.known_at.elapsed() > FRESH_FOR || state.spent + bytes > self.reserve / 8 {
            self.look(&mut state)?;
        }
        if !state.known.has_room(state.spent + bytes) {
            return Err(Error::DiskFull(state.known.to_string()));
        }
        state.spent += bytes;
        Ok(())
    }

    /// Sees to it that there is room for small writes: deletes, documents, a log file's header.
    pub(crate) fn make_room(&self) -> Result<(), Error> {
        self.look(&mut self.state())
    }

    /// Sees to it that there is room for `bytes` of files that will free at least as much.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is none even without the reserve file.
    pub(crate) fn require(&self, bytes: usize) -> Result<(), Error> {
        let mut state = self.state();
        self.look(&mut state)?;
        // A little stays for the documents that go with the files.
        let wanted = (bytes as u64).saturating_add(self.reserve / 64);
        let DiskSpace { free, held, .. } = state.known;
        if free < wanted && free.saturating_add(held) >= wanted {
            self.give_up(&mut state);
            self.look_only(&mut state)?;
        }
        if state.known.free < wanted {
            let free = state.known.free;
            return Err(Error::DiskFull(format!("{bytes} bytes are wanted, {free} are free")));
        }
        Ok(())
    }

    /// The room as of now.
    pub(crate) fn now(&self) -> Result<DiskSpace, Error> {
        let mut state = self.state();
        self.look(&mut state)?;
        Ok(state.known)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk, and gives up or takes back the reserve file by what is there.
    fn look(&self, state: &mut State) -> Result<(), Error> {
        self.look_only(state)?;
        if state.known.held > 0 && state.known.free < self.reserve / 4 {
            self.give_up(state);
            self.look_only(state)
        } else if state.known.held == 0 && self.reserve > 0 && state.known.free >= self.reserve {
            self.take(state);
            self.look_only(state)
        } else {
            Ok(())
        }
    }

    fn look_only(&self, state: &mut State) -> Result<(), Error> {
        let (free, _) = (self.probe)().map_err(|error| Error::io(&self.file, error))?;
        state.known.free = free;
        state.known_at = Instant::now();
        state.spent = 0;
        Ok(())
    }

    fn give_up(&self, state: &mut State) {
        if state.known.held == 0 {
            return;
        }
        match disk::remove_file(&*self.disk, &self.file) {
            Ok(()) => {
                tracing::warn!(free = state.known.free, "the data disk is full; rows are refused");
                state.known.held = 0;
            }
            Err(error) => tracing::error!(%error, "the reserve of disk space cannot be given up"),
        }
    }

    /// Takes the reserve file. A file system that cannot keep space for a file goes without: then
    /// free space alone is kept back.
    fn take(&self, state: &mut State) {
        let len = self.reserve / 2;
        if len == 0 {
            return;
        }
        match self.disk.reserve(&self.file, len) {
            Ok(()) => state.known.held = len,
            Err(error) => {
                tracing::debug!(%error, "no reserve of disk space could be taken");
                // Best effort: what stays is empty.
                let _ = self.disk.remove_file(&self.file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::disk::LocalDisk;

    const RESERVE: u64 = 1 << 20;

    /// A disk on which the test decides what others leave free; the reserve file counts.
    fn disk(dir: &Path, left: &Arc<AtomicU64>) -> Space {
        let (left, file) = (Arc::clone(left), dir.join(RESERVE_FILE));
        let probe = move || {
            let held = fs_err::metadata(&file).map_or(0, |found| found.len());
            Ok((left.load(Ordering::Relaxed).saturating_sub(held), 1 << 30))
        };
        Space::with_probe(Arc::new(LocalDisk), dir, RESERVE, Box::new(probe)).unwrap()
    }

    fn is_full(result: Result<(), Error>) -> bool {
        result.is_err_and(|error| matches!(error, Error::DiskFull(_)))
    }

    #[test]
    fn rows_are_refused_before_the_disk_is_full_and_come_back_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(10 * RESERVE));
        let space = disk(dir.path(), &left);
        assert_eq!(space.now().unwrap().held, RESERVE / 2);
        space.admit(9 * RESERVE as usize).unwrap();
        assert!(is_full(space.admit(RESERVE as usize * 9 + 1)));
        left.store(RESERVE - 1, Ordering::Relaxed);
        assert!(is_full(space.admit(RESERVE as usize)));
        assert!(space.now().unwrap().refusal().is_some());
        assert_eq!(space.now().unwrap().held, RESERVE / 2, "there is room for deletes still");
        left.store(2 * RESERVE, Ordering::Relaxed);
        assert_eq!(space.now().unwrap().refusal(), None);
        space.admit(RESERVE as usize / 2).unwrap();
    }

    #[test]
    fn the_reserve_is_given_up_for_what_frees_space_and_not_for_rows() {
        let dir = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(4 * RESERVE));
        let space = disk(dir.path(), &left);
        assert!(is_full(space.require(8 * RESERVE as usize)));
        assert_eq!(space.now().unwrap().held, RESERVE / 2, "it would not have been enough");
        left.store(RESERVE / 2 + RESERVE / 4 - 1, Ordering::Relaxed);
        space.make_room().unwrap();
        let full = space.now().unwrap();
        assert_eq!((full.held, full.free), (0, RESERVE / 2 + RESERVE / 4 - 1));
        assert!(is_full(space.admit(0)), "what was given up is not for rows");
        space.require(RESERVE as usize / 2).unwrap();
        assert!(is_full(space.require(RESERVE as usize)));
        left.store(RESERVE, Ordering::Relaxed);
        assert_eq!(space.now().unwrap().held, RESERVE / 2, "it is taken back");
        space.admit(0).unwrap();
    }

    #[test]
    fn a_full_disk_is_opened_without_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(4 * RESERVE));
        drop(disk(dir.path(), &left));
        assert!(dir.path().join(RESERVE_FILE).exists());
        left.store(RESERVE / 2, Ordering::Relaxed);
        let space = disk(dir.path(), &left);
        assert!(!dir.path().join(RESERVE_FILE).exists());
        assert!(is_full(space.admit(0)));
    }
}
