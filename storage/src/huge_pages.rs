//! Memory that is read all over the place.

use std::io;

use arrow_buffer::Buffer;
use bytes::Bytes;
use memmap2::MmapMut;

/// What a huge page holds on x86-64, and on AArch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// A copy in memory that the kernel is asked to give huge pages, aligned for every section of an
/// index.
///
/// A walk over a graph reads rows all over the place, and most of them are not in the table of
/// pages that a core remembers: with pages of 4 KiB each of them costs a second look into memory.
///
/// # Errors
/// When there is no such memory.
pub fn in_huge_pages(bytes: &[u8]) -> io::Result<Buffer> {
    if bytes.len() < HUGE_PAGE {
        return Ok(Buffer::from_slice_ref(bytes));
    }
    let mut copy = MmapMut::map_anon(bytes.len().next_multiple_of(HUGE_PAGE))?;
    #[cfg(target_os = "linux")]
    // It is as right without, only slower: a kernel may know no huge pages.
    let _ = copy.advise(memmap2::Advice::HugePage);
    copy[..bytes.len()].copy_from_slice(bytes);
    let copy = Bytes::from_owner(copy.make_read_only()?);
    Ok(Buffer::from(copy.slice(..bytes.len())))
}
