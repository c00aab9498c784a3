//! Rows of whole cache lines: what a walk reads of a row's code.

use arrow_buffer::Buffer;

use crate::Row;
use crate::kernel::{LINE, Picked};

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

    /// Several rows.
    #[inline]
    pub(super) fn pick<'a>(&'a self, rows: &'a [Row]) -> Picked<'a> {
        Picked { bytes: self.bytes.as_slice(), stride: self.stride, places: rows }
    }

    /// Cache lines of a row.
    pub(super) fn per_row(&self) -> usize {
        self.stride / LINE
    }

    /// The number in a row; zero where rows are not centred.
    #[inline]
    pub(super) fn number(&self, row: Row) -> f32 {
        match self.row(row).last_chunk() {
            Some(number) if self.centred => f32::from_le_bytes(*number),
            Some(_) | None => 0.0,
        }
    }

    /// Makes scores of products with `rows`: times `factor`, and besides `constant` the number in
    /// each row.
    #[inline]
    pub(super) fn finish(&self, rows: &[Row], dots: &mut [f32], factor: f32, constant: f32) {
        dots.iter_mut().for_each(|dot| *dot = *dot * factor + constant);
        if self.centred {
            dots.iter_mut().zip(rows).for_each(|(dot, row)| *dot += self.number(*row));
        }
    }

    /// The bytes, without a copy if they are nobody else's.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_vec().unwrap_or_else(|shared| shared.to_vec())
    }
}
