//! The C library's allocator, told what to keep and when to give memory back.
//!
//! A request of a thousand vectors passes through buffers of megabytes. Buffers that are maps of
//! their own cost a page fault and a cleared page every 4 KiB, twice the time of all other work on
//! an insert; so they stay in the heap. What a heap keeps by itself after rows were sealed or a
//! model was dropped goes back by [`tend`].

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::time::Duration;

    /// Allocations of this size and more are maps of their own; glibc allows no more.
    const OWN_MAP_BYTES: libc::c_int = 32 << 20;
    /// What may lie free at the end of each heap, for the buffers of the next requests; nothing but
    /// a call that frees memory there gives it back. With 4 MiB inserts of 1.5 MB were a tenth
    /// slower than with 8, with 5 a twentieth, and after they were sealed 12 and 4 MB less were kept.
    const FREE_AT_END_BYTES: libc::c_int = 5 << 20;
    /// What may lie free inside of heaps beyond what was given back before.
    const FREE_INSIDE_BYTES: usize = 4 << 20;
    const LOOK_EVERY: Duration = Duration::from_millis(200);

    #[expect(unsafe_code, reason = "the allocator is set by calls of the C library")]
    pub(super) fn set_up() {
        for (what, bytes) in
            [(libc::M_MMAP_THRESHOLD, OWN_MAP_BYTES), (libc::M_TRIM_THRESHOLD, FREE_AT_END_BYTES)]
        {
            // SAFETY: `mallopt` takes two numbers and is called before there is a second thread; a
            // value that it does not like changes nothing.
            let _ = unsafe { libc::mallopt(what, bytes) };
        }
    }

    #[expect(unsafe_code, reason = "the allocator is asked by calls of the C library")]
    pub(super) fn tend() {
        // Bytes that lay free after the last trim and were not used since: the system has them.
        let mut given_back = 0;
        loop {
            std::thread::sleep(LOOK_EVERY);
            // SAFETY: it takes nothing, returns numbers, and locks what it reads.
            let free = unsafe { libc::mallinfo2() }.fordblks;
            given_back = free.min(given_back);
            if free - given_back >= FREE_INSIDE_BYTES {
                // SAFETY: it takes a number and locks what it changes; memory in use is not touched.
                unsafe { libc::malloc_trim(0) };
                given_back = free;
            }
        }
    }
}

/// Sets the allocator up; to be called before there is a second thread.
pub(crate) fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set_up();
}

/// Gives memory back to the system from now on, on a thread of its own. Other allocators than
/// glibc's are left as they are.
pub(crate) fn tend() -> std::io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    std::thread::Builder::new().name("elanus-heap".into()).spawn(glibc::tend)?;
    Ok(())
}
