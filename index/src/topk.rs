//! Keeping the best `k` of many scores, and merging such lists.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::kernel;
use crate::mask::ones;
use crate::{Bounds, Hit, Row};

/// A heap of [`Hit`]s whose top is the worst one kept.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Worst(Hit);

impl Eq for Worst {}
impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.best_first(&other.0)
    }
}

/// Collects the `k` best hits within [`Bounds`].
///
/// The result does not depend on the order of the pushes. A NaN score counts as the worst
/// possible one, so that a row with a broken vector is last and not first.
#[derive(Debug)]
pub struct TopK {
    heap: BinaryHeap<Worst>,
    k: usize,
    bounds: Bounds,
}

/// Scores compared at once.
const WORD: usize = u64::BITS as usize;
/// 1,024 hits: what is reserved at once, so that a huge `k` costs memory only when it is filled.
const RESERVE_AT_MOST: usize = 1024;

impl TopK {
    /// An empty collection for the `k` best hits within `bounds`.
    #[must_use]
    pub fn new(k: usize, bounds: Bounds) -> Self {
        Self { heap: BinaryHeap::with_capacity(k.min(RESERVE_AT_MOST)), k, bounds }
    }

    /// Offers a row.
    #[inline]
    pub fn push(&mut self, row: Row, score: f32) {
        // Adding +0 turns -0 into +0: the two are equal scores and must tie by row.
        let score = if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
        if self.bounds.above.is_some_and(|above| score <= above)
            || self.bounds.at_most.is_some_and(|at_most| score > at_most)
        {
            return;
        }
        let hit = Worst(Hit { row, score });
        if self.heap.len() < self.k {
            self.heap.push(hit);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit < *worst
        {
            *worst = hit;
        }
    }

    /// Offers rows in ascending order, after all those offered before.
    pub(crate) fn push_all(&mut self, rows: &[Row], scores: &[f32]) {
        let select = kernel::select();
        for (rows, scores) in rows.chunks(WORD).zip(scores.chunks(WORD)) {
            let mut better = [0];
            select(scores, self.floor().unwrap_or(f32::NAN), &mut better);
            for bit in ones(better[0]) {
                self.push(rows[bit as usize], scores[bit as usize]);
            }
        }
    }

    /// The score that a row after all those pushed so far must exceed to be kept; `None` while
    /// any score will do. For scans in ascending row order, which can skip what is not above it.
    #[inline]
    #[must_use]
    pub fn floor(&self) -> Option<f32> {
        let worst = if self.is_full() { self.heap.peek().map(|worst| worst.0.score) } else { None };
        match (worst, self.bounds.above) {
            (Some(worst), Some(above)) => Some(worst.max(above)),
            (one, other) => one.or(other),
        }
    }

    /// Whether `k` hits are kept.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.heap.len() >= self.k
    }

    /// The hits, best first.
    #[must_use]
    pub fn into_hits(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|worst| worst.0).collect()
    }
}

/// Merges lists that are each best first into the `k` best of all.
///
/// Each hit comes with the position of its list. Equal scores go by list, then by place in it.
#[must_use]
pub fn merge_top_k(lists: &[Vec<Hit>], k: usize) -> Vec<(usize, Hit)> {
    /// The next unread hit of a list; the greatest is the best one.
    struct Head {
        score: f32,
        list: usize,
        at: usize,
    }
    impl PartialEq for Head {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }
    impl Eq for Head {}
    impl PartialOrd for Head {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Head {
        fn cmp(&self, other: &Self) -> Ordering {
            self.score.total_cmp(&other.score).then(other.list.cmp(&self.list))
        }
    }
    let head =
        |list: usize, at: usize| lists[list].get(at).map(|hit| Head { score: hit.score, list, at });
    let mut heads: BinaryHeap<Head> = (0..lists.len()).filter_map(|list| head(list, 0)).collect();
    let available = lists.iter().map(Vec::len).fold(0, usize::saturating_add);
    let mut merged = Vec::with_capacity(k.min(available));
    while merged.len() < k
        && let Some(best) = heads.pop()
    {
        merged.push((best.list, lists[best.list][best.at]));
        heads.extend(head(best.list, best.at + 1));
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few distinct values, so that ties are common, and the odd ones.
    fn score() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => (-3i8..3).prop_map(f32::from),
            1 => Just(f32::NAN),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::INFINITY),
            1 => Just(-0.0),
        ]
    }

    fn by_sorting(rows: &[(Row, f32)], k: usize, bounds: Bounds) -> Vec<Hit> {
        let mut hits: Vec<Hit> = rows
            .iter()
            .map(|&(row, score)| Hit {
                row,
                score: if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 },
            })
            .filter(|hit| bounds.above.is_none_or(|above| hit.score > above))
            .filter(|hit| bounds.at_most.is_none_or(|at_most| hit.score <= at_most))
            .collect();
        hits.sort_by(Hit::best_first);
        hits.truncate(k);
        hits
    }

    proptest! {
        #[test]
        fn the_best_k_are_those_of_a_sort_in_any_order_of_pushes(
            scores in proptest::collection::vec(score(), 0..60),
            k in 0usize..70,
            above in proptest::option::of((-3i8..3).prop_map(f32::from)),
            at_most in proptest::option::of((-3i8..3).prop_map(f32::from)),
            rotate in 0usize..60,
        ) {
            let bounds = Bounds { above, at_most };
            let mut rows: Vec<(Row, f32)> = (0..).zip(scores).collect();
            let expected = by_sorting(&rows, k, bounds);
            let middle = rotate.min(rows.len());
            rows.rotate_left(middle);
            let mut top = TopK::new(k, bounds);
            for (row, score) in rows {
                top.push(row, score);
            }
            prop_assert_eq!(top.into_hits(), expected);
        }

        #[test]
        fn rows_not_above_the_floor_may_be_skipped_in_an_ascending_scan(
            scores in proptest::collection::vec(score(), 0..200),
            k in 0usize..90,
            above in proptest::option::of((-3i8..3).prop_map(f32::from)),
        ) {
            let bounds = Bounds { above, at_most: None };
            let rows: Vec<(Row, f32)> = (0..).zip(scores).collect();
            let mut top = TopK::new(k, bounds);
            for &(row, score) in &rows {
                if top.floor().is_none_or(|floor| score > floor) {
                    top.push(row, score);
                }
            }
            let expected = by_sorting(&rows, k, bounds);
            prop_assert_eq!(&top.into_hits(), &expected);
            let mut together = TopK::new(k, bounds);
            let (rows, scores): (Vec<Row>, Vec<f32>) = rows.into_iter().unzip();
            together.push_all(&rows, &scores);
            prop_assert_eq!(together.into_hits(), expected);
        }

        #[test]
        fn merging_equals_sorting_everything(
            lists in proptest::collection::vec(proptest::collection::vec(score(), 0..8), 0..6),
            k in 0usize..40,
        ) {
            let lists: Vec<Vec<Hit>> = lists
                .into_iter()
                .map(|scores| {
                    let rows: Vec<(Row, f32)> = (0..).zip(scores).collect();
                    by_sorting(&rows, usize::MAX, Bounds::default())
                })
                .collect();
            let mut expected: Vec<(usize, Hit)> = Vec::new();
            for (list, hits) in lists.iter().enumerate() {
                expected.extend(hits.iter().map(|&hit| (list, hit)));
            }
            expected.sort_by(|a, b| b.1.score.total_cmp(&a.1.score).then(a.0.cmp(&b.0)));
            expected.truncate(k);
            prop_assert_eq!(merge_top_k(&lists, k), expected);
        }
    }
}
