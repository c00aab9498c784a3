//! The reference: plain Rust, summed in double precision, for any machine.

use half::{bf16, f16};

use super::{CodeKernel, Kernel, Step};
use crate::{Elem, Metric};

pub(super) fn kernel(metric: Metric, elem: Elem) -> Kernel {
    macro_rules! kernel {
        ($pair:expr) => {
            Kernel {
                pair: |query, row| $pair(query, row),
                block: |query, rows, out| {
                    let width = query.len().max(1);
                    for (row, out) in rows.chunks_exact(width).zip(out) {
                        *out = $pair(query, row);
                    }
                },
            }
        };
    }
    macro_rules! dense {
        ($number:ty) => {
            match metric {
                Metric::L2 => kernel!(l2::<$number>),
                Metric::Cosine => kernel!(cosine::<$number>),
                Metric::Ip | Metric::Hamming | Metric::Jaccard => kernel!(ip::<$number>),
            }
        };
    }
    match elem {
        Elem::F32 => dense!(f32),
        Elem::F16 => dense!(f16),
        Elem::Bf16 => dense!(bf16),
        Elem::I8 => dense!(i8),
        Elem::Bit => match metric {
            Metric::Jaccard => kernel!(jaccard),
            Metric::Hamming | Metric::L2 | Metric::Ip | Metric::Cosine => kernel!(hamming),
        },
    }
}

/// A number as it lies in a row.
trait Number {
    const WIDTH: usize;
    fn read(bytes: &[u8]) -> f64;
}

impl Number for f32 {
    const WIDTH: usize = 4;
    fn read(bytes: &[u8]) -> f64 {
        bytes.first_chunk().map_or(0.0, |bytes| f64::from(Self::from_le_bytes(*bytes)))
    }
}

impl Number for f16 {
    const WIDTH: usize = 2;
    fn read(bytes: &[u8]) -> f64 {
        bytes.first_chunk().map_or(0.0, |bytes| Self::from_le_bytes(*bytes).to_f64())
    }
}

impl Number for bf16 {
    const WIDTH: usize = 2;
    fn read(bytes: &[u8]) -> f64 {
        bytes.first_chunk().map_or(0.0, |bytes| Self::from_le_bytes(*bytes).to_f64())
    }
}

impl Number for i8 {
    const WIDTH: usize = 1;
    fn read(bytes: &[u8]) -> f64 {
        bytes.first_chunk().map_or(0.0, |bytes| f64::from(Self::from_le_bytes(*bytes)))
    }
}

fn numbers<'a, N: Number>(a: &'a [u8], b: &'a [u8]) -> impl Iterator<Item = (f64, f64)> + 'a {
    assert_eq!(a.len(), b.len(), "a row as wide as the query");
    let pairs = a.chunks_exact(N::WIDTH).zip(b.chunks_exact(N::WIDTH));
    pairs.map(|(a, b)| (N::read(a), N::read(b)))
}

fn l2<N: Number>(query: &[u8], row: &[u8]) -> f32 {
    numbers::<N>(query, row).map(|(q, r)| (q - r) * (q - r)).sum::<f64>() as f32
}

fn ip<N: Number>(query: &[u8], row: &[u8]) -> f32 {
    numbers::<N>(query, row).map(|(q, r)| q * r).sum::<f64>() as f32
}

fn cosine<N: Number>(query: &[u8], row: &[u8]) -> f32 {
    let (dot, square) = numbers::<N>(query, row)
        .fold((0.0, 0.0), |(dot, square), (q, r)| (q.mul_add(r, dot), r.mul_add(r, square)));
    // Rounded before the root as the other levels do, so that sums that are exact in both
    // give the same cosine.
    let (dot, square) = (dot as f32, square as f32);
    if square > 0.0 { dot / square.sqrt() } else { 0.0 }
}

/// Folds over eight bytes at a time, then over what is left, byte by byte.
#[inline(always)]
fn bits(a: &[u8], b: &[u8], mut visit: impl FnMut(u64, u64)) {
    assert_eq!(a.len(), b.len(), "a row as wide as the query");
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a.iter().zip(b) {
        visit(u64::from_le_bytes(*a), u64::from_le_bytes(*b));
    }
    for (a, b) in a_tail.iter().zip(b_tail) {
        visit(u64::from(*a), u64::from(*b));
    }
}

/// Inlined into callers that have a population count instruction.
#[inline(always)]
pub(super) fn hamming(query: &[u8], row: &[u8]) -> f32 {
    let mut differing = 0_u32;
    bits(query, row, |q, r| differing += (q ^ r).count_ones());
    differing as f32
}

/// Inlined into callers that have a population count instruction.
#[inline(always)]
pub(super) fn jaccard(query: &[u8], row: &[u8]) -> f32 {
    let (mut both, mut either) = (0_u32, 0_u32);
    bits(query, row, |q, r| {
        both += (q & r).count_ones();
        either += (q | r).count_ones();
    });
    jaccard_distance(both as f32, either as f32)
}

/// The distance from the sizes of the intersection and the union.
#[inline(always)]
pub(super) fn jaccard_distance(both: f32, either: f32) -> f32 {
    if either > 0.0 { (either - both) / either } else { 1.0 }
}

#[inline(always)]
pub(super) fn count_ones(words: &[u64]) -> usize {
    words.iter().map(|word| word.count_ones() as usize).sum()
}

/// Also the last, partial word of the other levels.
pub(super) fn select(scores: &[f32], floor: f32, out: &mut [u64]) {
    for (scores, word) in scores.chunks(64).zip(out) {
        *word = (0..).zip(scores).fold(0, |word, (bit, score)| {
            #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN on either side passes")]
            let passes = !(*score <= floor);
            word | u64::from(passes) << bit
        });
    }
}

fn code_dot(high: &[Step], low: &[Step], code: &[u8]) -> f32 {
    let dot = |step: &Step, code: &[u8; 64]| -> i32 {
        step.0.iter().zip(code).map(|(q, c)| i32::from(*q) * i32::from(*c)).sum()
    };
    let (mut of_high, mut of_low) = (0, 0);
    for ((high, low), code) in high.iter().zip(low).zip(code.as_chunks().0) {
        of_high += dot(high, code);
        of_low += dot(low, code);
    }
    of_high as f32 * 128.0 + of_low as f32
}

/// The reference for rows of codes.
pub(super) const CODES: CodeKernel = CodeKernel {
    one: code_dot,
    picked: |high, low, codes, out| {
        codes.each(out, |code| code_dot(high, low, code.as_flattened()));
    },
};
