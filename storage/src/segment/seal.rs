//! From growing rows to a sealed file: sort by (key, timestamp), write, index.
//!
//! The input is frozen: rows and deletes as of the cut. Deletes that arrive while the file is
//! written are carried over by [`SealedRows::order`] before anybody sees the new segment.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, UInt64Array};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType as ArrowType, Field as ArrowField, Schema as ArrowSchema};
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
use crate::manifest::{IndexKind, SegmentEntry, collection_dir};
use crate::schema::{DataType, Schema, TS};

/// Rows in the order of a sealed segment, with their timestamps as the last column.
#[derive(Debug)]
pub(crate) struct SealedRows {
    pub(crate) batch: RecordBatch,
    /// For each row, the segment it came from (position in the input) and its row there.
    pub(crate) order: Vec<(u32, Row)>,
    min_ts: Ts,
    max_ts: Ts,
}

/// Brings the rows of some segments into sealed order. Rows that died before `horizon` are left
/// out: no view goes back that far.
///
/// Returns `None` if no row is left.
pub(crate) fn sort(
    schema: &Schema,
    segments: &[Arc<Segment>],
    horizon: Ts,
) -> Result<Option<SealedRows>, Error> {
    let key_field = schema.primary();
    let mut keys: Vec<KeyColumn> = Vec::new();
    let mut times = Vec::new();
    let mut chunks: Vec<(usize, usize)> = Vec::new();
    let mut rows: Vec<(u32, Row, u32, u32)> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let gone: std::collections::HashSet<Row> = (segment.deletes.iter())
            .filter(|&(_, died)| died.is_none_or(|died| died < horizon))
            .map(|(row, _)| row)
            .collect();
        for (c, (first, len)) in segment.chunks().enumerate() {
            let chunk = to_u32(keys.len())?;
            keys.push(KeyColumn::new(&segment.column(c, key_field)?)?);
            times.push(segment.timestamps(c)?);
            chunks.push((i, c));
            for at in 0..to_u32(len)? {
                if !gone.contains(&(first + at)) {
                    rows.push((to_u32(i)?, first + at, chunk, at));
                }
            }
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let place = |&(_, _, chunk, at): &(u32, Row, u32, u32)| -> (KeyRef<'_>, u64) {
        (keys[chunk as usize].get(at as usize), times[chunk as usize][at as usize])
    };
    rows.sort_unstable_by(|a, b| place(a).cmp(&place(b)));

    let picks: Vec<(usize, usize)> =
        rows.iter().map(|&(_, _, chunk, at)| (chunk as usize, at as usize)).collect();
    let mut fields = Vec::with_capacity(schema.fields.len() + 1);
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields.len() + 1);
    for field in &schema.fields {
        let parts = (chunks.iter())
            .map(|&(segment, chunk)| segments[segment].column(chunk, field))
            .collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&dyn Array> = parts.iter().map(|part| &**part).collect();
        columns.push(interleave(&parts, &picks)?);
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

impl SealedRows {
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
) -> Result<SegmentEntry, Error> {
    let dir = collection_dir(collection);
    let file = format!("{id}.arrow");
    let key = format!("{dir}/{file}");
    let batch = &rows.batch;
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
        // The default options are what we want: 64-byte alignment, no compression.
        let mut writer = FileWriter::try_new(out, batch.schema_ref()).map_err(failed)?;
        writer.write_metadata(FORMAT_KEY, FORMAT.to_string());
        writer.write_metadata(COLLECTION, collection.to_string());
        writer.write_metadata(SEGMENT, id.to_string());
        writer.write_metadata(CHECKSUMS, serde_json::Value::Object(checksums).to_string());
        writer.write(batch).map_err(failed)?;
        writer.finish().map_err(failed)
    })?;
    let data = sealed::describe(&path, file, len)?;
    let indexes = (schema.fields.iter())
        .filter(|field| field.data_type == DataType::SparseFloatVector)
        .map(|field| {
            let column = batch
                .column_by_name(&field.name)
                .ok_or_else(|| Error::Internal(format!("field `{}` was not sealed", field.name)))?;
            let (file, kind) = (index_name(id, field.id), IndexKind::SparseInverted);
            let progress = Progress::default();
            index::write(blobs, (&dir, &file), kind, field, column, &progress, &Cancel::never())
        })
        .collect::<Result<_, _>>()?;
    Ok(SegmentEntry {
        id,
        partition,
        rows: to_u32(batch.num_rows())?,
        min_ts: rows.min_ts,
        max_ts: rows.max_ts,
        data,
        indexes,
        deletes: None,
    })
}

/// Name of the index file that is written with a new segment.
pub(crate) fn index_name(segment: i64, field: i64) -> String {
    format!("{segment}-{field}.idx")
}

fn to_u32(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::Internal(format!("{n} rows do not fit a segment")))
}
