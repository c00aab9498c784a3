//! Rows of whole cache lines: what a walk reads of a row's code.

use arrow_buffer::Buffer;

use super::space::ROWS_AT_ONCE;
use crate::Row;
use crate::kernel::{self, Step};

/// Bytes of a cache line, which kernels read at a time.
pub(super) const LINE: usize = size_of::<Step>();

/// The rows of a segment, `stride` bytes each. Of centred ones, the last four bytes are a number
/// that belongs to a row's score.
#[derive(Debug)]
pub(super) struct Lines {
    bytes: Buffer,
    stride: usize,
    centred: bool,
}

impl Lines {
    /// `stride` is a multiple of [`LINE`], and `bytes` whole rows.
    pub(super) fn new(bytes: Buffer, stride: usize, centred: bool) -> Self {
        Self { bytes, stride, centred }
    }

    /// All rows, one after another.
    pub(super) fn iter(&self) -> std::slice::ChunksExact<'_, u8> {
        self.bytes.chunks_exact(self.stride.max(1))
    }

    #[inline]
    pub(super) fn row(&self, row: Row) -> &[u8] {
        let start = row as usize * self.stride;
        &self.bytes.as_slice()[start..start + self.stride]
    }

    /// The bytes of several rows.
    #[inline]
    pub(super) fn four(&self, [a, b, c, d]: [Row; ROWS_AT_ONCE]) -> [&[u8]; ROWS_AT_ONCE] {
        // In words, because a `map` is not inlined here and took a twentieth of a walk.
        [self.row(a), self.row(b), self.row(c), self.row(d)]
    }

    /// Cache lines of a row.
    pub(super) fn per_row(&self) -> usize {
        self.stride / LINE
    }

    /// Asks for a row's bytes.
    #[inline]
    pub(super) fn prefetch(&self, row: Row) {
        kernel::prefetch(self.row(row), self.per_row());
    }

    /// The number in a row; zero where rows are not centred.
    #[inline]
    pub(super) fn number(&self, row: &[u8]) -> f32 {
        match row.last_chunk() {
            Some(number) if self.centred => f32::from_le_bytes(*number),
            Some(_) | None => 0.0,
        }
    }

    /// The bytes, without a copy if they are nobody else's.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_vec().unwrap_or_else(|shared| shared.to_vec())
    }
}
