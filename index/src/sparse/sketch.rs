//! Approximate search: which rows are worth scoring, told from a part of the index.
//!
//! Each row gets a *tally* in eight bits: what the heaviest terms of the query bring to it, where
//! a term that many rows have counts for the same, its mean, in all of them. So a mask is added to
//! 64 rows by one instruction, and the levels behind it, most of an index, are not read. The rows
//! with the largest tallies are scored on what is stored of them: every score is true, only the
//! choice of rows is not certain. Where tallies do not tell the best rows from the others, the
//! exact search does.

use std::cell::Cell;

use super::build::{TOP_LEVEL, WINDOW};
use super::window::{Asked, Leg, Rows, Window};
use crate::kernel::{self, Tally, TallyKernel};
use crate::mask::ones;
use crate::{Error, Row, TopK};

/// With more terms, eight bits are too few to tell them apart.
pub(super) const MOST_TERMS: usize = 96;

/// Words of masks in all windows from which on a sketch saves more than scoring costs: exact
/// search goes through so many in tens of microseconds.
pub(super) const PAYS: usize = 1 << 15;

/// Rows that are looked for: so many, and so many times the results wanted.
const AT_LEAST: usize = 150;
const PER_RESULT: usize = 4;

/// More rows than so many times those looked for are not scored for having the same tally.
const ALIKE: usize = 4;

/// Rows whose tally and score tell how the two differ, and by how many standard deviations one
/// must differ to be among the results where the next rows are not scored any more.
const SAMPLE: f64 = 20.0;
const DEVIATIONS: f64 = 4.0;

/// 4,096 rows, whose tallies stay in the first-level cache while all terms are added to them.
const PART: usize = 64;

/// 1,024 tallies are looked at against one limit before it is looked up again.
const WORDS: usize = 16;

/// Postings of a list whose shares are worked out together.
const AT_ONCE: usize = 256;

/// Cache lines of a list and of its levels that are asked for while the one before is added.
/// Lists are too short for the processor to foresee them.
const LINES_AHEAD: usize = 40;

/// The tallies of one window.
pub(super) type Tallies = [u8; WINDOW];

/// What a weighted term brings to a row at most: its largest product or, of a mask, the mean.
pub(super) fn most(leg: &Leg<'_>) -> f64 {
    match leg.rows {
        Rows::List(_) => leg.most,
        Rows::Mask(_) => leg.most * f64::from(leg.mean) / f64::from(TOP_LEVEL),
    }
}

/// The rows with the largest tallies of those seen.
pub(super) struct Sketch {
    /// What a step of a tally is worth.
    unit: f64,
    wanted: usize,
    /// Rows below are not kept.
    least: u8,
    /// How many rows have each tally, and how many have `least` or more.
    counts: [usize; 256],
    reached: usize,
    /// The largest tally that too many rows have.
    too_common: u8,
    found: Vec<(u8, Row)>,
}

impl Sketch {
    /// For `k` results, of so many terms that bring `total` at most.
    pub(super) fn new(k: usize, terms: usize, total: f64) -> Self {
        // A share may be rounded up, by half a step.
        let steps = usize::from(u8::MAX).saturating_sub(terms.div_ceil(2)).max(1);
        Self {
            unit: total / steps as f64,
            wanted: k.saturating_mul(PER_RESULT).saturating_add(AT_LEAST),
            least: 1,
            counts: [0; 256],
            reached: 0,
            too_common: 0,
            found: Vec::new(),
        }
    }

    /// Looks through one window, whose tallies are zero before and after. `allowed` has the words
    /// of its rows.
    pub(super) fn add(
        &mut self,
        window: &Window,
        legs: &[Leg<'_>],
        allowed: &[u64],
        tallies: &mut Tallies,
    ) {
        let (mut masks, mut shares) = (Vec::new(), Vec::new());
        for (at, leg) in legs.iter().enumerate() {
            if let Some(Leg { rows: Rows::List(locals), levels, .. }) = legs.get(at + 1) {
                kernel::prefetch(locals, LINES_AHEAD);
                kernel::prefetch(levels, LINES_AHEAD);
            }
            let steps = most(leg) / self.unit;
            match leg.rows {
                Rows::List(locals) => {
                    let factor = (steps * 256.0 / f64::from(TOP_LEVEL)).round().min(256.0);
                    add_list(locals, leg.levels, factor as u16, tallies);
                }
                Rows::Mask(mask) => {
                    masks.push(mask);
                    shares.push(steps.round() as u8);
                }
            }
        }
        let kernel = kernel::tallies();
        let tallies = &mut tallies.as_chunks_mut().0[..window.len.div_ceil(64)];
        for (at, part) in (0..).step_by(PART).zip(tallies.chunks_mut(PART)) {
            let of_part: Vec<&[u64]> =
                masks.iter().map(|mask| &mask[at..at + part.len()]).collect();
            (kernel.add)(&of_part, &shares, part);
            for (at, part) in (at..).step_by(WORDS).zip(part.chunks(WORDS)) {
                self.take(kernel, window.base + at * 64, part, &allowed[at..]);
            }
            part.fill([0; 64]);
        }
    }

    /// Keeps the allowed rows with large tallies of those from row `base` on.
    fn take(&mut self, kernel: TallyKernel, base: usize, tallies: &[Tally], allowed: &[u64]) {
        let mut found = [0; WORDS];
        (kernel.at_least)(tallies, self.least, &mut found);
        for (at, ((tallies, found), allowed)) in tallies.iter().zip(found).zip(allowed).enumerate()
        {
            for bit in ones(found & allowed) {
                self.push(tallies[bit as usize], (base + at * 64 + bit as usize) as Row);
            }
        }
        if self.found.len() > self.wanted.saturating_mul(2 * ALIKE) {
            self.found.retain(|(tally, _)| *tally >= self.least);
        }
    }

    fn push(&mut self, tally: u8, row: Row) {
        // The limit may have risen since it was looked up.
        if tally < self.least {
            return;
        }
        self.found.push((tally, row));
        self.counts[usize::from(tally)] += 1;
        self.reached += 1;
        loop {
            let lowest = self.counts[usize::from(self.least)];
            if lowest > self.wanted.saturating_mul(ALIKE) {
                self.too_common = self.least;
            } else if self.reached - lowest < self.wanted {
                break;
            }
            if self.least == u8::MAX {
                break;
            }
            self.reached -= lowest;
            self.least += 1;
        }
    }

    /// Scores the rows that were found, by descending tallies, while there is hope. False if
    /// there is still hope for others, or there are fewer than `k` results.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the column's offsets point outside of it.
    pub(super) fn score(mut self, asked: &Asked<'_>, top: &mut TopK) -> Result<bool, Error> {
        let too_common = if self.reached < self.wanted { self.too_common } else { 0 };
        if too_common == u8::MAX {
            return Ok(false);
        }
        self.found.retain(|(tally, _)| *tally >= self.least);
        self.found.sort_unstable_by(|(a, a_row), (b, b_row)| b.cmp(a).then(a_row.cmp(b_row)));
        let differences = Cell::new(Differences::default());
        let worth = |tally: u8, top: &TopK| {
            let likely = f64::from(tally) * self.unit + differences.get().likely();
            !top.is_full() || top.floor().is_none_or(|floor| likely > f64::from(floor))
        };
        asked.score(
            &self.found,
            |(_, row)| row,
            top,
            |(tally, _), top| worth(tally, top),
            |(tally, _), score| {
                let by = f64::from(score) - f64::from(tally) * self.unit;
                differences.set(differences.get().and(by));
            },
        )?;
        Ok(top.is_full() && (too_common == 0 || !worth(too_common, top)))
    }
}

/// By how much scores were larger than what tallies told.
#[derive(Debug, Clone, Copy, Default)]
struct Differences {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Differences {
    fn and(self, by: f64) -> Self {
        Self { count: self.count + 1.0, sum: self.sum + by, squares: self.squares + by * by }
    }

    /// Hardly any row differs by more.
    fn likely(&self) -> f64 {
        if self.count < SAMPLE {
            return f64::INFINITY;
        }
        let mean = self.sum / self.count;
        mean + DEVIATIONS * (self.squares / self.count - mean * mean).max(0.0).sqrt()
    }
}

/// Adds levels, times 256ths, to the tallies of their rows; a factor is at most 256.
fn add_list(locals: &[u16], levels: &[u8], factor: u16, tallies: &mut Tallies) {
    let mut shares = [0; AT_ONCE];
    for (locals, levels) in locals.chunks(AT_ONCE).zip(levels.chunks(AT_ONCE)) {
        let shares = &mut shares[..levels.len()];
        multiply(levels, factor, shares);
        for (local, share) in locals.iter().zip(shares) {
            let tally = &mut tallies[usize::from(*local)];
            *tally = tally.wrapping_add(*share);
        }
    }
}

/// Levels times 256ths. By itself: together with the additions the compiler works out one at a time.
#[inline(never)]
fn multiply(levels: &[u8], factor: u16, shares: &mut [u8]) {
    for (level, share) in levels.iter().zip(shares) {
        *share = ((u16::from(*level) * factor + 128) >> 8) as u8;
    }
}
