//! AVX2 and AVX-512.
//!
//! Each module below is the lane operations of one element type; `lanes.rs` makes kernels of
//! them. Loads take a reference to exactly one register's bytes, or a mask of the slice's length.

use std::arch::x86_64::*;

use super::tiles::{Panels, TILE_ROWS};
use super::{BYTES_AHEAD, CodeKernel, Kernel, Picked, Step, scalar};
use crate::{Elem, Metric};

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("popcnt")
}

pub(super) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vpopcntdq")
        && is_x86_feature_detected!("avx512vbmi2")
}

/// Only to be called where [`has_avx512`].
pub(super) fn avx512_kernel(metric: Metric, elem: Elem) -> Kernel {
    match elem {
        Elem::F32 => f32x16::kernel(metric),
        Elem::F16 => f16x16::kernel(metric),
        Elem::Bf16 => bf16x16::kernel(metric),
        Elem::I8 => i8x32::kernel(metric),
        Elem::Bit => bits512::kernel(metric),
    }
}

/// Only to be called where [`has_avx2`].
pub(super) fn avx2_kernel(metric: Metric, elem: Elem) -> Kernel {
    match elem {
        Elem::F32 => f32x8::kernel(metric),
        Elem::F16 => f16x8::kernel(metric),
        Elem::Bf16 => bf16x8::kernel(metric),
        Elem::I8 => i8x16::kernel(metric),
        Elem::Bit => bits64::kernel(metric),
    }
}

/// Sixteen single-precision sums, whatever the numbers were loaded from.
macro_rules! floats512 {
    ($step:literal, $load:path, $load_tail:path, $widen:expr) => {
        use super::*;

        const STEP: usize = $step;
        type Lane = __m512;
        type Sum = __m512;

        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        #[inline]
        fn load(bytes: &[u8; STEP]) -> Lane {
            $widen($load(bytes))
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        #[inline]
        fn load_tail(tail: &[u8]) -> Lane {
            $widen($load_tail(tail))
        }
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn zero() -> Sum {
            _mm512_setzero_ps()
        }
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn add(a: Sum, b: Sum) -> Sum {
            _mm512_add_ps(a, b)
        }
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn difference(a: Lane, b: Lane) -> Lane {
            _mm512_sub_ps(a, b)
        }
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
            _mm512_fmadd_ps(a, b, sum)
        }
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn total(sum: Sum) -> f32 {
            _mm512_reduce_add_ps(sum)
        }
        dense_metrics!("avx512f,avx512bw,avx512vl", 4, 4);
    };
}

/// Eight single-precision sums, whatever the numbers were loaded from.
macro_rules! floats256 {
    ($step:literal, $load:expr) => {
        use super::*;

        const STEP: usize = $step;
        type Lane = __m256;
        type Sum = __m256;

        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline]
        fn load(bytes: &[u8; STEP]) -> Lane {
            $load(bytes)
        }
        #[target_feature(enable = "avx2")]
        #[inline]
        fn zero() -> Sum {
            _mm256_setzero_ps()
        }
        #[target_feature(enable = "avx2")]
        #[inline]
        fn add(a: Sum, b: Sum) -> Sum {
            _mm256_add_ps(a, b)
        }
        #[target_feature(enable = "avx2")]
        #[inline]
        fn difference(a: Lane, b: Lane) -> Lane {
            _mm256_sub_ps(a, b)
        }
        #[target_feature(enable = "avx2,fma")]
        #[inline]
        fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
            _mm256_fmadd_ps(a, b, sum)
        }
        #[target_feature(enable = "avx2")]
        #[inline]
        fn total(sum: Sum) -> f32 {
            let halves = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
            let pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)))
        }
        copied_tail!("avx2,fma,f16c");
        dense_metrics!("avx2,fma,f16c", 4, 2);
    };
}

mod f32x16 {
    floats512!(64, load512, load512_tail, |bits| _mm512_castsi512_ps(bits));

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn splat(number: f32) -> Lane {
        _mm512_set1_ps(number)
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn not_at_most(a: Lane, b: Lane) -> u16 {
        _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(a, b)
    }
    // 24 of 32 registers hold sums.
    tiles!("avx512f,avx512bw,avx512vl", 4);
}

mod f16x16 {
    floats512!(32, load256, load256_tail, |bits| _mm512_cvtph_ps(bits));
}

mod bf16x16 {
    // The upper half of a number is the number with its lower half zero.
    floats512!(32, load256, load256_tail, |bits| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(
        _mm512_cvtepu16_epi32(bits)
    )));
}

mod f32x8 {
    floats256!(32, |bytes| _mm256_castsi256_ps(load256(bytes)));

    #[target_feature(enable = "avx2")]
    #[inline]
    fn splat(number: f32) -> Lane {
        _mm256_set1_ps(number)
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn not_at_most(a: Lane, b: Lane) -> u8 {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(a, b)) as u8
    }
    // 12 of 16 registers hold sums.
    tiles!("avx2,fma,f16c", 1);
}

/// Only to be called where [`has_avx512`].
pub(super) fn avx512_tile(
    panels: &Panels,
    rows: [&[u8]; TILE_ROWS],
    next: [&[u8]; TILE_ROWS],
) -> [u64; TILE_ROWS] {
    // SAFETY: `Tiles::new` takes this function only where the machine has AVX-512.
    unsafe { f32x16::tile(panels, rows, next) }
}

/// Only to be called where [`has_avx2`].
pub(super) fn avx2_tile(
    panels: &Panels,
    rows: [&[u8]; TILE_ROWS],
    next: [&[u8]; TILE_ROWS],
) -> [u64; TILE_ROWS] {
    // SAFETY: `Tiles::new` takes this function only where the machine has AVX2 and FMA.
    unsafe { f32x8::tile(panels, rows, next) }
}

mod f16x8 {
    floats256!(16, |bytes| _mm256_cvtph_ps(load128(bytes)));
}

mod bf16x8 {
    floats256!(16, |bytes| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
        load128(bytes)
    ))));
}

mod i8x32 {
    use super::*;

    const STEP: usize = 32;
    /// 32 numbers widened to 16 bits, in which a difference of two bytes fits.
    type Lane = __m512i;
    /// 16 sums of 32 bits; see `MAX_DIM` for why they do not overflow.
    type Sum = __m512i;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn load(bytes: &[u8; STEP]) -> Lane {
        _mm512_cvtepi8_epi16(load256(bytes))
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn load_tail(tail: &[u8]) -> Lane {
        _mm512_cvtepi8_epi16(load256_tail(tail))
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Sum {
        _mm512_setzero_si512()
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(a: Sum, b: Sum) -> Sum {
        _mm512_add_epi32(a, b)
    }
    #[target_feature(enable = "avx512bw")]
    #[inline]
    fn difference(a: Lane, b: Lane) -> Lane {
        _mm512_sub_epi16(a, b)
    }
    #[target_feature(enable = "avx512vnni")]
    #[inline]
    fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
        _mm512_dpwssd_epi32(sum, a, b)
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn total(sum: Sum) -> f32 {
        _mm512_reduce_add_epi32(sum) as f32
    }
    dense_metrics!("avx512f,avx512bw,avx512vl,avx512vnni", 4, 4);
}

mod i8x16 {
    use super::*;

    const STEP: usize = 16;
    /// 16 numbers widened to 16 bits, in which a difference of two bytes fits.
    type Lane = __m256i;
    /// 8 sums of 32 bits; see `MAX_DIM` for why they do not overflow.
    type Sum = __m256i;

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(bytes: &[u8; STEP]) -> Lane {
        _mm256_cvtepi8_epi16(load128(bytes))
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn zero() -> Sum {
        _mm256_setzero_si256()
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(a: Sum, b: Sum) -> Sum {
        _mm256_add_epi32(a, b)
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn difference(a: Lane, b: Lane) -> Lane {
        _mm256_sub_epi16(a, b)
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
        _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
    }
    #[target_feature(enable = "avx2")]
    #[inline]
    fn total(sum: Sum) -> f32 {
        total256(sum) as f32
    }
    copied_tail!("avx2");
    dense_metrics!("avx2,fma,f16c", 4, 2);
}

/// Bits, counted 512 at a time.
mod bits512 {
    use super::*;

    const STEP: usize = 64;
    type Lane = __m512i;
    type Sum = __m512i;

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(bytes: &[u8; STEP]) -> Lane {
        load512(bytes)
    }
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn load_tail(tail: &[u8]) -> Lane {
        load512_tail(tail)
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Sum {
        _mm512_setzero_si512()
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(a: Sum, b: Sum) -> Sum {
        _mm512_add_epi64(a, b)
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
    #[inline]
    fn count(bits: Lane, sum: Sum) -> Sum {
        _mm512_add_epi64(sum, _mm512_popcnt_epi64(bits))
    }
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn total(sum: Sum) -> f32 {
        _mm512_reduce_add_epi64(sum) as f32
    }
    row_loops!("avx512f,avx512bw,avx512vpopcntdq");

    #[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
    #[inline]
    fn hamming<const ROWS: usize, const MORE: bool>(
        query: &[u8],
        rows: [&[u8]; ROWS],
    ) -> [f32; ROWS] {
        let totals = fold::<ROWS, 1, MORE>(query, rows, |query, row, [sum]: &mut [Sum; 1]| {
            *sum = count(_mm512_xor_si512(query, row), *sum);
        });
        let mut results = [0.0; ROWS];
        for (result, [differing]) in results.iter_mut().zip(totals) {
            *result = differing;
        }
        results
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
    #[inline]
    fn jaccard<const ROWS: usize, const MORE: bool>(
        query: &[u8],
        rows: [&[u8]; ROWS],
    ) -> [f32; ROWS] {
        let totals =
            fold::<ROWS, 2, MORE>(query, rows, |query, row, [both, either]: &mut [Sum; 2]| {
                *both = count(_mm512_and_si512(query, row), *both);
                *either = count(_mm512_or_si512(query, row), *either);
            });
        let mut results = [0.0; ROWS];
        for (result, [both, either]) in results.iter_mut().zip(totals) {
            *result = scalar::jaccard_distance(both, either);
        }
        results
    }

    /// Only to be called where the machine has this module's features.
    pub(super) fn kernel(metric: Metric) -> Kernel {
        match metric {
            Metric::Jaccard => entry!("avx512f,avx512bw,avx512vpopcntdq", jaccard, 4),
            Metric::Hamming | Metric::L2 | Metric::Ip | Metric::Cosine => {
                entry!("avx512f,avx512bw,avx512vpopcntdq", hamming, 4)
            }
        }
    }
}

/// Bits, counted 64 at a time: the reference with a population count instruction, which keeps
/// up with memory.
mod bits64 {
    use super::*;

    macro_rules! counted {
        ($reference:path) => {{
            #[target_feature(enable = "popcnt")]
            fn pair(query: &[u8], row: &[u8]) -> f32 {
                $reference(query, row)
            }
            #[target_feature(enable = "popcnt")]
            fn block(query: &[u8], rows: &[u8], out: &mut [f32]) {
                for (row, out) in rows.chunks_exact(query.len().max(1)).zip(out) {
                    *out = pair(query, row);
                }
            }
            Kernel {
                // SAFETY: `Kernel::at` hands this table out only after the machine was found to
                // have the feature, which is all that calling the function asks for.
                pair: |query, row| unsafe { pair(query, row) },
                // SAFETY: as above.
                block: |query, rows, out| unsafe { block(query, rows, out) },
            }
        }};
    }

    /// Only to be called where the machine has POPCNT.
    pub(super) fn kernel(metric: Metric) -> Kernel {
        match metric {
            Metric::Jaccard => counted!(scalar::jaccard),
            Metric::Hamming | Metric::L2 | Metric::Ip | Metric::Cosine => {
                counted!(scalar::hamming)
            }
        }
    }
}

/// The sum of eight 32-bit numbers.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn total256(sum: __m256i) -> i32 {
    let halves = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    let pairs = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b00_00_11_10>(halves));
    _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<0b00_00_00_01>(pairs)))
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load512(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read; the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// 1 to 64 bytes, then zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load512_tail(tail: &[u8]) -> __m512i {
    assert!((1..=64).contains(&tail.len()), "a register's bytes or fewer");
    let mask = !0u64 >> (64 - tail.len());
    // SAFETY: the mask has one bit for each byte of the slice, and bytes without one are not
    // accessed; the load asks for no alignment.
    unsafe { _mm512_maskz_loadu_epi8(mask, tail.as_ptr().cast()) }
}

/// 1 to 32 bytes, then zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn load256_tail(tail: &[u8]) -> __m256i {
    assert!((1..=32).contains(&tail.len()), "a register's bytes or fewer");
    let mask = !0u32 >> (32 - tail.len());
    // SAFETY: the mask has one bit for each byte of the slice, and bytes without one are not
    // accessed; the load asks for no alignment.
    unsafe { _mm256_maskz_loadu_epi8(mask, tail.as_ptr().cast()) }
}

#[target_feature(enable = "avx")]
#[inline]
pub(super) fn load256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference covers the 32 bytes read; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "sse2")]
#[inline]
pub(super) fn load128(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference covers the 16 bytes read; the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Only to be called where [`has_avx512`].
pub(super) fn avx512_count_ones(words: &[u64]) -> usize {
    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    fn count(words: &[u64]) -> usize {
        scalar::count_ones(words)
    }
    // SAFETY: `count_ones` comes here only where the machine has AVX-512.
    unsafe { count(words) }
}

/// Only to be called where [`has_avx512`].
pub(super) fn avx512_select(scores: &[f32], floor: f32, out: &mut [u64]) {
    #[target_feature(enable = "avx512f")]
    fn select(scores: &[f32], floor: f32, out: &mut [u64]) {
        let (words, tail) = scores.as_chunks::<64>();
        let floor_lane = _mm512_set1_ps(floor);
        for (scores, out) in words.iter().zip(out.iter_mut()) {
            let (quarters, _) = bytemuck::bytes_of(scores).as_chunks::<64>();
            *out = quarters.iter().rev().fold(0, |word, quarter| {
                let lane = _mm512_castsi512_ps(load512(quarter));
                word << 16 | u64::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(lane, floor_lane))
            });
        }
        if let Some(out) = out.get_mut(words.len()..) {
            scalar::select(tail, floor, out);
        }
    }
    // SAFETY: `select_at` hands this function out only where the machine has AVX-512.
    unsafe { select(scores, floor, out) }
}

/// Only to be called where [`has_avx2`].
pub(super) fn avx2_select(scores: &[f32], floor: f32, out: &mut [u64]) {
    #[target_feature(enable = "avx2")]
    fn select(scores: &[f32], floor: f32, out: &mut [u64]) {
        let (words, tail) = scores.as_chunks::<64>();
        let floor_lane = _mm256_set1_ps(floor);
        for (scores, out) in words.iter().zip(out.iter_mut()) {
            let (eighths, _) = bytemuck::bytes_of(scores).as_chunks::<32>();
            *out = eighths.iter().rev().fold(0, |word, eighth| {
                let lane = _mm256_castsi256_ps(load256(eighth));
                let passes = _mm256_cmp_ps::<_CMP_NLE_UQ>(lane, floor_lane);
                word << 8 | u64::from(_mm256_movemask_ps(passes).cast_unsigned())
            });
        }
        if let Some(out) = out.get_mut(words.len()..) {
            scalar::select(tail, floor, out);
        }
    }
    // SAFETY: `select_at` hands this function out only where the machine has AVX2.
    unsafe { select(scores, floor, out) }
}

/// Only to be handed out where [`has_avx2`].
pub(super) const AVX2_CODES: CodeKernel = CodeKernel { one: avx2_code_dot, picked: avx2_code_dots };
/// Only to be handed out where [`has_avx512`].
pub(super) const AVX512_CODES: CodeKernel =
    CodeKernel { one: avx512_code_dot, picked: avx512_code_dots };

/// Only to be called where [`has_avx512`].
fn avx512_code_dot(high: &[Step], low: &[Step], code: &[u8]) -> f32 {
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[inline]
    fn add(sum: __m512i, code: &[u8; 64], plane: &Step) -> __m512i {
        _mm512_dpbusd_epi32(sum, load512(code), load512(bytemuck::cast_ref(&plane.0)))
    }
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot(high: &[Step], low: &[Step], code: &[u8]) -> f32 {
        let zero = _mm512_setzero_si512();
        // Two steps at a time, to hide the latency of the multiply-add.
        let (mut high_even, mut high_odd) = (zero, zero);
        let (mut low_even, mut low_odd) = (zero, zero);
        let (codes, _) = code.as_chunks();
        let (highs, last_high) = high.as_chunks();
        let (lows, last_low) = low.as_chunks();
        let (pairs, last_code) = codes.as_chunks();
        for (([h0, h1], [l0, l1]), [c0, c1]) in highs.iter().zip(lows).zip(pairs) {
            high_even = add(high_even, c0, h0);
            low_even = add(low_even, c0, l0);
            high_odd = add(high_odd, c1, h1);
            low_odd = add(low_odd, c1, l1);
        }
        if let ([code], [high], [low]) = (last_code, last_high, last_low) {
            high_even = add(high_even, code, high);
            low_even = add(low_even, code, low);
        }
        let of_high = _mm512_reduce_add_epi32(_mm512_add_epi32(high_even, high_odd));
        let of_low = _mm512_reduce_add_epi32(_mm512_add_epi32(low_even, low_odd));
        of_high as f32 * 128.0 + of_low as f32
    }
    // SAFETY: `code_dot_at` hands this function out only where the machine has AVX-512 VNNI.
    unsafe { dot(high, low, code) }
}

/// Only to be called where [`has_avx512`].
fn avx512_code_dots(high: &[Step], low: &[Step], codes: Picked<'_>, out: &mut [f32]) {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dots(high: &[Step], low: &[Step], codes: Picked<'_>, out: &mut [f32]) {
        let steps = high.len();
        let low = &low[..steps];
        codes.in_fours(out, |codes| {
            let codes = whole_lines(codes, steps);
            let mut of_high = [_mm512_setzero_si512(); 4];
            let mut of_low = [_mm512_setzero_si512(); 4];
            for step in 0..steps {
                let high = load512(bytemuck::cast_ref(&high[step].0));
                let low = load512(bytemuck::cast_ref(&low[step].0));
                for row in 0..4 {
                    let code = load512(&codes[row][step]);
                    of_high[row] = _mm512_dpbusd_epi32(of_high[row], code, high);
                    of_low[row] = _mm512_dpbusd_epi32(of_low[row], code, low);
                }
            }
            let (high, low) = (totals(of_high), totals(of_low));
            let mut dots = [0.0; 4];
            for (dot, (high, low)) in dots.iter_mut().zip(high.iter().zip(&low)) {
                *dot = *high as f32 * 128.0 + *low as f32;
            }
            dots
        });
    }
    // SAFETY: `code_dot_at` hands this function out only where the machine has AVX-512 VNNI.
    unsafe { dots(high, low, codes, out) }
}

/// The first `count` cache lines of each row. Without a closure: one in a function with target
/// features has them too, and nothing without them, like `map`, can inline it.
#[inline]
pub(super) fn whole_lines(mut rows: [&[[u8; 64]]; 4], count: usize) -> [&[[u8; 64]]; 4] {
    for row in &mut rows {
        *row = &row[..count];
    }
    rows
}

/// The sum of the lanes of each of four vectors.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn totals([a, b, c, d]: [__m512i; 4]) -> [i32; 4] {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let (low, high) = (_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let half = _mm256_add_epi32(low, high);
    let (low, high) = (_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    bytemuck::cast(_mm_add_epi32(low, high))
}

/// Only to be called where [`has_avx2`].
fn avx2_code_dots(high: &[Step], low: &[Step], codes: Picked<'_>, out: &mut [f32]) {
    codes.each(out, |code| avx2_code_dot(high, low, code.as_flattened()));
}

/// Only to be called where [`has_avx2`].
fn avx2_code_dot(high: &[Step], low: &[Step], code: &[u8]) -> f32 {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(sum: __m256i, code: __m256i, plane: &[u8; 32]) -> __m256i {
        let pairs = _mm256_maddubs_epi16(code, load256(plane));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
    #[target_feature(enable = "avx2")]
    fn dot(high: &[Step], low: &[Step], code: &[u8]) -> f32 {
        let (mut of_high, mut of_low) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for ((high, low), code) in high.iter().zip(low).zip(code.as_chunks::<64>().0) {
            let high: &[[u8; 32]; 2] = bytemuck::cast_ref(&high.0);
            let low: &[[u8; 32]; 2] = bytemuck::cast_ref(&low.0);
            let code: &[[u8; 32]; 2] = bytemuck::cast_ref(code);
            for half in 0..2 {
                let code = load256(&code[half]);
                of_high = add(of_high, code, &high[half]);
                of_low = add(of_low, code, &low[half]);
            }
        }
        total256(of_high) as f32 * 128.0 + total256(of_low) as f32
    }
    // SAFETY: `code_dot_at` hands this function out only where the machine has AVX2.
    unsafe { dot(high, low, code) }
}

#[inline]
pub(super) fn prefetch<T>(items: &[T], lines: usize) {
    let lines = size_of_val(items).div_ceil(64).min(lines);
    let start = items.as_ptr().cast::<i8>();
    for line in 0..lines {
        // SAFETY: a prefetch never faults wherever it points, and SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * 64)) };
    }
}

/// Asks for the cache line that is so many bytes after the start of `row`, into the second-level
/// cache: what is needed next stays in the first.
#[inline]
pub(super) fn prefetch_beyond(row: &[u8], bytes: usize) {
    let line = row.as_ptr().wrapping_add(bytes).cast();
    // SAFETY: a prefetch never faults wherever it points, and SSE is part of every x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
}
