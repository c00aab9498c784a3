//! Writing an inverted index: a counting sort of the entries by term.
//!
//! The postings of a term lie together, by ascending row. Rows are cut into windows of
//! [`WINDOW`] rows, within which a row is known by 16 bits; the postings of one term in one
//! window are a *run*.
//!
//! | section | holds |
//! |---|---|
//! | [`META`] | `[format, rows, postings, signed]` as `u64` |
//! | [`TERMS`] | ids, strictly ascending, `u32` |
//! | [`TERM_RUNS`] | end of each term's runs, `u32` |
//! | [`RUN_WINDOWS`] | window of each run, ascending within a term, `u32` |
//! | [`RUN_ENDS`] | end of each run's postings, `u64` |
//! | [`RUN_MAX`] | largest weight of each run, `f32`; since format 2 |
//! | [`LOCALS`] | row within its window of each posting, `u16` |
//! | [`WEIGHTS`] | weight of each posting, `f32` |

use std::collections::HashMap;

use crate::SparseRow;

/// 65,536 rows: as many as 16 bits tell apart. Their scores take 256 KiB, which stay in the
/// second-level cache while the terms of a query are added up.
pub(super) const WINDOW: usize = 1 << 16;
/// Raised whenever the sections change their meaning.
pub(super) const FORMAT: u64 = 2;
/// The oldest format that is read.
pub(super) const OLDEST: u64 = 1;

pub(super) const META: &str = "sparse.meta";
pub(super) const TERMS: &str = "sparse.terms";
pub(super) const TERM_RUNS: &str = "sparse.term_runs";
pub(super) const RUN_WINDOWS: &str = "sparse.run_windows";
pub(super) const RUN_ENDS: &str = "sparse.run_ends";
pub(super) const RUN_MAX: &str = "sparse.run_max";
pub(super) const LOCALS: &str = "sparse.locals";
pub(super) const WEIGHTS: &str = "sparse.weights";

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
            signed |= weight.is_sign_negative();
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

    let mut run_windows = vec![0; runs * 4];
    let mut run_ends = vec![0; runs * 8];
    let mut run_max = vec![f32::NEG_INFINITY; runs];
    let mut locals = vec![0; postings * 2];
    let mut weights = vec![0; postings * 4];
    for (row, entries) in rows.enumerate() {
        let (window, local) = (row / WINDOW, (row % WINDOW) as u16);
        for (id, weight) in entries.iter() {
            let term = &mut terms[places[&id]];
            term.next_run += usize::from(term.enters(window));
            let run = term.next_run - 1;
            let posting = term.next_posting;
            term.next_posting += 1;
            put(&mut run_windows, run, (window as u32).to_le_bytes());
            run_max[run] = run_max[run].max(weight);
            put(&mut run_ends, run, (posting as u64 + 1).to_le_bytes());
            put(&mut locals, posting, local.to_le_bytes());
            put(&mut weights, posting, weight.to_le_bytes());
        }
    }
    let meta = [FORMAT, row_count as u64, postings as u64, u64::from(signed)];
    vec![
        (META, meta.into_iter().flat_map(u64::to_le_bytes).collect()),
        (TERMS, ids),
        (TERM_RUNS, run_bounds),
        (RUN_WINDOWS, run_windows),
        (RUN_ENDS, run_ends),
        (RUN_MAX, run_max.into_iter().flat_map(f32::to_le_bytes).collect()),
        (LOCALS, locals),
        (WEIGHTS, weights),
    ]
}

/// Writes element `at` of an array of little-endian numbers.
fn put<const WIDTH: usize>(array: &mut [u8], at: usize, number: [u8; WIDTH]) {
    array[at * WIDTH..(at + 1) * WIDTH].copy_from_slice(&number);
}
