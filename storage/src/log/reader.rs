//! Replay after a restart: every frame in order, up to a torn end.
//!
//! A bad frame in the last file ends the log if it can be the remains of a write that was never
//! acknowledged. That is so unless a later frame says that the bad one had been synced: then the
//! file was damaged after the fact, which is an error that names file and offset. So it is where
//! the catalog or a manifest says that the log reached further; the catalog learns it when a node
//! is stopped in good order. In any file but the last a bad frame is damage, because a file is
//! synced before the next one begins.
//!
//! A process that was killed may leave frames that are in the kernel's memory only. They are made
//! durable before anybody sees them, or a later power cut would take back what was shown.
//!
//! Memory is bounded by the largest frame, and by one file where its end is torn.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;

use super::Lsn;
use super::files::LogDir;
use super::frame::{
    ALIGN, FILE_HEADER, FRAME_HEADER, Header, MAX_BODY, check_file_header, is_file_header, padding,
};
use super::record::{Change, Record};
use crate::Error;
use crate::clock::Ts;

/// A frame that passed its checks.
pub(crate) struct Frame<'a> {
    pub(crate) lsn: Lsn,
    pub(crate) ts: Ts,
    pub(crate) collection: i64,
    schema_version: u32,
    kind: u8,
    pub(crate) body: &'a [u8],
    pub(crate) path: &'a Path,
    /// Where the frame begins in the file.
    pub(crate) offset: u64,
}

impl Frame<'_> {
    /// What the frame says.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be read although its checksum is right.
    pub(crate) fn record(&self) -> Result<Record, Error> {
        let change = Change::decode(self.kind, self.body).map_err(|detail| {
            Error::corrupt(self.path, format!("offset {}: {detail}", self.offset))
        })?;
        Ok(Record { collection: self.collection, schema_version: self.schema_version, change })
    }
}

/// What a replay leaves to go on from.
#[derive(Debug, PartialEq)]
pub(crate) struct Replayed {
    /// First lsn and length of each file that holds frames.
    pub(crate) files: Vec<(Lsn, u64)>,
    /// The lsn of the next frame.
    pub(crate) next: Lsn,
    /// Not below the timestamp of any frame.
    pub(crate) ts: Ts,
    /// Frames that were read.
    pub(crate) frames: u64,
}

/// Reads the log from the file that holds `start`, shows every frame to `visit`, and cuts off a
/// torn end. Frames below `reached` are known to have been on disk.
///
/// # Errors
/// [`Error::Corrupt`] with file and offset for damage and for missing files, and what `visit`
/// returns.
pub(crate) fn replay(
    dir: &dyn LogDir,
    start: Lsn,
    reached: Lsn,
    visit: &mut dyn FnMut(&Frame<'_>) -> Result<(), Error>,
) -> Result<Replayed, Error> {
    let files = dir.list()?;
    // Files wholly below the start may have outlived their removal.
    let oldest = files.iter().rposition(|&(first, _)| first <= start).unwrap_or(0);
    let (next, ts, unsynced) = (start, Ts::ZERO, VecDeque::new());
    let mut replay = Replay { dir, visit, reached, next, ts, frames: 0, unsynced };
    let mut kept = files[..oldest.min(files.len())].to_vec();
    for (i, &(first, len)) in files.iter().enumerate().skip(oldest) {
        if i == oldest && first <= start {
            replay.next = first;
        }
        if first != replay.next {
            let detail = format!(
                "the log goes on with lsn {first}, but {} is next; a log file is missing",
                replay.next
            );
            return Err(Error::corrupt(&dir.path(first), detail));
        }
        let is_last = i + 1 == files.len();
        replay.unsynced.clear();
        let len = replay.file(first, len, is_last)?;
        if let Some(&(_, from)) = replay.unsynced.iter().find(|&&(lsn, _)| lsn >= reached)
            && is_last
        {
            dir.settle(first, from)?;
        }
        if replay.next > first {
            kept.push((first, len));
        }
    }
    if files.is_empty() && start > 1 {
        let detail = format!("the file that holds lsn {start} is missing");
        return Err(Error::corrupt(&dir.path(start), detail));
    }
    let Replay { next, ts, frames, .. } = replay;
    if next < reached {
        let detail = format!("the log ends before lsn {next}, but lsn {reached} was given already");
        return Err(Error::corrupt(&dir.path(next), detail));
    }
    Ok(Replayed { files: kept, next, ts, frames })
}

struct Replay<'a> {
    dir: &'a dyn LogDir,
    visit: &'a mut dyn FnMut(&Frame<'_>) -> Result<(), Error>,
    reached: Lsn,
    next: Lsn,
    ts: Ts,
    frames: u64,
    /// The frames of the file, and where they begin, that no later one says to be on disk.
    unsynced: VecDeque<(Lsn, u64)>,
}

impl Replay<'_> {
    /// Replays one file and returns its sound length.
    fn file(&mut self, first: Lsn, len: u64, is_last: bool) -> Result<u64, Error> {
        let path = self.dir.path(first);
        let mut reader = self.dir.read(first)?;
        let mut header = [0; FILE_HEADER];
        let got = read_up_to(&mut reader, &mut header, &path)?;
        let torn = got < FILE_HEADER || !is_file_header(&header);
        if torn && is_last {
            // The header reaches the disk with the first frames. No frame, no header: a file
            // that was only just begun.
            self.check_torn(first, 0, &path)?;
            return Ok(0);
        }
        if torn {
            return Err(Error::corrupt(&path, "offset 0: the header of the log file is damaged"));
        }
        check_file_header(&header, first).map_err(|detail| Error::corrupt(&path, detail))?;

        let mut offset = FILE_HEADER as u64;
        let mut body = Vec::new();
        while offset < len {
            match read_frame(&mut reader, self.next, &mut body, &path)? {
                Some(header) => {
                    self.visit_frame(&header, &body, &path, offset)?;
                    offset += (FRAME_HEADER + body.len() + padding(body.len())) as u64;
                }
                None if is_last => {
                    self.check_torn(first, offset, &path)?;
                    tracing::warn!(
                        file = %path.display(), offset,
                        "the log ends with a write that was never acknowledged; it is cut off"
                    );
                    self.dir.truncate(first, offset)?;
                    return Ok(offset);
                }
                None => return Err(damaged(&path, offset, self.next)),
            }
        }
        Ok(offset)
    }

    fn visit_frame(
        &mut self,
        header: &Header,
        body: &[u8],
        path: &Path,
        offset: u64,
    ) -> Result<(), Error> {
        (self.visit)(&Frame {
            lsn: header.lsn,
            ts: header.ts,
            collection: header.collection,
            schema_version: header.schema_version,
            kind: header.kind,
            body,
            path,
            offset,
        })?;
        while self.unsynced.front().is_some_and(|&(lsn, _)| lsn < header.synced) {
            self.unsynced.pop_front();
        }
        self.unsynced.push_back((header.lsn, offset));
        self.next = header.lsn + 1;
        self.ts = self.ts.max(header.ts);
        self.frames += 1;
        Ok(())
    }

    /// Decides whether the frame at `offset` of the last file was torn or damaged.
    fn check_torn(&self, first: Lsn, offset: u64, path: &Path) -> Result<(), Error> {
        if self.next < self.reached {
            return Err(damaged(path, offset, self.next));
        }
        let mut bytes = Vec::new();
        self.dir.read(first)?.read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
        let rest = &bytes[usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len())..];
        // Frames are numbered without gaps, which tells them from chance at no cost.
        let most = self.next + (rest.len() / FRAME_HEADER) as u64;
        for at in (0..rest.len()).step_by(ALIGN) {
            let Some((header, tail)) = rest[at..].split_first_chunk::<FRAME_HEADER>() else {
                break;
            };
            let fields = Header::decode(header);
            if fields.lsn < self.next || fields.lsn > most || fields.synced <= self.next {
                continue;
            }
            if let Some(body) = tail.get(..fields.len as usize)
                && Header::fits(header, body)
            {
                return Err(damaged(path, offset, self.next));
            }
        }
        Ok(())
    }
}

fn damaged(path: &Path, offset: u64, lsn: Lsn) -> Error {
    Error::corrupt(path, format!("offset {offset}: frame {lsn} is damaged, which was on disk once"))
}

/// Reads the next frame with its padding; `None` if it is not there whole and sound.
fn read_frame(
    reader: &mut dyn Read,
    expected: Lsn,
    body: &mut Vec<u8>,
    path: &Path,
) -> Result<Option<Header>, Error> {
    let mut bytes = [0; FRAME_HEADER];
    if read_up_to(reader, &mut bytes, path)? < FRAME_HEADER {
        return Ok(None);
    }
    let header = Header::decode(&bytes);
    let len = header.len as usize;
    if header.lsn != expected || len > MAX_BODY {
        return Ok(None);
    }
    body.clear();
    // Grows with what is read, so a wrong length allocates no more than the file holds.
    reader.take(len as u64).read_to_end(body).map_err(|error| Error::io(path, error))?;
    if body.len() < len || !Header::fits(&bytes, body) {
        return Ok(None);
    }
    let mut pad = [0; ALIGN];
    read_up_to(reader, &mut pad[..padding(len)], path)?;
    Ok(Some(header))
}

fn read_up_to(reader: &mut dyn Read, into: &mut [u8], path: &Path) -> Result<usize, Error> {
    let mut got = 0;
    while got < into.len() {
        match reader.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, error)),
        }
    }
    Ok(got)
}
