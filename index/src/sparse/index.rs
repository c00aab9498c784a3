//! Exact search over an inverted index, window by window.

use std::cell::RefCell;
use std::ops::Range;

use arrow_buffer::ScalarBuffer;

use super::build::{
    self, FORMAT, LOCALS, META, OLDEST, RUN_ENDS, RUN_MAX, RUN_WINDOWS, TERM_RUNS, TERMS, WEIGHTS,
    WINDOW,
};
use super::prune::{self, Asked};
use super::query::Terms;
use super::scan::SparseScan;
use super::window::{self, Leg, Scores, Window};
use crate::search::check_mask;
use crate::sections::typed;
use crate::{
    Cancel, Error, Hit, Query, RowMask, SearchParams, Sections, SparseRow, TopK, VectorIndex,
};

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
    column: SparseScan,
    terms: ScalarBuffer<u32>,
    term_runs: ScalarBuffer<u32>,
    run_windows: ScalarBuffer<u32>,
    run_ends: ScalarBuffer<u64>,
    /// Absent from files of format 1.
    run_max: Option<ScalarBuffer<f32>>,
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

    /// Opens an index over its sections and the `column` it was built from, both read in place.
    ///
    /// Everything that a search would trip over is checked here: about 12 bytes per term and
    /// window, and the postings of the last window.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a section is missing, has another length than the others ask for, or
    /// points outside.
    pub fn open(sections: &dyn Sections, column: SparseScan) -> Result<Self, Error> {
        let meta = typed::<u64>(sections, META)?;
        let &[format, rows, postings, signed] = &*meta else {
            return Err(Error::Corrupt(format!("`{META}` has {} numbers, expected 4", meta.len())));
        };
        if !(OLDEST..=FORMAT).contains(&format) {
            return Err(Error::Corrupt(format!(
                "the sparse index has format {format}, this version reads {OLDEST} to {FORMAT}"
            )));
        }
        if rows != sections.rows() as u64 || column.rows() != sections.rows() {
            return Err(Error::Corrupt(format!(
                "the sparse index covers {rows} rows, the segment has {} and its column {}",
                sections.rows(),
                column.rows()
            )));
        }
        let index = Self {
            rows: sections.rows(),
            signed: signed != 0,
            column,
            terms: typed(sections, TERMS)?,
            term_runs: typed(sections, TERM_RUNS)?,
            run_windows: typed(sections, RUN_WINDOWS)?,
            run_ends: typed(sections, RUN_ENDS)?,
            run_max: if format == 1 { None } else { Some(typed(sections, RUN_MAX)?) },
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
        let bounds = self.run_max.as_ref().is_none_or(|most| most.len() == runs);
        require(bounds, "a largest weight for each run")?;
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

    /// The postings of `active` in `window`, in the terms' order.
    fn legs<'a>(&'a self, active: &mut [Active], window: usize, found: &mut Vec<Leg<'a>>) {
        found.clear();
        for term in active {
            let run = term.runs.start;
            if !term.runs.is_empty() && self.run_windows[run] as usize == window {
                let postings = self.postings(run);
                found.push(Leg {
                    locals: &self.locals[postings.clone()],
                    weights: &self.weights[postings],
                    asked: term.weight,
                    most: self
                        .run_max
                        .as_ref()
                        .map_or(f32::INFINITY, |most| term.weight * most[run]),
                });
                term.runs.start += 1;
            }
        }
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
        // A sum of products that are not negative only grows, so that it can be left unfinished
        // once it is clear what it cannot reach. Where rows may score too much to be wanted, the
        // best sums say nothing about the wanted ones.
        let grows = !signed && self.run_max.is_some() && params.bounds.at_most.is_none();
        let asked = grows.then(|| Asked::new(&terms, &self.column));
        // Put back only when all is untouched again: should this thread unwind, the next search
        // starts from new scores.
        let mut scores = SCORES.take().unwrap_or_else(window::untouched);
        let mut top = TopK::new(params.k, params.bounds);
        let mut legs = Vec::with_capacity(active.len());
        for (number, base) in (0..self.rows).step_by(WINDOW).enumerate() {
            let window = Window { base, len: WINDOW.min(self.rows - base), allowed };
            self.legs(&mut active, number, &mut legs);
            if legs.is_empty() || window.is_closed() {
                continue;
            }
            cancel.check()?;
            if let Some(asked) = &asked {
                prune::search(&window, &mut legs, asked, &mut scores, params.k, &mut top)?;
            } else {
                window.search(&legs, signed, &mut scores, &mut top);
            }
        }
        SCORES.set(Some(scores));
        Ok(top.into_hits())
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
