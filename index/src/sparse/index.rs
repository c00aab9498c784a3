//! Search over an inverted index, window by window.

use std::cell::RefCell;
use std::ops::Range;

use arrow_buffer::ScalarBuffer;

use super::build::{
    self, FORMAT, META, PLACE, POSTINGS, RUNS, TERM_RUNS, TERMS, WINDOW, is_mask, row_bytes,
};
use super::query::Terms;
use super::scan::SparseScan;
use super::sketch::{self, Sketch};
use super::window::{Asked, Leg, Rows, Sums, Window};
use crate::search::check_mask;
use crate::sections::typed;
use crate::{
    Bounds, Cancel, Error, Hit, Query, RowMask, SearchParams, Sections, SparseRow, TopK,
    VectorIndex,
};

/// Scoring a row takes about as long as adding this many postings.
const POSTINGS_PER_ROW: usize = 512;

thread_local! {
    /// The sums of this thread's last search, all zero again: 128 KiB per thread that searches.
    static SUMS: RefCell<Option<Box<Sums>>> = const { RefCell::new(None) };
}

/// An inverted index over the rows of a sparse field; exact, by inner product.
#[derive(Debug)]
pub struct SparseIndex {
    rows: usize,
    /// Some weight is negative.
    signed: bool,
    column: SparseScan,
    terms: ScalarBuffer<u32>,
    term_runs: ScalarBuffer<u32>,
    /// Four numbers for each run.
    runs: ScalarBuffer<u32>,
    /// The same bytes three times: as masks, as lists of rows, as levels.
    masks: ScalarBuffer<u64>,
    locals: ScalarBuffer<u16>,
    levels: ScalarBuffer<u8>,
}

/// What is written of a run.
#[derive(Debug, Clone, Copy)]
struct Run {
    window: usize,
    /// Its first byte.
    start: usize,
    postings: usize,
    /// The mean level.
    mean: u8,
    /// The largest magnitude of its weights.
    most: f32,
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
    /// Everything that a search would trip over is checked here: about 16 bytes per term and
    /// window, and the rows of the last window.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a section is missing, has another length than the others ask for, or
    /// points outside; [`Error::Format`] if another version wrote it.
    pub fn open(sections: &dyn Sections, column: SparseScan) -> Result<Self, Error> {
        let meta = typed::<u64>(sections, META)?;
        let &[format, rows, postings, signed] = &*meta else {
            return Err(Error::Corrupt(format!("`{META}` has {} numbers, expected 4", meta.len())));
        };
        if format != FORMAT {
            return Err(Error::Format { found: format, read: FORMAT });
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
            runs: typed(sections, RUNS)?,
            masks: typed(sections, POSTINGS)?,
            locals: typed(sections, POSTINGS)?,
            levels: typed(sections, POSTINGS)?,
        };
        index.check(postings)?;
        Ok(index)
    }

    fn check(&self, postings: u64) -> Result<(), Error> {
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(Error::Corrupt(format!("sparse index: {what}"))) }
        };
        require(self.runs.len().is_multiple_of(4), "four numbers for each run")?;
        require(self.term_runs.len() == self.terms.len(), "runs for each term")?;
        require(self.terms.is_sorted_by(|a, b| a < b), "terms strictly ascend")?;
        require(self.term_runs.is_sorted(), "a term's runs come after the term's before")?;
        let last_run = self.term_runs.last().map_or(0, |&end| end as usize);
        require(last_run == self.runs.len() / 4, "terms use all runs")?;
        let mut all = 0;
        for term in 0..self.terms.len() {
            let mut next = 0;
            for run in self.runs(term).map(|run| self.run(run)) {
                require(run.window >= next, "windows strictly ascend within a term")?;
                next = run.window + 1;
                let window = self.window(run.window);
                let window =
                    require(window.is_some(), "no window past the last").map(|()| window)?;
                let Some(window) = window else { continue };
                require((1..=window.len).contains(&run.postings), "a posting a row at most")?;
                let bytes = row_bytes(run.postings, window.len) + run.postings;
                require(run.start + bytes <= self.levels.len(), "no posting past the last")?;
                require(run.most.is_finite() && run.most >= 0.0, "a largest magnitude")?;
                all += run.postings as u64;
                // All other windows have a row for each of the 65,536 values.
                if window.len < WINDOW {
                    let mut inside = true;
                    self.leg(run, 0.0, &window)
                        .rows
                        .each(|local| inside &= usize::from(local) < window.len);
                    require(inside, "no row past the last")?;
                }
            }
        }
        require(all == postings, "runs have all postings")
    }

    /// The rows of window `number`, if there are any.
    fn window(&self, number: usize) -> Option<Window> {
        let base = number.checked_mul(WINDOW).filter(|base| *base < self.rows)?;
        Some(Window { base, len: WINDOW.min(self.rows - base) })
    }

    fn runs(&self, term: usize) -> Range<usize> {
        let start = if term == 0 { 0 } else { self.term_runs[term - 1] };
        start as usize..self.term_runs[term] as usize
    }

    fn run(&self, run: usize) -> Run {
        let record = &self.runs[run * 4..run * 4 + 4];
        Run {
            window: record[0] as usize % WINDOW,
            mean: (record[0] >> WINDOW.ilog2()) as u8,
            start: record[1] as usize * PLACE,
            postings: record[2] as usize,
            most: f32::from_bits(record[3]),
        }
    }

    /// Length of the mask of a run, if it has one.
    fn mask_words(&self, run: &Run) -> usize {
        let rows = self.window(run.window).map_or(0, |window| window.len);
        if is_mask(run.postings, rows) { rows.div_ceil(64) } else { 0 }
    }

    /// The postings of a run of `window`, and what the query's weight makes of them.
    fn leg(&self, run: Run, weight: f32, window: &Window) -> Leg<'_> {
        let row_bytes = row_bytes(run.postings, window.len);
        let rows = if is_mask(run.postings, window.len) {
            let start = run.start / size_of::<u64>();
            Rows::Mask(&self.masks[start..start + row_bytes / size_of::<u64>()])
        } else {
            let start = run.start / size_of::<u16>();
            Rows::List(&self.locals[start..start + run.postings])
        };
        Leg {
            rows,
            levels: &self.levels[run.start + row_bytes..][..run.postings],
            mean: run.mean,
            most: f64::from(weight.abs()) * f64::from(run.most),
        }
    }

    /// Those of the query's terms that the index has, with their runs.
    fn active(&self, terms: impl Iterator<Item = (u32, f32)>) -> Vec<Active> {
        let known = terms.filter_map(|(id, weight)| {
            let term = self.terms.binary_search(&id).ok()?;
            Some(Active { weight, runs: self.runs(term) })
        });
        known.collect()
    }

    /// The postings of `active` in the window of that number.
    fn legs<'a>(
        &'a self,
        active: &mut [Active],
        number: usize,
        window: &Window,
        found: &mut Vec<Leg<'a>>,
    ) {
        found.clear();
        for term in active {
            if let Some(run) = term.runs.clone().next().map(|run| self.run(run))
                && run.window == number
            {
                found.push(self.leg(run, term.weight, window));
                term.runs.start += 1;
            }
        }
    }

    /// Calls `each` for the windows that have allowed rows and postings of the terms.
    fn each_window(
        &self,
        mut active: Vec<Active>,
        allowed: &RowMask,
        cancel: &Cancel,
        mut each: impl FnMut(&Window, &[Leg<'_>]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut legs = Vec::new();
        for (number, window) in (0..).map_while(|number| Some((number, self.window(number)?))) {
            self.legs(&mut active, number, &window, &mut legs);
            if legs.is_empty() || window.is_closed(allowed) {
                continue;
            }
            cancel.check()?;
            each(&window, &legs)?;
        }
        Ok(())
    }

    /// The best rows as far as a sketch tells them; `None` where it does not.
    fn sketch(
        &self,
        terms: &Terms,
        asked: &Asked<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Option<Vec<Hit>>, Error> {
        let active = self.active(terms.heaviest().into_iter());
        let most = |term: &Active| {
            let legs = term.runs.clone().map(|run| self.run(run)).filter_map(|run| {
                Some(sketch::most(&self.leg(run, term.weight, &self.window(run.window)?)))
            });
            legs.fold(0.0, f64::max)
        };
        let total: f64 = active.iter().map(most).sum();
        if active.len() > sketch::MOST_TERMS || !total.is_normal() {
            return Ok(None);
        }
        let mut sketch = Sketch::new(params.k, active.len(), total);
        // Taken, so that a search that ends early leaves nothing behind.
        let mut sums = SUMS.take().unwrap_or_else(Sums::new);
        self.each_window(active, allowed, cancel, |window, legs| {
            sketch.add(window, legs, &allowed.words()[window.base / 64..], sums.tallies());
            Ok(())
        })?;
        SUMS.set(Some(sums));
        let mut top = TopK::new(params.k, params.bounds);
        Ok(sketch.score(asked, &mut top)?.then(|| top.into_hits()))
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
        let active = self.active(terms.iter());
        if params.k == 0 || active.is_empty() {
            return Ok(Vec::new());
        }
        let (mut postings, mut words) = (0, 0);
        for run in active.iter().flat_map(|term| term.runs.clone()).map(|run| self.run(run)) {
            postings += run.postings;
            words += self.mask_words(&run);
        }
        if allowed.count().saturating_mul(POSTINGS_PER_ROW) < postings {
            return self.column.search(query, params, allowed, cancel);
        }
        let signed = self.signed || active.iter().any(|term| term.weight < 0.0);
        let wanted = (params.k, params.bounds.at_most);
        let asked = Asked::new(&terms, &self.column, allowed, wanted, signed);
        // Tallies grow with the score only where no product is negative.
        if params.drop_ratio > 0.0
            && params.bounds == Bounds::default()
            && !signed
            && words >= sketch::PAYS
            && let Some(hits) = self.sketch(&terms, &asked, params, allowed, cancel)?
        {
            return Ok(hits);
        }
        let mut top = TopK::new(params.k, params.bounds);
        let mut sums = SUMS.take().unwrap_or_else(Sums::new);
        self.each_window(active, allowed, cancel, |window, legs| {
            window.search(legs, &asked, &mut sums, &mut top)
        })?;
        SUMS.set(Some(sums));
        Ok(top.into_hits())
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
