//! Mapping published files: the one place of this crate that needs `unsafe`.
#![expect(unsafe_code, reason = "memory maps cannot be had without")]

use std::path::Path;

use arrow_buffer::Buffer;
use bytes::Bytes;
use fs_err as fs;
use memmap2::Mmap;

use crate::Error;

/// Maps a published file of a known length; the buffer begins on a page.
///
/// # Errors
/// [`Error::Corrupt`] if the file is missing or has another length.
pub(super) fn map(path: &Path, len: u64) -> Result<Buffer, Error> {
    let file = fs::File::open(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Error::corrupt(path, "the file is missing")
        } else {
            Error::io(path, error)
        }
    })?;
    let found = file.metadata().map_err(|error| Error::io(path, error))?.len();
    if found != len || len == 0 {
        let detail = format!("the file has {found} bytes, the manifest says {len}");
        return Err(Error::corrupt(path, detail));
    }
    // SAFETY: a published file is never written or cut again by this process, which holds the
    // lock on the directory, and unlinking it leaves the mapping valid. Its length was checked
    // above, so every page of the mapping is backed. Someone who changes the file from outside
    // in spite of the lock can still fault us, as with any map.
    let map = unsafe { Mmap::map(file.file()) }.map_err(|error| Error::io(path, error))?;
    Ok(Buffer::from(Bytes::from_owner(map)))
}
