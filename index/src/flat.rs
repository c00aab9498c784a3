//! Exact search: every allowed row is scored.
//!
//! One query reads the rows once, at memory speed, or their codes, where it has some, and the rows
//! that they do not rule out (`codes`). Several float32 queries at once share the reading of the
//! rows (`batch`). All ways return the same rows with the same scores, to the last bit.

mod batch;
mod codes;
#[cfg(test)]
mod tests;

use batch::Batch;
use codes::CodeScan;
pub use codes::FlatCodes;

use crate::kernel::{self, Kernel, TILE_QUERIES};
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

/// From here on sharing what is read is quicker than one pass per query.
const SEVERAL_QUERIES: usize = 4;

/// Exact search over dense or binary rows.
#[derive(Debug)]
pub struct FlatIndex {
    vectors: Vectors,
    metric: Metric,
    codes: Option<FlatCodes>,
}

impl FlatIndex {
    /// An index over `vectors`; nothing is read or copied. Whether the metric applies to the
    /// element type is found out by the first search.
    #[must_use]
    pub fn new(vectors: Vectors, metric: Metric) -> Self {
        Self { vectors, metric, codes: None }
    }

    /// The same, with codes of the same rows that make it quicker.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if they are of other rows, as far as numbers tell.
    pub fn with_codes(self, codes: FlatCodes) -> Result<Self, Error> {
        if codes.are_of(&self.vectors) {
            return Ok(Self { codes: Some(codes), ..self });
        }
        let (rows, dim) = (self.vectors.rows(), self.vectors.dim());
        Err(Error::Unsupported(format!(
            "codes of {} rows for {rows} of {:?} with {dim} dimensions",
            codes.rows(),
            self.vectors.elem()
        )))
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
        let select = kernel::select();
        let rows = self.vectors.rows();
        let codes = self.codes.as_ref();
        let mut codes = codes.and_then(|codes| CodeScan::new(codes, self.metric, query));
        for (at, &word) in allowed.words().iter().enumerate() {
            let start = at * WORD;
            if start.is_multiple_of(ROWS_PER_CHECK) {
                cancel.check()?;
            }
            let len = WORD.min(rows - start);
            let mut word = word;
            // Without a floor, every row enters.
            if let Some(floor) = top.floor()
                && let Some(codes) = codes.as_mut().filter(|codes| codes.pays())
            {
                word = codes.may_pass(start, word, floor);
            }
            if word.count_ones() as usize == len {
                let scores = &mut scores[..len];
                (scorer.kernel.block)(query, self.vectors.range(start, len), scores);
                scores.iter_mut().for_each(|score| *score *= scale);
                let mut better = [0];
                select(scores, top.floor().unwrap_or(f32::NAN), &mut better);
                for bit in ones(better[0]) {
                    offer(&mut top, start as Row + bit, scores[bit as usize]);
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
        if queries.len() < SEVERAL_QUERIES || self.vectors.elem() != Elem::F32 || params.k == 0 {
            return queries
                .iter()
                .map(|query| self.search(query, params, allowed, cancel))
                .collect();
        }
        let mut results = Vec::with_capacity(queries.len());
        for queries in queries.chunks(TILE_QUERIES) {
            let scorers = queries.iter().map(|query| self.prepare(query, allowed));
            let Some(scorer) = scorers.collect::<Result<Vec<_>, _>>()?.pop() else { break };
            results.extend(Batch::new(scorer, queries, params)?.search(allowed, cancel)?);
        }
        Ok(results)
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
