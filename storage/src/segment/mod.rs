//! Segments: runs of rows that never change, and which of them are gone.
//!
//! Recent rows live in a growing segment, a short list of immutable batches in memory; older
//! ones in a sealed segment, one memory-mapped Arrow file. To a reader both are a [`Segment`]:
//! chunks of columns, a timestamp per row and the deletes known to its version.
//!
//! This module does not decide when to seal and knows neither log nor manifest.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_buffer::ScalarBuffer;
use elanus_index::{Row, RowMask, SparseIndex};

use crate::Error;
use crate::clock::Ts;
use crate::keys::Key;
use crate::schema::Field;

/// One segment as one version of the collection sees it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: i64,
    pub(crate) partition: i64,
}

impl Segment {
    /// Whether the rows are still in memory only, not sorted and not indexed.
    pub(crate) fn is_growing(&self) -> bool {
        todo!()
    }

    /// Number of rows, dead ones included.
    pub(crate) fn rows(&self) -> usize {
        todo!()
    }

    /// The chunks in row order, as the number of the first row and the number of rows. A sealed
    /// segment is one chunk; growing segments have few.
    pub(crate) fn chunks(&self) -> impl ExactSizeIterator<Item = (Row, usize)> {
        Vec::new().into_iter()
    }

    /// A column of a chunk: its values, or what absent values of the field read as.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the column of a sealed segment is damaged (found at first touch).
    pub(crate) fn column(&self, chunk: usize, field: &Field) -> Result<ArrayRef, Error> {
        todo!("{chunk} {field:?}")
    }

    /// When the rows of a chunk were written.
    ///
    /// # Errors
    /// As [`Segment::column`].
    pub(crate) fn timestamps(&self, chunk: usize) -> Result<ScalarBuffer<u64>, Error> {
        todo!("{chunk}")
    }

    /// The rows that a view at `ts` sees: written by then and not deleted by then.
    ///
    /// # Errors
    /// As [`Segment::column`].
    pub(crate) fn visible(&self, ts: Ts) -> Result<RowMask, Error> {
        todo!("{ts}")
    }

    /// Whether rows are in ascending order of (primary key, timestamp).
    pub(crate) fn is_sorted_by_key(&self) -> bool {
        !self.is_growing()
    }

    /// Smallest and largest primary key, where known without reading the column.
    pub(crate) fn key_range(&self) -> Option<&(Key, Key)> {
        todo!()
    }

    /// The inverted index over a sparse vector field, if the segment has one that is sound.
    pub(crate) fn sparse_index(&self, field: &Field) -> Option<Arc<SparseIndex>> {
        todo!("{field:?}")
    }
}
