//! NEON, for 64-bit ARM.
//!
//! Each module below is the lane operations of one element type; `lanes.rs` makes kernels of
//! them. Half precision and bits use the reference.

use std::arch::aarch64::*;

use super::{BYTES_AHEAD, Kernel, scalar};
use crate::{Elem, Metric};

pub(super) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

/// Only to be called where [`is_available`].
pub(super) fn kernel(metric: Metric, elem: Elem) -> Kernel {
    match elem {
        Elem::F32 => f32x4::kernel(metric),
        Elem::Bf16 => bf16x4::kernel(metric),
        Elem::I8 => i8x8::kernel(metric),
        Elem::F16 | Elem::Bit => scalar::kernel(metric, elem),
    }
}

/// Four single-precision sums, whatever the numbers were loaded from.
macro_rules! floats {
    ($step:literal, $load:expr) => {
        use super::*;

        const STEP: usize = $step;
        type Lane = float32x4_t;
        type Sum = float32x4_t;

        #[target_feature(enable = "neon")]
        #[inline]
        fn load(bytes: &[u8; STEP]) -> Lane {
            $load(bytes)
        }
        #[target_feature(enable = "neon")]
        #[inline]
        fn zero() -> Sum {
            vdupq_n_f32(0.0)
        }
        #[target_feature(enable = "neon")]
        #[inline]
        fn add(a: Sum, b: Sum) -> Sum {
            vaddq_f32(a, b)
        }
        #[target_feature(enable = "neon")]
        #[inline]
        fn difference(a: Lane, b: Lane) -> Lane {
            vsubq_f32(a, b)
        }
        #[target_feature(enable = "neon")]
        #[inline]
        fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
            vfmaq_f32(sum, a, b)
        }
        #[target_feature(enable = "neon")]
        #[inline]
        fn total(sum: Sum) -> f32 {
            vaddvq_f32(sum)
        }
        copied_tail!("neon");
        dense_metrics!("neon", 4, 4);
    };
}

mod f32x4 {
    floats!(16, |bytes| vreinterpretq_f32_u8(load128(bytes)));
}

mod bf16x4 {
    // The upper half of a number is the number with its lower half zero.
    floats!(8, |bytes| vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(load64(
        bytes
    )))));
}

mod i8x8 {
    use super::*;

    const STEP: usize = 8;
    /// 8 numbers widened to 16 bits, in which a difference of two bytes fits.
    type Lane = int16x8_t;
    /// 4 sums of 32 bits; see `MAX_DIM` for why they do not overflow.
    type Sum = int32x4_t;

    #[target_feature(enable = "neon")]
    #[inline]
    fn load(bytes: &[u8; STEP]) -> Lane {
        vmovl_s8(vreinterpret_s8_u8(load64(bytes)))
    }
    #[target_feature(enable = "neon")]
    #[inline]
    fn zero() -> Sum {
        vdupq_n_s32(0)
    }
    #[target_feature(enable = "neon")]
    #[inline]
    fn add(a: Sum, b: Sum) -> Sum {
        vaddq_s32(a, b)
    }
    #[target_feature(enable = "neon")]
    #[inline]
    fn difference(a: Lane, b: Lane) -> Lane {
        vsubq_s16(a, b)
    }
    #[target_feature(enable = "neon")]
    #[inline]
    fn multiply_add(a: Lane, b: Lane, sum: Sum) -> Sum {
        vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b)), a, b)
    }
    #[target_feature(enable = "neon")]
    #[inline]
    fn total(sum: Sum) -> f32 {
        vaddvq_s32(sum) as f32
    }
    copied_tail!("neon");
    dense_metrics!("neon", 4, 4);
}

#[target_feature(enable = "neon")]
#[inline]
fn load128(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference covers the 16 bytes read; the load asks for no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn load64(bytes: &[u8; 8]) -> uint8x8_t {
    // SAFETY: the reference covers the 8 bytes read; the load asks for no alignment.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// Nothing: the processor follows consecutive rows by itself.
#[inline]
fn prefetch_beyond(_row: &[u8], _bytes: usize) {}
