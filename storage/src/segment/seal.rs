//! From rows, growing or sealed, to a sealed file: sort by (key, timestamp), write, index.
//!
//! The input is frozen: rows and deletes as of the cut. Deletes that arrive while the file is
//! written are carried over by [`SealedRows::order`] before anybody sees the new segment.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, RecordBatch,
    UInt64Array,
};
use arrow_buffer::NullBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType as ArrowType, Field as ArrowField, Schema as ArrowSchema};
use arrow_select::concat::concat;
use arrow_select::interleave::interleave;
use elanus_index::{Cancel, Progress, Row};

use super::Segment;
use super::delete::DeleteMask;
use super::digest::column_crc;
use super::index;
use super::sealed::{self, CHECKSUMS, COLLECTION, FORMAT, FORMAT_KEY, SEGMENT};
use crate::Error;
use crate::blobs::Blobs;
use crate::clock::Ts;
use crate::keys::{KeyColumn, KeyRef};
use crate::manifest::{ColumnFile, DataFile, IndexKind, SegmentEntry, collection_dir};
use crate::schema::{DataType, Field, Schema, TS};

/// Rows in the order of a sealed segment, with their timestamps as the last column.
#[derive(Debug)]
pub(crate) struct SealedRows {
    pub(crate) batch: RecordBatch,
    /// For each row, the segment it came from (position in the input) and its row there.
    pub(crate) order: Vec<(u32, Row)>,
    min_ts: Ts,
    max_ts: Ts,
}

/// 4,096 rows, 16 MiB of 1,024 dimensions, between looks at whether to go on.
const ROWS_PER_CHECK: usize = 4_096;
/// 8 MiB written between looks at whether to go on.
const BYTES_PER_CHECK: usize = 8 << 20;

/// Which rows need not be kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outdated {
    /// Those that died before this: no view goes back that far.
    pub(crate) dead_before: Ts,
    /// Those that were written before this: they have expired, and no view shows them.
    pub(crate) written_before: Ts,
}

/// How many rows of a segment need not be kept.
pub(crate) fn outdated_rows(segment: &Segment, outdated: Outdated) -> Result<usize, Error> {
    let dead = segment.deletes.dead_before(outdated.dead_before);
    let Some(expired) = segment.written_before(outdated.written_before)? else {
        return Ok(usize::try_from(dead.len()).unwrap_or(usize::MAX));
    };
    let dead = dead.iter().filter(|row| !expired.contains(*row)).count();
    Ok(dead + expired.count())
}

/// Who has rows sorted and written, and may call it off.
pub(crate) trait Work {
    /// Whether to go on.
    ///
    /// # Errors
    /// [`Error::Closed`] if not.
    fn check(&self) -> Result<(), Error>;

    /// Where the column of a field is put together that may be too large for the memory; what is
    /// there is removed once it is mapped. `None`: in memory.
    fn scratch(&self, field: i64) -> Option<(&Blobs, String)>;
}

/// Brings the rows of some segments into sealed order, without those that are outdated. Only dense
/// and binary vectors are put together in a file, where there is a place for it. A pending field gets
/// a column if all rows have a value of it.
///
/// Returns `None` if no row is left.
pub(crate) fn sort(
    schema: &Schema,
    segments: &[Arc<Segment>],
    outdated: Outdated,
    work: &dyn Work,
) -> Result<Option<SealedRows>, Error> {
    let key_field = schema.primary();
    let mut keys: Vec<KeyColumn> = Vec::new();
    let mut times = Vec::new();
    let mut chunks: Vec<(usize, usize)> = Vec::new();
    let mut rows: Vec<(u32, Row, u32, u32)> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let gone = segment.deletes.dead_before(outdated.dead_before);
        for (c, (first, len)) in segment.chunks().enumerate() {
            let chunk = to_u32(keys.len())?;
            keys.push(KeyColumn::new(&segment.column(c, key_field)?)?);
            let written = segment.timestamps(c)?;
            chunks.push((i, c));
            for at in 0..to_u32(len)? {
                let expired = written[at as usize] < outdated.written_before.0;
                if !expired && !gone.contains(first + at) {
                    rows.push((to_u32(i)?, first + at, chunk, at));
                }
            }
            times.push(written);
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let place = |&(_, _, chunk, at): &(u32, Row, u32, u32)| -> (KeyRef<'_>, u64) {
        (keys[chunk as usize].get(at as usize), times[chunk as usize][at as usize])
    };
    // Sealed segments are runs already, which this sort only merges.
    rows.sort_by(|a, b| place(a).cmp(&place(b)));

    let picks: Vec<(usize, usize)> =
        rows.iter().map(|&(_, _, chunk, at)| (chunk as usize, at as usize)).collect();
    let mut fields = Vec::with_capacity(schema.fields.len() + 1);
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields.len() + 1);
    let everywhere =
        |field: &&Field| chunks.iter().all(|&(at, chunk)| segments[at].has_column(chunk, field));
    for field in schema.fields.iter().chain(schema.pending_fields().filter(everywhere)) {
        work.check()?;
        let parts = (chunks.iter())
            .map(|&(segment, chunk)| segments[segment].column(chunk, field))
            .collect::<Result<Vec<_>, _>>()?;
        let vectors = field.data_type.bytes_per_row().is_some();
        columns.push(match work.scratch(field.id).filter(|_| vectors) {
            Some(place) => gather_in_file(field, &parts, &picks, place, work)?,
            None => {
                let parts: Vec<&dyn Array> = parts.iter().map(|part| &**part).collect();
                interleave(&parts, &picks)?
            }
        });
        fields.push(field.to_arrow());
    }
    let ts: Vec<u64> = rows.iter().map(|row| place(row).1).collect();
    let min_ts = Ts(ts.iter().copied().min().unwrap_or(0));
    let max_ts = Ts(ts.iter().copied().max().unwrap_or(0));
    fields.push(ArrowField::new(TS, ArrowType::UInt64, false));
    columns.push(Arc::new(UInt64Array::from(ts)));
    let batch = RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns)?;
    let order = rows.iter().map(|&(segment, row, _, _)| (segment, row)).collect();
    Ok(Some(SealedRows { batch, order, min_ts, max_ts }))
}

/// The picked rows of some columns of fixed-width vectors, in a file that is mapped and gone.
#[expect(clippy::wildcard_enum_match_arm, reason = "Arrow has many types, vectors have two")]
fn gather_in_file(
    field: &Field,
    parts: &[ArrayRef],
    picks: &[(usize, usize)],
    (blobs, key): (&Blobs, String),
    work: &dyn Work,
) -> Result<ArrayRef, Error> {
    let sources =
        parts.iter().map(|part| index::vectors(field, part)).collect::<Result<Vec<_>, Error>>()?;
    let path = blobs.path(&key);
    let len = blobs.write_file(&key, |out| {
        for picks in picks.chunks(ROWS_PER_CHECK) {
            work.check()?;
            for &(part, row) in picks {
                let row = sources[part].row(to_u32(row)?);
                out.write_all(row).map_err(|error| Error::io(&path, error))?;
            }
        }
        Ok(())
    })?;
    let mapped = blobs.published(&key).map(len);
    blobs.delete(&key)?;
    let values = mapped?;
    let nulls = parts
        .iter()
        .any(|part| part.null_count() > 0)
        .then(|| NullBuffer::from_iter(picks.iter().map(|&(part, row)| parts[part].is_valid(row))));
    let column: ArrayRef = match field.data_type.to_arrow() {
        ArrowType::FixedSizeList(item, width) => {
            let values = Float32Array::new(values.into(), None);
            Arc::new(FixedSizeListArray::try_new(item, width, Arc::new(values), nulls)?)
        }
        ArrowType::FixedSizeBinary(width) => {
            Arc::new(FixedSizeBinaryArray::try_new(width, values, nulls)?)
        }
        other => {
            let detail = format!("field `{}` is {other}, which is no vector", field.name);
            return Err(Error::Internal(detail));
        }
    };
    Ok(column)
}

impl SealedRows {
    /// Where rows of the input are in the output, for those that are there; each row is given as
    /// segment and row and comes with something of the caller's.
    pub(crate) fn places<T>(&self, rows: &mut HashMap<(u32, Row), T>) -> Vec<(Row, T)> {
        if rows.is_empty() {
            return Vec::new();
        }
        let order = (0..).zip(&self.order);
        order.filter_map(|(new, old)| rows.remove(old).map(|of| (new, of))).collect()
    }

    /// The deletes of the input, in the order of the output. `deletes` has one mask per input
    /// segment, at least as new as those that the rows were sorted with.
    pub(crate) fn deletes(&self, deletes: &[Arc<DeleteMask>]) -> DeleteMask {
        DeleteMask::gathered(deletes, &self.order)
    }
}

/// Writes and publishes the data file and the index files of a new segment.
pub(crate) fn write(
    blobs: &Blobs,
    collection: i64,
    schema: &Schema,
    id: i64,
    partition: i64,
    rows: &SealedRows,
    work: &dyn Work,
) -> Result<SegmentEntry, Error> {
    let dir = collection_dir(collection);
    let batch = &rows.batch;
    let data = write_batch(blobs, collection, format!("{id}.arrow"), id, batch, work)?;
    let indexes = (schema.stored_fields())
        .filter(|field| field.data_type == DataType::SparseFloatVector)
        .filter_map(|field| Some((field, batch.column_by_name(field.column())?)))
        .map(|(field, column)| {
            let (file, kind) = (index_name(id, field.id), IndexKind::SparseInverted);
            let progress = Progress::default();
            let (place, never) = ((blobs, dir.as_str(), file.as_str()), Cancel::never());
            // No terms are sorted here.
            index::write(place, &kind, field, column, 0, None, (&progress, &never))
        })
        .collect::<Result<_, _>>()?;
    Ok(SegmentEntry {
        id,
        partition,
        rows: to_u32(batch.num_rows())?,
        min_ts: rows.min_ts,
        max_ts: rows.max_ts,
        data,
        columns: Vec::new(),
        indexes,
        deletes: None,
    })
}

/// Writes and publishes values of one more column of a sealed segment, from the row `first` on.
pub(crate) fn write_column(
    blobs: &Blobs,
    collection: i64,
    (segment, version): (i64, u64),
    field: &Field,
    first: u32,
    values: ArrayRef,
    work: &dyn Work,
) -> Result<ColumnFile, Error> {
    let file = format!("{segment}-{}-{version}.column", field.id);
    let rows = to_u32(values.len())?;
    let schema = Arc::new(ArrowSchema::new(vec![field.to_arrow()]));
    let batch = RecordBatch::try_new(schema, vec![values])?;
    let data = write_batch(blobs, collection, file, segment, &batch, work)?;
    Ok(ColumnFile { field: field.id, first, rows, data })
}

/// Puts runs of rows of one column together, one after another.
pub(crate) fn join(field: &Field, parts: &[ArrayRef], work: &dyn Work) -> Result<ArrayRef, Error> {
    let vectors = field.data_type.bytes_per_row().is_some();
    if let Some(place) = work.scratch(field.id).filter(|_| vectors) {
        let picks: Vec<(usize, usize)> = (parts.iter().enumerate())
            .flat_map(|(at, part)| (0..part.len()).map(move |row| (at, row)))
            .collect();
        return gather_in_file(field, parts, &picks, place, work);
    }
    let parts: Vec<&dyn Array> = parts.iter().map(|part| &**part).collect();
    Ok(concat(&parts)?)
}

/// Writes and publishes a file with columns of a segment.
fn write_batch(
    blobs: &Blobs,
    collection: i64,
    file: String,
    id: i64,
    batch: &RecordBatch,
    work: &dyn Work,
) -> Result<DataFile, Error> {
    let key = format!("{}/{file}", collection_dir(collection));
    let checksums: serde_json::Map<String, serde_json::Value> =
        (batch.schema_ref().fields().iter().zip(batch.columns()))
            .map(|(field, column)| {
                (field.name().clone(), format!("{:08x}", column_crc(column)).into())
            })
            .collect();
    let path = blobs.path(&key);
    let len = blobs.write_file(&key, |out| {
        let failed = |error| {
            if let ArrowError::IoError(_, error) = error {
                return Error::io(&path, error);
            }
            error.into()
        };
        let out = Checked { out, work };
        // The default options are what we want: 64-byte alignment, no compression.
        let mut writer = FileWriter::try_new(out, batch.schema_ref()).map_err(failed)?;
        writer.write_metadata(FORMAT_KEY, FORMAT.to_string());
        writer.write_metadata(COLLECTION, collection.to_string());
        writer.write_metadata(SEGMENT, id.to_string());
        writer.write_metadata(CHECKSUMS, serde_json::Value::Object(checksums).to_string());
        writer.write(batch).map_err(failed)?;
        writer.finish().map_err(failed)
    })?;
    work.check()?;
    sealed::describe(file, &blobs.published(&key), len)
}

/// Writes on only while the work goes on.
struct Checked<'a> {
    out: &'a mut dyn Write,
    work: &'a dyn Work,
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.work.check().map_err(io::Error::other)?;
        self.out.write(&bytes[..bytes.len().min(BYTES_PER_CHECK)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Name of the index file that is written with a new segment.
pub(crate) fn index_name(segment: i64, field: i64) -> String {
    format!("{segment}-{field}.idx")
}

fn to_u32(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::Internal(format!("{n} rows do not fit a segment")))
}
