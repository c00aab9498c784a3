//! How an index asks for its bytes.
//!
//! The container (a checksummed file, a map, a buffer in a test) belongs to the caller.

use std::collections::HashMap;

use arrow_buffer::{ArrowNativeType, Buffer, ScalarBuffer};

use crate::Error;

/// Named, immutable byte ranges of one index, each starting at a multiple of 64 bytes.
pub trait Sections {
    /// The bytes under `name`, without a copy; `None` if there are none.
    fn section(&self, name: &str) -> Option<Buffer>;
    /// Rows of the segment that the index covers.
    fn rows(&self) -> usize;
}

/// Sections as they were built, in memory: an index that no file holds.
#[derive(Debug, Clone)]
pub struct InMemory {
    pub(crate) sections: HashMap<&'static str, Buffer>,
    pub(crate) rows: usize,
}

impl InMemory {
    /// Of what a build returned for a segment of so many rows.
    #[must_use]
    pub fn new(built: Vec<(&'static str, Vec<u8>)>, rows: usize) -> Self {
        // Copied, because the bytes of a vector lie anywhere.
        let aligned = |(name, bytes): (_, Vec<u8>)| (name, Buffer::from_slice_ref(&bytes));
        Self::of(built.into_iter().map(aligned), rows)
    }

    /// Of sections that lie aligned already.
    pub fn of(sections: impl IntoIterator<Item = (&'static str, Buffer)>, rows: usize) -> Self {
        Self { sections: sections.into_iter().collect(), rows }
    }

    /// Bytes of all sections.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sections.values().map(Buffer::len).sum()
    }
}

impl Sections for InMemory {
    fn section(&self, name: &str) -> Option<Buffer> {
        self.sections.get(name).cloned()
    }
    fn rows(&self) -> usize {
        self.rows
    }
}

/// The section `name` as a slice of `T`.
///
/// # Errors
/// [`Error::Corrupt`] if it is missing, misaligned, or not a whole number of elements.
pub(crate) fn typed<T: ArrowNativeType>(
    sections: &dyn Sections,
    name: &str,
) -> Result<ScalarBuffer<T>, Error> {
    let buffer = sections
        .section(name)
        .ok_or_else(|| Error::Corrupt(format!("section `{name}` is missing")))?;
    let width = size_of::<T>();
    if !buffer.len().is_multiple_of(width) {
        return Err(Error::Corrupt(format!(
            "section `{name}` has {} bytes, expected a multiple of {width}",
            buffer.len()
        )));
    }
    if !buffer.as_ptr().addr().is_multiple_of(align_of::<T>()) {
        return Err(Error::Corrupt(format!("section `{name}` is not aligned to {width} bytes")));
    }
    let len = buffer.len() / width;
    Ok(ScalarBuffer::new(buffer, 0, len))
}
