//! A sealed segment: one immutable Arrow IPC file, mapped, with one batch sorted by key.
//!
//! Nothing is read on opening but header and footer, whose checksums the manifest holds. A column
//! is verified against its checksum in the footer when it is first touched, and decoded in place;
//! from then on its array is handed out. A damaged column is an error that names the file.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef};
use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::{Block, MetadataVersion, root_as_footer};
use arrow_schema::{DataType as ArrowType, SchemaRef};
use elanus_index::{HnswIndex, Metric, RowMask, VectorIndex};

use super::digest::column_crc;
use super::index::Index;
use crate::Error;
use crate::blobs::Published;
use crate::budget::Held;
use crate::catalog::TermsDef;
use crate::clock::Ts;
use crate::disk::{Disk, LocalDisk};
use crate::filter::Terms;
use crate::keys::KeyColumn;
use crate::manifest::{ColumnFile, DataFile, IndexFile, IndexKind, SegmentEntry};
use crate::schema::{Field, Schema, TS};
use crate::shared::{Doomable, Parts};
use crate::untrusted::decoded;

/// The format this node writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

// Keys of the file's custom metadata.
pub(super) const FORMAT_KEY: &str = "elanus.format";
pub(super) const COLLECTION: &str = "elanus.collection";
pub(super) const SEGMENT: &str = "elanus.segment";
/// JSON object: column name to crc32c as eight hexadecimal digits.
pub(super) const CHECKSUMS: &str = "elanus.crc32c";

/// Bytes after the footer: its length and the magic.
const TRAILER: usize = 10;

/// Told when an index turns out to be damaged; has it built anew in the background.
pub(crate) trait Repair: Send + Sync + std::fmt::Debug {
    /// An index of a segment of the collection is not usable.
    fn index_is_damaged(&self);
    /// Whether the index over that field may be read into so many bytes of memory, which it then
    /// has until the guard is dropped. Otherwise it is mapped.
    fn admit_index(&self, _field: &Field, _bytes: usize) -> Option<Held> {
        None
    }
    /// Does some work that nobody waits for, soon or never.
    fn in_background(&self, _work: Box<dyn FnOnce() + Send>) {}
}

/// A sealed segment, open.
#[derive(Debug)]
pub(crate) struct SealedSegment {
    id: i64,
    rows: usize,
    min_ts: Ts,
    max_ts: Ts,
    file: Published,
    /// Keeps the directory of a dropped collection until the last reader is gone.
    dir: Arc<Published>,
    layout: Layout,
    /// By position in the file.
    columns: Vec<OnceLock<Result<ArrayRef, Error>>>,
    keys: OnceLock<Result<KeyColumn, Error>>,
    key_name: String,
    /// Columns that were made after the file was written.
    later: Parts<Later>,
    /// Fields whose columns were made after the file, and could not be opened.
    lost: Vec<(i64, Error)>,
    indexes: Parts<Index>,
    repair: Arc<dyn Repair>,
}

impl SealedSegment {
    /// Opens the files of a manifest's entry in the collection's directory. A column that nobody sees
    /// yet and that cannot be opened is left out: it is made again.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the data file is not the one that the manifest means, or a column that
    /// is seen not that.
    pub(crate) fn open(
        dir: &Arc<Published>,
        schema: &Schema,
        entry: &SegmentEntry,
        repair: Arc<dyn Repair>,
    ) -> Result<Self, Error> {
        let file = dir.file(&entry.data.file);
        let bytes = file.map(entry.data.len)?;
        let layout = Layout::of(bytes).map_err(|detail| Error::corrupt(file.path(), detail))?;
        (layout.check(entry.id, &entry.data))
            .map_err(|detail| Error::corrupt(file.path(), detail))?;
        let (mut later, mut lost) = (Vec::new(), Vec::new());
        for column in &entry.columns {
            match Later::open(dir, entry.id, entry.rows, column.clone()) {
                Ok(column) => later.push(Arc::new(column)),
                Err(error) if is_unseen(schema, column.field) => {
                    tracing::warn!(
                        %error, segment = entry.id, field = column.field,
                        "a column that nobody sees yet is not usable; it is made again"
                    );
                    lost.push((column.field, error));
                }
                Err(error) => return Err(error),
            }
        }
        // Runs of rows are only of use one after another.
        later.retain(|later| lost.iter().all(|(field, _)| *field != later.entry.field));
        let columns = layout.schema.fields().iter().map(|_| OnceLock::new()).collect();
        let indexes =
            (entry.indexes.iter()).map(|index| Arc::new(Index::new(dir, index.clone()))).collect();
        Ok(Self {
            id: entry.id,
            rows: entry.rows as usize,
            min_ts: entry.min_ts,
            max_ts: entry.max_ts,
            file,
            dir: Arc::clone(dir),
            layout,
            columns,
            keys: OnceLock::new(),
            key_name: schema.primary().name.clone(),
            later: Parts::new(later),
            lost,
            indexes: Parts::new(indexes),
            repair,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Length of the data file and of columns that were made later.
    pub(crate) fn bytes(&self) -> u64 {
        let later = self.later.load();
        let bytes = later.iter().map(|later| later.entry.data.len).sum::<u64>();
        bytes.saturating_add(self.layout.bytes.len() as u64)
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Removes the files when the last reader lets go.
    pub(crate) fn doom(&self) {
        self.file.doom();
        self.later.doom();
        self.indexes.doom();
    }

    /// See [`super::Segment::column`].
    pub(crate) fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
        match self.layout.schema.column_with_name(field.column()) {
            None => match self.later(field).filter(|later| later.len() == self.rows) {
                Some(later) => later.column(field),
                None => Ok(field.absent(self.rows)),
            },
            Some((at, found)) => {
                check_type(self.path(), field, found.data_type())?;
                self.column_at(at)
            }
        }
    }

    /// The first values of a column that was made later.
    fn later(&self, field: &Field) -> Option<Arc<Later>> {
        let first = |later: &&Arc<Later>| later.entry.field == field.id && later.entry.first == 0;
        self.later.load().iter().find(first).cloned()
    }

    /// For how many of the first rows the column of a field was made, as far as that went.
    pub(crate) fn filled(&self, field: &Field) -> usize {
        if self.has_column(field) {
            return self.rows;
        }
        self.runs(field).iter().map(|later| later.len()).sum()
    }

    /// What was made of the column of a field, from the first row on, without a gap.
    fn runs(&self, field: &Field) -> Vec<Arc<Later>> {
        let later = self.later.load();
        let mut runs: Vec<Arc<Later>> =
            later.iter().filter(|later| later.entry.field == field.id).cloned().collect();
        runs.sort_unstable_by_key(|later| later.entry.first);
        let mut next = 0;
        let without_gap = |later: &Arc<Later>| {
            let follows = later.entry.first as usize == next;
            next += later.len();
            follows
        };
        runs.into_iter().take_while(without_gap).collect()
    }

    /// What was made of the column of a field, as [`SealedSegment::filled`] counts it.
    pub(crate) fn filled_runs(&self, field: &Field) -> Result<Vec<ArrayRef>, Error> {
        self.runs(field).iter().map(|later| later.column(field)).collect()
    }

    /// Opens values of a column that were written, to be [put](SealedSegment::put_column).
    pub(crate) fn open_column(&self, entry: ColumnFile) -> Result<Later, Error> {
        Later::open(&self.dir, self.id, to_u32(self.rows), entry)
    }

    /// Puts values of a column in the place of those whose rows they cover. Only who holds the
    /// collection's manifests calls this.
    pub(crate) fn put_column(&self, new: Later) {
        let entry = new.entry.clone();
        self.later.replace(|old| old.entry.is_within(&entry), Some(Arc::new(new)));
    }

    /// Takes away what was made later of a field's column. As [`SealedSegment::put_column`].
    pub(crate) fn drop_column(&self, field: i64) {
        self.later.replace(|old| old.entry.field == field, None);
    }

    /// Whether its files hold columns that no field has, or hold them apart.
    pub(crate) fn is_outgrown(&self, schema: &Schema) -> bool {
        let known = |name: &str| name == TS || schema.stored_fields().any(|f| f.column() == name);
        !self.later.load().is_empty()
            || self.layout.schema.fields().iter().any(|column| !known(column.name()))
    }

    /// See [`super::Segment::timestamps`].
    pub(crate) fn timestamps(&self) -> Result<ScalarBuffer<u64>, Error> {
        let (at, _) = (self.layout.schema.column_with_name(TS))
            .ok_or_else(|| Error::corrupt(self.path(), format!("column `{TS}` is missing")))?;
        let column = self.column_at(at)?;
        let column = column.as_primitive_opt::<UInt64Type>();
        let column = column
            .ok_or_else(|| Error::corrupt(self.path(), format!("column `{TS}` is not UInt64")))?;
        Ok(column.values().clone())
    }

    /// The primary keys, ascending.
    pub(crate) fn keys(&self) -> Result<&KeyColumn, Error> {
        let keys = self.keys.get_or_init(|| {
            let (at, _) =
                (self.layout.schema.column_with_name(&self.key_name)).ok_or_else(|| {
                    Error::corrupt(self.path(), format!("column `{}` is missing", self.key_name))
                })?;
            KeyColumn::new(&self.column_at(at)?)
                .map_err(|error| Error::corrupt(self.path(), error.to_string()))
        });
        keys.as_ref().map_err(Error::duplicate)
    }

    /// The rows written at or before `ts`.
    pub(crate) fn written_by(&self, ts: Ts) -> Result<RowMask, Error> {
        if ts >= self.max_ts {
            return Ok(RowMask::all(self.rows));
        }
        let times = self.timestamps()?;
        Ok(RowMask::from_fn(self.rows, |row| times[row as usize] <= ts.0))
    }

    /// See [`super::Segment::written_before`].
    pub(crate) fn written_before(&self, ts: Ts) -> Result<Option<RowMask>, Error> {
        if ts <= self.min_ts {
            return Ok(None);
        }
        if ts > self.max_ts {
            return Ok(Some(RowMask::all(self.rows)));
        }
        let times = self.timestamps()?;
        Ok(Some(RowMask::from_fn(self.rows, |row| times[row as usize] < ts.0)))
    }

    /// See [`super::Segment::index`].
    pub(crate) fn index(
        &self,
        field: &Field,
        metric: Metric,
        exact: bool,
    ) -> Option<Arc<dyn VectorIndex>> {
        let indexes = self.indexes.load();
        let answers = |index: &&Arc<Index>| match index.kind() {
            IndexKind::SparseInverted => metric == Metric::Ip,
            IndexKind::Hnsw(graph) => metric == graph.metric && !exact,
            IndexKind::Terms(_) => false,
        };
        let index = indexes.iter().filter(|index| index.field() == field.id).find(answers)?;
        // Whoever reads the rows instead is told that they are damaged.
        let column = self.column(field).ok()?;
        self.usable(field, index.open_vectors(self.rows, field, &column, &self.repair))
    }

    /// The graph of a kind over a field, if there is one and it is sound.
    pub(crate) fn graph(&self, field: &Field, kind: &IndexKind) -> Option<Arc<HnswIndex>> {
        let indexes = self.indexes.load();
        let index = indexes.iter().find(|i| i.field() == field.id && i.kind() == kind)?;
        let column = self.column(field).ok()?;
        self.usable(field, index.open_graph(self.rows, field, &column, &self.repair))
    }

    /// Whether it has a graph over any field.
    pub(crate) fn has_graph(&self) -> bool {
        self.indexes.load().iter().any(|index| matches!(index.kind(), IndexKind::Hnsw(_)))
    }

    /// See [`super::Segment::terms`].
    pub(crate) fn terms(&self, field: &Field, wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
        let indexes = self.indexes.load();
        let of_field = indexes.iter().filter(|index| index.field() == field.id);
        let open = |index: &Arc<Index>| match index.kind() {
            // What nobody asks for need not be verified.
            IndexKind::Terms(def) if wanted(def) => {
                let index = self.usable(field, index.open_terms(self.rows))?;
                Some(Terms { def: def.clone(), index })
            }
            IndexKind::Terms(_) | IndexKind::SparseInverted | IndexKind::Hnsw(_) => None,
        };
        of_field.filter_map(open).collect()
    }

    /// An index that was opened; one that is damaged is built anew.
    fn usable<T>(&self, field: &Field, opened: Result<Option<T>, Error>) -> Option<T> {
        opened.unwrap_or_else(|error| {
            tracing::warn!(
                %error, segment = self.id, field = field.id,
                "an index is not usable; it is built anew, searches scan until then"
            );
            self.repair.index_is_damaged();
            None
        })
    }

    /// Which of its parts have been opened, and so verified. A part that takes the place of another is
    /// not open yet.
    pub(super) fn hash_opened(&self, hasher: &mut impl Hasher) {
        let columns = self.columns.iter().map(|column| column.get().is_some());
        columns.for_each(|is_open| is_open.hash(hasher));
        self.keys.get().is_some().hash(hasher);
        for later in self.later.load().iter() {
            (later.entry.field, later.values.get().is_some()).hash(hasher);
        }
        for index in self.indexes.load().iter() {
            (index.field(), index.state()).hash(hasher);
        }
    }

    /// The index files there are.
    pub(crate) fn indexes(&self) -> Arc<Vec<Arc<Index>>> {
        self.indexes.load()
    }

    /// Verifies every column but those that nobody sees yet.
    pub(crate) fn check_columns(&self, schema: &Schema) -> Result<(), Error> {
        (0..self.columns.len()).try_for_each(|at| self.column_at(at).map(drop))?;
        let later = self.later.load();
        let mut seen = later.iter().filter(|later| !is_unseen(schema, later.entry.field));
        seen.try_for_each(|later| later.values().map(drop))
    }

    /// The fields of columns that nobody sees yet and that are damaged, each once; with `deep` their
    /// values are verified, too.
    pub(crate) fn damaged_unseen(&self, schema: &Schema, deep: bool) -> Vec<(i64, Error)> {
        let mut damaged: Vec<(i64, Error)> =
            self.lost.iter().map(|(field, error)| (*field, error.duplicate())).collect();
        for later in
            self.later.load().iter().filter(|later| deep && is_unseen(schema, later.entry.field))
        {
            damaged.extend(later.values().err().map(|error| (later.entry.field, error)));
        }
        damaged.sort_by_key(|(field, _)| *field);
        damaged.dedup_by_key(|(field, _)| *field);
        damaged
    }

    /// Verifies an index of this segment as a search would open it.
    pub(crate) fn check_index(&self, index: &Arc<Index>, field: &Field) -> Result<(), Error> {
        match index.kind() {
            IndexKind::Terms(_) => index.open_terms(self.rows).map(drop),
            IndexKind::SparseInverted | IndexKind::Hnsw(_) => {
                let column = self.column(field)?;
                index.open_vectors(self.rows, field, &column, &self.repair).map(drop)
            }
        }
    }

    /// Opens an index over a field that was written, to be [put](SealedSegment::put_index): no search
    /// then waits for that.
    ///
    /// # Errors
    /// Why it is not usable.
    pub(crate) fn open_index(&self, entry: IndexFile, field: &Field) -> Result<Arc<Index>, Error> {
        let index = Arc::new(Index::new(&self.dir, entry));
        self.check_index(&index, field)?;
        Ok(index)
    }

    /// Puts an index in the place of the same one, if there is one, whose file goes with its last
    /// reader. Only the one job that keeps the indexes of this collection calls this.
    pub(crate) fn put_index(&self, index: Arc<Index>) {
        let entry = index.entry().clone();
        self.indexes.replace(|old| old.entry().is_same(&entry), Some(index));
    }

    /// Takes an index away; its file goes with its last reader.
    pub(crate) fn drop_index(&self, entry: &IndexFile) {
        self.indexes.replace(|old| old.entry().is_same(entry), None);
    }

    /// Whether the file has values of that field.
    pub(crate) fn has_column(&self, field: &Field) -> bool {
        self.layout.schema.column_with_name(field.column()).is_some()
            || self.later(field).is_some_and(|later| later.len() == self.rows)
    }

    fn column_at(&self, at: usize) -> Result<ArrayRef, Error> {
        let column = self.columns[at].get_or_init(|| {
            self.layout.column(at, self.rows).map_err(|detail| Error::corrupt(self.path(), detail))
        });
        column.as_ref().map(Arc::clone).map_err(Error::duplicate)
    }
}

fn to_u32(rows: usize) -> u32 {
    u32::try_from(rows).expect("segments have 32-bit rows")
}

/// Whether no field of a schema reads the column of a field: it is pending, or given up.
fn is_unseen(schema: &Schema, field: i64) -> bool {
    schema.fields.iter().all(|seen| seen.id != field)
}

fn check_type(path: &Path, field: &Field, found: &ArrowType) -> Result<(), Error> {
    let wanted = field.data_type.to_arrow();
    if *found == wanted {
        return Ok(());
    }
    let detail = format!("column `{}` is {found}, the schema says {wanted}", field.name);
    Err(Error::corrupt(path, detail))
}

/// Values of one column that were made after the segment was written.
#[derive(Debug)]
pub(crate) struct Later {
    entry: ColumnFile,
    file: Published,
    layout: Layout,
    values: OnceLock<Result<ArrayRef, Error>>,
}

impl Later {
    fn open(dir: &Published, segment: i64, rows: u32, entry: ColumnFile) -> Result<Self, Error> {
        let file = dir.file(&entry.data.file);
        let corrupt = |detail: String| Error::corrupt(file.path(), detail);
        let layout = Layout::of(file.map(entry.data.len)?).map_err(corrupt)?;
        layout.check(segment, &entry.data).map_err(corrupt)?;
        if entry.first.checked_add(entry.rows).is_none_or(|end| end > rows) {
            return Err(corrupt(format!("it goes beyond the {rows} rows of the segment")));
        }
        if layout.schema.fields().len() != 1 {
            return Err(corrupt("it has not one column".to_owned()));
        }
        Ok(Self { entry, file, layout, values: OnceLock::new() })
    }

    fn len(&self) -> usize {
        self.entry.rows as usize
    }

    fn values(&self) -> Result<ArrayRef, Error> {
        let values = self.values.get_or_init(|| {
            let read = self.layout.column(0, self.len());
            read.map_err(|detail| Error::corrupt(self.file.path(), detail))
        });
        values.as_ref().map(Arc::clone).map_err(Error::duplicate)
    }

    fn column(&self, field: &Field) -> Result<ArrayRef, Error> {
        let values = self.values()?;
        check_type(self.file.path(), field, values.data_type())?;
        Ok(values)
    }
}

impl Doomable for Later {
    fn doom(&self) {
        self.file.doom();
    }
}

/// What header and footer of a data file say.
#[derive(Debug)]
struct Layout {
    bytes: Buffer,
    schema: SchemaRef,
    version: MetadataVersion,
    block: Block,
    /// First byte of the batch's message, of its body, and after its body.
    block_start: usize,
    body_start: usize,
    body_end: usize,
    metadata: HashMap<String, String>,
    checksums: HashMap<String, String>,
}

impl Layout {
    fn of(bytes: Buffer) -> Result<Self, String> {
        let footer_end =
            bytes.len().checked_sub(TRAILER).ok_or("the file is shorter than its trailer")?;
        let trailer: &[u8; TRAILER] = bytes.last_chunk().ok_or("the file has no trailer")?;
        let footer_len = read_footer_length(*trailer).map_err(|error| error.to_string())?;
        let footer_start =
            footer_end.checked_sub(footer_len).ok_or("the footer is longer than the file")?;
        let footer = root_as_footer(&bytes[footer_start..footer_end])
            .map_err(|error| format!("offset {footer_start}: footer: {error}"))?;
        let schema = footer.schema().ok_or("the footer has no schema")?;
        let schema = decoded(|| try_fb_to_schema(schema).map_err(|error| error.to_string()))?;
        let blocks = footer.recordBatches().ok_or("the footer has no batch")?;
        if blocks.len() != 1 {
            return Err(format!("the file has {} batches instead of one", blocks.len()));
        }
        let block = *blocks.get(0);
        let index = |n: i64| usize::try_from(n).map_err(|error| error.to_string());
        let block_start = index(block.offset())?;
        let body_start = index(block.metaDataLength().into())
            .ok()
            .and_then(|len| block_start.checked_add(len))
            .ok_or("the batch header lies beyond the end of the file")?;
        let body_end = index(block.bodyLength())
            .ok()
            .and_then(|len| body_start.checked_add(len))
            .filter(|&end| end <= footer_start)
            .ok_or("the batch lies beyond the end of the file")?;
        let metadata: HashMap<String, String> = (footer.custom_metadata().into_iter().flatten())
            .filter_map(|pair| Some((pair.key()?.to_owned(), pair.value()?.to_owned())))
            .collect();
        let checksums = metadata.get(CHECKSUMS).ok_or("the footer has no checksums")?;
        let checksums = serde_json::from_str(checksums).map_err(|error| error.to_string())?;
        Ok(Self {
            schema: Arc::new(schema),
            version: footer.version(),
            block,
            block_start,
            body_start,
            body_end,
            metadata,
            checksums,
            bytes,
        })
    }

    /// Number of rows, by the header of the batch.
    fn rows(&self) -> Result<usize, String> {
        // A message begins with a continuation marker and its length.
        let head = self.bytes.get(self.block_start..self.body_start).unwrap_or_default();
        let message = arrow_ipc::root_as_message(head.get(8..).unwrap_or_default())
            .map_err(|error| format!("offset {}: {error}", self.block_start))?;
        let batch = message.header_as_record_batch().ok_or("the batch has no header")?;
        usize::try_from(batch.length()).map_err(|error| error.to_string())
    }

    fn head_crc(&self) -> u32 {
        crc32c::crc32c(&self.bytes[..self.body_start])
    }

    fn footer_crc(&self) -> u32 {
        crc32c::crc32c(&self.bytes[self.body_end..])
    }

    fn check(&self, segment: i64, data: &DataFile) -> Result<(), String> {
        let number = |key: &str| self.metadata.get(key).and_then(|value| value.parse::<i64>().ok());
        let format = number(FORMAT_KEY).ok_or("the footer has no format number")?;
        if format > i64::from(FORMAT) {
            return Err(format!(
                "format {format} is newer than this node reads ({FORMAT}); use a newer release"
            ));
        }
        for (what, offset, found, expected) in [
            ("header", 0, self.head_crc(), data.head_crc32c),
            ("footer", self.body_end, self.footer_crc(), data.footer_crc32c),
        ] {
            if found != expected {
                return Err(format!(
                    "offset {offset}: the {what} has checksum {found:08x}, the manifest says \
                     {expected:08x}"
                ));
            }
        }
        if number(SEGMENT) != Some(segment) {
            return Err(format!(
                "the file belongs to segment {:?}, the manifest says {segment}",
                number(SEGMENT)
            ));
        }
        Ok(())
    }

    fn decode(&self, at: usize) -> Result<ArrayRef, String> {
        let name = self.schema.field(at).name();
        let message =
            self.bytes.slice_with_length(self.block_start, self.body_end - self.block_start);
        let decoder =
            FileDecoder::new(Arc::clone(&self.schema), self.version).with_projection(vec![at]);
        let batch = decoded(|| {
            decoder.read_record_batch(&self.block, &message).map_err(|error| error.to_string())
        });
        let batch = batch
            .map_err(|error| format!("column `{name}`: {error}"))?
            .ok_or_else(|| format!("offset {}: no batch is there", self.block_start))?;
        Ok(Arc::clone(batch.column(0)))
    }

    /// Where in the file a column begins that was decoded in place.
    fn offset_of(&self, column: &ArrayData) -> Option<usize> {
        let file = self.bytes.as_ptr().addr();
        let nulls = column.nulls().map(|nulls| nulls.buffer().as_ptr());
        let own = column.buffers().iter().map(|buffer| buffer.as_ptr()).chain(nulls);
        let own = own.filter_map(|at| at.addr().checked_sub(file));
        let inner = column.child_data().iter().filter_map(|child| self.offset_of(child));
        own.chain(inner).filter(|at| *at < self.bytes.len()).min()
    }

    /// Decodes and verifies a column.
    fn column(&self, at: usize, rows: usize) -> Result<ArrayRef, String> {
        let name = self.schema.field(at).name();
        let column = self.decode(at)?;
        if column.len() != rows {
            return Err(format!(
                "column `{name}` has {} rows, the manifest says {rows}",
                column.len()
            ));
        }
        let crc = format!("{:08x}", column_crc(&column));
        match self.checksums.get(name) {
            Some(expected) if *expected == crc => Ok(column),
            expected => Err(format!(
                "offset {}: column `{name}` has checksum {crc}, the footer says {}",
                self.offset_of(&column.to_data()).unwrap_or(self.body_start),
                expected.map_or("nothing", String::as_str)
            )),
        }
    }
}

/// The manifest's entry for a data file that was just written.
pub(super) fn describe(file: String, written: &Published, len: u64) -> Result<DataFile, Error> {
    let layout =
        Layout::of(written.map(len)?).map_err(|detail| Error::corrupt(written.path(), detail))?;
    Ok(DataFile { file, len, head_crc32c: layout.head_crc(), footer_crc32c: layout.footer_crc() })
}

/// What a data file says of itself, and which of its columns are sound.
///
/// # Errors
/// [`Error::Corrupt`] if its footer cannot be read.
pub(crate) fn inspect(path: &Path) -> Result<serde_json::Value, Error> {
    let bytes = LocalDisk.map(path).map_err(|error| Error::io(path, error))?;
    inspect_bytes(bytes).map_err(|detail| Error::corrupt(path, detail))
}

/// See [`inspect`]. Every column is decoded, whatever the checksums say.
pub(crate) fn inspect_bytes(bytes: Buffer) -> Result<serde_json::Value, String> {
    let layout = Layout::of(bytes)?;
    let rows = layout.rows()?;
    let columns: Vec<serde_json::Value> = (layout.schema.fields().iter().enumerate())
        .map(|(at, field)| {
            let state = layout.column(at, rows).err().unwrap_or_else(|| "sound".to_owned());
            serde_json::json!({
                "name": field.name(),
                "type": field.data_type().to_string(),
                "crc32c": layout.checksums.get(field.name()),
                "state": state,
            })
        })
        .collect();
    Ok(serde_json::json!({
        "rows": rows,
        "len": layout.bytes.len(),
        "metadata": (layout.metadata.iter())
            .filter(|(key, _)| *key != CHECKSUMS)
            .collect::<HashMap<_, _>>(),
        "columns": columns,
    }))
}
