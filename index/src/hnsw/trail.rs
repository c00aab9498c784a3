//! A walk that can be left and gone on with, for results that are handed out page by page.
//!
//! It goes from the best row met to the next best and hands out the rows in the order in which it
//! leaves them, which is the order of a beam search without its end: what one page did not need is
//! where the next begins. A caller that keeps as many rows back as a beam is wide finds as much in
//! each page as by a search with that beam.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::graph::Graph;
use super::search::{HnswIndex, MOSTLY_ALLOWED, spread};
use super::walk::{Around, EXPANSIONS_PER_CHECK, LINES_OF_LINKS, Scratch, Seen, descend};
use crate::kernel;
use crate::{Cancel, Error, Row, RowMask};

/// So many steps of a walk take as long as a scan of `m` rows themselves, or a little less (`make
/// bench`, 60,000 x 384, M 16: a place of a beam takes 1.0 µs, a row of a scan 0.18 µs).
const STEPS_PER_M: usize = 2;
/// Steps that one of a walk over allowed rows is like, which looks at the links of many others.
const STEPS_PER_ALLOWED_STEP: usize = 5;
/// Rows met that are kept however short the walk.
const FEWEST_KEPT: usize = 4096;

/// Where a search stands that hands out its rows page by page; a new one stands at the beginning.
#[derive(Debug, Default)]
pub struct Trail {
    stage: Stage,
    /// Rows that the walk has met.
    seen: Seen,
    /// Those of them that it has not been to, but for the many that it will never come to.
    open: BinaryHeap<Met>,
    /// Rows that it has been to.
    steps: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Stage {
    #[default]
    Ahead,
    /// Over this many rows, and all of them or only those allowed.
    Underway {
        rows: usize,
        all: bool,
    },
    Over,
}

/// A row to go to; the greatest is the closest to the query.
#[derive(Debug, Clone, Copy)]
struct Met {
    score: f32,
    row: Row,
}

impl PartialEq for Met {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Met {}
impl PartialOrd for Met {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Met {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.row.cmp(&self.row))
    }
}

impl Trail {
    /// Bytes of heap: a bit for each row of the index, and some hundred kilobytes at most for each
    /// million of them.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.seen.bytes() + self.open.capacity() * size_of::<Met>()
    }

    /// Up to `wanted` more allowed rows, in the order in which the walk leaves them; none once it is
    /// over.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and then it is over; [`Error::Unsupported`] if it began in another index.
    pub(super) fn follow(
        &mut self,
        index: &HnswIndex,
        scratch: &mut Scratch,
        wanted: usize,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Row>, Error> {
        let (graph, space) = (&index.graph, &index.space);
        if self.stage == Stage::Ahead {
            self.begin(index, scratch, allowed);
        }
        let Stage::Underway { rows, all } = self.stage else { return Ok(Vec::new()) };
        if rows != space.rows() {
            let detail = format!("a walk over {rows} rows, the index has {}", space.rows());
            return Err(Error::Unsupported(detail));
        }
        // Most likely it ends here.
        self.stage = Stage::Over;
        let per_step = if all { 1 } else { STEPS_PER_ALLOWED_STEP };
        let most_steps = allowed.count() * STEPS_PER_M / (graph.m * per_step);
        let around = if all { Around::Links } else { Around::AllowedWithinTwo(allowed) };
        let Scratch { target, fresh, scores, .. } = scratch;
        let mut found = Vec::new();
        // A page that would end in a look at every row begins with it.
        if self.steps.saturating_add(wanted) > most_steps {
            return Ok(found);
        }
        while found.len() < wanted {
            let Some(Met { row: here, .. }) = self.open.pop() else { return Ok(found) };
            self.steps += 1;
            if self.steps.is_multiple_of(EXPANSIONS_PER_CHECK) {
                cancel.check()?;
            }
            if self.steps > most_steps {
                return Ok(found);
            }
            if allowed.contains(here) {
                found.push(here);
            }
            fresh.clear();
            around.look(rows, |row| graph.base(row), here, &mut self.seen, fresh);
            let scores = space.score_all(target, fresh, scores);
            let met =
                scores.iter().zip(&*fresh).map(|(score, row)| Met { score: *score, row: *row });
            self.open.extend(met);
            if let Some(next) = self.open.peek() {
                kernel::prefetch(graph.base(next.row), LINES_OF_LINKS);
            }
            self.forget(most_steps.max(FEWEST_KEPT));
        }
        self.stage = Stage::Underway { rows, all };
        Ok(found)
    }

    fn begin(&mut self, index: &HnswIndex, scratch: &mut Scratch, allowed: &RowMask) {
        self.stage = Stage::Over;
        let (rows, share) =
            (index.space.rows(), allowed.count() as f64 / index.space.rows() as f64);
        let Some(start) = descend(&index.graph, &index.space, 0, scratch) else { return };
        // Where the filter goes against the query, most rows close to it are met in vain.
        let against = share < 1.0 && index.allowed_around(start, allowed) < share / 2.0;
        let all = share >= MOSTLY_ALLOWED && !against;
        self.seen.clear(rows);
        let elsewhere = (!all).then(|| spread(allowed)).into_iter().flatten();
        for row in std::iter::once(start).chain(elsewhere) {
            if self.seen.insert(row) {
                self.open.push(Met { score: index.space.score(&scratch.target, row), row });
            }
        }
        self.stage = Stage::Underway { rows, all };
    }

    /// Leaves out the farthest of too many rows: a walk of so many steps will not come to them.
    fn forget(&mut self, kept: usize) {
        if self.open.len() > kept.saturating_mul(2) {
            let mut sorted = std::mem::take(&mut self.open).into_sorted_vec();
            sorted.drain(..sorted.len() - kept);
            self.open = sorted.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::hnsw::tests::{Shape, open, vectors};
    use crate::{Elem, FlatIndex, Hit, Metric, Query, SearchParams, VectorIndex, Vectors};

    const ROWS: usize = 12_000;
    const DIM: usize = 32;
    /// Rows that a caller keeps back.
    const BEYOND: usize = 64;

    /// Pages of `size` rows, until the walk is over; what was kept back comes last.
    fn pages(
        index: &HnswIndex,
        query: &Query<'_>,
        size: usize,
        allowed: &RowMask,
    ) -> Vec<Vec<Hit>> {
        let (mut trail, mut ready, mut pages) = (Trail::default(), Vec::new(), Vec::new());
        loop {
            let wanted = size + BEYOND - ready.len();
            let never = Cancel::never();
            let hits = index.go_on(&mut trail, query, wanted, allowed, &never).expect("a walk");
            assert!(hits.is_sorted_by(|a, b| a.best_first(b).is_lt()));
            assert!(hits.len() <= wanted);
            let is_over = hits.is_empty();
            ready.extend(hits);
            ready.sort_unstable_by(Hit::best_first);
            if is_over {
                pages.push(ready);
                return pages;
            }
            pages.push(ready.drain(..size.min(ready.len())).collect());
        }
    }

    fn ranked(data: &Vectors, query: &Query<'_>, allowed: &RowMask) -> Vec<Hit> {
        let flat = FlatIndex::new(data.clone(), Metric::L2);
        let every = SearchParams { k: data.rows(), ..SearchParams::default() };
        flat.search(query, &every, allowed, &Cancel::never()).expect("a search")
    }

    #[test]
    fn pages_follow_the_ranking_with_exact_scores_and_no_row_twice() {
        let data = vectors(Shape::Clustered, Elem::F32, ROWS, DIM, 1);
        let queries = vectors(Shape::Clustered, Elem::F32, 10, DIM, 2);
        let index = open(&data, Metric::L2);
        let filters = [
            ("all", RowMask::all(ROWS), 10, 20),
            ("half", RowMask::from_fn(ROWS, |row| row % 7 < 4), 10, 20),
            ("a third", RowMask::from_fn(ROWS, |row| row % 3 == 0), 10, 3),
        ];
        for (name, allowed, size, fewest) in filters {
            let (mut found, mut wanted) = (0, 0);
            for row in 0..queries.rows() as Row {
                let query = Query::Dense(queries.row(row));
                let exact = ranked(&data, &query, &allowed);
                let pages = pages(&index, &query, size, &allowed);
                assert!(pages.len() > fewest, "{name}: {} pages", pages.len());
                let mut sent: Vec<Hit> = Vec::new();
                for page in &pages[..pages.len() - 1] {
                    sent.extend(page);
                    // By score, as equal rows may stand for each other.
                    let worst = exact[sent.len() - 1].score;
                    found += sent.iter().filter(|hit| hit.score >= worst).count();
                    wanted += sent.len();
                }
                sent.extend(&pages[pages.len() - 1]);
                let mut rows: Vec<Row> = sent.iter().map(|hit| hit.row).collect();
                rows.sort_unstable();
                assert!(rows.is_sorted_by(|a, b| a < b), "{name}: a row twice");
                for hit in &sent {
                    let at = exact.binary_search_by(|other| other.best_first(hit));
                    assert!(at.is_ok(), "{name}: {hit:?} is not among the allowed rows so scored");
                }
            }
            let recall = f64::from(found as u32) / wanted as f64;
            assert!(recall >= 0.97, "{name}: {recall}");
        }
    }

    #[test]
    fn a_walk_that_would_not_pay_is_over_at_once() {
        let data = vectors(Shape::Clustered, Elem::F32, 2000, 16, 1);
        let index = open(&data, Metric::L2);
        let (query, never) = (Query::Dense(data.row(7)), Cancel::never());
        let few = RowMask::from_fn(2000, |row| row % 50 == 0);
        for (allowed, wanted) in [(RowMask::all(2000), 1000), (few, 10), (RowMask::none(2000), 10)]
        {
            let mut trail = Trail::default();
            let hits = index.go_on(&mut trail, &query, wanted, &allowed, &never);
            assert_eq!(hits, Ok(vec![]));
        }
    }

    #[test]
    fn a_walk_to_the_end_of_few_rows_comes_to_all_that_are_linked() {
        let data = vectors(Shape::Clustered, Elem::F32, 300, 16, 1);
        let index = open(&data, Metric::L2);
        let (query, all) = (Query::Dense(data.row(7)), RowMask::all(300));
        let mut found = 0;
        let mut trail = Trail::default();
        for _ in 0..100 {
            let hits = index.go_on(&mut trail, &query, 3, &all, &Cancel::never()).expect("a walk");
            found += hits.len();
        }
        assert!((30..=300).contains(&found), "{found}");
        assert!(trail.heap_bytes() < 300 * size_of::<Met>() * 4);
    }

    #[test]
    fn a_stopped_walk_is_over_and_a_trail_belongs_to_its_index() {
        let data = vectors(Shape::Clustered, Elem::F32, ROWS, 16, 1);
        let index = open(&data, Metric::L2);
        let (query, all, stop) = (Query::Dense(data.row(7)), RowMask::all(ROWS), Cancel::never());
        let mut trail = Trail::default();
        assert_eq!(index.go_on(&mut trail, &query, 5, &all, &stop).map(|hits| hits.len()), Ok(5));
        let other = vectors(Shape::Clustered, Elem::F32, 900, 16, 1);
        let refused =
            open(&other, Metric::L2).go_on(&mut trail, &query, 5, &RowMask::all(900), &stop);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        stop.flag().store(true, Ordering::Relaxed);
        let stopped = index.go_on(&mut trail, &query, 600, &all, &stop);
        assert_eq!(stopped, Err(Error::Cancelled));
    }
}
