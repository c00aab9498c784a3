//! Recent rows in memory: a short list of immutable batches.
//!
//! Rows are numbered in order of arrival. Small batches at the end are merged geometrically
//! (equal sizes join), so that a row is copied at most about 13 times and the list stays short
//! even when rows arrive one by one. Merging does not renumber rows.
//!
//! Float vectors get a byte per dimension besides, as they come: a search looks at all growing rows,
//! and reads a quarter of the bytes so.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::ScalarBuffer;
use arrow_select::concat::concat_batches;
use elanus_index::{FlatCodes, Row, RowMask};

use super::index::float_rows;
use crate::Error;
use crate::clock::Ts;
use crate::schema::Field;

/// 8,192 rows: one chunk of 1,024-dim `f32` is 32 MiB, the largest copy made on an insert.
const MERGED_ROWS: usize = 8_192;

/// A run of rows that came with one or more inserts.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Number of the first row in the segment.
    pub(crate) first: Row,
    pub(crate) batch: RecordBatch,
    /// When each row was written; ascending.
    pub(crate) ts: ScalarBuffer<u64>,
    /// Of each column of the batch that has some.
    codes: Vec<Option<FlatCodes>>,
}

impl Chunk {
    /// Rows that were written at `ts`.
    fn new(first: Row, batch: RecordBatch, ts: Ts) -> Self {
        let ts = ScalarBuffer::from(vec![ts.0; batch.num_rows()]);
        let encode = |column: &ArrayRef| {
            let rows =
                float_rows(column).filter(|rows| FlatCodes::suit(rows.elem(), rows.dim()))?;
            Some(FlatCodes::encode(&rows))
        };
        let codes = batch.columns().iter().map(encode).collect();
        Self { first, batch, ts, codes }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    fn joins(&self, other: &Self) -> bool {
        self.batch.schema_ref() == other.batch.schema_ref()
    }

    /// The values of a field, or what absent ones read as.
    pub(crate) fn column(&self, field: &Field) -> ArrayRef {
        match self.batch.column_by_name(field.column()) {
            Some(column) if *column.data_type() == field.data_type.to_arrow() => Arc::clone(column),
            _ => field.absent(self.rows()),
        }
    }

    /// The codes of a field's vectors, if it has some.
    pub(crate) fn codes(&self, field: &Field) -> Option<&FlatCodes> {
        let (at, column) = self.batch.schema_ref().column_with_name(field.column())?;
        // As for the column itself.
        if *column.data_type() != field.data_type.to_arrow() {
            return None;
        }
        self.codes.get(at)?.as_ref()
    }

    fn code_bytes(&self) -> usize {
        self.codes.iter().flatten().map(FlatCodes::heap_bytes).sum()
    }

    /// Whether the rows came with values of a field.
    pub(crate) fn has_column(&self, field: &Field) -> bool {
        self.batch.schema_ref().column_with_name(field.column()).is_some()
    }
}

/// The rows of a growing segment as of one moment.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    chunks: Vec<Arc<Chunk>>,
    rows: usize,
    bytes: usize,
}

impl Growing {
    pub(crate) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that the rows took in the log, which is about what they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows written at or before `ts`.
    pub(crate) fn written_by(&self, ts: Ts) -> RowMask {
        if self.chunks.last().is_none_or(|chunk| chunk.ts.last().is_none_or(|&last| last <= ts.0)) {
            return RowMask::all(self.rows);
        }
        let written: usize =
            self.chunks.iter().map(|chunk| chunk.ts.partition_point(|&row| row <= ts.0)).sum();
        RowMask::from_fn(self.rows, |row| (row as usize) < written)
    }

    /// See [`super::Segment::written_before`].
    pub(crate) fn written_before(&self, ts: Ts) -> Option<RowMask> {
        // Rows are in the order of their times.
        let before: usize =
            self.chunks.iter().map(|chunk| chunk.ts.partition_point(|&row| row < ts.0)).sum();
        (before > 0).then(|| RowMask::from_fn(self.rows, |row| (row as usize) < before))
    }
}

/// A growing segment in the hands of the one thread that appends to it.
#[derive(Debug, Default)]
pub(crate) struct GrowingBuilder {
    chunks: Vec<Arc<Chunk>>,
    /// Chunks before this were part of a snapshot.
    settled: usize,
    rows: usize,
    bytes: usize,
    code_bytes: usize,
}

impl GrowingBuilder {
    /// Number of rows, which is the number of the next row.
    ///
    /// # Panics
    /// Beyond 2^32 rows; segments are sealed long before.
    pub(crate) fn next_row(&self) -> Row {
        Row::try_from(self.rows).expect("growing segments are sealed before they are that large")
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that codes take besides.
    pub(crate) fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    /// Appends rows that were written at `ts` and took `bytes` in the log.
    pub(crate) fn push(&mut self, batch: RecordBatch, ts: Ts, bytes: usize) {
        let chunk = Chunk::new(self.next_row(), batch, ts);
        self.rows += chunk.rows();
        self.bytes += bytes;
        self.code_bytes += chunk.code_bytes();
        self.chunks.push(Arc::new(chunk));
    }

    /// What readers are to see: everything so far, small batches merged.
    ///
    /// # Errors
    /// [`Error::Internal`] if batches do not join, which their equal schemas rule out.
    pub(crate) fn snapshot(&mut self) -> Result<Arc<Growing>, Error> {
        let fresh = self.chunks.split_off(self.settled);
        let mut fresh = &fresh[..];
        while let Some(first) = fresh.first() {
            let mut rows = 0;
            let run = fresh.iter().take_while(|chunk| {
                rows += chunk.rows();
                chunk.joins(first) && rows <= MERGED_ROWS
            });
            let (run, rest) = fresh.split_at(run.count().max(1));
            fresh = rest;
            self.chunks.push(merge(run)?);
            while let [.., before, last] = &self.chunks[..]
                && before.rows() < 2 * last.rows()
                && before.rows() + last.rows() <= MERGED_ROWS
                && before.joins(last)
            {
                let merged = merge(&self.chunks[self.chunks.len() - 2..])?;
                self.chunks.truncate(self.chunks.len() - 2);
                self.chunks.push(merged);
            }
        }
        self.settled = self.chunks.len();
        Ok(Arc::new(Growing { chunks: self.chunks.clone(), rows: self.rows, bytes: self.bytes }))
    }
}

fn merge(chunks: &[Arc<Chunk>]) -> Result<Arc<Chunk>, Error> {
    if let [chunk] = chunks {
        return Ok(Arc::clone(chunk));
    }
    let batch =
        concat_batches(chunks[0].batch.schema_ref(), chunks.iter().map(|chunk| &chunk.batch))?;
    let ts: Vec<u64> = chunks.iter().flat_map(|chunk| chunk.ts.iter().copied()).collect();
    // They join, so they have the same columns.
    let join = |column: usize| {
        let parts: Option<Vec<&FlatCodes>> =
            chunks.iter().map(|chunk| chunk.codes[column].as_ref()).collect();
        Some(FlatCodes::concat(&parts?))
    };
    let codes = (0..batch.num_columns()).map(join).collect();
    Ok(Arc::new(Chunk { first: chunks[0].first, batch, ts: ts.into(), codes }))
}

#[cfg(test)]
mod tests {
    use arrow_array::Int64Array;
    use proptest::prelude::*;

    use super::*;

    fn batch(ids: std::ops::Range<i64>) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
        RecordBatch::try_from_iter([("id", ids)]).unwrap()
    }

    fn ids(growing: &Growing) -> Vec<i64> {
        let mut all = Vec::new();
        for chunk in growing.chunks() {
            assert_eq!(chunk.first as usize, all.len());
            assert_eq!(chunk.ts.len(), chunk.rows());
            let column = chunk.batch.column(0);
            let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
            all.extend_from_slice(column.values());
        }
        all
    }

    proptest! {
        #[test]
        fn rows_keep_their_numbers_and_times(sizes in proptest::collection::vec(1_i64..40, 1..60)) {
            let mut builder = GrowingBuilder::default();
            let mut next = 0;
            let mut written = Vec::new();
            for (ts, size) in (1..).zip(sizes) {
                builder.push(batch(next..next + size), Ts(ts), 8);
                next += size;
                written.resize(usize::try_from(next).unwrap(), ts);
                let growing = builder.snapshot().unwrap();
                prop_assert_eq!(ids(&growing), (0..next).collect::<Vec<_>>());
                for at in [0, ts / 2, ts] {
                    let expected = written.iter().filter(|&&w| w <= at).count();
                    prop_assert_eq!(growing.written_by(Ts(at)).count(), expected);
                }
            }
        }
    }

    #[test]
    fn single_rows_make_a_short_list_and_few_copies() {
        let mut builder = GrowingBuilder::default();
        let mut longest = 0;
        for i in 0..20_000 {
            builder.push(batch(i..i + 1), Ts(1), 8);
            longest = longest.max(builder.snapshot().unwrap().chunks().len());
        }
        assert!(longest <= 20, "{longest} chunks");
        assert_eq!(ids(&builder.snapshot().unwrap()), (0..20_000).collect::<Vec<_>>());
    }

    #[test]
    fn batches_of_differing_schemas_stay_apart() {
        let mut builder = GrowingBuilder::default();
        builder.push(batch(0..1), Ts(1), 8);
        let id: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let more = RecordBatch::try_from_iter([("id", Arc::clone(&id)), ("n", id)]).unwrap();
        builder.push(more, Ts(2), 8);
        assert_eq!(builder.snapshot().unwrap().chunks().len(), 2);
    }
}
