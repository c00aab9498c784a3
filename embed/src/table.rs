//! Tables of rows that are looked up by number: words, positions, token types.
//!
//! A word table is half of a multilingual model, and a text needs a few of its rows; so it stays
//! where it is, in the file, in the file's own numbers.

use candle_core::{Device, Result, Tensor, bail};
use half::{bf16, f16};

use crate::mapped::Mapped;

/// Rows of equal width.
pub(crate) struct Table {
    numbers: Numbers,
    rows: usize,
    width: usize,
}

enum Numbers {
    Owned(Vec<f32>),
    Mapped(Mapped, Kind),
}

/// The numbers of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
}

impl Table {
    /// From numbers in memory; `values` are whole rows.
    pub(crate) fn owned(values: Vec<f32>, [rows, width]: [usize; 2]) -> Self {
        Self { numbers: Numbers::Owned(values), rows, width }
    }

    /// From little-endian numbers in a file; `mapped` are whole rows.
    pub(crate) fn mapped(mapped: Mapped, kind: Kind, [rows, width]: [usize; 2]) -> Self {
        Self { numbers: Numbers::Mapped(mapped, kind), rows, width }
    }

    /// Adds row `ids[i]` to row `i` of `to`.
    ///
    /// # Errors
    /// For a row that the table does not have, or that holds a number that is not finite.
    pub(crate) fn add(&self, ids: &[u32], to: &mut [f32]) -> Result<()> {
        for (&id, to) in ids.iter().zip(to.chunks_exact_mut(self.width)) {
            if id as usize >= self.rows {
                bail!("row {id} of a table of {}", self.rows);
            }
            self.each(id as usize..id as usize + 1, |index, value| to[index] += value);
            if !to.iter().all(|value| value.is_finite()) {
                bail!("row {id} of an embedding table holds a value that is not finite");
            }
        }
        Ok(())
    }

    /// All rows.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let mut values = vec![0.0; self.rows * self.width];
        self.each(0..self.rows, |index, value| values[index] = value);
        Tensor::from_vec(values, (self.rows, self.width), &Device::Cpu)
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        match &self.numbers {
            Numbers::Owned(values) => size_of_val(values.as_slice()),
            Numbers::Mapped(mapped, _) => mapped.bytes().len(),
        }
    }

    /// Calls `f` with the numbers of some rows and their places from the first row on.
    fn each(&self, rows: std::ops::Range<usize>, mut f: impl FnMut(usize, f32)) {
        let range = rows.start * self.width..rows.end * self.width;
        match &self.numbers {
            Numbers::Owned(values) => {
                values[range].iter().enumerate().for_each(|(index, value)| f(index, *value));
            }
            Numbers::Mapped(mapped, Kind::F32) => {
                let values = &mapped.bytes().as_chunks::<4>().0[range];
                values.iter().enumerate().for_each(|(i, b)| f(i, f32::from_le_bytes(*b)));
            }
            Numbers::Mapped(mapped, Kind::F16) => {
                let values = &mapped.bytes().as_chunks::<2>().0[range];
                values.iter().enumerate().for_each(|(i, b)| f(i, f16::from_le_bytes(*b).to_f32()));
            }
            Numbers::Mapped(mapped, Kind::Bf16) => {
                let values = &mapped.bytes().as_chunks::<2>().0[range];
                values.iter().enumerate().for_each(|(i, b)| f(i, bf16::from_le_bytes(*b).to_f32()));
            }
        }
    }
}
