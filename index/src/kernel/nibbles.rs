//! Products of a query with rows of four bits per dimension, which a walk looks at first: half
//! the bytes of a code, and bytes are what a walk waits for.

use super::{Level, Picked, Step};
use crate::Error;

/// Dimensions in a cache line: byte `i` has dimension `i` in its lower half, `64 + i` in its upper.
pub const NIBBLES: usize = 128;

/// `query · code`, of a query of twice as many steps as the row has lines. The sums are exact.
pub type NibbleDot = fn(query: &[Step], code: &[u8]) -> i32;
/// [`NibbleDot`] of each of several rows, rounded to what a float holds.
pub type NibbleDots = fn(query: &[Step], codes: Picked<'_>, out: &mut [f32]);

/// The functions for rows of half bytes.
#[derive(Debug, Clone, Copy)]
pub struct NibbleKernel {
    /// One row.
    pub one: NibbleDot,
    /// Several rows.
    pub picked: NibbleDots,
}

/// The [`NibbleKernel`] of one level.
///
/// # Errors
/// [`Error::Unsupported`] if the machine lacks the instructions.
pub fn nibble_dot_at(level: Level) -> Result<NibbleKernel, Error> {
    Ok(at_level!(level, SCALAR, x86::AVX2, x86::AVX512))
}

/// The best [`NibbleKernel`] of this machine.
#[must_use]
pub fn nibble_dot() -> NibbleKernel {
    nibble_dot_at(Level::best()).unwrap_or(SCALAR)
}

/// The reference.
const SCALAR: NibbleKernel = NibbleKernel {
    one: scalar,
    picked: |query, codes, out| codes.each(out, |code| scalar(query, code.as_flattened()) as f32),
};

fn scalar(query: &[Step], code: &[u8]) -> i32 {
    let (lines, _) = code.as_chunks::<64>();
    let (pairs, _) = query.as_chunks::<2>();
    let line = |(line, [lower, upper]): (&[u8; 64], &[Step; 2])| -> i32 {
        let halves = lower.0.iter().zip(&upper.0);
        let products = line.iter().zip(halves).map(|(byte, (lower, upper))| {
            i32::from(byte & 15) * i32::from(*lower) + i32::from(byte >> 4) * i32::from(*upper)
        });
        products.sum()
    };
    lines.iter().zip(pairs).map(line).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{NibbleKernel, Picked, Step};
    use crate::kernel::x86::{load256, load512, total256, totals, whole_lines};

    pub(super) const AVX2: NibbleKernel = NibbleKernel { one: avx2, picked: avx2_picked };
    pub(super) const AVX512: NibbleKernel = NibbleKernel { one: avx512, picked: avx512_picked };

    fn avx2_picked(query: &[Step], codes: Picked<'_>, out: &mut [f32]) {
        codes.each(out, |code| avx2(query, code.as_flattened()) as f32);
    }

    fn avx2(query: &[Step], code: &[u8]) -> i32 {
        #[target_feature(enable = "avx2")]
        fn dot(query: &[Step], code: &[u8]) -> i32 {
            let (half, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
            let mut sum = _mm256_setzero_si256();
            for (line, [lower, upper]) in code.as_chunks::<64>().0.iter().zip(query.as_chunks().0) {
                let line: &[[u8; 32]; 2] = bytemuck::cast_ref(line);
                let lower: &[[u8; 32]; 2] = bytemuck::cast_ref(&lower.0);
                let upper: &[[u8; 32]; 2] = bytemuck::cast_ref(&upper.0);
                for at in 0..2 {
                    let bytes = load256(&line[at]);
                    let of_upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
                    let of_lower = _mm256_and_si256(bytes, half);
                    // Sums of two products of at most 15 · 128: far from 16 bits, also twice.
                    let pairs = _mm256_add_epi16(
                        _mm256_maddubs_epi16(of_lower, load256(&lower[at])),
                        _mm256_maddubs_epi16(of_upper, load256(&upper[at])),
                    );
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
            }
            total256(sum)
        }
        // SAFETY: `nibble_dot_at` hands this function out only where the machine has AVX2.
        unsafe { dot(query, code) }
    }

    fn avx512(query: &[Step], code: &[u8]) -> i32 {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn dot(query: &[Step], code: &[u8]) -> i32 {
            let half = _mm512_set1_epi8(15);
            let (mut of_lower, mut of_upper) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for (line, [lower, upper]) in code.as_chunks().0.iter().zip(query.as_chunks().0) {
                let bytes = load512(line);
                let low = _mm512_and_si512(bytes, half);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half);
                of_lower =
                    _mm512_dpbusd_epi32(of_lower, low, load512(bytemuck::cast_ref(&lower.0)));
                of_upper =
                    _mm512_dpbusd_epi32(of_upper, high, load512(bytemuck::cast_ref(&upper.0)));
            }
            _mm512_reduce_add_epi32(_mm512_add_epi32(of_lower, of_upper))
        }
        // SAFETY: `nibble_dot_at` hands this function out only where the machine has AVX-512 VNNI.
        unsafe { dot(query, code) }
    }

    fn avx512_picked(query: &[Step], codes: Picked<'_>, out: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn dots(query: &[Step], codes: Picked<'_>, out: &mut [f32]) {
            let half = _mm512_set1_epi8(15);
            let (query, _) = query.as_chunks::<2>();
            let lines = query.len();
            codes.in_fours(out, |codes| {
                let codes = whole_lines(codes, lines);
                let mut sums = [_mm512_setzero_si512(); 4];
                for line in 0..lines {
                    let [lower, upper] = &query[line];
                    let lower = load512(bytemuck::cast_ref(&lower.0));
                    let upper = load512(bytemuck::cast_ref(&upper.0));
                    for row in 0..4 {
                        let bytes = load512(&codes[row][line]);
                        let low = _mm512_and_si512(bytes, half);
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half);
                        sums[row] = _mm512_dpbusd_epi32(sums[row], low, lower);
                        sums[row] = _mm512_dpbusd_epi32(sums[row], high, upper);
                    }
                }
                let [a, b, c, d] = totals(sums);
                [a as f32, b as f32, c as f32, d as f32]
            });
        }
        // SAFETY: `nibble_dot_at` hands this function out only where the machine has AVX-512 VNNI.
        unsafe { dots(query, codes, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_DIM;
    use crate::testing::Random;

    #[test]
    fn every_level_multiplies_half_bytes_as_the_reference_does_up_to_the_widest_rows() {
        let mut random = Random(4);
        for lines in [0, 1, 2, 3, 6, 7, MAX_DIM / NIBBLES + 1] {
            for extreme in [false, true] {
                let mut step = |_| {
                    let mut step = Step::ZERO;
                    let number = |n: u64| if extreme { -128 } else { n as i8 };
                    step.0.iter_mut().for_each(|q| *q = number(random.next()));
                    step
                };
                let query: Vec<Step> = (0..lines * 2).map(&mut step).collect();
                let code: Vec<u8> = (0..lines * 64)
                    .map(|_| if extreme { 255 } else { random.next() as u8 })
                    .collect();
                let half = |dim: usize| {
                    let byte = code[dim / NIBBLES * 64 + dim % 64];
                    i32::from(if dim % NIBBLES < 64 { byte & 15 } else { byte >> 4 })
                };
                let numbers = query.iter().flat_map(|step| step.0).enumerate();
                let expected: i32 = numbers.map(|(dim, q)| i32::from(q) * half(dim)).sum();
                for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                    let dots = nibble_dot_at(level).expect("available");
                    assert_eq!((dots.one)(&query, &code), expected, "{level:?} {lines}");
                    let mut others: [Vec<u8>; 4] = std::array::from_fn(|_| code.clone());
                    for (at, other) in others.iter_mut().enumerate() {
                        other.rotate_left((at * 7).min(code.len()));
                    }
                    let alone = others.each_ref().map(|code| (dots.one)(&query, code));
                    let picked = Picked {
                        bytes: &others.concat(),
                        stride: lines * 64,
                        places: &[3, 0, 1, 2, 2],
                    };
                    let mut together = [0.0; 5];
                    (dots.picked)(&query, picked, &mut together);
                    let expected = picked.places.iter().map(|at| alone[*at as usize] as f32);
                    assert!(expected.eq(together), "{level:?} {lines}");
                }
            }
        }
    }
}
