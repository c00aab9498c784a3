//! Exact search over an inverted index, term at a time.
//!
//! Window by window, the postings of the query's terms are added into an array of scores that
//! stays in cache; then the array is read once for scores above the worst of the `k` kept. Where
//! a query touches few rows of a window, those are read instead. The array says by itself which
//! rows were touched: it starts out as [`UNTOUCHED`].

use std::cell::RefCell;
use std::ops::Range;

use arrow_buffer::ScalarBuffer;

use super::build::{
    self, FORMAT, LOCALS, META, RUN_ENDS, RUN_WINDOWS, TERM_RUNS, TERMS, WEIGHTS, WINDOW,
};
use super::query::Terms;
use crate::kernel::{self, UNTOUCHED};
use crate::mask::ones;
use crate::search::check_mask;
use crate::sections::typed;
use crate::{
    Cancel, Error, Hit, Query, Row, RowMask, SearchParams, Sections, SparseRow, TopK, VectorIndex,
};

/// The scores of one window.
type Scores = [f32; WINDOW];

/// 1,024 scores are read against one floor before it is looked up again: while the `k` best are
/// still being found it rises quickly.
const SCAN_ROWS: usize = 1024;

/// Reading a posting's row back costs about as much as reading this many scores in a row.
const SCORES_PER_POSTING: usize = 8;

thread_local! {
    /// The scores of this thread's last search, all untouched again: 256 KiB per thread that
    /// searches.
    static SCORES: RefCell<Option<Box<Scores>>> = const { RefCell::new(None) };
}

/// An inverted index over the rows of a sparse field; exact, by inner product.
#[derive(Debug)]
pub struct SparseIndex {
    rows: usize,
    /// Some weight is negative, or negative zero.
    signed: bool,
    terms: ScalarBuffer<u32>,
    term_runs: ScalarBuffer<u32>,
    run_windows: ScalarBuffer<u32>,
    run_ends: ScalarBuffer<u64>,
    locals: ScalarBuffer<u16>,
    weights: ScalarBuffer<f32>,
}

impl SparseIndex {
    /// Makes the named sections of an index over `rows`, in row order; rows without a vector are
    /// empty. `rows` is gone through twice.
    #[must_use]
    pub fn build<'a>(
        rows: impl Iterator<Item = SparseRow<'a>> + Clone,
    ) -> Vec<(&'static str, Vec<u8>)> {
        build::build(rows)
    }

    /// Opens an index over its sections, which are read in place.
    ///
    /// Everything that a search would trip over is checked here: about 12 bytes per term and
    /// window, and the postings of the last window.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a section is missing, has another length than the others ask for, or
    /// points outside.
    pub fn open(sections: &dyn Sections) -> Result<Self, Error> {
        let meta = typed::<u64>(sections, META)?;
        let &[format, rows, postings, signed] = &*meta else {
            return Err(Error::Corrupt(format!("`{META}` has {} numbers, expected 4", meta.len())));
        };
        if format != FORMAT {
            return Err(Error::Corrupt(format!(
                "the sparse index has format {format}, this version reads {FORMAT}"
            )));
        }
        if rows != sections.rows() as u64 {
            return Err(Error::Corrupt(format!(
                "the sparse index covers {rows} rows, the segment has {}",
                sections.rows()
            )));
        }
        let index = Self {
            rows: sections.rows(),
            signed: signed != 0,
            terms: typed(sections, TERMS)?,
            term_runs: typed(sections, TERM_RUNS)?,
            run_windows: typed(sections, RUN_WINDOWS)?,
            run_ends: typed(sections, RUN_ENDS)?,
            locals: typed(sections, LOCALS)?,
            weights: typed(sections, WEIGHTS)?,
        };
        index.check(postings)?;
        Ok(index)
    }

    fn check(&self, postings: u64) -> Result<(), Error> {
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(Error::Corrupt(format!("sparse index: {what}"))) }
        };
        let runs = self.run_windows.len();
        require(self.locals.len() as u64 == postings, "a row for each posting")?;
        require(self.weights.len() as u64 == postings, "a weight for each posting")?;
        require(self.term_runs.len() == self.terms.len(), "runs for each term")?;
        require(self.run_ends.len() == runs, "an end for each run")?;
        require(self.terms.is_sorted_by(|a, b| a < b), "terms strictly ascend")?;
        require(self.term_runs.is_sorted(), "a term's runs come after the term's before")?;
        require(self.run_ends.is_sorted(), "a run's postings come after the run's before")?;
        let ends = |last: Option<u64>, of: u64| last.unwrap_or(0) == of;
        let last_run = self.term_runs.last().map(|&end| end.into());
        require(ends(last_run, runs as u64), "terms use all runs")?;
        require(ends(self.run_ends.last().copied(), postings), "runs use all postings")?;
        let windows = self.rows.div_ceil(WINDOW);
        let in_last = self.rows % WINDOW;
        for term in 0..self.terms.len() {
            let runs = &self.run_windows[self.runs(term)];
            require(runs.is_sorted_by(|a, b| a < b), "windows strictly ascend within a term")?;
            require(
                runs.last().is_none_or(|&last| (last as usize) < windows),
                "no window past the last",
            )?;
        }
        // All other windows have a row for each of the 65,536 values.
        for run in (0..runs).filter(|&run| self.run_windows[run] as usize == self.rows / WINDOW) {
            let last = self.locals[self.postings(run)].iter().max();
            require(last.is_none_or(|&last| usize::from(last) < in_last), "no row past the last")?;
        }
        Ok(())
    }

    fn runs(&self, term: usize) -> Range<usize> {
        let start = if term == 0 { 0 } else { self.term_runs[term - 1] };
        start as usize..self.term_runs[term] as usize
    }

    fn postings(&self, run: usize) -> Range<usize> {
        let start = if run == 0 { 0 } else { self.run_ends[run - 1] };
        start as usize..self.run_ends[run] as usize
    }

    /// The query's terms that the index has, with their runs.
    fn active(&self, terms: &Terms) -> Vec<Active> {
        let known = terms.iter().filter_map(|(id, weight)| {
            let term = self.terms.binary_search(&id).ok()?;
            Some(Active { weight, runs: self.runs(term) })
        });
        known.collect()
    }

    /// The postings of `active` in `window`, with the query's weights, in the terms' order.
    fn runs_in(&self, active: &mut [Active], window: usize, found: &mut Vec<(Range<usize>, f32)>) {
        found.clear();
        for term in active {
            if !term.runs.is_empty() && self.run_windows[term.runs.start] as usize == window {
                found.push((self.postings(term.runs.start), term.weight));
                term.runs.start += 1;
            }
        }
    }

    fn accumulate(&self, runs: &[(Range<usize>, f32)], signed: bool, scores: &mut Scores) {
        for (postings, asked) in runs {
            let postings =
                self.locals[postings.clone()].iter().zip(&self.weights[postings.clone()]);
            if signed {
                for (&local, weight) in postings {
                    // Adding +0 turns a product of -0, which would leave the row untouched,
                    // into +0.
                    scores[usize::from(local)] += asked * weight + 0.0;
                }
            } else {
                for (&local, weight) in postings {
                    scores[usize::from(local)] += asked * weight;
                }
            }
        }
    }

    /// Offers the touched rows by going over their postings again.
    fn collect_few(
        &self,
        runs: &[(Range<usize>, f32)],
        base: usize,
        allowed: &RowMask,
        scores: &mut Scores,
        top: &mut TopK,
    ) {
        for (postings, _) in runs {
            for &local in &self.locals[postings.clone()] {
                let score = std::mem::replace(&mut scores[usize::from(local)], UNTOUCHED);
                let row = (base + usize::from(local)) as Row;
                if score.to_bits() != UNTOUCHED.to_bits() && allowed.contains(row) {
                    top.push(row, score);
                }
            }
        }
    }
}

/// Offers the touched rows by going over the scores of a window, which begins at row `base`.
fn collect_all(base: usize, allowed: &RowMask, scores: &mut [f32], top: &mut TopK) {
    let select = kernel::select();
    for (scores, start) in scores.chunks_mut(SCAN_ROWS).zip((base..).step_by(SCAN_ROWS)) {
        let mut passed = [0; SCAN_ROWS / 64];
        select(scores, top.floor().unwrap_or(f32::NAN), &mut passed);
        let allowed = &allowed.words()[start / 64..];
        for (at, (passed, allowed)) in passed.iter().zip(allowed).enumerate() {
            for bit in ones(passed & allowed) {
                let place = at * 64 + bit as usize;
                top.push((start + place) as Row, scores[place]);
            }
        }
        scores.fill(UNTOUCHED);
    }
}

/// A term of the query.
struct Active {
    weight: f32,
    /// Its runs not yet gone through.
    runs: Range<usize>,
}

impl VectorIndex for SparseIndex {
    fn search(
        &self,
        query: &Query<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let terms = Terms::new(query.sparse()?, params.drop_ratio)?;
        check_mask(self.rows, allowed)?;
        cancel.check()?;
        let mut active = self.active(&terms);
        if params.k == 0 || active.is_empty() {
            return Ok(Vec::new());
        }
        let signed = self.signed || active.iter().any(|term| term.weight.is_sign_negative());
        // Put back only when all is untouched again: should this thread unwind, the next search
        // starts from new scores.
        let mut scores = SCORES.take().unwrap_or_else(untouched_scores);
        let mut top = TopK::new(params.k, params.bounds);
        let mut runs = Vec::with_capacity(active.len());
        for (window, base) in (0..self.rows).step_by(WINDOW).enumerate() {
            let len = WINDOW.min(self.rows - base);
            self.runs_in(&mut active, window, &mut runs);
            if runs.is_empty() || nothing_allowed(allowed, base, len) {
                continue;
            }
            cancel.check()?;
            self.accumulate(&runs, signed, &mut scores);
            let postings: usize = runs.iter().map(|(postings, _)| postings.len()).sum();
            if postings < len / SCORES_PER_POSTING {
                self.collect_few(&runs, base, allowed, &mut scores, &mut top);
            } else {
                collect_all(base, allowed, &mut scores[..len], &mut top);
            }
        }
        SCORES.set(Some(scores));
        Ok(top.into_hits())
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

fn nothing_allowed(allowed: &RowMask, base: usize, len: usize) -> bool {
    allowed.words()[base / 64..(base + len).div_ceil(64)].iter().all(|&word| word == 0)
}

fn untouched_scores() -> Box<Scores> {
    vec![UNTOUCHED; WINDOW].try_into().expect("the vector has exactly that length")
}
