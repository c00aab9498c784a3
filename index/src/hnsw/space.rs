//! How rows are compared while a graph is made and walked: on half bytes or codes, or on the rows
//! themselves where those would be too coarse.

use rayon::prelude::*;

use super::codes::{Codes, Prepared, numbers};
use crate::flat::Scorer;
use crate::kernel;
use crate::{Bounds, Cancel, Error, Metric, Row, Sections, TopK, Vectors};

/// Rows compared in one call, so that the query is read once for all of them.
pub(super) const ROWS_AT_ONCE: usize = 4;
/// Rows that stand for queries when codes are tried.
const TRIED: usize = 48;
/// Rows among which the tried ones look for their neighbours.
const TRIED_AMONG: usize = 8192;
/// Neighbours looked for.
const NEIGHBOURS: usize = 10;
/// Places among which codes must have them: fewer than a search scores again.
const WITHIN: usize = 15;
/// Share of the neighbours that must be there. Codes of text embeddings have all of them; rows
/// that differ by less than a step of their outlying dimensions fail. By half bytes, embeddings of
/// 384 dimensions pass, and a walk is then as good as on codes; most rows of 64 dimensions fail.
const FOUND_AT_LEAST: f64 = 0.99;
/// Cache lines asked for ahead of those being read; twice as many were no quicker.
const LINES_ON_THEIR_WAY: usize = 36;
/// Cache lines of an exact row asked for ahead; the hardware follows the rest by itself.
const LINES_AHEAD: usize = 8;

/// The rows of a segment, ready to be compared.
#[derive(Debug)]
pub(super) struct Space {
    vectors: Vectors,
    metric: Metric,
    scorer: Scorer,
    codes: Option<Codes>,
}

/// On what rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum By {
    HalfBytes,
    Codes,
    #[default]
    Rows,
}

/// A query, or a row in its place, ready to be compared with rows.
#[derive(Debug, Default)]
pub(super) struct Target {
    by: By,
    numbers: Vec<f32>,
    prepared: Prepared,
    bytes: Vec<u8>,
    scale: f32,
}

impl Target {
    /// Whether it is compared on half bytes.
    pub(super) fn is_coarse(&self) -> bool {
        self.by == By::HalfBytes
    }

    /// From now on is compared on codes, if it was on half bytes; tells whether it was.
    pub(super) fn refine(&mut self) -> bool {
        let was_coarse = self.is_coarse();
        if was_coarse {
            self.by = By::Codes;
        }
        was_coarse
    }
}

impl Space {
    /// Encodes all rows, and keeps the codes if they are good enough.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Unsupported`] if the metric does not apply.
    pub(super) fn fit(vectors: &Vectors, metric: Metric, cancel: &Cancel) -> Result<Self, Error> {
        let codes = Some(Codes::encode(vectors, metric, cancel)?);
        let scorer = Scorer::new(vectors, metric)?;
        let mut space = Self { vectors: vectors.clone(), metric, scorer, codes };
        if space.found(By::Codes) < FOUND_AT_LEAST {
            space.codes = None;
        }
        space.set_coarse(true);
        if space.codes.is_some() && space.found(By::HalfBytes) < FOUND_AT_LEAST {
            space.set_coarse(false);
        }
        Ok(space)
    }

    /// Without codes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the metric does not apply.
    #[cfg(test)]
    pub(super) fn plain(vectors: &Vectors, metric: Metric) -> Result<Self, Error> {
        let scorer = Scorer::new(vectors, metric)?;
        Ok(Self { vectors: vectors.clone(), metric, scorer, codes: None })
    }

    /// # Errors
    /// [`Error::Corrupt`] if sections do not fit; [`Error::Unsupported`] if the metric does not
    /// apply.
    pub(super) fn open(
        sections: &dyn Sections,
        vectors: Vectors,
        metric: Metric,
    ) -> Result<Self, Error> {
        let codes = Codes::open(sections, &vectors, metric)?;
        let scorer = Scorer::new(&vectors, metric)?;
        Ok(Self { vectors, metric, scorer, codes })
    }

    fn set_coarse(&mut self, wanted: bool) {
        if let Some(codes) = &mut self.codes {
            codes.set_coarse(wanted);
        }
    }

    pub(super) fn into_sections(self) -> [(&'static str, Vec<u8>); 5] {
        Codes::into_sections(self.codes)
    }

    pub(super) fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    pub(super) fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    #[inline]
    pub(super) fn rows(&self) -> usize {
        self.vectors.rows()
    }

    /// Whether rows are compared on their codes.
    #[cfg(test)]
    pub(super) fn is_coded(&self) -> bool {
        self.codes.is_some()
    }

    /// Whether there are half bytes.
    #[cfg(test)]
    pub(super) fn has_coarse(&self) -> bool {
        self.coarsest() == By::HalfBytes
    }

    fn coarsest(&self) -> By {
        match &self.codes {
            Some(codes) if codes.coarse().is_some() => By::HalfBytes,
            Some(_) => By::Codes,
            None => By::Rows,
        }
    }

    /// From now on compares a query on what is read quickest.
    pub(super) fn coarsen(&self, target: &mut Target) {
        target.by = self.coarsest();
    }

    /// Makes a target of a query's bytes, to be compared on what is read quickest.
    pub(super) fn prepare(&self, bytes: &[u8], target: &mut Target) {
        if let Some(codes) = &self.codes {
            numbers(self.metric, self.vectors.elem(), bytes, &mut target.numbers);
            codes.prepare(&mut target.numbers, &mut target.prepared);
            self.coarsen(target);
        } else {
            target.by = By::Rows;
            target.bytes.clear();
            target.bytes.extend_from_slice(bytes);
            target.scale = self.scorer.scale(bytes);
        }
    }

    /// Makes a target of a row, to be compared on codes.
    pub(super) fn prepare_row(&self, row: Row, target: &mut Target) {
        match &self.codes {
            Some(codes) => {
                codes.prepare_row(row, &mut target.numbers, &mut target.prepared);
                target.by = By::Codes;
            }
            None => self.prepare(self.vectors.row(row), target),
        }
    }

    /// How close a row is; larger is closer. Exact only without codes.
    #[inline]
    pub(super) fn score(&self, target: &Target, row: Row) -> f32 {
        match &self.codes {
            Some(codes) if target.by == By::HalfBytes => codes.coarse_score(&target.prepared, row),
            Some(codes) => codes.score(&target.prepared, row),
            None => self.score_exactly(target, row),
        }
    }

    /// Hands the [`Space::score`] of each row to `take`.
    #[inline]
    pub(super) fn score_each(&self, target: &Target, rows: &[Row], take: impl FnMut(Row, f32)) {
        let Some(codes) = &self.codes else {
            let ask = |row| kernel::prefetch(self.vectors.row(row), LINES_AHEAD);
            let exactly = |four: [Row; 4]| four.map(|row| self.score_exactly(target, row));
            return in_fours(rows, ahead(LINES_AHEAD), ask, exactly, take);
        };
        let prepared = &target.prepared;
        if let (Some(coarse), By::HalfBytes) = (codes.coarse(), target.by) {
            let (ask, ahead) =
                (|row| coarse.lines().prefetch(row), ahead(coarse.lines().per_row()));
            in_fours(rows, ahead, ask, |four| codes.coarse_score_all(prepared, four), take);
        } else {
            let (ask, ahead) = (|row| codes.lines().prefetch(row), ahead(codes.lines().per_row()));
            in_fours(rows, ahead, ask, |four| codes.score_all(prepared, four), take);
        }
    }

    fn score_exactly(&self, target: &Target, row: Row) -> f32 {
        let score = self.scorer.score(&target.bytes, target.scale, row);
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    }

    /// The share of rows' true neighbours that are among the best [`WITHIN`] by codes or half
    /// bytes, in a sample.
    fn found(&self, by: By) -> f64 {
        let rows = self.rows();
        let every = |count: usize| rows.div_ceil(count).max(1);
        let pool: Vec<Row> = (0..rows as Row).step_by(every(TRIED_AMONG)).collect();
        let tried: Vec<Row> = (0..rows as Row).step_by(every(TRIED)).collect();
        let counts = tried.par_iter().map(|&row| self.neighbours_found(row, &pool, by));
        let (found, wanted) = counts.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        if wanted == 0 { 1.0 } else { found as f64 / wanted as f64 }
    }

    /// How many of the neighbours of `row` in `pool` are found, and how many there are.
    fn neighbours_found(&self, row: Row, pool: &[Row], by: By) -> (usize, usize) {
        let bytes = self.vectors.row(row);
        let scale = self.scorer.scale(bytes);
        let mut target = Target::default();
        self.prepare(bytes, &mut target);
        target.by = if self.codes.is_some() { by } else { By::Rows };
        let mut exact = TopK::new(NEIGHBOURS, Bounds::default());
        let mut coded = TopK::new(WITHIN, Bounds::default());
        for &other in pool.iter().filter(|other| **other != row) {
            exact.push(other, self.scorer.score(bytes, scale, other));
            coded.push(other, self.score(&target, other));
        }
        let exact = exact.into_hits();
        let Some(worst) = exact.last().map(|hit| hit.score) else { return (0, 0) };
        // By score, as equal rows may stand for each other.
        let coded = coded.into_hits().into_iter();
        let found = coded.filter(|hit| {
            // NaN is worse than every number, as in the heap.
            self.scorer.score(bytes, scale, hit.row) >= worst || worst == f32::NEG_INFINITY
        });
        (found.count().min(exact.len()), exact.len())
    }
}

/// How many times [`ROWS_AT_ONCE`] rows of so many cache lines are asked for before the first are
/// scored.
#[inline]
fn ahead(lines: usize) -> usize {
    (LINES_ON_THEIR_WAY / ROWS_AT_ONCE / lines.max(1)).max(1)
}

/// Scores rows and hands the scores to `take`. While some are scored the next ones are asked for,
/// and no more: beyond as many cache lines as can be on their way at once, asking only waits.
#[inline]
fn in_fours(
    rows: &[Row],
    ahead: usize,
    ask: impl Fn(Row),
    score: impl Fn([Row; ROWS_AT_ONCE]) -> [f32; ROWS_AT_ONCE],
    mut take: impl FnMut(Row, f32),
) {
    let (fours, rest) = rows.as_chunks::<ROWS_AT_ONCE>();
    let mut asked = (ahead * ROWS_AT_ONCE).min(rows.len());
    rows[..asked].iter().for_each(|row| ask(*row));
    for four in fours {
        let end = (asked + ROWS_AT_ONCE).min(rows.len());
        rows[asked..end].iter().for_each(|row| ask(*row));
        asked = end;
        for (row, score) in four.iter().zip(score(*four)) {
            take(*row, score);
        }
    }
    if let Some(last) = rest.last() {
        // Quicker together with some that nobody asked for than one by one.
        let mut four = [*last; ROWS_AT_ONCE];
        four[..rest.len()].copy_from_slice(rest);
        for (row, score) in rest.iter().zip(score(four)) {
            take(*row, score);
        }
    }
}
