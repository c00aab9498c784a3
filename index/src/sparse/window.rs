//! The rows of one window: adding up what they can score, and scoring those that matter.
//!
//! Adding levels gives each row a sum that says how much it can score at most. The rows with the
//! largest sums are scored on what is stored of them, and so is every other row whose sum does
//! not keep it from the results. Most scores are never worked out, and none is approximate.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::build::{TOP_LEVEL, WINDOW};
use super::query::Terms;
use super::scan::{SparseScan, Weights};
use super::sketch::Tallies;
use crate::kernel::{self, LevelKernel};
use crate::mask::ones;
use crate::{Error, Row, RowMask, TopK};

/// What the sums of all terms may come to, which leaves room in 16 bits for rounding up.
const TOP_SUM: usize = 60_000;

/// 16,384 rows, whose sums stay in the first-level cache while all terms are added to them.
const PART: usize = 256;

/// 1,024 sums are looked at against one floor before it is looked up again.
const WORDS: usize = 16;

/// Where more rows than were wanted turn out to be out of bounds, so many times more are looked at.
const WIDER: usize = 4;

/// Cache lines of a list that are asked for before a part is added.
const LINES_OF_LIST: usize = 8;

/// Cache lines of a row that are asked for ahead, and how many rows ahead.
const LINES_AHEAD: usize = 8;
const ROWS_AHEAD: usize = 3;

/// The sums of one window, all zero between searches.
#[derive(Debug, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Sums([kernel::Sums; WINDOW / 64]);

impl Sums {
    /// On the heap from the start.
    pub(super) fn new() -> Box<Self> {
        bytemuck::zeroed_box()
    }

    /// Half of the memory, for tallies.
    pub(super) fn tallies(&mut self) -> &mut Tallies {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.0);
        bytes.first_chunk_mut().expect("two bytes a row")
    }

    fn of(&self, local: u16) -> u16 {
        self.0[usize::from(local / 64)][usize::from(local % 64)]
    }
}

/// The rows of a run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Rows within the window, ascending.
    List(&'a [u16]),
    /// A bit for each row, in the order of [`kernel::bit_of`].
    Mask(&'a [u64]),
}

impl Rows<'_> {
    /// Calls `each` for every row within the window.
    pub(super) fn each(&self, mut each: impl FnMut(u16)) {
        match self {
            Self::List(locals) => locals.iter().copied().for_each(each),
            Self::Mask(masks) => {
                for (at, mask) in masks.iter().enumerate() {
                    ones(*mask).for_each(|bit| {
                        each((at * 64 + kernel::row_of(bit as usize)) as u16);
                    });
                }
            }
        }
    }
}

/// The postings of one term of the query in one window.
pub(super) struct Leg<'a> {
    pub(super) rows: Rows<'a>,
    /// Of each posting.
    pub(super) levels: &'a [u8],
    /// The mean of the levels.
    pub(super) mean: u8,
    /// The largest magnitude of a product.
    pub(super) most: f64,
}

/// The postings of a leg that are not added yet.
struct Rest<'a> {
    rows: Rows<'a>,
    levels: &'a [u8],
    /// What a level is multiplied with, in 256ths.
    factor: u16,
}

impl Rest<'_> {
    /// Adds the levels of the rows of one part to their sums. Parts come in order.
    fn add(&mut self, part: usize, kernel: LevelKernel, sums: &mut Sums) {
        match &mut self.rows {
            Rows::Mask(masks) => {
                let (now, later) = masks.split_at(masks.len().min(PART));
                let sums = &mut sums.0[part * PART..][..now.len()];
                self.levels = (kernel.add)(now, self.levels, self.factor, sums);
                *masks = later;
            }
            Rows::List(locals) => {
                let end = (part + 1) * PART * 64;
                let sums = sums.0.as_flattened_mut();
                let mut count = 0;
                // Searched for, the end of the part would be waited for.
                for (local, level) in locals.iter().zip(self.levels) {
                    let local = usize::from(*local);
                    if local >= end {
                        break;
                    }
                    sums[local] = sums[local].wrapping_add(kernel::share(*level, self.factor));
                    count += 1;
                }
                (*locals, self.levels) = (&locals[count..], &self.levels[count..]);
                self.ask();
            }
        }
    }

    /// Asks the caches for a part of a list: there are too many, of too few lines each, for the
    /// processor to foresee them.
    fn ask(&self) {
        if let Rows::List(locals) = self.rows {
            kernel::prefetch(locals, LINES_OF_LIST);
            kernel::prefetch(self.levels, LINES_OF_LIST / 2);
        }
    }
}

/// What stays the same over the windows of a search.
pub(super) struct Asked<'a> {
    weights: Weights,
    column: &'a SparseScan,
    allowed: &'a RowMask,
    /// Results wanted.
    k: usize,
    /// The largest score that is wanted.
    at_most: Option<f32>,
    /// Some product may be negative.
    signed: bool,
    /// A sum in single precision is within this factor of the true one.
    slack: f64,
}

impl<'a> Asked<'a> {
    pub(super) fn new(
        terms: &Terms,
        column: &'a SparseScan,
        allowed: &'a RowMask,
        (k, at_most): (usize, Option<f32>),
        signed: bool,
    ) -> Self {
        // Each of n products and additions is off by at most half an epsilon.
        let slack = 1.0 + (terms.len() + 4) as f64 * f64::from(f32::EPSILON);
        Self { weights: Weights::new(terms), column, allowed, k, at_most, signed, slack }
    }

    /// Scores rows on what is stored of them, up to the first that is not `worth` it any more,
    /// given those scored so far. `scored` is told of each.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the column's offsets point outside of it.
    pub(super) fn score<T: Copy>(
        &self,
        found: &[T],
        row: impl Fn(T) -> Row,
        top: &mut TopK,
        mut worth: impl FnMut(T, &TopK) -> bool,
        mut scored: impl FnMut(T, f32),
    ) -> Result<(), Error> {
        let stored = |one: &T| self.column.row(row(*one) as usize);
        let ask = |one: &T| stored(one).map(|row| kernel::prefetch(row.as_bytes(), LINES_AHEAD));
        let locate = |one: &T| self.column.prefetch_offsets(row(*one) as usize);
        found.iter().take(2 * ROWS_AHEAD).for_each(locate);
        found.iter().take(ROWS_AHEAD).try_for_each(ask)?;
        for (at, one) in found.iter().enumerate() {
            if !worth(*one, top) {
                break;
            }
            if let Some(later) = found.get(at + 2 * ROWS_AHEAD) {
                locate(later);
            }
            found.get(at + ROWS_AHEAD).map_or(Ok(()), ask)?;
            if let Some(score) = self.weights.score(stored(one)?) {
                top.push(row(*one), score);
                scored(*one, score);
            }
        }
        Ok(())
    }
}

/// How sums and scores relate in one window.
///
/// Of a sum of `s` over `n` legs, the magnitudes of the row's products come to at most `s + n`
/// units: each level is rounded up and each share of a level down, by less than one.
struct Scale {
    unit: f64,
    legs: f64,
    /// What all legs together can bring.
    total: f64,
    slack: f64,
}

impl Scale {
    /// `None` where 16 bits are too few, or weights too large for numbers.
    fn new(legs: &[Leg<'_>], asked: &Asked<'_>) -> Option<Self> {
        let total: f64 = legs.iter().map(|leg| leg.most).sum();
        let steps = TOP_SUM.checked_sub(legs.len() * 2)?;
        let unit = total / steps as f64;
        // Below, factors could not be told from zero.
        (unit.is_normal() || unit == 0.0).then_some(Self {
            unit,
            legs: legs.len() as f64,
            total,
            slack: asked.slack,
        })
    }

    /// What a level is multiplied with, in 256ths.
    fn factor(&self, leg: &Leg<'_>) -> u16 {
        // At most `TOP_SUM` times 256 / 255 and one; zero over zero is none.
        (leg.most * 256.0 / (f64::from(TOP_LEVEL) * self.unit)).ceil() as u16
    }

    /// The least sum with which a row can score as much as `floor`.
    fn least(&self, floor: Option<f32>) -> u16 {
        match floor {
            // Rounds towards zero.
            Some(floor) if floor > 0.0 => {
                (f64::from(floor.min(f32::MAX)) / (self.unit * self.slack) - self.legs) as u16
            }
            Some(_) | None => 0,
        }
    }

    /// The least sum with which a row scores more than `at_most` for certain.
    fn end(&self, asked: &Asked<'_>) -> usize {
        match asked.at_most {
            Some(at_most) if !asked.signed => {
                let lost = self.total / f64::from(TOP_LEVEL);
                let most = f64::from(at_most.max(0.0)) * self.slack + lost;
                (most / self.unit + self.legs).min(f64::from(u16::MAX)) as usize + 1
            }
            Some(_) | None => usize::from(u16::MAX) + 1,
        }
    }
}

/// Up to [`WINDOW`] rows of a segment.
pub(super) struct Window {
    /// The first row, a multiple of [`WINDOW`].
    pub(super) base: usize,
    /// Number of rows.
    pub(super) len: usize,
}

impl Window {
    /// Whether no row may be found.
    pub(super) fn is_closed(&self, allowed: &RowMask) -> bool {
        let words = self.base / 64..(self.base + self.len).div_ceil(64);
        allowed.words()[words].iter().all(|&word| word == 0)
    }

    /// Offers to `top` the rows that are among the `k` best, and maybe others. The sums are zero
    /// before and after.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the column's offsets point outside of it.
    pub(super) fn search<'a>(
        &self,
        legs: &[Leg<'a>],
        asked: &Asked<'_>,
        sums: &mut Sums,
        top: &mut TopK,
    ) -> Result<(), Error> {
        let Some(scale) = Scale::new(legs, asked) else {
            let all = self.touched(legs, asked, |_| true);
            return asked.score(&all, |local| self.row(local), top, |_, _| true, |_, _| {});
        };
        if top.floor().is_some_and(|floor| scale.total * scale.slack < f64::from(floor)) {
            return Ok(());
        }
        let kernel = kernel::levels();
        let rest =
            |leg: &Leg<'a>| Rest { rows: leg.rows, levels: leg.levels, factor: scale.factor(leg) };
        let mut rest: Vec<Rest<'a>> = legs.iter().map(rest).collect();
        rest.iter().for_each(Rest::ask);
        for part in 0..self.len.div_ceil(64 * PART) {
            rest.iter_mut().for_each(|rest| rest.add(part, kernel, sums));
        }
        let outcome = self.offer(legs, &scale, asked, (sums, kernel), top);
        sums.0[..self.len.div_ceil(64)].fill([0; 64]);
        outcome
    }

    /// Scores rows by descending sums, until those left cannot score enough.
    fn offer(
        &self,
        legs: &[Leg<'_>],
        scale: &Scale,
        asked: &Asked<'_>,
        (sums, kernel): (&Sums, LevelKernel),
        top: &mut TopK,
    ) -> Result<(), Error> {
        let find = Find { window: self, allowed: asked.allowed, sums, kernel };
        let (mut end, mut wanted) = (scale.end(asked), asked.k);
        loop {
            let least = usize::from(scale.least(top.floor()));
            if end <= least.max(1) {
                break;
            }
            // Until there are enough rows, the best sums show which they will be.
            let start =
                if top.is_full() { least.max(1) } else { find.rank(wanted, end).max(least) };
            let mut near = find.between(start..end);
            near.sort_unstable_by_key(|local| Reverse(sums.of(*local)));
            let worth = |local, top: &TopK| sums.of(local) >= scale.least(top.floor());
            asked.score(&near, |local| self.row(local), top, worth, |_, _| {})?;
            (end, wanted) = (start, wanted.saturating_mul(WIDER));
        }
        if scale.least(top.floor()) == 0 {
            let rest = self.touched(legs, asked, |local| sums.of(local) == 0);
            asked.score(&rest, |local| self.row(local), top, |_, _| true, |_, _| {})?;
        }
        Ok(())
    }

    /// The allowed rows that have a posting and are `wanted`, ascending.
    fn touched(
        &self,
        legs: &[Leg<'_>],
        asked: &Asked<'_>,
        wanted: impl Fn(u16) -> bool,
    ) -> Vec<u16> {
        let mut touched = Vec::new();
        for leg in legs {
            leg.rows.each(|local| {
                if wanted(local) && asked.allowed.contains(self.row(local)) {
                    touched.push(local);
                }
            });
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The row of the segment that `local` is.
    fn row(&self, local: u16) -> Row {
        (self.base + usize::from(local)) as Row
    }
}

/// Looks for allowed rows by their sums.
struct Find<'a> {
    window: &'a Window,
    allowed: &'a RowMask,
    sums: &'a Sums,
    kernel: LevelKernel,
}

impl Find<'_> {
    /// The `wanted`-th largest sum below `end`, at least 1.
    fn rank(&self, wanted: usize, end: usize) -> usize {
        let mut best: BinaryHeap<Reverse<u16>> = BinaryHeap::new();
        self.each(
            |best: &BinaryHeap<_>| match best.peek() {
                Some(Reverse(worst)) if best.len() >= wanted => worst.saturating_add(1),
                Some(_) | None => 1,
            },
            &mut best,
            |best, local| {
                let sum = self.sums.of(local);
                if usize::from(sum) >= end {
                } else if best.len() < wanted {
                    best.push(Reverse(sum));
                } else if let Some(mut worst) = best.peek_mut()
                    && worst.0 < sum
                {
                    *worst = Reverse(sum);
                }
            },
        );
        match best.peek() {
            Some(Reverse(worst)) if best.len() >= wanted => usize::from(*worst),
            Some(_) | None => 1,
        }
    }

    /// The rows with sums in `range`, which begins above zero.
    fn between(&self, range: Range<usize>) -> Vec<u16> {
        let start = u16::try_from(range.start).unwrap_or(u16::MAX);
        let mut found = Vec::new();
        self.each(
            |_| start,
            &mut found,
            |found, local| {
                if usize::from(self.sums.of(local)) < range.end {
                    found.push(local);
                }
            },
        );
        found
    }

    /// Calls `each` for the rows whose sum is at least what `least` says before every part.
    fn each<T>(&self, least: impl Fn(&T) -> u16, state: &mut T, each: impl Fn(&mut T, u16)) {
        let words = self.window.len.div_ceil(64);
        let allowed = &self.allowed.words()[self.window.base / 64..];
        for (part, sums) in self.sums.0[..words].chunks(WORDS).enumerate() {
            let mut found = [0; WORDS];
            (self.kernel.at_least)(sums, least(state), &mut found);
            for (at, found) in found[..sums.len()].iter().enumerate() {
                let word = part * WORDS + at;
                for bit in ones(found & allowed[word]) {
                    each(state, (word * 64 + bit as usize) as u16);
                }
            }
        }
    }
}
