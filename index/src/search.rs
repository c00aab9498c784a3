//! The words of a search: what is asked, how much of it, and what comes back.

use std::cmp::Ordering;

use crate::{Cancel, Error, RowMask, SparseRow, Trail};

/// A row's position inside one segment.
pub type Row = u32;

/// How two vectors are compared. Every score is turned so that larger is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Minus the squared Euclidean distance.
    L2,
    /// Inner product.
    Ip,
    /// Inner product over both lengths, in [-1, 1]; 0 when either vector is zero.
    Cosine,
    /// Minus the number of differing bits.
    Hamming,
    /// Minus the Jaccard distance `1 - |a & b| / |a | b|`; two empty sets are at distance 1.
    Jaccard,
}

impl Metric {
    /// Whether a larger *reported* value is better: true of similarities, false of distances,
    /// which this crate hands out negated.
    #[must_use]
    pub fn larger_is_better(self) -> bool {
        matches!(self, Self::Ip | Self::Cosine)
    }
}

/// One result. Scores are never NaN, and a zero score is never negative zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The row found.
    pub row: Row,
    /// Its score; larger is better whatever the metric.
    pub score: f32,
}

impl Hit {
    /// `Less` when `self` comes before `other`: higher score, or the same and a smaller row.
    #[must_use]
    pub fn best_first(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.row.cmp(&other.row))
    }
}

/// The scores that a range search admits: `above < score <= at_most`, on the internal score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// Scores must be larger than this.
    pub above: Option<f32>,
    /// Scores must not be larger than this.
    pub at_most: Option<f32>,
}

/// How much to look for, and how hard.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SearchParams {
    /// Results wanted. Fewer come back when fewer rows qualify.
    pub k: usize,
    /// Beam width of graph indexes; exact indexes need none.
    pub ef: Option<usize>,
    /// Range limits on the score.
    pub bounds: Bounds,
    /// Where above zero, a sparse index may miss rows: it looks for the best without this share
    /// of the query's entries, the smallest by magnitude, and scores by all. In [0, 1).
    pub drop_ratio: f32,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub enum Query<'a> {
    /// A row in the field's own element type, little-endian.
    Dense(&'a [u8]),
    /// A sparse row.
    Sparse(SparseRow<'a>),
}

impl<'a> Query<'a> {
    pub(crate) fn dense(&self) -> Result<&'a [u8], Error> {
        match self {
            Self::Dense(bytes) => Ok(bytes),
            Self::Sparse(_) => Err(Error::Unsupported(
                "a dense or binary field cannot be searched with a sparse vector".into(),
            )),
        }
    }

    pub(crate) fn sparse(&self) -> Result<SparseRow<'a>, Error> {
        match self {
            Self::Sparse(row) => Ok(*row),
            Self::Dense(_) => Err(Error::Unsupported(
                "a sparse field cannot be searched with a dense or binary vector".into(),
            )),
        }
    }
}

/// An index over one vector field of one segment.
pub trait VectorIndex: Send + Sync {
    /// Returns the `params.k` best rows among those `allowed`, best first, ties by smaller row.
    ///
    /// `allowed` has one bit per row of the segment.
    ///
    /// # Errors
    /// [`Error::Dimension`] if the query or the mask has another width than the index,
    /// [`Error::Unsupported`] if the query is of another kind, [`Error::Cancelled`] past the
    /// deadline.
    fn search(
        &self,
        query: &Query<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error>;

    /// [`VectorIndex::search`] for each query, in order.
    ///
    /// # Errors
    /// As [`VectorIndex::search`]; one bad query fails the call.
    fn search_many(
        &self,
        queries: &[Query<'_>],
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        queries.iter().map(|query| self.search(query, params, allowed, cancel)).collect()
    }

    /// Goes on with the search that `trail` stands for: up to `rows` more of the rows `allowed`,
    /// best first, and as far as a walk can tell the best of those it did not lead to before.
    ///
    /// None come back once the walk has come to its end, or would take longer than a look at every
    /// row; rows that it did not come to may be left. An index that is not walked says so at once:
    /// its searches leave nothing out.
    ///
    /// # Errors
    /// As [`VectorIndex::search`]; [`Error::Unsupported`] for the trail of an index over another
    /// number of rows.
    fn go_on(
        &self,
        trail: &mut Trail,
        query: &Query<'_>,
        rows: usize,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let _ = (trail, query, rows, allowed, cancel);
        Ok(Vec::new())
    }

    /// Bytes of heap that this index holds, not counting buffers it borrows.
    fn heap_bytes(&self) -> usize;
}

/// # Errors
/// [`Error::Unsupported`]: a mask of another length is a mistake of the caller, and quietly
/// answering from some of the rows would hide it.
pub(crate) fn check_mask(rows: usize, allowed: &RowMask) -> Result<(), Error> {
    if allowed.len() == rows {
        return Ok(());
    }
    Err(Error::Unsupported(format!("the row mask covers {} rows, the index {rows}", allowed.len())))
}
