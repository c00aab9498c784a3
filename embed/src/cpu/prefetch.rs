//! Asking for memory before it is used.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "there is no safe prefetch"))]

/// Asks for the cache lines of `bytes` bytes from `from` on, which may lie anywhere, and need not be
/// there. The processor sees where a loop reads and asks by itself, but not across the end of a page,
/// and later than this.
#[inline(always)]
pub(super) fn prefetch(from: *const u8, bytes: usize) {
    /// Bytes in a cache line.
    #[cfg(target_arch = "x86_64")]
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for line in 0..bytes.div_ceil(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching is a hint: it reads nothing, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * LINE).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}
