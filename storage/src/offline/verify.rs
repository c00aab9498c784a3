//! Is a data directory sound?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::{NoRepair, ReadOnlyLog, Report, Severity};
use crate::Error;
use crate::blobs::{Blobs, Published};
use crate::catalog::store::CatalogStore;
use crate::catalog::{CatalogView, CollectionInfo};
use crate::disk::{DirLock, Entry};
use crate::keys::KeyRef;
use crate::log::Lsn;
use crate::log::files::LogDir;
use crate::log::reader::replay;
use crate::manifest::{Manifest, Manifests, SegmentEntry, collection_dir};
use crate::recover::{DATA_DIR, LOG_DIR, open_deletes};
use crate::segment::delete::DeleteMask;
use crate::segment::index::is_of_another_version;
use crate::segment::sealed::SealedSegment;

/// Checks every file of a data directory, and with `deep` every checksum and every relation
/// between files: keys in order and live once, times and rows as the manifest says, deletes
/// within rows, indexes over all rows, records that can be read. Changes nothing.
///
/// # Errors
/// [`Error::Locked`] while a process has the directory open; [`Error::Io`] if there is none.
/// Damage is no error but a finding.
pub fn verify(dir: &Path, deep: bool) -> Result<Report, Error> {
    let blobs = super::open(dir)?;
    let _lock = DirLock::take_if_there(dir)?;
    let mut check = Check { blobs, report: Report { deep, ..Report::default() }, deep };
    check.run()?;
    Ok(check.report)
}

struct Check {
    blobs: Blobs,
    report: Report,
    deep: bool,
}

/// A segment whose keys can be compared with those of others.
struct Opened {
    entry: SegmentEntry,
    sealed: SealedSegment,
    deletes: DeleteMask,
}

impl Check {
    fn run(&mut self) -> Result<(), Error> {
        let catalog = match CatalogStore::peek(&self.blobs) {
            Ok(catalog) => catalog,
            Err(error) => {
                self.damage(&self.blobs.path("catalog"), &error);
                None
            }
        };
        let data = self.blobs.list(DATA_DIR)?;
        let Some(catalog) = catalog else {
            let logs = self.blobs.list(LOG_DIR)?;
            if self.report.findings.is_empty() && !(data.is_empty() && logs.is_empty()) {
                let path = self.blobs.path("catalog");
                self.report.note(
                    Severity::Damage,
                    &path,
                    "the catalog is missing, but there is data",
                );
            }
            return Ok(());
        };
        let mut floors = Vec::new();
        for info in catalog.all_collections() {
            self.report.collections += 1;
            match Manifests::peek(&self.blobs, info.id) {
                Ok(manifest) => {
                    floors.push((info.id, manifest.log_floor));
                    self.collection(info, &manifest)?;
                }
                Err(error) => self.damage(&self.blobs.path(&collection_dir(info.id)), &error),
            }
        }
        let known = |name: &str| name.parse().is_ok_and(|id| catalog.by_id(id).is_some());
        for Entry { name, .. } in data.iter().filter(|found| !known(&found.name)) {
            let path = self.blobs.path(&format!("{DATA_DIR}/{name}"));
            self.report.note(Severity::Leftover, &path, "the catalog has no such collection");
        }
        self.log(&catalog, &floors);
        Ok(())
    }

    fn damage(&mut self, path: &Path, error: &Error) {
        self.report.note_error(Severity::Damage, path, error);
    }

    fn collection(&mut self, info: &CollectionInfo, manifest: &Manifest) -> Result<(), Error> {
        let key = collection_dir(info.id);
        let dir = Arc::new(self.blobs.published(&key));
        if manifest.schema_version > info.schema.version {
            let problem = format!(
                "the manifest has rows of schema version {}, the catalog only knows {}",
                manifest.schema_version, info.schema.version
            );
            self.report.note(Severity::Damage, dir.path(), problem);
        }
        let mut opened = Vec::new();
        for entry in &manifest.segments {
            self.report.segments += 1;
            self.report.rows += u64::from(entry.rows);
            if info.partition_by_id(entry.partition).is_none() {
                let path = dir.path().join(&entry.data.file);
                self.report.note(Severity::Leftover, &path, "its partition was dropped");
                continue;
            }
            opened.extend(self.segment(info, &dir, entry));
        }
        if self.deep {
            self.keys_live_once(dir.path(), &opened);
        }
        let live: HashSet<&str> = manifest.files().map(|(file, _)| file).collect();
        for Entry { name, is_dir, .. } in self.blobs.list(&key)? {
            if !live.contains(name.as_str()) && !is_dir {
                let path = dir.path().join(&name);
                self.report.note(Severity::Leftover, &path, "no manifest names it");
            }
        }
        Ok(())
    }

    /// Checks the files of a segment; returns it if its keys and deletes are sound.
    fn segment(
        &mut self,
        info: &CollectionInfo,
        dir: &Arc<Published>,
        entry: &SegmentEntry,
    ) -> Option<Opened> {
        let path = dir.path().join(&entry.data.file);
        let deletes = open_deletes(dir, entry)
            .map_err(|error| self.report.note_error(Severity::Damage, &path, &error))
            .ok();
        let sealed = SealedSegment::open(dir, &info.schema, entry, Arc::new(NoRepair))
            .map_err(|error| self.report.note_error(Severity::Damage, &path, &error))
            .ok()?;
        for index in sealed.indexes().iter() {
            let Some(field) = info.schema.stored_field(index.field()) else { continue };
            let checked = sealed.check_index(index, field);
            // A node builds one of another version anew.
            let outdated = |error: &Error| matches!(error, Error::Search(search) if is_of_another_version(search));
            if let Err(error) = checked
                && !outdated(&error)
            {
                let of_rows = matches!(&error, Error::Corrupt { path: file, .. } if *file == path);
                let severity = if of_rows { Severity::Damage } else { Severity::Index };
                self.report.note_error(severity, &path, &error);
            }
        }
        for (_, error) in sealed.damaged_unseen(&info.schema, self.deep) {
            self.report.note_error(Severity::Index, &path, &error);
        }
        if self.deep {
            let checked =
                sealed.check_columns(&info.schema).and_then(|()| check_rows(&sealed, entry));
            if let Err(error) = checked {
                self.report.note_error(Severity::Damage, &path, &error);
                return None;
            }
        }
        Some(Opened { entry: entry.clone(), sealed, deletes: deletes? })
    }

    /// A key is live in one segment at most. Walks all segments in key order.
    fn keys_live_once(&mut self, dir: &Path, opened: &[Opened]) {
        let mut columns = Vec::new();
        for segment in opened {
            match segment.sealed.keys() {
                Ok(keys) => columns.push((segment, keys)),
                Err(error) => return self.damage(dir, &error),
            }
        }
        let next_live = |at: usize, from: usize| {
            let (segment, keys) = &columns[at];
            let alive =
                |row: &usize| u32::try_from(*row).is_ok_and(|r| !segment.deletes.contains(r));
            (from..keys.len()).find(alive).map(|row| Reverse((keys.get(row), at, row)))
        };
        let mut heap: BinaryHeap<_> =
            (0..columns.len()).filter_map(|at| next_live(at, 0)).collect();
        let mut last: Option<(KeyRef<'_>, usize)> = None;
        while let Some(Reverse((key, at, row))) = heap.pop() {
            if let Some((before, other)) = last
                && before == key
            {
                let other = columns[other].0.entry.id;
                let problem = format!("row {row}: key {key:?} is live here and in segment {other}");
                self.report.note(Severity::Damage, columns[at].0.sealed.path(), problem);
                return;
            }
            last = Some((key, at));
            heap.extend(next_live(at, row + 1));
        }
    }

    /// Reads the log as a start would.
    fn log(&mut self, catalog: &CatalogView, floors: &[(i64, Lsn)]) {
        let path = self.blobs.path(LOG_DIR);
        let log = ReadOnlyLog::at(&path);
        let start = catalog.log_start();
        let (mut records, mut unreadable) = (0, Vec::new());
        let deep = self.deep;
        let replayed = replay(&log, start, catalog.log_end(), &mut |frame| {
            records += 1;
            if deep
                && catalog.by_id(frame.collection).is_some()
                && let Err(error) = frame.record()
            {
                unreadable.push(error);
            }
            Ok(())
        });
        self.report.records = records;
        for error in unreadable {
            self.damage(&path, &error);
        }
        match replayed {
            Err(error) => self.damage(&path, &error),
            Ok(replayed) => {
                if let Some((first, offset)) = log.torn.get() {
                    let problem = format!(
                        "offset {offset}: the log ends with a write that was never acknowledged"
                    );
                    self.report.note(Severity::Leftover, &log.path(first), problem);
                }
                let next = replayed.next;
                if let Some((id, floor)) = floors.iter().find(|(_, floor)| *floor > next) {
                    let problem = format!(
                        "the log ends before lsn {next}, but collection {id} has what was logged \
                         before lsn {floor}"
                    );
                    self.report.note(Severity::Damage, &path, problem);
                }
            }
        }
    }
}

/// Rows in order of (key, time), and times within what the manifest says.
fn check_rows(sealed: &SealedSegment, entry: &SegmentEntry) -> Result<(), Error> {
    let (keys, times) = (sealed.keys()?, sealed.timestamps()?);
    let corrupt =
        |row: usize, what: &str| Err(Error::corrupt(sealed.path(), format!("row {row}: {what}")));
    for row in 0..keys.len() {
        if row > 0 && (keys.get(row - 1), times[row - 1]) >= (keys.get(row), times[row]) {
            return corrupt(row, "rows are not in the order of key and time");
        }
        if times[row] < entry.min_ts.0 || times[row] > entry.max_ts.0 {
            return corrupt(row, "its time is not between those that the manifest names");
        }
    }
    Ok(())
}
