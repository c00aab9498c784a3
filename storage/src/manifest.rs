//! What is live in one collection: its segments, their files, and where the log takes over.
//!
//! A [`Manifest`] is a versioned document; an [`Edit`] makes the next one. Checkpoint, truncation,
//! compaction and index builds publish with exactly one commit, so a job that dies leaves either
//! its whole result or nothing. Before a commit the named [`Invariant`]s are checked against the
//! version before and against the files.
//!
//! The manifest does not know rows; the log below [`Manifest::log_floor`] is not needed by it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::blobs::Blobs;
use crate::catalog::{GraphDef, TermsDef};
use crate::clock::Ts;
use crate::document::Document;
use crate::log::Lsn;

/// Everything that is live in a collection, apart from what the log holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The collection's id.
    pub(crate) collection: i64,
    /// The writer's epoch; rises when another node takes the collection over. 0 on one node.
    pub(crate) epoch: u64,
    /// Of the newest schema among the segments.
    pub(crate) schema_version: u32,
    /// Not below any timestamp that is in the segments or was given before the commit.
    pub(crate) ts: Ts,
    /// Log records below this are contained in the segments and their deletes.
    pub(crate) log_floor: Lsn,
    /// Greater than all segment ids that this collection has used.
    pub(crate) next_segment: i64,
    /// Of rows that died before this, some are not there, or not with the time of their death.
    #[serde(default)]
    pub(crate) forgotten: Ts,
    /// In ascending order of ids.
    pub(crate) segments: Vec<SegmentEntry>,
}

/// A sealed segment and its files, which lie in the collection's directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    pub(crate) id: i64,
    pub(crate) partition: i64,
    pub(crate) rows: u32,
    pub(crate) min_ts: Ts,
    pub(crate) max_ts: Ts,
    /// The rows.
    pub(crate) data: DataFile,
    /// Columns that were made later; those of one field do not overlap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) columns: Vec<ColumnFile>,
    /// Index files; any of them can be rebuilt from the data.
    #[serde(default)]
    pub(crate) indexes: Vec<IndexFile>,
    /// The deleted rows, if there are any.
    #[serde(default)]
    pub(crate) deletes: Option<SectionsFile>,
}

/// An Arrow file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataFile {
    pub(crate) file: String,
    pub(crate) len: u64,
    /// Of the bytes before the first column: magic, schema and batch header.
    pub(crate) head_crc32c: u32,
    /// Of the bytes after the last column: the footer, which holds the columns' checksums.
    pub(crate) footer_crc32c: u32,
}

/// An Arrow file with values of one column, which the data file lacks. Only when it has one for
/// every row is it read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ColumnFile {
    /// Id of the field.
    pub(crate) field: i64,
    /// The row that the first value belongs to.
    pub(crate) first: u32,
    /// Number of values.
    pub(crate) rows: u32,
    #[serde(flatten)]
    pub(crate) data: DataFile,
}

impl ColumnFile {
    /// Whether its rows are all among those of another.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let end = |file: &Self| u64::from(file.first) + u64::from(file.rows);
        self.field == other.field && self.first >= other.first && end(self) <= end(other)
    }
}

/// A container of sections, each with its own checksum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SectionsFile {
    pub(crate) file: String,
    pub(crate) len: u64,
    /// Of the header and the table of sections.
    pub(crate) crc32c: u32,
}

/// An index over one field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    /// Id of the field.
    pub(crate) field: i64,
    /// The algorithm.
    pub(crate) kind: IndexKind,
    #[serde(flatten)]
    pub(crate) sections: SectionsFile,
}

impl IndexFile {
    /// Whether both answer the same, whatever their files.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.field == other.field && self.kind == other.kind
    }
}

/// The algorithm of an index file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IndexKind {
    /// Inverted lists over a sparse vector field.
    SparseInverted,
    /// A graph over a dense vector field.
    Hnsw(GraphDef),
    /// Sorted terms over a scalar field.
    Terms(TermsDef),
}

/// What one commit changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edit {
    /// New segments.
    pub(crate) add: Vec<SegmentEntry>,
    /// Ids of segments that are live no more.
    pub(crate) remove: Vec<i64>,
    /// New state of the deletes of segments that stay.
    pub(crate) deletes: Vec<(i64, SectionsFile)>,
    /// New index files of segments that stay; one of the same field and kind goes.
    pub(crate) indexes: Vec<(i64, IndexFile)>,
    /// Index files that go, by segment.
    pub(crate) drop_indexes: Vec<(i64, IndexFile)>,
    /// New values of columns of segments that stay; they replace those whose rows they cover.
    pub(crate) columns: Vec<(i64, ColumnFile)>,
    /// Columns that were made later and go, as segment and field.
    pub(crate) drop_columns: Vec<(i64, i64)>,
    /// The new floor, where the edit moves it.
    pub(crate) log_floor: Option<Lsn>,
    /// The newest schema among the new segments.
    pub(crate) schema_version: u32,
    /// What was written leaves out rows that died before this, or the time of their death.
    pub(crate) forgotten: Ts,
}

impl Edit {
    /// Takes away what was made later of a field's column, and the indexes over it.
    pub(crate) fn clear_column(&mut self, segment: &SegmentEntry, field: i64) {
        self.drop_columns.push((segment.id, field));
        let over_it = segment.indexes.iter().filter(|index| index.field == field);
        self.drop_indexes.extend(over_it.map(|index| (segment.id, index.clone())));
    }
}

/// What must hold for every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invariant {
    /// The log floor never falls.
    FloorNeverFalls,
    /// Timestamps never go back.
    TimeNeverGoesBack,
    /// A segment id is not used again.
    IdsAreNeverReused,
    /// Only live segments are changed or removed.
    OnlyLiveSegmentsChange,
    /// Every file that a manifest names is there, with the length it names.
    EveryFileExists,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FloorNeverFalls => "the log floor never falls",
            Self::TimeNeverGoesBack => "time never goes back",
            Self::IdsAreNeverReused => "segment ids are never reused",
            Self::OnlyLiveSegmentsChange => "only live segments change",
            Self::EveryFileExists => "every file exists",
        })
    }
}

/// A broken invariant and the case that breaks it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) detail: String,
}

fn broken<T>(invariant: Invariant, detail: String) -> Result<T, Violation> {
    Err(Violation { invariant, detail })
}

impl Manifest {
    /// The manifest after an edit at `ts`.
    pub(crate) fn edited(&self, edit: Edit, ts: Ts) -> Result<Self, Violation> {
        if ts < self.ts {
            return broken(Invariant::TimeNeverGoesBack, format!("from {} to {ts}", self.ts));
        }
        let mut next = Self { ts, ..self.clone() };
        if let Some(floor) = edit.log_floor {
            if floor < self.log_floor {
                let detail = format!("from {} to {floor}", self.log_floor);
                return broken(Invariant::FloorNeverFalls, detail);
            }
            next.log_floor = floor;
        }
        let mut live: BTreeMap<i64, SegmentEntry> =
            next.segments.drain(..).map(|segment| (segment.id, segment)).collect();
        for id in edit.remove {
            if live.remove(&id).is_none() {
                return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}"));
            }
        }
        for (id, deletes) in edit.deletes {
            match live.get_mut(&id) {
                Some(segment) => segment.deletes = Some(deletes),
                None => return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}")),
            }
        }
        for (id, index) in edit.drop_indexes {
            let Some(segment) = live.get_mut(&id) else {
                return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}"));
            };
            segment.indexes.retain(|old| !old.is_same(&index));
        }
        for (id, index) in edit.indexes {
            let Some(segment) = live.get_mut(&id) else {
                return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}"));
            };
            segment.indexes.retain(|old| !old.is_same(&index));
            segment.indexes.push(index);
        }
        for (id, field) in edit.drop_columns {
            let Some(segment) = live.get_mut(&id) else {
                return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}"));
            };
            segment.columns.retain(|old| old.field != field);
        }
        for (id, column) in edit.columns {
            let Some(segment) = live.get_mut(&id) else {
                return broken(Invariant::OnlyLiveSegmentsChange, format!("segment {id}"));
            };
            segment.columns.retain(|old| !old.is_within(&column));
            segment.columns.push(column);
        }
        for segment in edit.add {
            // Segments are written at the same time, so not in the order of their ids.
            if self.segment(segment.id).is_some() || live.contains_key(&segment.id) {
                return broken(Invariant::IdsAreNeverReused, format!("segment {}", segment.id));
            }
            next.next_segment = next.next_segment.max(segment.id + 1);
            live.insert(segment.id, segment);
        }
        next.schema_version = next.schema_version.max(edit.schema_version);
        next.forgotten = next.forgotten.max(edit.forgotten);
        next.segments = live.into_values().collect();
        Ok(next)
    }

    /// All files of all segments, with their lengths.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.segments.iter().flat_map(|segment| {
            let indexes = segment.indexes.iter().map(|index| &index.sections);
            let columns = segment.columns.iter().map(|column| &column.data);
            std::iter::once(&segment.data)
                .chain(columns)
                .map(|data| (data.file.as_str(), data.len))
                .chain(indexes.chain(&segment.deletes).map(|file| (file.file.as_str(), file.len)))
        })
    }

    pub(crate) fn segment(&self, id: i64) -> Option<&SegmentEntry> {
        self.segments.iter().find(|segment| segment.id == id)
    }
}

/// A collection's directory, below the data directory.
pub(crate) fn collection_dir(collection: i64) -> String {
    format!("data/{collection}")
}

/// The newest manifest of a collection and the means to commit the next.
#[derive(Debug)]
pub(crate) struct Manifests {
    blobs: Blobs,
    document: Document,
    current: Manifest,
}

impl Manifests {
    /// Commits the first, empty manifest of a new collection.
    pub(crate) fn create(blobs: &Blobs, collection: i64, ts: Ts) -> Result<Self, Error> {
        let mut document = Document::new(blobs, &prefix(collection));
        let current = Manifest { collection, ts, next_segment: 1, ..Manifest::default() };
        document.commit(&current)?;
        Ok(Self { blobs: blobs.clone(), document, current })
    }

    /// Opens the newest manifest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is missing, damaged, or another collection's.
    pub(crate) fn open(blobs: &Blobs, collection: i64) -> Result<Self, Error> {
        let (document, found) = Document::open::<Manifest>(blobs, &prefix(collection))?;
        let current = Self::expect(&document.path(), collection, found)?;
        Ok(Self { blobs: blobs.clone(), document, current })
    }

    /// The newest manifest. Changes nothing.
    ///
    /// # Errors
    /// As [`Manifests::open`].
    pub(crate) fn peek(blobs: &Blobs, collection: i64) -> Result<Manifest, Error> {
        let prefix = prefix(collection);
        let found = Document::peek(blobs, &prefix)?;
        Self::expect(&blobs.path(&prefix), collection, found.map(|(_, manifest)| manifest))
    }

    fn expect(path: &Path, collection: i64, found: Option<Manifest>) -> Result<Manifest, Error> {
        let found = found.ok_or_else(|| Error::corrupt(path, "the manifest is missing"))?;
        if found.collection != collection {
            let detail = format!(
                "the manifest belongs to collection {}, the directory to {collection}",
                found.collection
            );
            return Err(Error::corrupt(path, detail));
        }
        Ok(found)
    }

    /// The newest manifest.
    pub(crate) fn current(&self) -> &Manifest {
        &self.current
    }

    /// See [`Document::settle`]; to be called before files of the next version are written.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.document.settle()
    }

    /// The version that the next commit will have.
    pub(crate) fn next_version(&self) -> u64 {
        self.document.version() + 1
    }

    /// Commits an edit; durable on return.
    ///
    /// # Errors
    /// [`Error::Internal`] naming a broken invariant; otherwise as [`Document::commit`].
    pub(crate) fn commit(&mut self, edit: Edit, ts: Ts) -> Result<(), Error> {
        let next = self.current.edited(edit, ts).and_then(|next| {
            self.check_files(&next)?;
            Ok(next)
        });
        let next = next.map_err(|Violation { invariant, detail }| {
            Error::Internal(format!(
                "manifest of collection {}: {invariant}: {detail}",
                self.current.collection
            ))
        })?;
        self.document.commit(&next)?;
        self.current = next;
        Ok(())
    }

    /// Only files that the version before did not name need a look.
    fn check_files(&self, next: &Manifest) -> Result<(), Violation> {
        let known: HashSet<&str> = self.current.files().map(|(file, _)| file).collect();
        for (file, len) in next.files().filter(|(file, _)| !known.contains(file)) {
            let key = format!("{}/{file}", collection_dir(next.collection));
            match self.blobs.len(&key) {
                Ok(found) if found == len => {}
                Ok(found) => {
                    let detail = format!("{file} has {found} bytes instead of {len}");
                    return broken(Invariant::EveryFileExists, detail);
                }
                Err(error) => return broken(Invariant::EveryFileExists, error.to_string()),
            }
        }
        Ok(())
    }
}

fn prefix(collection: i64) -> String {
    format!("{}/manifest", collection_dir(collection))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i64) -> SegmentEntry {
        SegmentEntry {
            id,
            partition: 1,
            rows: 1,
            min_ts: Ts(1),
            max_ts: Ts(2),
            data: DataFile {
                file: format!("{id}.arrow"),
                len: 3,
                head_crc32c: 1,
                footer_crc32c: 2,
            },
            columns: vec![],
            indexes: vec![],
            deletes: None,
        }
    }

    fn sections(file: &str) -> SectionsFile {
        SectionsFile { file: file.into(), len: 3, crc32c: 0 }
    }

    fn add(id: i64) -> Edit {
        Edit { add: vec![entry(id)], ..Edit::default() }
    }

    fn refused(manifest: &Manifest, edit: Edit, ts: u64) -> Invariant {
        manifest.edited(edit, Ts(ts)).expect_err("must be refused").invariant
    }

    #[test]
    fn an_edit_adds_changes_and_removes() {
        let manifest = Manifest { next_segment: 1, ..Manifest::default() };
        let manifest = manifest.edited(add(4), Ts(1)).unwrap().edited(add(7), Ts(1)).unwrap();
        assert_eq!(manifest.next_segment, 8);
        let index = |file| IndexFile {
            field: 100,
            kind: IndexKind::SparseInverted,
            sections: sections(file),
        };
        let edit = Edit {
            remove: vec![4],
            deletes: vec![(7, sections("7-3.del"))],
            indexes: vec![(7, index("a.idx")), (7, index("b.idx"))],
            log_floor: Some(9),
            ..Edit::default()
        };
        let manifest = manifest.edited(edit, Ts(2)).unwrap();
        assert_eq!(
            manifest.files().collect::<Vec<_>>(),
            vec![("7.arrow", 3), ("b.idx", 3), ("7-3.del", 3)]
        );
        assert_eq!((manifest.log_floor, manifest.ts), (9, Ts(2)));
    }

    #[test]
    fn each_invariant_refuses_what_breaks_it() {
        let manifest =
            Manifest { next_segment: 5, log_floor: 10, ts: Ts(3), ..Manifest::default() };
        let floor = Edit { log_floor: Some(9), ..Edit::default() };
        assert_eq!(refused(&manifest, floor, 3), Invariant::FloorNeverFalls);
        assert_eq!(refused(&manifest, Edit::default(), 2), Invariant::TimeNeverGoesBack);
        let live = manifest.edited(add(4), Ts(3)).unwrap();
        assert_eq!(refused(&live, add(4), 3), Invariant::IdsAreNeverReused);
        let again = Edit { remove: vec![4], ..add(4) };
        assert_eq!(refused(&live, again, 3), Invariant::IdsAreNeverReused);
        let twice = Edit { add: vec![entry(6), entry(6)], ..Edit::default() };
        assert_eq!(refused(&manifest, twice, 3), Invariant::IdsAreNeverReused);
        let remove = Edit { remove: vec![1], ..Edit::default() };
        assert_eq!(refused(&manifest, remove, 3), Invariant::OnlyLiveSegmentsChange);
        let deletes = Edit { deletes: vec![(1, sections("x"))], ..Edit::default() };
        assert_eq!(refused(&manifest, deletes, 3), Invariant::OnlyLiveSegmentsChange);
    }

    #[test]
    fn a_commit_wants_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(std::sync::Arc::new(crate::disk::LocalDisk), dir.path()).unwrap();
        let mut manifests = Manifests::create(&blobs, 5, Ts(1)).unwrap();
        let missing = manifests.commit(add(1), Ts(2)).unwrap_err().to_string();
        assert!(missing.contains("every file exists"), "{missing}");
        fs_err::write(dir.path().join("data/5/1.arrow"), b"toolong").unwrap();
        let longer = manifests.commit(add(1), Ts(2)).unwrap_err().to_string();
        assert!(longer.contains("7 bytes instead of 3"), "{longer}");
        fs_err::write(dir.path().join("data/5/1.arrow"), b"abc").unwrap();
        manifests.commit(add(1), Ts(2)).unwrap();
        let reopened = Manifests::open(&blobs, 5).unwrap();
        assert_eq!(reopened.current(), manifests.current());
        let gone = Manifests::open(&blobs, 6).unwrap_err().to_string();
        assert!(gone.contains("manifest is missing"), "{gone}");
    }
}
