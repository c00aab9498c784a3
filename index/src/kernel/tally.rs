//! Counting, for 64 rows at a time, what the common terms of a sparse query bring to each, where a
//! term counts for the same in all rows that have it.
//!
//! The bits of a mask tell which rows have a term, in the order of [`super::bit_of`].

use std::sync::LazyLock;

use super::{Level, row_of};
use crate::Error;

/// The tallies of 64 rows.
pub type Tally = [u8; 64];

/// Adds to each row's tally the share of every term that has a bit for it, staying at 255 where it
/// would become more. There is a share for each mask, and in each mask a word for each [`Tally`].
///
/// # Panics
/// If there is not.
pub type AddShares = fn(masks: &[&[u64]], shares: &[u8], tallies: &mut [Tally]);
/// Sets bit `i` of each word where `tallies[i]` is at least `least`; here bits have the order of
/// the rows.
pub type TallyAtLeast = fn(tallies: &[Tally], least: u8, out: &mut [u64]);

/// The functions for tallies. All levels of instructions give the same results.
#[derive(Debug, Clone, Copy)]
pub struct TallyKernel {
    /// Adds to tallies.
    pub add: AddShares,
    /// Finds large ones.
    pub at_least: TallyAtLeast,
}

/// The [`TallyKernel`] of one level of instructions.
///
/// # Errors
/// [`Error::Unsupported`] if the machine lacks them.
pub fn tallies_at(level: Level) -> Result<TallyKernel, Error> {
    Ok(at_level!(level, SCALAR, x86::AVX2, x86::AVX512))
}

/// The best [`TallyKernel`] of this machine.
#[must_use]
pub fn tallies() -> TallyKernel {
    static BEST: LazyLock<TallyKernel> =
        LazyLock::new(|| tallies_at(Level::best()).unwrap_or(SCALAR));
    *BEST
}

/// The reference.
const SCALAR: TallyKernel = TallyKernel { add: scalar_add, at_least: scalar_at_least };

fn scalar_add(masks: &[&[u64]], shares: &[u8], tallies: &mut [Tally]) {
    check(masks, shares, tallies);
    for (mask, share) in masks.iter().zip(shares) {
        for (word, tally) in mask.iter().zip(&mut *tallies) {
            for bit in crate::mask::ones(*word) {
                let of_row = &mut tally[row_of(bit as usize)];
                *of_row = of_row.saturating_add(*share);
            }
        }
    }
}

fn scalar_at_least(tallies: &[Tally], least: u8, out: &mut [u64]) {
    for (tally, out) in tallies.iter().zip(out) {
        *out = (0..).zip(tally).fold(0, |word, (bit, of)| word | u64::from(*of >= least) << bit);
    }
}

fn check(masks: &[&[u64]], shares: &[u8], tallies: &[Tally]) {
    assert_eq!(masks.len(), shares.len(), "a share for each mask");
    assert!(masks.iter().all(|mask| mask.len() == tallies.len()), "a word for each tally");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Tally, TallyKernel, check};
    use crate::kernel::x86::{load256, load512};

    pub(super) const AVX2: TallyKernel = TallyKernel { add: avx2_add, at_least: avx2_at_least };
    pub(super) const AVX512: TallyKernel =
        TallyKernel { add: avx512_add, at_least: avx512_at_least };

    /// Words whose tallies stay in registers while all terms are added.
    const BLOCK: usize = 8;

    fn avx512_add(masks: &[&[u64]], shares: &[u8], tallies: &mut [Tally]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn add<const N: usize>(
            masks: &[&[u64]],
            shares: &[u8],
            at: usize,
            tallies: &mut [Tally; N],
        ) {
            // Eight rows each: from the order of the rows to that of the bits, and back.
            let to_bits = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            let to_rows = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            let mut sums = [_mm512_setzero_si512(); N];
            for (sum, tally) in sums.iter_mut().zip(&*tallies) {
                *sum = _mm512_permutexvar_epi64(to_bits, load512(tally));
            }
            for (mask, share) in masks.iter().zip(shares) {
                let share = _mm512_set1_epi8(share.cast_signed());
                let Some(words) = mask[at..].first_chunk::<N>() else { continue };
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = _mm512_mask_adds_epu8(*sum, *word, *sum, share);
                }
            }
            for (sum, tally) in sums.into_iter().zip(tallies) {
                let ordered = _mm512_permutexvar_epi64(to_rows, sum);
                // SAFETY: the reference covers the 64 bytes written, at any alignment.
                unsafe { _mm512_storeu_si512(tally.as_mut_ptr().cast(), ordered) };
            }
        }
        check(masks, shares, tallies);
        let (blocks, rest) = tallies.as_chunks_mut::<BLOCK>();
        let done = blocks.len() * BLOCK;
        for (at, block) in (0..).step_by(BLOCK).zip(blocks) {
            // SAFETY: `tallies_at` hands this function out only where the machine has AVX-512 BW.
            unsafe { add(masks, shares, at, block) };
        }
        for (at, tally) in (done..).zip(rest) {
            // SAFETY: as above.
            unsafe { add(masks, shares, at, std::array::from_mut(tally)) };
        }
    }

    fn avx512_at_least(tallies: &[Tally], least: u8, out: &mut [u64]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn select(tallies: &[Tally], least: u8, out: &mut [u64]) {
            let least = _mm512_set1_epi8(least.cast_signed());
            for (tally, out) in tallies.iter().zip(out) {
                *out = _mm512_cmpge_epu8_mask(load512(tally), least);
            }
        }
        // SAFETY: `tallies_at` hands this function out only where the machine has AVX-512 BW.
        unsafe { select(tallies, least, out) }
    }

    /// For each of 32 rows, the byte of a mask that has its bit: of the lower rows, and of the upper.
    static BYTES: [[u8; 32]; 2] = bytes();

    const fn bytes() -> [[u8; 32]; 2] {
        let mut table = [[0; 32]; 2];
        let mut row = 0;
        while row < 64 {
            table[row / 32][row % 32] = (row % 32 / 8 * 2 + row / 32) as u8;
            row += 1;
        }
        table
    }

    fn avx2_add(masks: &[&[u64]], shares: &[u8], tallies: &mut [Tally]) {
        #[target_feature(enable = "avx2")]
        fn add(masks: &[&[u64]], shares: &[u8], tallies: &mut [Tally]) {
            let bit_of_byte = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let bytes = BYTES.each_ref().map(|half| load256(half));
            for (at, tally) in tallies.iter_mut().enumerate() {
                let halves: &mut [[u8; 32]; 2] = bytemuck::cast_mut(tally);
                let mut sums = halves.each_ref().map(|half| load256(half));
                for (mask, share) in masks.iter().zip(shares) {
                    let share = _mm256_set1_epi8(share.cast_signed());
                    let word = _mm256_set1_epi64x(mask[at].cast_signed());
                    for (sum, bytes) in sums.iter_mut().zip(bytes) {
                        let bits = _mm256_and_si256(_mm256_shuffle_epi8(word, bytes), bit_of_byte);
                        let has = _mm256_cmpeq_epi8(bits, bit_of_byte);
                        *sum = _mm256_adds_epu8(*sum, _mm256_and_si256(has, share));
                    }
                }
                for (sum, half) in sums.into_iter().zip(halves) {
                    // SAFETY: the reference covers the 32 bytes written, at any alignment.
                    unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), sum) };
                }
            }
        }
        check(masks, shares, tallies);
        // SAFETY: `tallies_at` hands this function out only where the machine has AVX2.
        unsafe { add(masks, shares, tallies) }
    }

    fn avx2_at_least(tallies: &[Tally], least: u8, out: &mut [u64]) {
        #[target_feature(enable = "avx2")]
        fn select(tallies: &[Tally], least: u8, out: &mut [u64]) {
            let least = _mm256_set1_epi8(least.cast_signed());
            for (tally, out) in tallies.iter().zip(out) {
                let halves: &[[u8; 32]; 2] = bytemuck::cast_ref(tally);
                let [lower, upper] = halves.each_ref().map(|half| {
                    let of_rows = load256(half);
                    let reaches = _mm256_cmpeq_epi8(_mm256_max_epu8(of_rows, least), of_rows);
                    u64::from(_mm256_movemask_epi8(reaches).cast_unsigned())
                });
                *out = lower | upper << 32;
            }
        }
        // SAFETY: `tallies_at` hands this function out only where the machine has AVX2.
        unsafe { select(tallies, least, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::bit_of;
    use crate::testing::Random;

    #[test]
    fn every_level_counts_and_finds_what_the_reference_does() {
        let mut random = Random(9);
        for _ in 0..200 {
            let (words, terms) = (random.below(30), random.below(9));
            let sparse = random.below(2) == 0;
            let mut word = || random.next() & if sparse { random.next() } else { !0 };
            let masks: Vec<Vec<u64>> =
                (0..terms).map(|_| (0..words).map(|_| word()).collect()).collect();
            let masks: Vec<&[u64]> = masks.iter().map(Vec::as_slice).collect();
            let shares: Vec<u8> = (0..terms).map(|_| random.below(80) as u8).collect();
            let before: Vec<Tally> =
                (0..words).map(|_| std::array::from_fn(|_| random.below(40) as u8)).collect();
            let least = random.below(256) as u8;

            let count = |word: usize, row: usize| {
                let of_terms = masks.iter().zip(&shares);
                let has = of_terms.filter(|(mask, _)| mask[word] >> bit_of(row) & 1 == 1);
                let sum: usize = has.map(|(_, share)| usize::from(*share)).sum();
                (sum + usize::from(before[word][row])).min(255) as u8
            };
            let expected: Vec<Tally> =
                (0..words).map(|word| std::array::from_fn(|row| count(word, row))).collect();
            let large: Vec<u64> = expected
                .iter()
                .map(|tally| {
                    (0..64).filter(|at| tally[*at] >= least).fold(0, |word, at| word | 1 << at)
                })
                .collect();
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let kernel = tallies_at(level).expect("available");
                let mut tallies = before.clone();
                (kernel.add)(&masks, &shares, &mut tallies);
                assert_eq!(tallies, expected, "{level:?}");
                let mut found = vec![!0; words];
                (kernel.at_least)(&tallies, least, &mut found);
                assert_eq!(found, large, "{level:?}");
            }
        }
    }
}
