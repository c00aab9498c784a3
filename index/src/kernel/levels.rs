//! Adding up, for 64 rows at a time, how much the terms of a sparse query can bring to each.
//!
//! A *level* is a weight in eight bits, a *sum* what a row's levels come to in sixteen. The bits
//! of a mask tell which rows have a level, in the order of [`bit_of`]: what one unpacking of
//! bytes to 16 bits turns into the order of the rows.

use std::sync::LazyLock;

use super::Level;
use crate::Error;

/// The sums of 64 rows.
pub type Sums = [u16; 64];

/// Adds `level · factor / 256`, rounded down, to the sum of each row that has a bit in its mask,
/// modulo 2^16. The rows' levels lie one after another in the order of the bits; missing ones
/// count as zero. Returns the levels that are left.
pub type AddLevels =
    for<'a> fn(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8];
/// Sets bit `i` of each word where `sums[i]` is at least `least`; here bits have the order of the
/// rows.
pub type AtLeast = fn(sums: &[Sums], least: u16, out: &mut [u64]);

/// The functions for levels. All levels of instructions give the same results.
#[derive(Debug, Clone, Copy)]
pub struct LevelKernel {
    /// Adds to sums.
    pub add: AddLevels,
    /// Finds large ones.
    pub at_least: AtLeast,
}

/// The bit that stands for row `row` of 64.
#[inline]
#[must_use]
pub fn bit_of(row: usize) -> usize {
    (row & 24) << 1 | (row & 32) >> 2 | row & 7
}

/// The row of 64 that bit `bit` stands for.
#[inline]
#[must_use]
pub fn row_of(bit: usize) -> usize {
    (bit & 48) >> 1 | (bit & 8) << 2 | bit & 7
}

/// The [`LevelKernel`] of one level of instructions.
///
/// # Errors
/// [`Error::Unsupported`] if the machine lacks them.
pub fn levels_at(level: Level) -> Result<LevelKernel, Error> {
    Ok(at_level!(level, SCALAR, x86::AVX2, x86::AVX512))
}

/// The best [`LevelKernel`] of this machine.
#[must_use]
pub fn levels() -> LevelKernel {
    static BEST: LazyLock<LevelKernel> =
        LazyLock::new(|| levels_at(Level::best()).unwrap_or(SCALAR));
    *BEST
}

/// What a level adds to a sum.
#[inline]
#[must_use]
pub fn share(level: u8, factor: u16) -> u16 {
    // A product of 8 and 16 bits without its last 8 fits 16.
    ((u32::from(level) * u32::from(factor)) >> 8) as u16
}

/// The reference.
const SCALAR: LevelKernel = LevelKernel { add: scalar_add, at_least: scalar_at_least };

fn scalar_add<'a>(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8] {
    let mut levels = levels.iter();
    for (mask, sums) in masks.iter().zip(sums) {
        let bits = crate::mask::ones(*mask);
        for (bit, level) in bits.zip(levels.by_ref().take(mask.count_ones() as usize)) {
            let sum = &mut sums[row_of(bit as usize)];
            *sum = sum.wrapping_add(share(*level, factor));
        }
    }
    levels.as_slice()
}

fn scalar_at_least(sums: &[Sums], least: u16, out: &mut [u64]) {
    for (sums, out) in sums.iter().zip(out) {
        *out = (0..).zip(sums).fold(0, |word, (bit, sum)| word | u64::from(*sum >= least) << bit);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LevelKernel, Sums};
    use crate::kernel::x86::{load128, load256, load512, prefetch};

    pub(super) const AVX2: LevelKernel = LevelKernel { add: avx2_add, at_least: avx2_at_least };
    pub(super) const AVX512: LevelKernel =
        LevelKernel { add: avx512_add, at_least: avx512_at_least };

    /// Each term's levels are a stream of their own, more of them than are foreseen by themselves.
    const LEVELS_AHEAD: usize = 512;

    /// For each byte of a mask, which of the next levels goes to the upper half of each of eight
    /// 16-bit lanes; 128 makes zero.
    static SPREAD: [[u8; 16]; 256] = spread();

    const fn spread() -> [[u8; 16]; 256] {
        let mut table = [[128; 16]; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut bit, mut next) = (0, 0);
            while bit < 8 {
                if mask >> bit & 1 == 1 {
                    table[mask][2 * bit + 1] = next;
                    next += 1;
                }
                bit += 1;
            }
            mask += 1;
        }
        table
    }

    fn avx2_add<'a>(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8] {
        #[target_feature(enable = "avx2,popcnt")]
        fn add<'a>(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8] {
            let factor = _mm_set1_epi16(factor.cast_signed());
            let mut levels = levels;
            for (mask, sums) in masks.iter().zip(sums) {
                let eighths: &mut [[u8; 16]; 8] = bytemuck::cast_mut(sums);
                for (at, byte) in mask.to_le_bytes().into_iter().enumerate() {
                    if byte == 0 {
                        continue;
                    }
                    let mut next = [0; 16];
                    match levels.first_chunk::<8>() {
                        Some(eight) => next[..8].copy_from_slice(eight),
                        None => next[..levels.len()].copy_from_slice(levels),
                    }
                    let spread = &SPREAD[usize::from(byte)];
                    let lanes = _mm_shuffle_epi8(load128(&next), load128(spread));
                    // Even bytes are rows of the lower half, odd ones of the upper.
                    let sums = &mut eighths[at / 2 + at % 2 * 4];
                    let sum = _mm_add_epi16(load128(sums), _mm_mulhi_epu16(lanes, factor));
                    // SAFETY: the reference covers the 16 bytes written, at any alignment.
                    unsafe { _mm_storeu_si128(sums.as_mut_ptr().cast(), sum) };
                    levels = levels.get(byte.count_ones() as usize..).unwrap_or_default();
                }
            }
            levels
        }
        // SAFETY: `levels_at` hands this function out only where the machine has AVX2 and POPCNT.
        unsafe { add(masks, levels, factor, sums) }
    }

    fn avx512_add<'a>(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8] {
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
        fn add<'a>(masks: &[u64], levels: &'a [u8], factor: u16, sums: &mut [Sums]) -> &'a [u8] {
            let factor = _mm512_set1_epi16(factor.cast_signed());
            let zero = _mm512_setzero_si512();
            let mut levels = levels;
            for (mask, sums) in masks.iter().zip(sums) {
                prefetch(levels.get(LEVELS_AHEAD..).unwrap_or_default(), 1);
                let next = match levels.first_chunk::<64>() {
                    Some(next) => load512(next),
                    None => {
                        let there = !(!0 << levels.len());
                        // SAFETY: the mask has one bit for each byte of the slice, and bytes
                        // without one are not accessed; the load asks for no alignment.
                        unsafe { _mm512_maskz_loadu_epi8(there, levels.as_ptr().cast()) }
                    }
                };
                let bytes = _mm512_maskz_expand_epi8(*mask, next);
                let halves: &mut [[u8; 64]; 2] = bytemuck::cast_mut(sums);
                for (at, half) in halves.iter_mut().enumerate() {
                    let lanes = match at {
                        0 => _mm512_unpacklo_epi8(zero, bytes),
                        _ => _mm512_unpackhi_epi8(zero, bytes),
                    };
                    let sum = _mm512_add_epi16(load512(half), upper_products(lanes, factor));
                    // SAFETY: the reference covers the 64 bytes written, at any alignment.
                    unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), sum) };
                }
                levels = levels.get(mask.count_ones() as usize..).unwrap_or_default();
            }
            levels
        }
        // SAFETY: `levels_at` hands this function out only where the machine has AVX-512 with
        // VBMI2, and POPCNT.
        unsafe { add(masks, levels, factor, sums) }
    }

    /// The upper halves of 16-bit products. The intrinsic for it is taken apart where a factor
    /// stays the same in a loop, and takes four instructions then.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn upper_products(a: __m512i, b: __m512i) -> __m512i {
        let product;
        // SAFETY: an instruction of AVX-512 BW that reads and writes the named registers alone.
        unsafe {
            std::arch::asm!(
                "vpmulhuw {product}, {a}, {b}",
                product = lateout(zmm_reg) product,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        product
    }

    fn avx2_at_least(sums: &[Sums], least: u16, out: &mut [u64]) {
        #[target_feature(enable = "avx2")]
        fn select(sums: &[Sums], least: u16, out: &mut [u64]) {
            let least = _mm256_set1_epi16(least.cast_signed());
            let reaches = |bytes: &[u8; 32]| {
                let sum = load256(bytes);
                _mm256_cmpeq_epi16(_mm256_max_epu16(sum, least), sum)
            };
            for (sums, out) in sums.iter().zip(out) {
                let quarters: &[[u8; 32]; 4] = bytemuck::cast_ref(sums);
                let bits = |at: usize| {
                    let packed =
                        _mm256_packs_epi16(reaches(&quarters[at]), reaches(&quarters[at + 1]));
                    // Packing goes by halves of the registers.
                    let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                    u64::from(_mm256_movemask_epi8(ordered).cast_unsigned())
                };
                *out = bits(0) | bits(2) << 32;
            }
        }
        // SAFETY: `levels_at` hands this function out only where the machine has AVX2.
        unsafe { select(sums, least, out) }
    }

    fn avx512_at_least(sums: &[Sums], least: u16, out: &mut [u64]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn select(sums: &[Sums], least: u16, out: &mut [u64]) {
            let least = _mm512_set1_epi16(least.cast_signed());
            for (sums, out) in sums.iter().zip(out) {
                let [lower, upper]: &[[u8; 64]; 2] = bytemuck::cast_ref(sums);
                let lower = _mm512_cmpge_epu16_mask(load512(lower), least);
                let upper = _mm512_cmpge_epu16_mask(load512(upper), least);
                *out = u64::from(lower) | u64::from(upper) << 32;
            }
        }
        // SAFETY: `levels_at` hands this function out only where the machine has AVX-512.
        unsafe { select(sums, least, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn bits_and_rows_are_each_others_inverse() {
        for at in 0..64 {
            assert_eq!((row_of(bit_of(at)), bit_of(row_of(at))), (at, at));
        }
    }

    #[test]
    fn every_level_adds_and_finds_what_the_reference_does() {
        let mut random = Random(5);
        for round in 0..200 {
            let words = random.below(20);
            let mask = |random: &mut Random| match round % 4 {
                0 => random.next(),
                1 => random.next() & random.next() & random.next() & random.next(),
                2 => [0, u64::MAX, 1, 1 << 63][random.below(4)],
                _ => 1 << random.below(64),
            };
            let masks: Vec<u64> = (0..words).map(|_| mask(&mut random)).collect();
            let count: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
            // A damaged file may have fewer levels, or more.
            let count = if round % 5 == 0 { random.below(count + 70) } else { count };
            let levels: Vec<u8> = (0..count).map(|_| random.next() as u8).collect();
            let factor = if round % 3 == 0 { u16::MAX } else { random.next() as u16 };
            let before: Vec<Sums> =
                (0..words).map(|_| std::array::from_fn(|_| random.below(40_000) as u16)).collect();
            let least = random.below(60_000) as u16;

            let mut expected = before.clone();
            let mut rest = levels.iter();
            for (word, mask) in masks.iter().enumerate() {
                for bit in (0..64).filter(|bit| mask >> bit & 1 == 1) {
                    let sum = &mut expected[word][row_of(bit)];
                    let level = u32::from(*rest.next().unwrap_or(&0));
                    *sum = sum.wrapping_add((level * u32::from(factor) / 256) as u16);
                }
            }
            let large: Vec<u64> = expected
                .iter()
                .map(|sums| {
                    (0..64).filter(|at| sums[*at] >= least).fold(0, |word, at| word | 1 << at)
                })
                .collect();
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let kernel = levels_at(level).expect("available");
                let mut sums = before.clone();
                let left = (kernel.add)(&masks, &levels, factor, &mut sums);
                assert_eq!(left, rest.as_slice(), "{level:?}");
                assert_eq!(sums, expected, "{level:?}");
                let mut found = vec![!0; words];
                (kernel.at_least)(&sums, least, &mut found);
                assert_eq!(found, large, "{level:?}");
            }
        }
    }
}
