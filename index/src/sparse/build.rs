//! Writing an inverted index: a counting sort of the entries by term.
//!
//! Rows are cut into windows of [`WINDOW`] rows, within which a row is known by 16 bits; the
//! postings of one term in one window are a *run*. A posting has a *level*, its weight's
//! magnitude in 255ths of the largest of the run, rounded up: what a row can score is known from
//! it, what it does score is read from the row itself.
//!
//! The rows of a run are a list or, from two of 64 rows on, a mask. Lists are for terms
//! that few rows have; masks let a term that many have be added to 64 rows at a time.
//!
//! | section | holds |
//! |---|---|
//! | [`META`] | `[format, rows, postings, signed]` as `u64` |
//! | [`TERMS`] | ids, strictly ascending, `u32` |
//! | [`TERM_RUNS`] | end of each term's runs, `u32` |
//! | [`RUNS`] | of each run, windows ascending within a term: window (16 bits) and the mean level (8), place, postings as `u32`, largest magnitude as `f32` |
//! | [`POSTINGS`] | from eight times its place on, each run's rows and then its levels, filled up to eight bytes: ascending rows within the window, `u16`, and a byte each; or a mask for 64 rows each, `u64`, its bits in the order of [`kernel::bit_of`], and a byte for each bit that is set, in their order |

use std::collections::HashMap;

use crate::SparseRow;
use crate::kernel;

/// 65,536 rows: as many as 16 bits tell apart. Their sums take 128 KiB, which stay in the
/// second-level cache while the terms of a query are added up.
pub(super) const WINDOW: usize = 1 << 16;
/// Raised whenever the sections change their meaning. Indexes of other formats are built anew.
pub(super) const FORMAT: u64 = 4;
/// A level that is not zero has at most this value.
pub(super) const TOP_LEVEL: u8 = u8::MAX;
/// Bytes that a run's place counts in.
pub(super) const PLACE: usize = 8;

pub(super) const META: &str = "sparse.meta";
pub(super) const TERMS: &str = "sparse.terms";
pub(super) const TERM_RUNS: &str = "sparse.term_runs";
pub(super) const RUNS: &str = "sparse.runs";
pub(super) const POSTINGS: &str = "sparse.postings";

/// Postings in 64 rows from which on a mask is added as quickly as a list, though it may take up to
/// twice the bytes.
const POSTINGS_OF_MASK: usize = 2;

/// Whether the rows of a run are a mask.
pub(super) fn is_mask(postings: usize, rows_of_window: usize) -> bool {
    rows_of_window.div_ceil(64) * POSTINGS_OF_MASK <= postings
}

/// Bytes of a run's rows.
pub(super) fn row_bytes(postings: usize, rows_of_window: usize) -> usize {
    if is_mask(postings, rows_of_window) {
        rows_of_window.div_ceil(64) * size_of::<u64>()
    } else {
        postings * size_of::<u16>()
    }
}

/// One term while the index is made.
#[derive(Default)]
struct Term {
    id: u32,
    postings: usize,
    runs: usize,
    /// Window of the last posting seen, plus one: zero before the first.
    window: usize,
    next_posting: usize,
    next_run: usize,
}

impl Term {
    /// Whether a posting in `window` begins a new run.
    fn enters(&mut self, window: usize) -> bool {
        std::mem::replace(&mut self.window, window + 1) != window + 1
    }
}

/// A run while the index is made.
#[derive(Clone, Default)]
struct Run {
    window: usize,
    /// Of its postings.
    end: usize,
    /// The largest magnitude of its weights.
    most: f32,
}

/// Makes the sections of an inverted index over `rows`, in row order.
pub(super) fn build<'a>(
    rows: impl Iterator<Item = SparseRow<'a>> + Clone,
) -> Vec<(&'static str, Vec<u8>)> {
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut terms: Vec<Term> = Vec::new();
    let (mut row_count, mut signed) = (0, false);
    for (row, entries) in rows.clone().enumerate() {
        row_count = row + 1;
        for (id, weight) in entries.iter() {
            let place = *places.entry(id).or_insert_with(|| {
                terms.push(Term { id, ..Term::default() });
                terms.len() - 1
            });
            let term = &mut terms[place];
            term.postings += 1;
            term.runs += usize::from(term.enters(row / WINDOW));
            signed |= weight < 0.0;
        }
    }

    let mut by_id: Vec<usize> = (0..terms.len()).collect();
    by_id.sort_unstable_by_key(|&place| terms[place].id);
    let (mut ids, mut run_bounds) = (Vec::new(), Vec::new());
    let (mut postings, mut runs) = (0, 0);
    for place in by_id {
        let term = &mut terms[place];
        (term.next_posting, term.next_run, term.window) = (postings, runs, 0);
        postings += term.postings;
        runs += term.runs;
        ids.extend(term.id.to_le_bytes());
        run_bounds.extend((runs as u32).to_le_bytes());
    }

    let mut runs = vec![Run::default(); runs];
    let mut sorted = vec![(0, 0.0); postings];
    for (row, entries) in rows.enumerate() {
        let (window, local) = (row / WINDOW, (row % WINDOW) as u16);
        for (id, weight) in entries.iter() {
            let term = &mut terms[places[&id]];
            term.next_run += usize::from(term.enters(window));
            let run = &mut runs[term.next_run - 1];
            sorted[term.next_posting] = (local, weight.abs());
            term.next_posting += 1;
            *run = Run { window, end: term.next_posting, most: run.most.max(weight.abs()) };
        }
    }

    let (mut records, mut bytes) = (Vec::with_capacity(runs.len() * 16), Vec::new());
    let mut start = 0;
    for run in &runs {
        let of_run = &sorted[start..run.end];
        let place = u32::try_from(bytes.len() / PLACE).expect("a segment's rows take below 32 GiB");
        let rows_of_window = WINDOW.min(row_count - run.window * WINDOW);
        let mean = put(of_run, run.most, rows_of_window, &mut bytes);
        let head = run.window as u32 | u32::from(mean) << WINDOW.ilog2();
        for number in [head, place, of_run.len() as u32, run.most.to_bits()] {
            records.extend(number.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(PLACE), 0);
        start = run.end;
    }
    let meta = [FORMAT, row_count as u64, postings as u64, u64::from(signed)];
    vec![
        (META, meta.into_iter().flat_map(u64::to_le_bytes).collect()),
        (TERMS, ids),
        (TERM_RUNS, run_bounds),
        (RUNS, records),
        (POSTINGS, bytes),
    ]
}

/// Appends the rows and the levels of a run, which is ascending, and returns the mean level.
fn put(run: &[(u16, f32)], most: f32, rows_of_window: usize, bytes: &mut Vec<u8>) -> u8 {
    let per_weight = if most > 0.0 { f64::from(TOP_LEVEL) / f64::from(most) } else { 0.0 };
    let level =
        |weight: f32| (f64::from(weight) * per_weight).ceil().clamp(1.0, TOP_LEVEL.into()) as u8;
    let mut levels = Vec::with_capacity(run.len());
    if is_mask(run.len(), rows_of_window) {
        let mut masks = vec![0_u64; rows_of_window.div_ceil(64)];
        for of_word in run.chunk_by(|(a, _), (b, _)| a / 64 == b / 64) {
            let mut by_bit = [0; 64];
            let mask = &mut masks[usize::from(of_word[0].0) / 64];
            for (local, weight) in of_word {
                let bit = kernel::bit_of(usize::from(local % 64));
                *mask |= 1 << bit;
                by_bit[bit] = level(*weight);
            }
            levels.extend(crate::mask::ones(*mask).map(|bit| by_bit[bit as usize]));
        }
        bytes.extend(masks.into_iter().flat_map(u64::to_le_bytes));
    } else {
        bytes.extend(run.iter().flat_map(|(local, _)| local.to_le_bytes()));
        levels.extend(run.iter().map(|(_, weight)| level(*weight)));
    }
    let sum: usize = levels.iter().map(|level| usize::from(*level)).sum();
    bytes.extend(&levels);
    (sum / run.len()) as u8
}
