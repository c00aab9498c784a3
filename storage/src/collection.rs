//! One collection: the write path in, views out.
//!
//! A write is checked and encoded on the write pool, queued for the log and done when the log
//! thread has made it durable, applied it and published the [`Version`] that shows it. A view is
//! one load of that version; readers and writers share no lock.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use arrow_array::{Array, BooleanArray, RecordBatch};
use arrow_schema::Schema as ArrowSchema;
use arrow_select::filter::filter_record_batch;
use elanus_index::SparseRow;

use crate::Error;
use crate::blobs::Published;
use crate::catalog::{CollectionInfo, IndexDef};
use crate::clock::Ts;
use crate::engine::Core;
use crate::keys::{KeyColumn, Keys};
use crate::log::record::{Change, Record};
use crate::manifest::Manifests;
use crate::schema::{DataType, Field, Schema};
use crate::segment::Body;
use crate::shared::Newest;
use crate::upkeep::{self, Upkeep};
use crate::view::{ReadView, Version};

/// How often the rows of a write are in memory before they are in the log: as they came, and
/// encoded.
const WRITE_COPIES: usize = 2;

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
    /// Names of the fields with an index file, those of vectors first.
    pub indexed: Vec<String>,
}

/// How far an index is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexProgress {
    /// Live rows.
    pub rows: usize,
    /// Those of them in sealed segments that still lack the index and are searched without.
    /// Recent rows, and segments too small to gain from an index, lack nothing.
    pub pending: usize,
    /// Why the last attempt failed, if it did; there will be another.
    pub failure: Option<String>,
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
pub struct Collection {
    core: Arc<Core>,
    id: i64,
    info: ArcSwap<CollectionInfo>,
    /// Schemas that were, as long as anybody reads by them.
    earlier: Mutex<Vec<Weak<Schema>>>,
    version: Newest<Version>,
    dir: Arc<Published>,
    /// Whoever changes the manifest holds this for the whole job. `None` if it is damaged.
    manifests: Mutex<Option<Manifests>>,
    /// No view goes back further: whoever had the directory open before kept no more.
    forgotten: Ts,
    /// When a background checkpoint failed last, in milliseconds.
    failed_at: AtomicU64,
    upkeep: Upkeep,
}

impl fmt::Debug for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Collection {
    /// A collection that shows no rows until the applier publishes some.
    pub(crate) fn new(
        core: Arc<Core>,
        info: Arc<CollectionInfo>,
        dir: Arc<Published>,
        manifests: Option<Manifests>,
    ) -> Self {
        let version = Version { ts: info.created, segments: Vec::new(), damage: None };
        Self {
            core,
            id: info.id,
            info: ArcSwap::new(info),
            earlier: Mutex::default(),
            version: Newest::new(version),
            dir,
            forgotten: manifests.as_ref().map_or(Ts::ZERO, |m| m.current().forgotten),
            manifests: Mutex::new(manifests),
            failed_at: AtomicU64::new(0),
            upkeep: Upkeep::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// What the catalog says of it now; after a drop, what it said last.
    pub fn info(&self) -> Arc<CollectionInfo> {
        self.info.load_full()
    }

    /// Why the collection is quarantined, if its data is damaged: reads and writes fail with
    /// [`Error::Corrupt`].
    pub fn damage(&self) -> Option<Arc<Error>> {
        self.version.load().damage.clone()
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
        self.write_rows(None, parts).await
    }

    /// Like [`Collection::insert_all`]; the rows with the keys given, in any partition, go in the
    /// same moment: no view shows both or neither.
    ///
    /// # Errors
    /// As [`Collection::insert`].
    pub async fn replace(
        &self,
        keys: Keys,
        parts: Vec<(i64, RecordBatch)>,
    ) -> Result<Written, Error> {
        self.check_key_type(&keys)?;
        self.write_rows(Some(keys), parts).await
    }

    async fn write_rows(
        &self,
        replaced: Option<Keys>,
        parts: Vec<(i64, RecordBatch)>,
    ) -> Result<Written, Error> {
        let info = self.info();
        for (partition, _) in &parts {
            if info.partition_by_id(*partition).is_none() {
                return Err(Error::PartitionNotFound(partition.to_string()));
            }
        }
        let rows = parts.iter().map(|(_, batch)| batch.num_rows()).sum();
        let bytes = parts.iter().map(|(_, batch)| batch.get_array_memory_size()).sum();
        let _memory = self.core.admit_write(WRITE_COPIES * bytes)?;
        let version = self.version.load();
        let schema = Arc::clone(&info.schema);
        let core = Arc::clone(&self.core);
        let prepare = self.core.pools.write(move || {
            core.admit_rows(bytes)?;
            version.check_keys()?;
            let parts = prepare(&schema, parts)?;
            let change = match replaced {
                Some(keys) => Change::Replace { keys, parts },
                None => Change::Insert(parts),
            };
            let encoded = change.encode()?;
            Ok::<_, Error>((change, encoded))
        });
        let (change, encoded) = prepare.await??;
        if matches!(&change, Change::Insert(parts) if parts.is_empty()) {
            return Ok(Written { ts: self.core.clock.now(), rows });
        }
        let schema_version = info.schema.version;
        let record = Record { collection: self.id, schema_version, change };
        let (ts, _) = self.core.log()?.write(record, encoded).await?;
        Ok(Written { ts, rows })
    }

    /// Deletes rows by key, in all partitions or in those given. Keys without a row are no error.
    ///
    /// # Errors
    /// As [`Collection::insert`].
    pub async fn delete(&self, partitions: Option<Vec<i64>>, keys: Keys) -> Result<Written, Error> {
        let info = self.info();
        for partition in partitions.iter().flatten() {
            if info.partition_by_id(*partition).is_none() {
                return Err(Error::PartitionNotFound(partition.to_string()));
            }
        }
        self.check_key_type(&keys)?;
        if keys.is_empty() {
            return Ok(Written { ts: self.core.clock.now(), rows: 0 });
        }
        let version = self.version.load();
        let prepare = self.core.pools.write(move || {
            version.check_keys()?;
            let change = Change::Delete { partitions, keys };
            let encoded = change.encode()?;
            Ok::<_, Error>((change, encoded))
        });
        let (change, encoded) = prepare.await??;
        let schema_version = info.schema.version;
        let record = Record { collection: self.id, schema_version, change };
        let (ts, rows) = self.core.log()?.write(record, encoded).await?;
        Ok(Written { ts, rows })
    }

    fn check_key_type(&self, keys: &Keys) -> Result<(), Error> {
        match (&self.info().schema.primary().data_type, keys) {
            (DataType::Int64, Keys::Int(_)) | (DataType::VarChar { .. }, Keys::Str(_)) => Ok(()),
            (wanted, _) => Err(Error::Invalid(format!(
                "the primary key is {}, the keys to delete are not",
                wanted.name()
            ))),
        }
    }

    /// The newest view: every acknowledged write.
    pub fn view(&self) -> ReadView {
        self.read().1
    }

    /// The view at a timestamp; one beyond the newest write is the newest view. What has expired by
    /// now is in none.
    ///
    /// # Errors
    /// [`Error::Invalid`] if rows that it would show are not [retained](crate::Options::retention_ms).
    pub fn view_at(&self, ts: Ts) -> Result<ReadView, Error> {
        Ok(self.read_at(ts)?.1)
    }

    /// Like [`Collection::view_at`], with what the catalog says of the rows that it shows.
    ///
    /// # Errors
    /// As [`Collection::view_at`].
    pub fn read_at(&self, ts: Ts) -> Result<(Arc<CollectionInfo>, ReadView), Error> {
        let (info, mut view) = self.read();
        if ts < view.ts {
            // Read after the version was: what that lacks was forgotten before.
            let oldest = self.core.horizon().max(self.forgotten);
            if ts < oldest {
                let ago = self.core.clock.now().millis().saturating_sub(ts.millis());
                return Err(Error::Invalid(format!(
                    "the rows of {ago} ms ago cannot be shown any more: what is deleted or replaced \
                     is kept for {} ms (setting `retention_seconds`); begin again with the newest \
                     rows",
                    self.core.options.retention_ms
                )));
            }
            view.ts = ts;
        }
        Ok((info, view))
    }

    /// The newest view, with what the catalog says of the rows that it shows.
    pub fn read(&self) -> (Arc<CollectionInfo>, ReadView) {
        // Of rows and schema that go together: a column may take another's place, and the other
        // goes when the rows are merged next.
        let (info, version) = loop {
            let (info, version) = (self.info(), self.version.load());
            if Arc::ptr_eq(&info, &self.info()) {
                break (info, version);
            }
        };
        let (ts, schema) = (version.ts, Arc::clone(&info.schema));
        let budget = Arc::clone(&self.core.budget);
        (info, ReadView { ts, version, schema, expired: self.expired_before(), budget })
    }

    /// Rows that were written before this have expired and are seen by no view from now on.
    pub(crate) fn expired_before(&self) -> Ts {
        match self.info.load().ttl_ms() {
            Some(ttl) => self.core.clock.now().minus_millis(ttl),
            None => Ts::ZERO,
        }
    }

    /// Counts and sizes as of now.
    pub fn stats(&self) -> Stats {
        let (version, info) = (self.version.load(), self.info());
        let expired = self.expired_before();
        let mut stats = Stats::default();
        for segment in &version.segments {
            let rows = segment.live_rows_since(expired);
            stats.rows += rows;
            match stats.partitions.iter_mut().find(|(id, _)| *id == segment.partition) {
                Some((_, sum)) => *sum += rows,
                None => stats.partitions.push((segment.partition, rows)),
            }
            let (state, fields) = match &segment.body {
                Body::Growing(_) => (SegmentState::Growing, Vec::new()),
                Body::Sealed(sealed) => {
                    let indexes = sealed.indexes();
                    let sound = indexes.iter().filter(|index| !index.is_damaged());
                    (SegmentState::Sealed, sound.map(|index| index.field()).collect())
                }
            };
            // A field may have several; those over vectors come first.
            let mut fields: Vec<_> =
                fields.into_iter().filter_map(|id| info.schema.field_by_id(id)).collect();
            fields.sort_by_key(|field| (!field.data_type.is_vector(), field.id));
            fields.dedup_by_key(|field| field.id);
            stats.segments.push(SegmentStats {
                id: segment.id,
                partition: segment.partition,
                rows,
                state,
                bytes: segment.bytes(),
                indexed: fields.into_iter().map(|field| field.name.clone()).collect(),
            });
        }
        stats
    }

    /// Whether every row that was written at or before `ts` is in a sealed segment, or gone.
    pub fn is_sealed_until(&self, ts: Ts) -> bool {
        self.version().segments.iter().all(|segment| match &segment.body {
            Body::Growing(growing) => growing.written_by(ts).is_none(),
            Body::Sealed(_) => true,
        })
    }

    /// How far an index of this collection is built.
    pub fn index_progress(&self, index: &IndexDef) -> IndexProgress {
        let (version, expired) = (self.version(), self.expired_before());
        IndexProgress {
            rows: version.segments.iter().map(|segment| segment.live_rows_since(expired)).sum(),
            pending: upkeep::pending_of(&self.core, self, index),
            failure: upkeep::failure(self, index),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    pub(crate) fn dir(&self) -> &Arc<Published> {
        &self.dir
    }

    pub(crate) fn set_info(&self, info: Arc<CollectionInfo>) {
        let before = Arc::downgrade(&self.info().schema);
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        earlier.retain(|schema| schema.strong_count() > 0 && !schema.ptr_eq(&before));
        earlier.push(before);
        drop(earlier);
        self.info.store(info);
    }

    /// Whether the column of a field belongs to the schema, or to one that somebody still reads by.
    pub(crate) fn is_stored(&self, field: i64) -> bool {
        let knows = |schema: &Schema| schema.stored_field(field).is_some();
        let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        knows(&self.info().schema) || earlier.iter().filter_map(Weak::upgrade).any(|s| knows(&s))
    }

    /// Lets readers see a version; called by the one thread that applies the log.
    pub(crate) fn publish(&self, version: Version) {
        self.version.store(version);
    }

    pub(crate) fn version(&self) -> Arc<Version> {
        self.version.load()
    }

    /// The right to change the manifest, for a whole job.
    pub(crate) fn manifests(&self) -> MutexGuard<'_, Option<Manifests>> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a background checkpoint failed last, in milliseconds; 0 if the last one succeeded.
    pub(crate) fn failed_at(&self) -> &AtomicU64 {
        &self.failed_at
    }

    /// Whether a background checkpoint failed so recently that another would fail too.
    pub(crate) fn failed_recently(&self, now: Ts, pause_ms: u64) -> bool {
        now.millis() < self.failed_at.load(Ordering::Relaxed).saturating_add(pause_ms)
    }
}

impl Version {
    /// Verifies what applying a write will touch, so that a write cannot fail once it is durable.
    fn check_keys(&self) -> Result<(), Error> {
        if let Some(damage) = &self.damage {
            return Err(damage.duplicate());
        }
        for segment in &self.segments {
            if let Body::Sealed(sealed) = &segment.body {
                sealed.keys()?;
            }
        }
        Ok(())
    }
}

/// Brings batches into the schema's form, each key once; empty ones are left out.
fn prepare(
    schema: &Schema,
    parts: Vec<(i64, RecordBatch)>,
) -> Result<Vec<(i64, RecordBatch)>, Error> {
    let parts = (parts.into_iter())
        .filter(|(_, batch)| batch.num_rows() > 0)
        .map(|(partition, batch)| Ok((partition, conform(schema, &batch)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let key = &schema.primary().name;
    let mut keys = Vec::with_capacity(parts.len());
    for (_, batch) in &parts {
        let column = batch.column_by_name(key);
        let column =
            column.ok_or_else(|| Error::Internal("a conforming batch lacks its key".into()))?;
        keys.push(KeyColumn::new(column)?);
    }
    let mut seen = HashSet::with_capacity(keys.iter().map(KeyColumn::len).sum());
    let mut kept = Vec::with_capacity(parts.len());
    for ((partition, batch), keys) in parts.into_iter().zip(&keys).rev() {
        let newest: Vec<bool> =
            (0..keys.len()).rev().map(|row| seen.insert(keys.get(row))).collect();
        if newest.iter().all(|newest| *newest) {
            kept.push((partition, batch));
            continue;
        }
        let newest: BooleanArray = newest.into_iter().rev().map(Some).collect();
        let batch = filter_record_batch(&batch, &newest)?;
        if batch.num_rows() > 0 {
            kept.push((partition, batch));
        }
    }
    kept.reverse();
    Ok(kept)
}

/// Refuses rows that lack values which were never null: a column is made anew, and they were on
/// their way when that began.
pub(crate) fn check_columns(schema: &Schema, rows: &RecordBatch) -> Result<(), Error> {
    let has = |field: &Field| rows.schema_ref().column_with_name(field.column()).is_some();
    let made = schema.stored_fields().filter(|field| field.column.is_some());
    if made.into_iter().all(has) { Ok(()) } else { Err(Error::SchemaChanged) }
}

/// The batch with all fields of the schema, in its order, and then those that are pending.
fn conform(schema: &Schema, batch: &RecordBatch) -> Result<RecordBatch, Error> {
    let rows = batch.num_rows();
    check_columns(schema, batch)?;
    // Columns of fields that others took the place of since the rows were made, or that were to
    // and were given up, are left out.
    let known = |name: &str| {
        let of = name.rsplit_once('@').map_or(name, |(of, _)| of);
        schema.field(name).or_else(|| schema.field(of)).is_some()
    };
    if let Some(unknown) = batch.schema_ref().fields().iter().find(|field| !known(field.name())) {
        return Err(Error::Invalid(format!("field `{}` does not exist", unknown.name())));
    }
    let mut columns = Vec::with_capacity(schema.fields.len());
    let mut fields = Vec::with_capacity(schema.fields.len());
    for field in schema.stored_fields() {
        fields.push(field.to_arrow());
        let Some(column) = batch.column_by_name(field.column()) else {
            if field.primary_key {
                return Err(Error::Invalid(format!("primary key `{}` is missing", field.name)));
            }
            columns.push(field.absent(rows));
            continue;
        };
        let wanted = field.data_type.to_arrow();
        if *column.data_type() != wanted {
            return Err(Error::Invalid(format!(
                "field `{}` expects {wanted}, the batch has {}",
                field.name,
                column.data_type()
            )));
        }
        if field.data_type == DataType::SparseFloatVector {
            check_sparse(&field.name, column)?;
        }
        columns.push(Arc::clone(column));
    }
    RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns)
        .map_err(|error| Error::Invalid(error.to_string()))
}

fn check_sparse(field: &str, column: &dyn Array) -> Result<(), Error> {
    let Some(vectors) = column.as_any().downcast_ref::<arrow_array::LargeBinaryArray>() else {
        return Err(Error::Invalid(format!("field `{field}` expects LargeBinary")));
    };
    for (row, vector) in vectors.iter().enumerate() {
        if let Some(vector) = vector {
            SparseRow::parse(vector)
                .map_err(|error| Error::Invalid(format!("field `{field}`, row {row}: {error}")))?;
        }
    }
    Ok(())
}
