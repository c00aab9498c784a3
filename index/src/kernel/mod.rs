//! Distances between rows of bytes, in whatever the machine does best.
//!
//! A [`Kernel`] is a pair of functions chosen once per query from the tables of one
//! [`Level`]. They take bytes, not typed slices: rows come from files and messages and no
//! alignment is promised. Whether a row is scored alone, among its neighbours or under a filter,
//! the same operations happen in the same order, so its score is the same to the last bit.
//!
//! This module knows numbers. It does not know rows, masks or indexes.
#![expect(unsafe_code, reason = "vector instructions; nothing else in this crate needs it")]

/// What there is for `level`, where only x86 has more than the reference.
macro_rules! at_level {
    ($level:expr, $scalar:expr, $avx2:expr, $avx512:expr) => {{
        crate::kernel::available($level)?;
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => $avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => $avx512,
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => $scalar,
            Level::Scalar | Level::Neon => $scalar,
        }
    }};
}

#[macro_use]
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod lanes;
mod levels;
#[cfg(target_arch = "aarch64")]
mod neon;
mod nibbles;
mod picked;
mod scalar;
mod tally;
#[cfg(test)]
mod tests;
#[macro_use]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use levels::{AddLevels, AtLeast, LevelKernel, Sums, bit_of, levels, levels_at, row_of, share};
pub use nibbles::{NIBBLES, NibbleDot, NibbleDots, NibbleKernel, nibble_dot, nibble_dot_at};
pub use picked::{LINE, Picked};
pub use tally::{AddShares, Tally, TallyAtLeast, TallyKernel, tallies, tallies_at};
pub use tiles::{LEAST_SQUARE, Limit, TILE_QUERIES, TILE_ROWS, Tiles};

use std::sync::LazyLock;

use crate::{Elem, Error, Metric};

/// A set of instructions that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust, summing in double precision: the reference for the others.
    Scalar,
    /// AVX2, FMA, F16C and POPCNT.
    Avx2,
    /// AVX-512 F, BW, VL, VNNI, VPOPCNTDQ and VBMI2.
    Avx512,
    /// NEON.
    Neon,
}

impl Level {
    /// Every level, best last.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512];

    /// The best level of this machine.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Self::Scalar)
    }

    /// Whether this machine has the instructions.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::has_avx512(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }
}

/// 16 KiB, which take a core about a microsecond to read: how far ahead of a scan rows are asked
/// for. The processor's own prefetching ends with each page of 4 KiB.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
const BYTES_AHEAD: usize = 16 * 1024;

/// Compares two rows of equal width.
pub type Pair = fn(query: &[u8], row: &[u8]) -> f32;
/// Compares a query with each of several rows that lie one after another; one result per row.
pub type Block = fn(query: &[u8], rows: &[u8], out: &mut [f32]);
/// Sets bit `i` of `out` where `scores[i]` is not at or below `floor`; so does a score or a floor
/// that is not a number. `out` has a word per 64 scores, the last of which may be partial.
pub type Select = fn(scores: &[f32], floor: f32, out: &mut [u64]);

/// The functions for one metric and element type.
///
/// | metric | result |
/// |---|---|
/// | [`Metric::L2`] | squared distance |
/// | [`Metric::Ip`] | inner product |
/// | [`Metric::Cosine`] | inner product over the *row's* length; 0 for a zero row |
/// | [`Metric::Hamming`] | differing bits |
/// | [`Metric::Jaccard`] | Jaccard distance |
///
/// # Panics
/// The functions panic if a row is not as wide as the query.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// One row.
    pub pair: Pair,
    /// Consecutive rows.
    pub block: Block,
}

impl Kernel {
    /// The best functions of this machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the metric does not apply to the element type.
    pub fn best(metric: Metric, elem: Elem) -> Result<Self, Error> {
        Self::at(Level::best(), metric, elem)
    }

    /// The functions of one level.
    ///
    /// # Errors
    /// As [`Kernel::best`], and if the machine lacks the instructions.
    pub fn at(level: Level, metric: Metric, elem: Elem) -> Result<Self, Error> {
        let binary_metric = matches!(metric, Metric::Hamming | Metric::Jaccard);
        if binary_metric != (elem == Elem::Bit) {
            return Err(Error::Unsupported(format!(
                "{metric:?} does not apply to {elem:?} vectors"
            )));
        }
        available(level)?;
        Ok(match level {
            Level::Scalar => scalar::kernel(metric, elem),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::avx2_kernel(metric, elem),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::avx512_kernel(metric, elem),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::kernel(metric, elem),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => scalar::kernel(metric, elem),
            #[cfg(not(target_arch = "aarch64"))]
            Level::Neon => scalar::kernel(metric, elem),
        })
    }
}

/// 64 signed bytes of one plane of a query: a cache line, so that no load straddles two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Step(pub [i8; 64]);

impl Step {
    /// Adds nothing to any sum.
    pub const ZERO: Self = Self([0; 64]);
}

/// `128 · (high · code) + low · code` of a query in two planes with a row of unsigned codes.
///
/// Numbers of the planes are in -64..=64: the sum of two products then fits 16 bits, which is
/// what AVX2 adds up in. All three have the same number of steps of 64.
pub type CodeDot = fn(high: &[Step], low: &[Step], code: &[u8]) -> f32;
/// [`CodeDot`] of each of several rows.
pub type CodeDots = fn(high: &[Step], low: &[Step], codes: Picked<'_>, out: &mut [f32]);

/// The functions for rows of codes. Both give the same results.
#[derive(Debug, Clone, Copy)]
pub struct CodeKernel {
    /// One row.
    pub one: CodeDot,
    /// Several rows.
    pub picked: CodeDots,
}

/// The [`CodeKernel`] of one level.
///
/// # Errors
/// [`Error::Unsupported`] if the machine lacks the instructions.
pub fn code_dot_at(level: Level) -> Result<CodeKernel, Error> {
    Ok(at_level!(level, scalar::CODES, x86::AVX2_CODES, x86::AVX512_CODES))
}

/// The best [`CodeKernel`] of this machine.
#[must_use]
pub fn code_dot() -> CodeKernel {
    code_dot_at(Level::best()).unwrap_or(scalar::CODES)
}

fn available(level: Level) -> Result<(), Error> {
    if level.is_available() {
        return Ok(());
    }
    Err(Error::Unsupported(format!("this machine has no {level:?} instructions")))
}

/// The [`Select`] function of one level.
///
/// # Errors
/// [`Error::Unsupported`] if the machine lacks the instructions.
pub fn select_at(level: Level) -> Result<Select, Error> {
    Ok(at_level!(level, scalar::select, x86::avx2_select, x86::avx512_select))
}

/// The best [`Select`] function of this machine.
#[must_use]
pub fn select() -> Select {
    // Searches ask for it once for a thousand rows.
    static BEST: LazyLock<Select> =
        LazyLock::new(|| select_at(Level::best()).unwrap_or(scalar::select));
    *BEST
}

/// Bits that are set.
#[must_use]
pub fn count_ones(words: &[u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if x86::has_avx512() {
        return x86::avx512_count_ones(words);
    }
    scalar::count_ones(words)
}

/// Asks for the cache lines of `items`, at most the first `lines`, before they are needed.
#[inline]
pub fn prefetch<T>(items: &[T], lines: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(items, lines);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, lines);
}
