//! Exact search of a window that leaves most postings alone, where no product is negative.
//!
//! MaxScore (Turtle and Flood, Query evaluation: strategies and optimizations, 1995) a term at a
//! time. The terms that bring most per posting are added first. As soon as those that are left
//! cannot together lift a new row to the floor, the score of the worst of the `k` kept, only rows
//! that are close to it already matter: what the terms left add to those is looked up, and rows
//! that have fallen too far behind are dropped after every term. The few rows that remain are
//! scored anew from the column, as a scan would, since sums taken in another order differ in the
//! last bits.

use super::query::Terms;
use super::scan::{SparseScan, Weights};
use super::window::{Leg, Scores, Window};
use crate::{Bounds, Error, TopK};

/// Looking up a row's posting costs about as much as adding this many postings.
const POSTINGS_PER_LOOKUP: usize = 16;

/// Reading all scores of a window costs about as much as adding a posting per so many rows.
const ROWS_PER_POSTING: usize = 16;

/// What stays the same over the windows of a search.
pub(super) struct Asked<'a> {
    weights: Weights,
    column: &'a SparseScan,
    /// Sums of the same numbers in different orders are within this factor of one another.
    slack: f32,
}

impl<'a> Asked<'a> {
    /// The terms of a query to be looked for in `column`.
    pub(super) fn new(terms: &Terms, column: &'a SparseScan) -> Self {
        // Each of n additions is off by at most half an epsilon of the sum, in either order.
        let slack = 1.0 + (terms.len() + 4) as f32 * 2.0 * f32::EPSILON;
        Self { weights: Weights::new(terms), column, slack }
    }

    /// What the score of a row must reach, however it was added up, to get into `top`. A floor of
    /// zero leaves no row out: those without any score tie by their order.
    fn floor(&self, top: &TopK) -> Option<f32> {
        top.floor().map(|floor| floor / self.slack).filter(|floor| *floor > 0.0)
    }
}

/// Offers to `top` the rows of a window that are among the `k` best, and maybe others. The scores
/// are untouched before and after.
///
/// # Errors
/// [`Error::Corrupt`] if the column's offsets point outside of it.
pub(super) fn search(
    window: &Window<'_>,
    legs: &mut [Leg<'_>],
    asked: &Asked<'_>,
    scores: &mut Scores,
    k: usize,
    top: &mut TopK,
) -> Result<(), Error> {
    let density = |leg: &Leg<'_>| leg.most / leg.len() as f32;
    legs.sort_unstable_by(|a, b| density(b).total_cmp(&density(a)));
    let mut floor = asked.floor(top);
    let mut near = Vec::new();
    let first = add_first(window, legs, asked, scores, (k, &mut floor), &mut near);
    let added = add_rest(&mut legs[first..], asked, scores, floor, &mut near) + first;
    let outcome = offer_best(window, near, asked, scores, k, top);
    window.clear(&legs[..added], scores);
    outcome
}

/// Adds legs until it is cheaper to look up the rest for the rows that can still reach the floor,
/// which are listed in `near`. Returns how many legs were added; raises the floor where the rows
/// added up so far say that it is higher.
fn add_first(
    window: &Window<'_>,
    legs: &[Leg<'_>],
    asked: &Asked<'_>,
    scores: &mut Scores,
    (k, floor): (usize, &mut Option<f32>),
    near: &mut Vec<u16>,
) -> usize {
    // The best sums so far say where the floor is at least, as long as no finished rows do.
    let guess = floor.is_none();
    let raise = |scores: &Scores, floor: &mut Option<f32>| {
        let mut best = TopK::new(k, Bounds::default());
        window.offer(scores, &mut best);
        *floor = asked.floor(&best);
    };
    let mut left: usize = legs.iter().map(Leg::len).sum();
    let (mut reached, mut rest) = (0.0, legs.iter().map(|leg| leg.most).sum::<f32>());
    let mut look_at = left;
    for (added, leg) in legs.iter().enumerate() {
        if left <= look_at
            && left > window.len / ROWS_PER_POSTING
            && (!guess || reached > rest * 2.0)
        {
            if guess {
                raise(scores, floor);
                look_at = left / 2;
            }
            if let Some(bar) =
                floor.map(|floor| floor - rest * asked.slack).filter(|bar| *bar > 0.0)
            {
                window.list(&legs[..added], scores, bar, near);
                let lookups = near.len() * POSTINGS_PER_LOOKUP;
                let cost: usize = legs[added..].iter().map(|leg| leg.len().min(lookups)).sum();
                if cost <= left / 2 {
                    return added;
                }
                look_at = left - left / 4;
            }
        }
        leg.add(false, scores);
        left -= leg.len();
        reached += leg.most;
        // Summed anew: subtracting would let rounding errors grow.
        rest = legs[added + 1..].iter().map(|leg| leg.most).sum();
    }
    if guess {
        raise(scores, floor);
    }
    window.list(legs, scores, floor.unwrap_or(-1.0), near);
    legs.len()
}

/// Brings the scores of the rows `near` the floor to their end, and drops those that cannot reach
/// it. Short legs are added as a whole: they come first afterwards, and their number is returned.
fn add_rest(
    legs: &mut [Leg<'_>],
    asked: &Asked<'_>,
    scores: &mut Scores,
    floor: Option<f32>,
    near: &mut Vec<u16>,
) -> usize {
    legs.sort_unstable_by(|a, b| b.most.total_cmp(&a.most));
    let mut added = 0;
    for at in 0..legs.len() {
        let leg = &legs[at];
        if leg.len() <= near.len() * POSTINGS_PER_LOOKUP {
            leg.add(false, scores);
            legs.swap(added, at);
            added += 1;
        } else {
            for &local in &*near {
                if let Ok(place) = leg.locals.binary_search(&local) {
                    scores[usize::from(local)] += leg.asked * leg.weights[place];
                }
            }
        }
        if let Some(floor) = floor {
            let rest: f32 = legs[at + 1..].iter().map(|leg| leg.most).sum();
            let bar = floor - rest * asked.slack;
            near.retain(|&local| scores[usize::from(local)] > bar);
        }
    }
    added
}

/// Offers the best of the rows, with the scores that a scan would give them.
fn offer_best(
    window: &Window<'_>,
    near: Vec<u16>,
    asked: &Asked<'_>,
    scores: &Scores,
    k: usize,
    top: &mut TopK,
) -> Result<(), Error> {
    let score = |local: &u16| scores[usize::from(*local)];
    let mut near = near;
    if near.len() > k {
        let (_, kth, _) = near.select_nth_unstable_by(k - 1, |a, b| score(b).total_cmp(&score(a)));
        let bar = score(kth) / asked.slack;
        near.retain(|local| score(local) >= bar);
    }
    near.sort_unstable_by(|a, b| score(b).total_cmp(&score(a)));
    for local in near {
        if top.floor().is_some_and(|floor| score(&local) * asked.slack < floor) {
            break;
        }
        let row = window.row(local);
        if let Some(exact) = asked.weights.score(asked.column.row(row as usize)?) {
            top.push(row, exact);
        }
    }
    Ok(())
}
