//! Searching an opened graph, with and without a filter.

use std::cell::RefCell;

use super::build;
use super::graph::{Graph, Opened};
use super::params::HnswParams;
use super::seed::Seed;
use super::space::Space;
use super::trail::Trail;
use super::walk::{Around, Scratch, descend, valid, walk};
use crate::flat::Scorer;
use crate::kernel;
use crate::search::check_mask;
use crate::{
    Bounds, Cancel, Elem, Error, FlatIndex, Hit, Metric, Progress, Query, Row, RowMask,
    SearchParams, Sections, TopK, VectorIndex, Vectors,
};

/// The beam width where the caller names none.
const DEFAULT_EF: usize = 64;
/// Rows scored exactly beyond the results wanted: half as many, and at least so many. The trial
/// that lets codes be used finds all but a hundredth of the neighbours in fewer places.
const RERANKED_BESIDES: usize = 6;
/// A walk over all rows takes as long for `m` times each place of its beam as a scan for so many
/// rows (`make bench`: 60,000 x 384, ef 64 and 128).
const SCANNED_PER_PLACE: usize = 3;
/// The same for a walk over allowed rows, which looks at the links of many others.
const SCANNED_PER_ALLOWED_PLACE: usize = 20;
/// As [`SCANNED_PER_PLACE`], for a scan of the rows themselves.
const SCANNED_EXACTLY_PER_PLACE: usize = 1;
/// From this share of allowed rows on, the walk goes over all rows with a beam as much wider.
/// Looking through rows that are not allowed is dear: at a half, the wider beam was a third
/// quicker (`cargo bench --bench hnsw`), at a fifth slower.
pub(super) const MOSTLY_ALLOWED: f64 = 0.4;
/// How much wider the beam is where the filter goes against the query: where rows close to it are
/// allowed less than half as often as others. The nearest allowed rows are then about equally
/// far, which is hard for any walk.
const WIDER_AGAINST: usize = 3;
/// Links of the row closest to the query behind which one looks for that: some 150 rows at M 16.
const LOOKED_BEHIND: usize = 4;
/// Allowed rows, spread over the segment, from which a filtered walk starts besides the usual
/// place, in case the allowed rows lie elsewhere.
const EXTRA_STARTS: usize = 16;
/// A walk on half bytes has a beam wider by this share and by [`WIDER_BY`], so that it finds as much
/// as one on codes (`make bench`: recall at each `ef` is what it was, in less time).
const WIDER_SHARE: usize = 32;
/// Places; what a narrow beam needs.
const WIDER_BY: usize = 2;
/// Of what was found by half bytes, so many times as many rows as will be scored exactly are scored
/// on their codes.
const REFINED: usize = 4;
/// An exact row takes as long as so many codes.
const CODES_PER_ROW: usize = 4;
/// 4,096 rows between looks at the clock while codes are scanned, and in hand at once.
const ROWS_PER_CHECK: usize = 4096;
/// How much wider a beam is made that did not reach far enough.
const WIDER: usize = 4;
/// Exact rows asked for ahead of the one being scored.
const ROWS_AHEAD: usize = 3;
/// Cache lines of an exact row asked for ahead.
const LINES_AHEAD: usize = 8;

thread_local! {
    /// What this thread's last search used: a bit per row of the largest segment searched, and
    /// some lists.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Approximate search over dense rows, by L2, inner product or cosine.
#[derive(Debug)]
pub struct HnswIndex {
    metric: Metric,
    pub(super) space: Space,
    pub(super) graph: Opened,
}

/// How one query is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Plan {
    /// Score all allowed rows.
    Scan,
    /// Walk over all rows with a beam so wide that it should hold the usual number of allowed
    /// ones. Where it holds less than half of that, the filter goes against the query: walk over
    /// allowed rows after all.
    WalkAll {
        /// Places of the beam.
        width: usize,
    },
    /// Walk over allowed rows.
    WalkAllowed,
}

/// How much one query asks for.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Rows it may see.
    allowed: usize,
    /// Results, at most `allowed`.
    k: usize,
    /// Places of the beam, at least `k`.
    ef: usize,
    /// Rows to score exactly, at least `k`.
    wanted: usize,
}

impl Plan {
    /// `share` is that of the allowed rows around the query.
    fn choose(sizes: &Sizes, share: f64, m: usize) -> Self {
        let &Sizes { allowed, k, ef, .. } = sizes;
        let width = (ef as f64 / share).ceil() as usize;
        let (walk, scanned) = if share >= MOSTLY_ALLOWED {
            (Self::WalkAll { width }, width.saturating_mul(m * SCANNED_PER_PLACE))
        } else {
            (Self::WalkAllowed, ef.saturating_mul(m * SCANNED_PER_ALLOWED_PLACE))
        };
        if allowed <= scanned.max(k.saturating_mul(2)) { Self::Scan } else { walk }
    }
}

impl HnswIndex {
    /// Makes the named sections of an index over `vectors`, in parallel on the rayon pool that it
    /// is called in; the same on any number of threads. `progress` counts inserted rows.
    ///
    /// Holds in memory, besides `vectors`: one and a half bytes per dimension of each row (padded to 64),
    /// `16 · m` bytes per row, and per thread a bit per row.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a parameter is out of its limits or the metric does not apply;
    /// [`Error::Cancelled`].
    pub fn build(
        vectors: &Vectors,
        metric: Metric,
        params: &HnswParams,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        check_kind(vectors, metric)?;
        build::build(vectors, metric, params, None, progress, cancel)
    }

    /// As [`HnswIndex::build`], beginning with the links of another graph by the same metric, built
    /// with the same parameters, where that pays.
    ///
    /// # Errors
    /// As [`HnswIndex::build`]; [`Error::Unsupported`] if the places are no places.
    pub fn build_on(
        seed: &Seed<'_>,
        vectors: &Vectors,
        params: &HnswParams,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        let metric = seed.graph.metric;
        check_kind(vectors, metric)?;
        build::build(vectors, metric, params, Some(seed), progress, cancel)
    }

    /// Opens an index over its sections, which are read in place, and the rows it was built on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the sections do not fit each other or `vectors`;
    /// [`Error::Unsupported`] if the metric does not apply.
    pub fn open(sections: &dyn Sections, vectors: Vectors, metric: Metric) -> Result<Self, Error> {
        check_kind(&vectors, metric)?;
        let graph = Opened::open(sections, &vectors, metric)?;
        let space = Space::open(sections, vectors, metric)?;
        Ok(Self { metric, space, graph })
    }

    /// Whether it walks on codes or half bytes.
    #[cfg(test)]
    pub(super) fn is_coded(&self) -> bool {
        self.space.is_coded()
    }

    /// Whether it walks on half bytes.
    #[cfg(test)]
    pub(super) fn is_coarse(&self) -> bool {
        self.space.has_coarse()
    }

    /// Finds about `wanted` allowed rows by their codes, the best ones; none too few to answer with
    /// `k`.
    fn candidates(
        &self,
        sizes: &Sizes,
        allowed: &RowMask,
        scratch: &mut Scratch,
        cancel: &Cancel,
    ) -> Result<Vec<Row>, Error> {
        let share = sizes.allowed as f64 / self.space.rows() as f64;
        self.space.coarsen(&mut scratch.target);
        let mut plan = Plan::choose(sizes, share, self.graph.m);
        if plan != Plan::Scan {
            let mut starts = Vec::from_iter(descend(&self.graph, &self.space, 0, scratch));
            let mut ef = sizes.ef;
            let against = |start: &Row| self.allowed_around(*start, allowed) < share / 2.0;
            if share < 1.0 && starts.iter().any(against) {
                ef = ef.saturating_mul(WIDER_AGAINST);
                plan = Plan::choose(&Sizes { ef, ..*sizes }, 0.0, self.graph.m);
            }
            if let Plan::WalkAll { width } = plan {
                let around = Around::Links;
                let width = Self::widened(width, sizes.wanted, scratch);
                walk(&self.graph, &self.space, 0, &starts, width, around, scratch, cancel)?;
                let found = found(scratch, allowed, sizes.wanted.saturating_mul(REFINED).max(ef));
                if found.len() >= sizes.k.max(ef / 2) {
                    return Ok(self.refined(found, sizes.wanted, scratch));
                }
            }
            if plan != Plan::Scan {
                starts.extend(spread(allowed));
                let around = Around::AllowedWithinTwo(allowed);
                let width = Self::widened(ef, sizes.wanted, scratch);
                walk(&self.graph, &self.space, 0, &starts, width, around, scratch, cancel)?;
                let found = found(scratch, allowed, sizes.wanted.saturating_mul(REFINED));
                if found.len() >= sizes.k {
                    return Ok(self.refined(found, sizes.wanted, scratch));
                }
            }
        }
        self.scan(sizes.wanted, allowed, scratch, cancel)
    }

    /// The beam of a walk, for one of `width` places on codes.
    fn widened(width: usize, wanted: usize, scratch: &Scratch) -> usize {
        if !scratch.target.is_coarse() {
            return width;
        }
        width.saturating_add(width / WIDER_SHARE + WIDER_BY).max(wanted)
    }

    /// The best `wanted` of what was found, best first: by codes, if it was found by half bytes. More,
    /// as they are, where it takes longer to tell which these are than to score them all exactly.
    fn refined(&self, mut found: Vec<Row>, wanted: usize, scratch: &mut Scratch) -> Vec<Row> {
        if scratch.target.refine() {
            found.truncate(wanted.saturating_mul(REFINED));
            if found.len().saturating_sub(wanted) * CODES_PER_ROW <= found.len() {
                return found;
            }
            let scores = self.space.score_all(&scratch.target, &found, &mut scratch.scores);
            let hit = |(row, score): (&Row, &f32)| Hit { row: *row, score: *score };
            let mut scored = Vec::from_iter(found.iter().zip(scores).map(hit));
            scored.sort_unstable_by(Hit::best_first);
            found = scored.into_iter().map(|hit| hit.row).collect();
        }
        found.truncate(wanted);
        found
    }

    /// The share of allowed rows among those linked to `start` or to one of its first links.
    pub(super) fn allowed_around(&self, start: Row, allowed: &RowMask) -> f64 {
        let links = |row: Row| valid(self.graph.base(row), self.space.rows());
        let behind = links(start).take(LOOKED_BEHIND).flat_map(links);
        let (count, all) = (links(start).chain(behind)).fold((0, 0), |(count, all), row| {
            (count + usize::from(allowed.contains(row)), all + 1)
        });
        if all == 0 { 1.0 } else { f64::from(count as u32) / f64::from(all) }
    }

    fn scan(
        &self,
        wanted: usize,
        allowed: &RowMask,
        scratch: &mut Scratch,
        cancel: &Cancel,
    ) -> Result<Vec<Row>, Error> {
        let most = if scratch.target.is_coarse() { wanted.saturating_mul(REFINED) } else { wanted };
        let mut top = TopK::new(most, Bounds::default());
        let Scratch { target, fresh, scores, .. } = scratch;
        let mut word = 0;
        while word < allowed.words().len() {
            cancel.check()?;
            word = allowed.fill(word, ROWS_PER_CHECK, fresh);
            let scores = self.space.score_all(target, fresh, scores);
            top.push_all(fresh, scores);
        }
        let found = top.into_hits().into_iter().map(|hit| hit.row).collect();
        Ok(self.refined(found, wanted, scratch))
    }

    /// Scores `rows` on the rows themselves.
    pub(super) fn rerank(&self, query: &[u8], rows: &[Row], params: &SearchParams) -> Reranked {
        let scorer = self.space.scorer();
        let scale = scorer.scale(query);
        let mut top = TopK::new(params.k, params.bounds);
        let mut worst = f32::INFINITY;
        let ask = |row: &Row| kernel::prefetch(self.space.vectors().row(*row), LINES_AHEAD);
        rows.iter().take(ROWS_AHEAD).for_each(ask);
        for (at, row) in rows.iter().enumerate() {
            rows.get(at + ROWS_AHEAD).into_iter().for_each(ask);
            let score = scorer.score(query, scale, *row);
            worst = worst.min(score);
            top.push(*row, score);
        }
        Reranked { hits: top.into_hits(), worst }
    }

    /// The best rows that score at most `params.bounds.at_most`. A beam begins at the very best
    /// rows, so it is made wider until it reaches past the ones wanted; where that would take
    /// more than a scan of the rows themselves, the scan answers.
    fn search_below(
        &self,
        query: &[u8],
        sizes: &Sizes,
        params: &SearchParams,
        allowed: &RowMask,
        scratch: &mut Scratch,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let mut ef = sizes.ef.max(sizes.wanted);
        while ef.saturating_mul(SCANNED_EXACTLY_PER_PLACE * self.graph.m) < sizes.allowed {
            let wider = Sizes { ef, wanted: ef, ..*sizes };
            let rows = self.candidates(&wider, allowed, scratch, cancel)?;
            let Reranked { hits, worst } = self.rerank(query, &rows, params);
            let past_the_end = params.bounds.above.is_some_and(|above| worst <= above);
            if hits.len() == sizes.k || past_the_end {
                return Ok(hits);
            }
            ef = ef.saturating_mul(WIDER);
        }
        let flat = FlatIndex::new(self.space.vectors().clone(), self.metric);
        flat.search(&Query::Dense(query), params, allowed, cancel)
    }
}

/// Rows scored exactly.
pub(super) struct Reranked {
    /// The best of them within the bounds.
    pub(super) hits: Vec<Hit>,
    /// The lowest score of all.
    worst: f32,
}

/// The allowed rows of the last walk, best first, at most `most`.
fn found(scratch: &Scratch, allowed: &RowMask, most: usize) -> Vec<Row> {
    let rows = scratch.found().iter().map(|one| one.row);
    rows.filter(|row| allowed.contains(*row)).take(most).collect()
}

fn check_kind(vectors: &Vectors, metric: Metric) -> Result<(), Error> {
    if vectors.elem() == Elem::Bit {
        return Err(Error::Unsupported("HNSW does not apply to binary vectors".into()));
    }
    Scorer::new(vectors, metric).map(drop)
}

/// The first allowed row at or behind each of some places spread over the segment.
pub(super) fn spread(allowed: &RowMask) -> impl Iterator<Item = Row> + '_ {
    let words = allowed.words();
    (0..EXTRA_STARTS).filter_map(move |part| {
        let start = words.len() * part / EXTRA_STARTS;
        let at = start + words[start..].iter().position(|word| *word != 0)?;
        Some(at as Row * u64::BITS + words[at].trailing_zeros())
    })
}

impl VectorIndex for HnswIndex {
    fn search(
        &self,
        query: &Query<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let bytes = query.dense()?;
        self.space.vectors().check_width(bytes)?;
        check_mask(self.space.rows(), allowed)?;
        cancel.check()?;
        let count = allowed.count();
        if params.k == 0 || count == 0 {
            return Ok(Vec::new());
        }
        let k = params.k.min(count);
        let sizes = Sizes {
            allowed: count,
            k,
            ef: params.ef.unwrap_or(DEFAULT_EF).max(k),
            wanted: k.saturating_add(RERANKED_BESIDES.max(k / 2)),
        };
        let mut scratch = SCRATCH.take();
        self.space.prepare(bytes, &mut scratch.target);
        let hits = if params.bounds.at_most.is_some() {
            self.search_below(bytes, &sizes, params, allowed, &mut scratch, cancel)
        } else {
            let rows = self.candidates(&sizes, allowed, &mut scratch, cancel);
            rows.map(|rows| self.rerank(bytes, &rows, params).hits)
        };
        SCRATCH.set(scratch);
        hits
    }

    fn go_on(
        &self,
        trail: &mut Trail,
        query: &Query<'_>,
        rows: usize,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let bytes = query.dense()?;
        self.space.vectors().check_width(bytes)?;
        check_mask(self.space.rows(), allowed)?;
        cancel.check()?;
        let mut scratch = SCRATCH.take();
        self.space.prepare(bytes, &mut scratch.target);
        let found = trail.follow(self, &mut scratch, rows, allowed, cancel);
        SCRATCH.set(scratch);
        let found = found?;
        let all = SearchParams { k: found.len(), ..SearchParams::default() };
        Ok(self.rerank(bytes, &found, &all).hits)
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
