//! Segments: runs of rows that never change, and which of them are gone.
//!
//! Recent rows live in a growing segment, a short list of immutable batches in memory; older
//! ones in a sealed segment, one memory-mapped Arrow file. To a reader both are a [`Segment`]:
//! chunks of columns, a timestamp per row and the deletes known to its version.
//!
//! This module does not decide when to seal and knows neither log nor manifest.

pub(crate) mod delete;
mod digest;
pub(crate) mod growing;
pub(crate) mod index;
pub(crate) mod seal;
pub(crate) mod sealed;
pub(crate) mod section_file;
pub(crate) mod terms;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::hash::{Hash as _, Hasher};
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_buffer::ScalarBuffer;
use elanus_index::{FlatCodes, Metric, Row, RowMask, VectorIndex};

use crate::Error;
use crate::catalog::TermsDef;
use crate::clock::Ts;
use crate::filter::Terms;
use crate::keys::KeyRef;
use crate::schema::Field;
use delete::DeleteMask;
use growing::Growing;
use sealed::SealedSegment;

/// 1,024: so many more rows in memory change how long a search of them is expected to take.
const ROWS_THAT_MATTER: usize = 1024;

/// One segment as one version of the collection sees it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) id: i64,
    pub(crate) partition: i64,
    pub(crate) body: Body,
    pub(crate) deletes: Arc<DeleteMask>,
}

/// Where the rows of a segment are.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// In memory, in order of arrival.
    Growing(Arc<Growing>),
    /// In a file, in order of (key, timestamp).
    Sealed(Arc<SealedSegment>),
}

impl Segment {
    /// Whether the rows are still in memory only, not sorted and not indexed.
    pub(crate) fn is_growing(&self) -> bool {
        matches!(self.body, Body::Growing(_))
    }

    /// Number of rows, dead ones included.
    pub(crate) fn rows(&self) -> usize {
        match &self.body {
            Body::Growing(growing) => growing.rows(),
            Body::Sealed(sealed) => sealed.rows(),
        }
    }

    /// Number of rows that the newest view sees.
    pub(crate) fn live_rows(&self) -> usize {
        self.rows() - self.deletes.len()
    }

    /// Number of rows that the newest view sees when those written before `expired` have expired.
    /// Where the times of the rows are damaged, which readers are told, expired ones count.
    pub(crate) fn live_rows_since(&self, expired: Ts) -> usize {
        let Ok(Some(expired)) = self.written_before(expired) else { return self.live_rows() };
        let Ok(mut live) = self.visible(Ts::MAX) else { return self.live_rows() };
        live.and_not_with(&expired);
        live.count()
    }

    /// Bytes in memory (growing) or of the data file (sealed).
    pub(crate) fn bytes(&self) -> u64 {
        match &self.body {
            Body::Growing(growing) => growing.bytes() as u64,
            Body::Sealed(sealed) => sealed.bytes(),
        }
    }

    /// The chunks in row order, as the number of the first row and the number of rows. A sealed
    /// segment is one chunk; growing segments have few.
    pub(crate) fn chunks(&self) -> impl ExactSizeIterator<Item = (Row, usize)> {
        let chunks: Vec<(Row, usize)> = match &self.body {
            Body::Growing(growing) => {
                growing.chunks().iter().map(|chunk| (chunk.first, chunk.rows())).collect()
            }
            Body::Sealed(sealed) => vec![(0, sealed.rows())],
        };
        chunks.into_iter()
    }

    /// A column of a chunk: its values, or what absent values of the field read as.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the column of a sealed segment is damaged (found at first touch).
    ///
    /// # Panics
    /// If there is no such chunk.
    pub(crate) fn column(&self, chunk: usize, field: &Field) -> Result<ArrayRef, Error> {
        match &self.body {
            Body::Growing(growing) => Ok(growing.chunks()[chunk].column(field)),
            Body::Sealed(sealed) => sealed.column(field),
        }
    }

    /// The codes of a chunk's vectors, which make a look at all of them quicker, where it has some.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub(crate) fn codes(&self, chunk: usize, field: &Field) -> Option<&FlatCodes> {
        match &self.body {
            Body::Growing(growing) => growing.chunks()[chunk].codes(field),
            Body::Sealed(_) => None,
        }
    }

    /// Whether a chunk has values of a field, be they null.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub(crate) fn has_column(&self, chunk: usize, field: &Field) -> bool {
        match &self.body {
            Body::Growing(growing) => growing.chunks()[chunk].has_column(field),
            Body::Sealed(sealed) => sealed.has_column(field),
        }
    }

    /// When the rows of a chunk were written.
    ///
    /// # Errors
    /// As [`Segment::column`].
    ///
    /// # Panics
    /// If there is no such chunk.
    pub(crate) fn timestamps(&self, chunk: usize) -> Result<ScalarBuffer<u64>, Error> {
        match &self.body {
            Body::Growing(growing) => Ok(growing.chunks()[chunk].ts.clone()),
            Body::Sealed(sealed) => sealed.timestamps(),
        }
    }

    /// The rows that a view at `ts` sees: written by then and not deleted by then.
    ///
    /// # Errors
    /// As [`Segment::column`].
    pub(crate) fn visible(&self, ts: Ts) -> Result<RowMask, Error> {
        let mut mask = match &self.body {
            Body::Growing(growing) => growing.written_by(ts),
            Body::Sealed(sealed) => sealed.written_by(ts)?,
        };
        self.deletes.hide(&mut mask, ts);
        Ok(mask)
    }

    /// The rows that were written before `ts`; `None` if there are none.
    ///
    /// # Errors
    /// As [`Segment::column`].
    pub(crate) fn written_before(&self, ts: Ts) -> Result<Option<RowMask>, Error> {
        match &self.body {
            Body::Growing(growing) => Ok(growing.written_before(ts)),
            Body::Sealed(sealed) => sealed.written_before(ts),
        }
    }

    /// Whether rows are in ascending order of (primary key, timestamp).
    pub(crate) fn is_sorted_by_key(&self) -> bool {
        !self.is_growing()
    }

    /// Smallest and largest primary key, where they are known: not of a growing segment, and not
    /// where the keys are damaged, which reading the column reports.
    pub(crate) fn key_range(&self) -> Option<(KeyRef<'_>, KeyRef<'_>)> {
        match &self.body {
            Body::Growing(_) => None,
            Body::Sealed(sealed) => {
                let keys = sealed.keys().ok()?;
                keys.len().checked_sub(1).map(|last| (keys.get(0), keys.get(last)))
            }
        }
    }

    /// The sorted terms over a field that are wanted and sound.
    pub(crate) fn terms(&self, field: &Field, wanted: &dyn Fn(&TermsDef) -> bool) -> Vec<Terms> {
        match &self.body {
            Body::Growing(_) => Vec::new(),
            Body::Sealed(sealed) => sealed.terms(field, wanted),
        }
    }

    /// The index over a vector field, if the segment has one that is sound, measures by `metric`
    /// and, where that is asked for, finds exactly what a look at every row would.
    pub(crate) fn index(
        &self,
        field: &Field,
        metric: Metric,
        exact: bool,
    ) -> Option<Arc<dyn VectorIndex>> {
        match &self.body {
            Body::Growing(_) => None,
            Body::Sealed(sealed) => sealed.index(field, metric, exact),
        }
    }

    /// What tells how long a search of it takes: how many rows it looks at, and what it has to open.
    pub(crate) fn hash_state(&self, hasher: &mut impl Hasher) {
        self.id.hash(hasher);
        match &self.body {
            Body::Growing(growing) => (growing.rows() / ROWS_THAT_MATTER).hash(hasher),
            Body::Sealed(sealed) => sealed.hash_opened(hasher),
        }
    }
}
