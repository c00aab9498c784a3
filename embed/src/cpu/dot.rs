//! Products of unsigned and signed bytes, exact in whatever instructions the machine has.
//!
//! The four levels give the same integers: every product and every sum fits 32 bits (the caller
//! bounds the inner length), and none of the instructions used here saturates on the way.
//! `vpmaddubsw`, the usual one before VNNI, does, so AVX2 widens to 16 bits first.
//!
//! This module knows integers. Scales, zero points and threads are [`super::int8`]'s.
#![expect(unsafe_code, reason = "VNNI is not within reach of pulp's safe dispatch")]

/// Columns of a panel: three 512-bit vectors of 32-bit sums.
pub(super) const PANEL: usize = 48;

/// Inner indices that one instruction multiplies and adds.
pub(super) const GROUP: usize = 4;

/// Bytes of one group of inner indices of a panel.
const STEP: usize = PANEL * GROUP;

/// A set of instructions, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Scalar,
    Avx2,
    AvxVnni,
    Avx512Vnni,
}

impl Level {
    const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni];

    /// The best level of this machine.
    pub(super) fn best() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Self::Scalar)
    }

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Scalar => true,
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::AvxVnni => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni")
            }
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Scalar;
    }
}

/// `out[r][c] = Σ x[r][k] · panel[k][c]` for all rows of `x` and one panel.
///
/// A row of `x` is `groups` words of four unsigned bytes. The panel holds, for each group, the
/// four signed bytes of column 0, then those of column 1 and so on. `out` is `rows × PANEL`.
///
/// # Panics
/// If the lengths do not fit together.
pub(super) fn multiply(level: Level, x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
    assert_eq!(panel.len(), groups * STEP, "a panel has all groups");
    assert_eq!(x.len() * PANEL, out.len() * groups, "one row of sums per row of input");
    assert!(level.is_available(), "a level is used where it was found");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: AVX-512 F and VNNI are there, asserted above.
        Level::Avx512Vnni => unsafe { x86::avx512(x, groups, panel, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: AVX2 and AVX-VNNI are there, asserted above.
        Level::AvxVnni => unsafe { x86::avx_vnni(x, groups, panel, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: AVX2 is there, asserted above.
        Level::Avx2 => unsafe { x86::avx2(x, groups, panel, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx512Vnni | Level::AvxVnni | Level::Avx2 => unreachable!("asserted above"),
        Level::Scalar => scalar(x, groups, panel, out),
    }
}

/// The reference.
fn scalar(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
    for (x, out) in x.chunks_exact(groups.max(1)).zip(out.chunks_exact_mut(PANEL)) {
        out.fill(0);
        for (x, step) in x.iter().zip(panel.chunks_exact(STEP)) {
            let x = x.to_le_bytes().map(i32::from);
            for (out, weights) in out.iter_mut().zip(step.as_chunks::<GROUP>().0) {
                let products = x.iter().zip(weights).map(|(x, w)| x * i32::from(*w));
                *out += products.sum::<i32>();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::prefetch::prefetch;
    use super::{GROUP, PANEL, STEP};

    /// Groups between asking for weights and using them.
    const AHEAD: usize = 32;

    /// Walks over the rows in tiles of the given heights; a tile is `tile::<ROWS>(x, panel, out)`
    /// with `groups` words of `x` per row.
    macro_rules! tiles {
        ($tile:ident, [$($rows:literal),+], $x:ident, $groups:ident, $panel:ident, $out:ident) => {
            let (mut x, mut out) = ($x, $out);
            $(
                while out.len() >= $rows * PANEL {
                    let (tile_x, rest_x) = x.split_at($rows * $groups);
                    let (tile_out, rest_out) = out.split_at_mut($rows * PANEL);
                    $tile::<$rows>(tile_x, $groups, $panel, tile_out);
                    (x, out) = (rest_x, rest_out);
                }
            )+
        };
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        tiles!(tile_512, [8, 4, 2, 1], x, groups, panel, out);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn avx_vnni(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        tiles!(tile_256, [2, 1], x, groups, panel, out);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        tiles!(tile_widened, [4, 2, 1], x, groups, panel, out);
    }

    /// The word of row `row` and group `group`, in every lane's place.
    #[inline(always)]
    fn word(x: &[u32], groups: usize, row: usize, group: usize) -> i32 {
        debug_assert!(row * groups + group < x.len());
        // SAFETY: callers pass `x` of whole rows of `groups` words, a row of them and a group
        // below `groups`.
        unsafe { x.get_unchecked(row * groups + group).cast_signed() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn tile_512<const R: usize>(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        const LANES: usize = 16;
        const VECTORS: usize = PANEL / LANES;
        assert!(x.len() == R * groups && out.len() == R * PANEL && panel.len() == groups * STEP);
        let mut sums = [[_mm512_setzero_si512(); VECTORS]; R];
        for (group, step) in panel.chunks_exact(STEP).enumerate() {
            // Behind the last group of a panel lies the next panel.
            prefetch(step.as_ptr().wrapping_add(AHEAD * STEP).cast(), STEP);
            let mut weights = [_mm512_setzero_si512(); VECTORS];
            for (weights, bytes) in weights.iter_mut().zip(step.as_chunks::<{ LANES * GROUP }>().0)
            {
                // SAFETY: `bytes` is an array of the 64 bytes read; loads need no alignment.
                *weights = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(word(x, groups, row, group));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, weights);
                }
            }
        }
        for (sum, out) in sums.as_flattened().iter().zip(out.as_chunks_mut::<LANES>().0) {
            // SAFETY: `out` is an array of the 16 integers written; stores need no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    fn tile_256<const R: usize>(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        const LANES: usize = 8;
        const VECTORS: usize = PANEL / LANES;
        assert!(x.len() == R * groups && out.len() == R * PANEL && panel.len() == groups * STEP);
        let mut sums = [[_mm256_setzero_si256(); VECTORS]; R];
        for (group, step) in panel.chunks_exact(STEP).enumerate() {
            // Behind the last group of a panel lies the next panel.
            prefetch(step.as_ptr().wrapping_add(AHEAD * STEP).cast(), STEP);
            let mut words = [_mm256_setzero_si256(); R];
            for (row, word_of) in words.iter_mut().enumerate() {
                *word_of = _mm256_set1_epi32(word(x, groups, row, group));
            }
            let step = step.as_chunks::<{ LANES * GROUP }>().0;
            for (vector, bytes) in step.iter().enumerate() {
                // SAFETY: `bytes` is an array of the 32 bytes read; loads need no alignment.
                let weights = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
                for (sums, x) in sums.iter_mut().zip(words) {
                    sums[vector] = _mm256_dpbusd_avx_epi32(sums[vector], x, weights);
                }
            }
        }
        for (sum, out) in sums.as_flattened().iter().zip(out.as_chunks_mut::<LANES>().0) {
            // SAFETY: `out` is an array of the 8 integers written; stores need no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), *sum) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn tile_widened<const R: usize>(x: &[u32], groups: usize, panel: &[i8], out: &mut [i32]) {
        const LANES: usize = 8;
        assert!(x.len() == R * groups && out.len() == R * PANEL && panel.len() == groups * STEP);
        for columns in 0..PANEL / LANES {
            // Of each row, pairs of sums for the first four columns and for the last four.
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for (group, step) in panel.chunks_exact(STEP).enumerate() {
                let halves = step.as_chunks::<{ LANES / 2 * GROUP }>().0;
                let mut weights = [_mm256_setzero_si256(); 2];
                for (weights, bytes) in weights.iter_mut().zip(&halves[2 * columns..]) {
                    // SAFETY: `bytes` is an array of the 16 bytes read; loads need no alignment.
                    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
                    *weights = _mm256_cvtepi8_epi16(bytes);
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = _mm_set1_epi32(word(x, groups, row, group));
                    let x = _mm256_cvtepu8_epi16(x);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, weights));
                    }
                }
            }
            for (row, [low, high]) in sums.into_iter().enumerate() {
                // Columns 0 1 4 5 in one half and 2 3 6 7 in the other, then in order.
                let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high));
                let out = &mut out[row * PANEL + columns * LANES..][..LANES];
                // SAFETY: `out` has the 8 integers written; stores need no alignment.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_same_integers() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        for (rows, groups) in [(1, 1), (3, 5), (8, 33), (15, 2), (17, 64), (0, 3)] {
            // Extremes as well as what lies between: they are what saturates.
            let x: Vec<u32> = (0..rows * groups)
                .map(|i| if i % 3 == 0 { u32::MAX } else { next() ^ (next() << 8) })
                .collect();
            let panel: Vec<i8> = (0..groups * STEP)
                .map(|i| if i % 5 == 0 { -127 } else { (next() % 255) as i8 })
                .collect();
            let mut expected = vec![1; rows * PANEL];
            multiply(Level::Scalar, &x, groups, &panel, &mut expected);
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let mut found = vec![-1; rows * PANEL];
                multiply(level, &x, groups, &panel, &mut found);
                assert_eq!(found, expected, "{level:?}, {rows} rows, {groups} groups");
            }
        }
    }
}
