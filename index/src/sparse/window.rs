//! The rows of one window, and adding up their scores a term at a time.
//!
//! The postings of the query's terms are added into an array of scores that stays in cache; then
//! the array is read once for scores above the worst of those kept. Where few rows were touched,
//! those are read instead. The array says by itself which rows were touched: it starts out as
//! [`UNTOUCHED`].

use super::build::WINDOW;
use crate::kernel::{self, UNTOUCHED};
use crate::mask::ones;
use crate::{Row, RowMask, TopK};

/// The scores of one window.
pub(super) type Scores = [f32; WINDOW];

/// 1,024 scores are read against one floor before it is looked up again: while the best are still
/// being found it rises quickly.
const SCAN_ROWS: usize = 1024;

/// Reading a posting's row back costs about as much as reading this many scores in a row.
const SCORES_PER_POSTING: usize = 8;

/// Scores that nothing was added to.
pub(super) fn untouched() -> Box<Scores> {
    vec![UNTOUCHED; WINDOW].try_into().expect("the vector has exactly that length")
}

/// The postings of one term of the query in one window.
pub(super) struct Leg<'a> {
    /// Rows within the window, ascending.
    pub(super) locals: &'a [u16],
    /// Their weights.
    pub(super) weights: &'a [f32],
    /// The term's weight in the query.
    pub(super) asked: f32,
    /// The most that it adds to a row of this window; infinite where that is not known.
    pub(super) most: f32,
}

impl Leg<'_> {
    /// Number of postings.
    pub(super) fn len(&self) -> usize {
        self.locals.len()
    }

    /// Adds the term to the scores of its rows.
    pub(super) fn add(&self, signed: bool, scores: &mut Scores) {
        let postings = self.locals.iter().zip(self.weights);
        if signed {
            for (&local, weight) in postings {
                // Adding +0 turns a product of -0, which would leave the row untouched, into +0.
                scores[usize::from(local)] += self.asked * weight + 0.0;
            }
        } else {
            for (&local, weight) in postings {
                scores[usize::from(local)] += self.asked * weight;
            }
        }
    }
}

/// Whether rows are found quicker by going over the postings than over all scores of the window.
pub(super) fn are_few(legs: &[Leg<'_>], len: usize) -> bool {
    legs.iter().map(Leg::len).sum::<usize>() < len / SCORES_PER_POSTING
}

/// Up to [`WINDOW`] rows of a segment.
pub(super) struct Window<'a> {
    /// The first row, a multiple of [`WINDOW`].
    pub(super) base: usize,
    /// Number of rows.
    pub(super) len: usize,
    /// The rows of the segment that may be found.
    pub(super) allowed: &'a RowMask,
}

impl Window<'_> {
    /// Whether no row may be found.
    pub(super) fn is_closed(&self) -> bool {
        let words = self.base / 64..(self.base + self.len).div_ceil(64);
        self.allowed.words()[words].iter().all(|&word| word == 0)
    }

    /// The row of the segment that `local` is.
    pub(super) fn row(&self, local: u16) -> Row {
        (self.base + usize::from(local)) as Row
    }

    /// Adds up all of `legs` in their order, offers every row to `top`, and leaves the scores
    /// untouched.
    pub(super) fn search(
        &self,
        legs: &[Leg<'_>],
        signed: bool,
        scores: &mut Scores,
        top: &mut TopK,
    ) {
        legs.iter().for_each(|leg| leg.add(signed, scores));
        if are_few(legs, self.len) {
            for &local in legs.iter().flat_map(|leg| leg.locals) {
                let score = std::mem::replace(&mut scores[usize::from(local)], UNTOUCHED);
                let row = self.row(local);
                if score.to_bits() != UNTOUCHED.to_bits() && self.allowed.contains(row) {
                    top.push(row, score);
                }
            }
        } else {
            self.offer(scores, top);
            scores[..self.len].fill(UNTOUCHED);
        }
    }

    /// Offers the touched rows to `top`, in row order.
    pub(super) fn offer(&self, scores: &Scores, top: &mut TopK) {
        for start in (0..self.len).step_by(SCAN_ROWS) {
            let end = self.len.min(start + SCAN_ROWS);
            self.above(scores, start..end, top.floor(), |local| {
                top.push(self.row(local), scores[usize::from(local)]);
            });
        }
    }

    /// The touched rows of `part`, which begins at a multiple of 64 and has at most
    /// [`SCAN_ROWS`], whose score is not at or below `floor`.
    fn above(
        &self,
        scores: &Scores,
        part: std::ops::Range<usize>,
        floor: Option<f32>,
        mut found: impl FnMut(u16),
    ) {
        let mut passed = [0; SCAN_ROWS / 64];
        kernel::select()(&scores[part.clone()], floor.unwrap_or(f32::NAN), &mut passed);
        let allowed = &self.allowed.words()[(self.base + part.start) / 64..];
        for (at, (passed, allowed)) in passed.iter().zip(allowed).enumerate() {
            for bit in ones(passed & allowed) {
                found((part.start + at * 64 + bit as usize) as u16);
            }
        }
    }

    /// The allowed rows with a score above `floor`, ascending. `legs` are those that were added.
    pub(super) fn list(&self, legs: &[Leg<'_>], scores: &Scores, floor: f32, found: &mut Vec<u16>) {
        found.clear();
        if are_few(legs, self.len) {
            let locals = legs.iter().flat_map(|leg| leg.locals).copied();
            found.extend(locals.filter(|&local| {
                scores[usize::from(local)] > floor && self.allowed.contains(self.row(local))
            }));
            found.sort_unstable();
            found.dedup();
        } else {
            for start in (0..self.len).step_by(SCAN_ROWS) {
                let end = self.len.min(start + SCAN_ROWS);
                self.above(scores, start..end, Some(floor), |local| found.push(local));
            }
        }
    }

    /// Leaves the scores untouched again. `legs` are all that were added.
    pub(super) fn clear(&self, legs: &[Leg<'_>], scores: &mut Scores) {
        if are_few(legs, self.len) {
            for &local in legs.iter().flat_map(|leg| leg.locals) {
                scores[usize::from(local)] = UNTOUCHED;
            }
        } else {
            scores[..self.len].fill(UNTOUCHED);
        }
    }
}
