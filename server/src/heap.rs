//! The C library's allocator, told to give memory back.

/// Allocations of this size and more are maps of their own and go back to the system when they
/// are freed. By default glibc raises the bound as it goes, and then keeps tens of megabytes of
/// rows that were sealed long ago (`python -m demo.measure_storage` shows it).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator is set by a call of the C library")]
pub(crate) fn give_memory_back() {
    const OWN_MAP_BYTES: libc::c_int = 128 << 10;
    // SAFETY: `mallopt` takes two numbers and is called before there is a second thread; a value
    // that it does not like changes nothing.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAP_BYTES) };
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_memory_back() {}
