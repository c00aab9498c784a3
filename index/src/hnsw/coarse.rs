//! Rows in four bits per dimension, for the walk alone.
//!
//! How long a walk takes is decided by the bytes it reads, and a row's code is read only to tell
//! whether it belongs into the beam. A coarse row has half as many bytes and goes astray by more;
//! so the beam is a little wider than asked for, and what it holds is scored again on the codes
//! (two levels, after LVQ: Aguerrebere et al. 2023).
//!
//! A half byte is a step of [`STEP`] codes around the middle of a dimension. What lies beyond is
//! clipped: of bell-shaped numbers, a hundredth. Where a trial says that this loses neighbours,
//! there are no coarse rows.

use arrow_buffer::Buffer;
use rayon::prelude::*;

use super::lines::Lines;
use crate::Row;
use crate::fold;
use crate::kernel::{self, LINE, NIBBLES, NibbleKernel, Step};

/// Codes from one half byte to the next. The 255 steps of a code reach four standard deviations
/// to both sides; 16 levels serve a normal distribution best if they reach 2.7 (Max 1960).
const STEP: f32 = 255.0 / 15.0 * 0.68;
/// The code that half byte 0 stands for; 7.5 is the middle.
const FIRST: f32 = 127.5 - 7.5 * STEP;
/// The largest absolute value of a query's dimension.
const QUERY_LEVELS: f32 = 127.0;
/// 1,024 rows for one thread at a time.
const ROWS_AT_A_TIME: usize = 1024;

/// All rows of a segment in half bytes.
#[derive(Debug)]
pub(super) struct Coarse {
    lines: Lines,
    dot: NibbleKernel,
}

/// A query, ready to be scored against coarse rows.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    steps: Vec<Step>,
    factor: f32,
    constant: f32,
}

/// Bytes of a coarse row: its dimensions and, where centred, a number in the last four bytes of
/// its last line, whose dimensions are left free.
pub(super) fn stride(dim: usize, centred: bool) -> usize {
    let in_last = dim % NIBBLES;
    let full = in_last == 0 || in_last > LINE - size_of::<f32>();
    (dim.div_ceil(NIBBLES) + usize::from(centred && full)) * LINE
}

impl Coarse {
    /// Of the `rows` of `codes`, which have `dim` dimensions; `bias` tells what is to be added to
    /// the score of a row, given what its half bytes stand for, in codes.
    pub(super) fn of(
        codes: &Lines,
        (rows, dim): (usize, usize),
        bias: Option<&(impl Fn(Row, &[f32]) -> f32 + Sync)>,
    ) -> Self {
        let halves: [u8; 256] =
            std::array::from_fn(|code| ((code as f32 - FIRST) / STEP + 0.5).clamp(0.0, 15.0) as u8);
        let stride = stride(dim, bias.is_some());
        let mut bytes = vec![0; rows * stride];
        let pieces = bytes.par_chunks_mut((ROWS_AT_A_TIME * stride).max(1)).enumerate();
        pieces.for_each(|(piece, coarse)| {
            let from = piece * ROWS_AT_A_TIME;
            let mut meant = vec![0.0; dim];
            for (row, coarse) in (from as Row..).zip(coarse.chunks_exact_mut(stride)) {
                let code = codes.row(row);
                for (at, code) in code[..dim].iter().enumerate() {
                    let half = halves[usize::from(*code)];
                    meant[at] = FIRST + STEP * f32::from(half);
                    let shift = if at % NIBBLES < LINE { 0 } else { 4 };
                    coarse[at / NIBBLES * LINE + at % LINE] |= half << shift;
                }
                if let (Some(bias), Some(place)) = (bias, coarse.last_chunk_mut()) {
                    *place = bias(row, &meant).to_le_bytes();
                }
            }
        });
        Self::open(Buffer::from_vec(bytes), stride, bias.is_some())
    }

    /// Of the bytes of [`Coarse::into_bytes`].
    pub(super) fn open(bytes: Buffer, stride: usize, centred: bool) -> Self {
        Self { lines: Lines::new(bytes, stride, centred), dot: kernel::nibble_dot() }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.lines.into_bytes()
    }

    /// Makes a query of `weights`, what a step of a code adds to a score in each dimension, and the
    /// `largest` of them; `constant` is the score of a row of codes that are all zero.
    pub(super) fn prepare(
        &self,
        weights: &[f32],
        largest: f32,
        constant: f32,
        prepared: &mut Prepared,
    ) {
        let levels = if largest > 0.0 { QUERY_LEVELS / largest } else { 0.0 };
        prepared.factor = STEP * largest / QUERY_LEVELS;
        prepared.constant = constant + FIRST * fold::sum(weights);
        prepared.steps.clear();
        prepared.steps.resize(self.lines.per_row() * 2, Step::ZERO);
        for (step, weights) in prepared.steps.iter_mut().zip(weights.chunks(LINE)) {
            for (place, weight) in step.0.iter_mut().zip(weights) {
                *place = fold::rounded(weight * levels) as i8;
            }
        }
    }

    /// The score of a row, by its half bytes.
    #[inline]
    pub(super) fn score(&self, query: &Prepared, row: Row) -> f32 {
        let mut dot = [(self.dot.one)(&query.steps, self.lines.row(row)) as f32];
        self.lines.finish(&[row], &mut dot, query.factor, query.constant);
        dot[0]
    }

    /// [`Coarse::score`] of several rows.
    #[inline]
    pub(super) fn score_all(&self, query: &Prepared, rows: &[Row], scores: &mut [f32]) {
        (self.dot.picked)(&query.steps, self.lines.pick(rows), scores);
        self.lines.finish(rows, scores, query.factor, query.constant);
    }
}
