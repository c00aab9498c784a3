//! Back to the last good state, saying what that costs.
//!
//! What is damaged leaves its place in the manifest or the log, and its files go to
//! `DIR/damaged/`, where whoever knows more can look at them; nothing is deleted. What can be
//! built anew (indexes) or is cut off by a start anyhow (a torn end of the log) is left alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use super::{NoRepair, ReadOnlyLog};
use crate::Error;
use crate::blobs::{Blobs, Published};
use crate::catalog::CollectionInfo;
use crate::catalog::store::CatalogStore;
use crate::clock::Ts;
use crate::disk::{self, DirLock, LocalDisk};
use crate::log::Lsn;
use crate::log::files::{DiskLog, LogDir};
use crate::log::frame::{FRAME_HEADER, Header, file_header, padding};
use crate::log::reader::replay;
use crate::manifest::{Edit, Manifests, SegmentEntry, collection_dir};
use crate::recover::{LOG_DIR, open_deletes};
use crate::segment::delete::DeleteMask;
use crate::segment::sealed::SealedSegment;
use crate::segment::section_file;

/// Where damaged files go, in the data directory.
const DAMAGED_DIR: &str = "damaged";

/// What a repair does, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// What is dropped, a sentence for each thing.
    pub dropped: Vec<String>,
}

/// Says what going back to the last good state drops, and with `act` does it.
///
/// - A damaged segment leaves its collection with its rows.
/// - Damaged deletes: rows that were replaced stay replaced, rows that were deleted come back.
/// - A collection without a sound manifest loses its sealed rows and keeps what is in the log.
/// - The log ends before the first damaged record.
///
/// # Errors
/// [`Error::Locked`] while a process has the directory open, [`Error::Corrupt`] if the catalog is
/// damaged: it holds the schemas, so only a copy of it helps.
pub fn repair(dir: &Path, act: bool) -> Result<Repaired, Error> {
    let blobs = super::open(dir)?;
    let _lock = DirLock::take_if_there(dir)?;
    let catalog = CatalogStore::peek(&blobs)?
        .ok_or_else(|| Error::corrupt(&blobs.path("catalog"), "there is no catalog"))?;
    let mut work = Work { blobs, act, done: Repaired::default() };
    let mut floor = 0;
    for info in catalog.all_collections() {
        floor = floor.max(work.collection(info)?);
    }
    work.log(catalog.log_start(), floor.max(catalog.log_end()))?;
    Ok(work.done)
}

struct Work {
    blobs: Blobs,
    act: bool,
    done: Repaired,
}

impl Work {
    fn drop(&mut self, what: String) {
        self.done.dropped.push(what);
    }

    /// Moves a file of the data directory out of the way; one that is missing is fine.
    fn set_aside(&self, key: &str) -> Result<(), Error> {
        let (from, to) = (self.blobs.path(key), self.blobs.path(&format!("{DAMAGED_DIR}/{key}")));
        if !from.exists() {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            disk::create_dir(&LocalDisk, parent)?;
        }
        fs::rename(&from, &to).map_err(|error| Error::io(&from, error))?;
        disk::sync_parent(&LocalDisk, &to)?;
        disk::sync_parent(&LocalDisk, &from)
    }

    /// Mends a collection; returns its log floor.
    fn collection(&mut self, info: &CollectionInfo) -> Result<Lsn, Error> {
        let manifest = match Manifests::peek(&self.blobs, info.id) {
            Ok(manifest) => manifest,
            Err(error @ Error::Corrupt { .. }) => {
                self.drop(format!(
                    "collection `{}` ({}): all sealed rows, because {error}; rows that are in \
                     the log stay",
                    info.name, info.id
                ));
                if self.act {
                    self.set_aside(&collection_dir(info.id))?;
                    Manifests::create(&self.blobs, info.id, info.updated)?;
                }
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        let dir = Arc::new(self.blobs.published(&collection_dir(info.id)));
        let mut edit = Edit::default();
        let mut bare = Vec::new();
        let mut sound = Vec::new();
        for entry in &manifest.segments {
            if info.partition_by_id(entry.partition).is_none() {
                continue;
            }
            let opened = open_whole(&dir, info, entry);
            let unseen = opened.iter().flat_map(|sealed| sealed.damaged_unseen(&info.schema, true));
            for (field, error) in unseen {
                self.done.dropped.push(format!(
                    "collection `{}` ({}): the column of field {field} that is being made for segment \
                     {}; it is made again, because {error}",
                    info.name, info.id, entry.id
                ));
                edit.clear_column(entry, field);
            }
            match opened {
                Ok(sealed) => match open_deletes(&dir, entry) {
                    Ok(_) => sound.push(sealed),
                    Err(error) => bare.push((entry, sealed, error)),
                },
                Err(error) => {
                    self.drop(format!(
                        "collection `{}` ({}): segment {} with {} rows, deleted ones included, \
                         because {error}",
                        info.name, info.id, entry.id, entry.rows
                    ));
                    edit.remove.push(entry.id);
                }
            }
        }
        for at in 0..bare.len() {
            let (entry, sealed, error) = &bare[at];
            let others = bare.iter().map(|(_, other, _)| other).chain(&sound);
            let mask = replaced(sealed, others)?;
            self.done.dropped.push(format!(
                "collection `{}` ({}): the deletes of segment {}: {} of its {} rows stay replaced \
                 by newer ones, any that was deleted comes back, because {error}",
                info.name,
                info.id,
                entry.id,
                mask.len(),
                entry.rows
            ));
            if self.act {
                let name = format!("{}-repaired.del", entry.id);
                let dir = collection_dir(info.id);
                let sections = mask.to_sections()?;
                let rows = entry.rows as usize;
                let file = section_file::write(&self.blobs, &dir, &name, rows, &sections)?;
                edit.deletes.push((entry.id, file));
            }
        }
        let changes = !(edit.remove.is_empty() && edit.deletes.is_empty());
        if self.act && (changes || !edit.drop_columns.is_empty()) {
            let mut manifests = Manifests::open(&self.blobs, info.id)?;
            let changed = edit.remove.iter().chain(edit.deletes.iter().map(|(id, _)| id));
            let mut old: Vec<String> = (changed.filter_map(|id| manifest.segment(*id)))
                .flat_map(|entry| {
                    let gone = edit.remove.contains(&entry.id).then_some(entry);
                    let columns = gone.into_iter().flat_map(|entry| &entry.columns);
                    let data = gone.map(|entry| &entry.data).into_iter();
                    (data.chain(columns.map(|column| &column.data)).map(|data| &data.file))
                        .chain(entry.deletes.iter().map(|d| &d.file))
                        .cloned()
                })
                .collect();
            for (id, field) in &edit.drop_columns {
                let columns = manifest.segment(*id).into_iter().flat_map(|entry| &entry.columns);
                let of_field = columns.filter(|column| column.field == *field);
                old.extend(of_field.map(|column| column.data.file.clone()));
            }
            manifests.commit(edit, manifest.ts)?;
            for file in old {
                self.set_aside(&format!("{}/{file}", collection_dir(info.id)))?;
            }
        }
        Ok(manifest.log_floor)
    }

    /// Ends the log before its first damaged record. `floor` is the lsn up to which collections
    /// hold what was logged, or the catalog knows that something was.
    fn log(&mut self, start: Lsn, floor: Lsn) -> Result<(), Error> {
        let path = self.blobs.path(LOG_DIR);
        let log = ReadOnlyLog::at(&path);
        // Of the last sound record: its file, where it ends in it, the lsn after it, its time.
        let mut good: Option<(PathBuf, u64)> = None;
        let (mut next, mut ts) = (start, Ts::ZERO);
        let replayed = replay(&log, start, 0, &mut |frame| {
            let len = FRAME_HEADER + frame.body.len() + padding(frame.body.len());
            good = Some((frame.path.to_owned(), frame.offset + len as u64));
            next = frame.lsn + 1;
            ts = ts.max(frame.ts);
            Ok(())
        });
        let reason = match replayed {
            Ok(replayed) if floor <= replayed.next => return Ok(()),
            Ok(replayed) => {
                next = replayed.next;
                format!("it ends before lsn {next}, and collections go on to {floor}")
            }
            Err(Error::Corrupt { path, detail }) => format!("{}: {detail}", path.display()),
            Err(error) => return Err(error),
        };
        let files = log.list()?;
        let bad: Vec<(Lsn, u64)> = (files.iter())
            .filter(|(first, len)| match &good {
                Some((last, end)) if log.path(*first) == *last => len > end,
                _ => *first >= next,
            })
            .copied()
            .collect();
        let bytes: u64 = (bad.iter())
            .map(|(first, len)| match &good {
                Some((last, end)) if log.path(*first) == *last => len - end,
                _ => *len,
            })
            .sum();
        self.drop(format!(
            "the log: all records from lsn {next} on that are in no segment ({bytes} bytes in {} \
             files), because {reason}",
            bad.len()
        ));
        if !self.act {
            return Ok(());
        }
        for (first, _) in &bad {
            let path = log.path(*first);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let key = format!("{LOG_DIR}/{name}");
            let kept = good.as_ref().filter(|(last, _)| *last == path);
            let Some((_, end)) = kept else {
                self.set_aside(&key)?;
                continue;
            };
            // The copy first: a repair that dies here is begun again on the damaged file.
            let copy = self.blobs.path(&format!("{DAMAGED_DIR}/{key}"));
            if let Some(parent) = copy.parent() {
                disk::create_dir(&LocalDisk, parent)?;
            }
            fs::copy(&path, &copy).map_err(|error| Error::io(&copy, error))?;
            DiskLog::at(Arc::new(LocalDisk), self.blobs.path(LOG_DIR)).truncate(*first, *end)?;
        }
        self.continue_log(next, floor.max(next), ts)
    }

    /// Writes a log file from `next` up to `end` whose records belong to no collection, so that
    /// the log goes on beyond what the collections already hold.
    fn continue_log(&self, next: Lsn, end: Lsn, ts: Ts) -> Result<(), Error> {
        let key = format!("{LOG_DIR}/{next:020}.log");
        let path = self.blobs.path(&key);
        self.blobs.write_file(&key, |out| {
            let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|e| Error::io(&path, e));
            put(&file_header(next))?;
            for lsn in next..end {
                let header = Header {
                    len: 0,
                    crc: 0,
                    lsn,
                    ts,
                    synced: next,
                    collection: -1,
                    schema_version: 0,
                    kind: 0,
                };
                put(&header.encode(crc32c::crc32c(&[])))?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Opens a segment and verifies every column.
fn open_whole(
    dir: &Arc<Published>,
    info: &CollectionInfo,
    entry: &SegmentEntry,
) -> Result<SealedSegment, Error> {
    let sealed = SealedSegment::open(dir, &info.schema, entry, Arc::new(NoRepair))?;
    sealed.check_columns(&info.schema)?;
    sealed.keys()?;
    Ok(sealed)
}

/// The rows of a segment that are older than rows of the same key in other segments.
fn replaced<'a>(
    sealed: &SealedSegment,
    others: impl Iterator<Item = &'a SealedSegment>,
) -> Result<DeleteMask, Error> {
    let (keys, times) = (sealed.keys()?, sealed.timestamps()?);
    let mut died: BTreeMap<u32, u64> = BTreeMap::new();
    for other in others {
        let (other_keys, other_times) = (other.keys()?, other.timestamps()?);
        let mut at = 0;
        for (row, key) in (0_u32..).zip(keys.iter()) {
            let rows = other_keys.equal_range(key, at);
            at = rows.start;
            let newer = other_times[rows].iter().filter(|&&ts| ts > times[row as usize]).min();
            if let Some(&ts) = newer {
                died.entry(row).and_modify(|old| *old = ts.min(*old)).or_insert(ts);
            }
        }
    }
    let mut order: Vec<(u64, u32)> = died.into_iter().map(|(row, ts)| (ts, row)).collect();
    order.sort_unstable();
    let mut mask = DeleteMask::default();
    for (ts, row) in order {
        mask.insert(row, Ts(ts));
    }
    Ok(mask)
}
