//! How rows are compared while a graph is made and walked: on half bytes or codes, or on the rows
//! themselves where those would be too coarse.

use rayon::prelude::*;

use super::codes::{Codes, Prepared, numbers};
use crate::flat::Scorer;
use crate::kernel;
use crate::{
    Bounds, Cancel, Error, FlatIndex, Hit, Metric, Query, Row, RowMask, SearchParams, Sections,
    TopK, VectorIndex, Vectors,
};

/// Rows that stand for queries when codes are tried.
const TRIED: usize = 48;
/// Of those, as many as share one reading of all rows on a thread.
const TRIED_AT_ONCE: usize = 16;
/// Neighbours looked for.
const NEIGHBOURS: usize = 10;
/// Places among which codes must have them: fewer than a search scores again.
const WITHIN: usize = 15;
/// Rows of a sample among which half bytes must have them within as many places.
const SAMPLED: usize = 8192;
/// Places among which half bytes must have them of all rows: those of a beam.
const WITHIN_BEAM: usize = 32;
/// Share of the neighbours that must be there. Codes of text embeddings have all of them; rows
/// that differ by less than a step of their outlying dimensions fail. Half bytes of 384 dimensions
/// pass, and a walk is then as good as on codes; most rows of 64 dimensions fail.
const FOUND_AT_LEAST: f64 = 0.99;
/// Exact rows asked for ahead of the one being scored.
const ROWS_AHEAD: usize = 3;
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
        // How near the neighbours are tells how fine numbers must be. Of fewer rows they are
        // farther away, so all rows count; but then they are many, and a narrow beam has to tell
        // them from others by ranks that only a sample shows.
        let all = Trial::new(&space, 1, cancel)?;
        if all.found(&space, By::Codes, WITHIN, cancel)? < FOUND_AT_LEAST {
            space.codes = None;
            return Ok(space);
        }
        space.set_coarse(true);
        let sample = Trial::new(&space, vectors.rows().div_ceil(SAMPLED).max(1), cancel)?;
        if sample.found(&space, By::HalfBytes, WITHIN, cancel)? < FOUND_AT_LEAST
            || all.found(&space, By::HalfBytes, WITHIN_BEAM, cancel)? < FOUND_AT_LEAST
        {
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

    /// The [`Space::score`] of each row.
    #[inline]
    pub(super) fn score_all<'a>(
        &self,
        target: &Target,
        rows: &[Row],
        scores: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        scores.resize(rows.len(), 0.0);
        match (&self.codes, target.by) {
            (Some(codes), By::HalfBytes) => codes.coarse_score_all(&target.prepared, rows, scores),
            (Some(codes), By::Codes | By::Rows) => codes.score_all(&target.prepared, rows, scores),
            (None, _) => self.score_all_exactly(target, rows, scores),
        }
        scores
    }

    fn score_all_exactly(&self, target: &Target, rows: &[Row], scores: &mut [f32]) {
        let ask = |row: &Row| kernel::prefetch(self.vectors.row(*row), LINES_AHEAD);
        rows.iter().take(ROWS_AHEAD).for_each(ask);
        for (at, (row, score)) in rows.iter().zip(scores).enumerate() {
            rows.get(at + ROWS_AHEAD).into_iter().for_each(ask);
            *score = self.score_exactly(target, *row);
        }
    }

    fn score_exactly(&self, target: &Target, row: Row) -> f32 {
        let score = self.scorer.score(&target.bytes, target.scale, row);
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    }
}

/// Rows that stand for queries, and how near their neighbours are.
#[derive(Debug)]
struct Trial {
    /// The rows among which neighbours are looked for.
    pool: Vec<Row>,
    queries: Vec<Tried>,
}

#[derive(Debug)]
struct Tried {
    row: Row,
    /// Neighbours it has.
    wanted: usize,
    /// The score of the farthest of them.
    worst: f32,
}

impl Trial {
    /// Among every `step`-th row.
    fn new(space: &Space, step: usize, cancel: &Cancel) -> Result<Self, Error> {
        let rows = space.rows();
        let every = |step: usize| (0..rows as Row).step_by(step);
        let tried: Vec<Row> = every(rows.div_ceil(TRIED).max(1)).collect();
        let queries: Vec<Query<'_>> =
            tried.iter().map(|row| Query::Dense(space.vectors.row(*row))).collect();
        let params = SearchParams { k: NEIGHBOURS + 1, ..SearchParams::default() };
        let flat = FlatIndex::new(space.vectors.clone(), space.metric);
        let pool = RowMask::from_fn(rows, |row| (row as usize).is_multiple_of(step));
        let lists: Vec<Vec<Hit>> = queries
            .par_chunks(TRIED_AT_ONCE)
            .map(|queries| flat.search_many(queries, &params, &pool, cancel))
            .collect::<Result<Vec<_>, Error>>()?
            .concat();
        let queries = tried.into_iter().zip(lists).map(|(row, mut hits)| {
            hits.retain(|hit| hit.row != row);
            hits.truncate(NEIGHBOURS);
            Tried { row, wanted: hits.len(), worst: hits.last().map_or(f32::INFINITY, |h| h.score) }
        });
        Ok(Self { queries: queries.collect(), pool: every(step).collect() })
    }

    /// The share of the neighbours that are among the best `within` by codes or half bytes.
    fn found(&self, space: &Space, by: By, within: usize, cancel: &Cancel) -> Result<f64, Error> {
        let counts = self.queries.par_iter().map(|tried| {
            cancel.check()?;
            Ok(self.found_of(tried, space, by, within))
        });
        let found: usize = counts.collect::<Result<Vec<_>, Error>>()?.iter().sum();
        let wanted: usize = self.queries.iter().map(|tried| tried.wanted).sum();
        Ok(if wanted == 0 { 1.0 } else { found as f64 / wanted as f64 })
    }

    /// How many of the neighbours of a row are found.
    fn found_of(&self, tried: &Tried, space: &Space, by: By, within: usize) -> usize {
        let bytes = space.vectors.row(tried.row);
        let scale = space.scorer.scale(bytes);
        let mut target = Target::default();
        space.prepare(bytes, &mut target);
        target.by = by;
        let mut coded = TopK::new(within, Bounds::default());
        for (row, score) in
            self.pool.iter().zip(space.score_all(&target, &self.pool, &mut Vec::new()))
        {
            if *row != tried.row {
                coded.push(*row, *score);
            }
        }
        // By score, as equal rows may stand for each other.
        let coded = coded.into_hits().into_iter();
        let found = coded.filter(|hit| {
            // NaN is worse than every number, as in the heap.
            space.scorer.score(bytes, scale, hit.row) >= tried.worst
                || tried.worst == f32::NEG_INFINITY
        });
        found.count().min(tried.wanted)
    }
}

#[cfg(test)]
mod tests {
    use arrow_buffer::Buffer;

    use super::*;
    use crate::Elem;
    use crate::testing::Random;

    /// 50 groups of 120 rows, each of which differ by less than half bytes tell apart. Of every
    /// 150th row no two are of one group.
    #[test]
    fn half_bytes_are_tried_on_neighbours_as_near_as_there_are() {
        const DIM: usize = 256;
        const LATENT: usize = 4;
        let random = &mut Random(3);
        let mut drawn = |count: usize| (0..count).map(|_| random.float()).collect::<Vec<f32>>();
        let (directions, places) = (drawn(DIM * LATENT), drawn(50 * LATENT));
        let noise = drawn(6000 * DIM);
        let numbers = noise.iter().enumerate().map(|(at, noise)| {
            let place = &places[at / DIM / 120 * LATENT..][..LATENT];
            let direction = &directions[at % DIM * LATENT..][..LATENT];
            let centre: f32 = place.iter().zip(direction).map(|(a, b)| a * b).sum();
            centre + 0.1 * noise
        });
        let bytes = numbers.flat_map(f32::to_le_bytes).collect::<Vec<_>>();
        let vectors = Vectors::new(Buffer::from_vec(bytes), Elem::F32, DIM).expect("whole rows");
        let never = Cancel::never();
        let mut space = Space::fit(&vectors, Metric::L2, &never).expect("a space");
        assert!(space.is_coded(), "codes");
        assert!(!space.has_coarse(), "half bytes");
        space.set_coarse(true);
        let found = |step: usize, within: usize| {
            let trial = Trial::new(&space, step, &never).expect("a trial");
            trial.found(&space, By::HalfBytes, within, &never).expect("a share")
        };
        let (of_sample, of_all) = (found(150, WITHIN), found(1, WITHIN_BEAM));
        assert!(of_sample >= FOUND_AT_LEAST && of_all < FOUND_AT_LEAST, "{of_sample} {of_all}");
    }
}
