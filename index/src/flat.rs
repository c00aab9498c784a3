//! Exact search: every allowed row is scored.
//!
//! One query reads the rows once, at memory speed. Many float32 queries at once are a matrix
//! product: each block of rows is multiplied with all queries while it is in cache, and only
//! rows whose product could still enter a query's top `k` are scored exactly. Both ways return
//! the same rows with the same scores, to the last bit.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use faer::{Accum, MatMut, MatRef, Par};

use crate::kernel::{self, Kernel};
use crate::mask::ones;
use crate::search::check_mask;
use crate::{
    Cancel, Elem, Error, Hit, Metric, Query, Row, RowMask, SearchParams, TopK, VectorIndex, Vectors,
};

/// 4,096 rows between looks at the clock: below a millisecond for 1,024-dim float32.
const ROWS_PER_CHECK: usize = 4096;
/// Rows of one word of the mask, scored together where all of them are allowed.
const WORD: usize = 64;
/// Allowed rows looked at ahead of the one being scored, so that its bytes are on their way.
const ROWS_AHEAD: usize = 4;
/// Cache lines asked for ahead; the hardware follows the rest of the row by itself.
const LINES_AHEAD: usize = 8;

/// Rows of one block of the matrix product: 512 x 768 float32 are 1.5 MiB, which stay in the
/// second-level cache while the queries pass over them.
const BLOCK_ROWS: usize = 512;
/// Queries multiplied at once; their products with a block take 128 KiB.
const BLOCK_QUERIES: usize = 64;
/// From here on the matrix product is faster than one pass per query.
const MANY_QUERIES: usize = 4;

/// Exact search over dense or binary rows.
#[derive(Debug)]
pub struct FlatIndex {
    vectors: Vectors,
    metric: Metric,
}

impl FlatIndex {
    /// An index over `vectors`; nothing is read or copied. Whether the metric applies to the
    /// element type is found out by the first search.
    #[must_use]
    pub fn new(vectors: Vectors, metric: Metric) -> Self {
        Self { vectors, metric }
    }

    fn prepare(&self, query: &Query<'_>, allowed: &RowMask) -> Result<Scorer, Error> {
        let bytes = query.dense()?;
        self.vectors.check_width(bytes)?;
        check_mask(self.vectors.rows(), allowed)?;
        Scorer::new(&self.vectors, self.metric)
    }

    fn scan(
        &self,
        scorer: &Scorer,
        query: &[u8],
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let scale = scorer.scale(query);
        let mut top = TopK::new(params.k, params.bounds);
        let mut scores = [0.0; WORD];
        let rows = self.vectors.rows();
        for (at, &word) in allowed.words().iter().enumerate() {
            let start = at * WORD;
            if start.is_multiple_of(ROWS_PER_CHECK) {
                cancel.check()?;
            }
            let len = WORD.min(rows - start);
            if word.count_ones() as usize == len {
                let scores = &mut scores[..len];
                (scorer.kernel.block)(query, self.vectors.range(start, len), scores);
                for (row, score) in (start as Row..).zip(scores) {
                    offer(&mut top, row, *score * scale);
                }
            } else {
                let mut ahead = ones(word).skip(ROWS_AHEAD);
                for bit in ones(word) {
                    if let Some(next) = ahead.next() {
                        kernel::prefetch(self.vectors.row(start as Row + next), LINES_AHEAD);
                    }
                    let row = start as Row + bit;
                    offer(
                        &mut top,
                        row,
                        (scorer.kernel.pair)(query, self.vectors.row(row)) * scale,
                    );
                }
            }
        }
        Ok(top.into_hits())
    }
}

/// Pushes a row of an ascending scan unless its score is clearly too low. NaN goes through, for
/// the heap to sort in.
#[inline]
fn offer(top: &mut TopK, row: Row, score: f32) {
    if top.floor().is_none_or(|floor| !matches!(score.partial_cmp(&floor), Some(o) if o.is_le())) {
        top.push(row, score);
    }
}

/// A kernel and how its results become scores.
#[derive(Debug)]
pub(crate) struct Scorer {
    vectors: Vectors,
    metric: Metric,
    kernel: Kernel,
    /// The query's own inner product, for its length.
    square: kernel::Pair,
}

impl Scorer {
    pub(crate) fn new(vectors: &Vectors, metric: Metric) -> Result<Self, Error> {
        let kernel = Kernel::best(metric, vectors.elem())?;
        let square = match vectors.elem() {
            Elem::Bit => kernel.pair,
            elem @ (Elem::F32 | Elem::F16 | Elem::Bf16 | Elem::I8) => {
                Kernel::best(Metric::Ip, elem)?.pair
            }
        };
        Ok(Self { vectors: vectors.clone(), metric, kernel, square })
    }

    /// What a kernel's result is multiplied with to become a score.
    pub(crate) fn scale(&self, query: &[u8]) -> f32 {
        match self.metric {
            Metric::Ip => 1.0,
            Metric::L2 | Metric::Hamming | Metric::Jaccard => -1.0,
            Metric::Cosine => {
                let square = (self.square)(query, query);
                if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 }
            }
        }
    }

    /// The score of one row, the same as in a scan.
    pub(crate) fn score(&self, query: &[u8], scale: f32, row: Row) -> f32 {
        (self.kernel.pair)(query, self.vectors.row(row)) * scale
    }
}

impl VectorIndex for FlatIndex {
    fn search(
        &self,
        query: &Query<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let scorer = self.prepare(query, allowed)?;
        cancel.check()?;
        if params.k == 0 {
            return Ok(Vec::new());
        }
        self.scan(&scorer, query.dense()?, params, allowed, cancel)
    }

    fn search_many(
        &self,
        queries: &[Query<'_>],
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        // A product cannot skip rows, so with few rows allowed one pass per query reads less.
        let most_allowed = allowed.count() >= self.vectors.rows() / 2;
        if queries.len() < MANY_QUERIES
            || self.vectors.elem() != Elem::F32
            || params.k == 0
            || !most_allowed
        {
            return queries
                .iter()
                .map(|query| self.search(query, params, allowed, cancel))
                .collect();
        }
        let mut results = Vec::with_capacity(queries.len());
        for queries in queries.chunks(BLOCK_QUERIES) {
            let mut batch = Batch::new(self, queries, params, allowed)?;
            for start in (0..self.vectors.rows()).step_by(BLOCK_ROWS) {
                cancel.check()?;
                batch.visit(start, BLOCK_ROWS.min(self.vectors.rows() - start), allowed);
            }
            results.extend(batch.queries.into_iter().map(|query| query.top.into_hits()));
        }
        Ok(results)
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Several queries on their way through the rows.
struct Batch<'a> {
    scorer: Scorer,
    queries: Vec<InBatch<'a>>,
    /// `queries × dim`, row-major.
    matrix: Vec<f32>,
    /// `block rows × queries`, column-major: one query's products lie together.
    products: Vec<f32>,
}

struct InBatch<'a> {
    bytes: &'a [u8],
    scale: f32,
    /// Squared length.
    square: f32,
    top: TopK,
}

impl<'a> Batch<'a> {
    fn new(
        index: &'a FlatIndex,
        queries: &[Query<'a>],
        params: &SearchParams,
        allowed: &RowMask,
    ) -> Result<Self, Error> {
        let scorer = Scorer::new(&index.vectors, index.metric)?;
        let mut matrix = Vec::with_capacity(queries.len() * index.vectors.dim());
        let queries = queries
            .iter()
            .map(|query| {
                index.prepare(query, allowed)?;
                let bytes = query.dense()?;
                matrix.extend_from_slice(&floats(bytes));
                Ok(InBatch {
                    bytes,
                    scale: scorer.scale(bytes),
                    square: (scorer.square)(bytes, bytes),
                    top: TopK::new(params.k, params.bounds),
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let products = vec![0.0; BLOCK_ROWS * queries.len()];
        Ok(Self { scorer, queries, matrix, products })
    }

    /// Offers the allowed ones among `len` rows from `start` on to every query.
    fn visit(&mut self, start: usize, len: usize, allowed: &RowMask) {
        let vectors = &self.scorer.vectors;
        let (dim, count) = (vectors.dim(), self.queries.len());
        let rows = floats(vectors.range(start, len));
        let products = &mut self.products[..len * count];
        faer::linalg::matmul::matmul(
            MatMut::from_column_major_slice_mut(products, len, count),
            Accum::Replace,
            MatRef::from_row_major_slice(&rows, len, dim),
            MatRef::from_row_major_slice(&self.matrix, count, dim).transpose(),
            1.0,
            Par::Seq,
        );
        let mut squares = [0.0; BLOCK_ROWS];
        for (row, square) in (start as Row..).zip(&mut squares[..len]) {
            let bytes = vectors.row(row);
            *square = (self.scorer.square)(bytes, bytes);
        }
        let words = &allowed.words()[start / WORD..(start + len).div_ceil(WORD)];
        for (query, products) in self.queries.iter_mut().zip(products.chunks_exact(len)) {
            let estimate = Estimate::new(self.scorer.metric, dim, query);
            for ((products, squares), (&word, word_start)) in products
                .chunks(WORD)
                .zip(squares[..len].chunks(WORD))
                .zip(words.iter().zip((start..).step_by(WORD)))
            {
                let floor = query.top.floor();
                for bit in ones(word) {
                    let (product, square) = (products[bit as usize], squares[bit as usize]);
                    if floor.is_none_or(|floor| estimate.may_exceed(floor, product, square)) {
                        let row = word_start as Row + bit;
                        let score = self.scorer.score(query.bytes, query.scale, row);
                        offer(&mut query.top, row, score);
                    }
                }
            }
        }
    }
}

/// Says from a product and a row's squared length whether the exact score could be above a
/// floor.
///
/// Product and kernel each err by at most `dim · u · |q| · |x|` (`u` = 2⁻²⁴, Higham, *Accuracy
/// and Stability*, §3.1), and the squared lengths by `dim · u` of themselves; the slack is
/// twice the sum of what enters the estimate.
struct Estimate {
    metric: Metric,
    query_length: f32,
    scale: f32,
    slack: f32,
}

impl Estimate {
    fn new(metric: Metric, dim: usize, query: &InBatch<'_>) -> Self {
        let slack = 2.0 * (dim as f32 + 8.0) * f32::EPSILON;
        Self { metric, query_length: query.square.sqrt(), scale: query.scale, slack }
    }

    #[inline]
    fn may_exceed(&self, floor: f32, product: f32, square: f32) -> bool {
        let (q, x) = (self.query_length, square.sqrt());
        let bound = match self.metric {
            Metric::Cosine => {
                let cosine = if square > 0.0 { product / x * self.scale } else { 0.0 };
                cosine + self.slack
            }
            Metric::L2 => 2.0 * product - q * q - square + self.slack * (q + x) * (q + x),
            Metric::Ip | Metric::Hamming | Metric::Jaccard => product + self.slack * q * x,
        };
        // Overflow makes NaN, of which nothing is known.
        bound.is_nan() || bound > floor
    }
}

/// The floats of little-endian bytes, copied only if they are not aligned.
fn floats(bytes: &[u8]) -> Cow<'_, [f32]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(floats) => Cow::Borrowed(floats),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}
