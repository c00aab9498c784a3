//! One collection: the write path in, views out.

use std::sync::Arc;

use arrow_array::RecordBatch;

use crate::Error;
use crate::catalog::CollectionInfo;
use crate::clock::Ts;
use crate::keys::Keys;
use crate::view::ReadView;

/// A durable, visible write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// When it happened: views at this timestamp and later see it.
    pub ts: Ts,
    /// Insert: rows of the request. Delete: rows that were there and are gone.
    pub rows: usize,
}

/// The stage of life of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// In memory and in the log.
    Growing,
    /// In a file of its own.
    Sealed,
}

/// Facts about a segment.
#[derive(Clone, Debug)]
pub struct SegmentStats {
    /// Unique in the node.
    pub id: i64,
    /// Its partition.
    pub partition: i64,
    /// Live rows.
    pub rows: usize,
    /// Stage of life.
    pub state: SegmentState,
    /// Bytes in memory (growing) or on disk (sealed).
    pub bytes: u64,
    /// Names of the fields with an index file.
    pub indexed: Vec<String>,
}

/// Facts about a collection.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Live rows.
    pub rows: usize,
    /// Live rows by partition id; partitions without rows may be missing.
    pub partitions: Vec<(i64, usize)>,
    /// All segments.
    pub segments: Vec<SegmentStats>,
}

/// A collection that is open: the way to write to it and to read it.
#[derive(Debug)]
pub struct Collection {}

impl Collection {
    /// Its id.
    pub fn id(&self) -> i64 {
        0
    }

    /// What the catalog says of it now; after a drop, what it said last.
    pub fn info(&self) -> Arc<CollectionInfo> {
        todo!()
    }

    /// Why the collection is quarantined, if its data is damaged: reads and writes fail with
    /// [`Error::Corrupt`].
    pub fn damage(&self) -> Option<Arc<Error>> {
        todo!()
    }

    /// Writes rows into a partition; rows whose key exists (in any partition) are replaced,
    /// atomically. Within the batch the last of equal keys wins. Durable and visible on return.
    ///
    /// Columns are matched by name and must have the schema's Arrow types; columns that are
    /// missing read as null or default.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch that does not fit the schema or is too large,
    /// [`Error::PartitionNotFound`], [`Error::CollectionNotFound`] after a drop,
    /// [`Error::LogPoisoned`], [`Error::DiskFull`], [`Error::MemoryLimit`], [`Error::Corrupt`].
    pub async fn insert(&self, partition: i64, batch: RecordBatch) -> Result<Written, Error> {
        self.insert_all(vec![(partition, batch)]).await
    }

    /// Like [`Collection::insert`], into several partitions as one atomic write. Where a key
    /// occurs in several batches, the last one wins.
    ///
    /// # Errors
    /// As [`Collection::insert`].
    pub async fn insert_all(&self, parts: Vec<(i64, RecordBatch)>) -> Result<Written, Error> {
        todo!("{parts:?}")
    }

    /// Deletes rows by key, in all partitions or in those given. Keys without a row are no error.
    ///
    /// # Errors
    /// As [`Collection::insert`].
    pub async fn delete(&self, partitions: Option<Vec<i64>>, keys: Keys) -> Result<Written, Error> {
        todo!("{partitions:?} {keys:?}")
    }

    /// The newest view: every acknowledged write.
    pub fn view(&self) -> ReadView {
        todo!()
    }

    /// The view at a timestamp; one beyond the newest write is the newest view.
    pub fn view_at(&self, ts: Ts) -> ReadView {
        todo!("{ts}")
    }

    /// Counts and sizes as of now.
    pub fn stats(&self) -> Stats {
        todo!()
    }
}
