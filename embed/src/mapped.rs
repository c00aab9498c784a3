//! Parts of files in memory without a copy.
//!
//! Weights that are used as they lie in the file (bytes in panels, word tables) are mapped: a
//! start reads nothing that is not used, and several nodes share the page cache.
#![expect(unsafe_code, reason = "memory maps cannot be had without")]

use std::ops::Range;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

/// A whole file. Clones share the mapping.
#[derive(Debug, Clone)]
pub(crate) struct FileMap(Arc<Mmap>);

impl FileMap {
    /// Maps a file for reading.
    pub(crate) fn new(file: &fs_err::File) -> std::io::Result<Self> {
        // SAFETY: a mapping is sound as long as nobody changes the file underneath. The files
        // are model weights: caches of ours, which are replaced by renaming and never written
        // in place, and safetensors files, which tools replace likewise; somebody who truncates
        // a model in use ends the node with SIGBUS, and the documentation says so.
        let map = unsafe { Mmap::map(file.file()) }?;
        Ok(Self(Arc::new(map)))
    }

    /// A part of the file; `None` if it is not that long.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Mapped> {
        self.0.get(range.clone())?;
        Some(Mapped { map: Arc::clone(&self.0), range })
    }
}

/// A part of a mapped file.
#[derive(Debug, Clone)]
pub(crate) struct Mapped {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Mapped {
    /// Maps a range of a file by itself, which is in the memory of the process for as long as this
    /// lives and no longer.
    pub(crate) fn alone(file: &fs_err::File, range: Range<u64>) -> std::io::Result<Self> {
        let too_long = |_| std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(too_long)?;
        if file.metadata()?.len() < range.end {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: as for [`FileMap::new`].
        let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(file.file()) }?;
        Ok(Self { map: Arc::new(map), range: 0..len })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}
