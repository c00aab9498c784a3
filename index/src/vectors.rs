//! Dense rows over one buffer, wherever its bytes live.

use arrow_buffer::Buffer;

use crate::{Error, Row};

/// 32,768: the widest vector Milvus allows. The int8 kernels sum in 32 bits, and
/// `255² × 32,768` is the largest sum that fits.
pub const MAX_DIM: usize = 32_768;

/// The element type of a dense or binary vector field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
    /// Signed bytes.
    I8,
    /// Bits, eight to a byte.
    Bit,
}

impl Elem {
    /// Bytes of one row of `dim` dimensions. `dim` of a [`Elem::Bit`] field counts bits and is a
    /// multiple of 8.
    #[must_use]
    pub fn bytes_per_row(self, dim: usize) -> usize {
        match self {
            Self::F32 => dim * 4,
            Self::F16 | Self::Bf16 => dim * 2,
            Self::I8 => dim,
            Self::Bit => dim / 8,
        }
    }

    /// Dimensions in `bytes` bytes; the reverse of [`Elem::bytes_per_row`], rounded down.
    #[must_use]
    pub fn dim_of(self, bytes: usize) -> usize {
        match self {
            Self::F32 => bytes / 4,
            Self::F16 | Self::Bf16 => bytes / 2,
            Self::I8 => bytes,
            Self::Bit => bytes.saturating_mul(8),
        }
    }

    /// The largest dimension that the kernels take: [`MAX_DIM`], eight times that for bits.
    #[must_use]
    pub fn max_dim(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::I8 => MAX_DIM,
            Self::Bit => MAX_DIM * 8,
        }
    }
}

/// `rows × dim` elements, row-major, without gaps. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Vectors {
    buffer: Buffer,
    elem: Elem,
    dim: usize,
    stride: usize,
    rows: usize,
}

impl Vectors {
    /// Takes `buffer` as rows of `dim` elements. No alignment is asked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `dim` is zero, above [`Elem::max_dim`], or for bits not a
    /// multiple of 8; [`Error::Corrupt`] if the buffer is not a whole number of rows, or has more
    /// than a [`Row`] can count.
    pub fn new(buffer: Buffer, elem: Elem, dim: usize) -> Result<Self, Error> {
        if dim == 0 || dim > elem.max_dim() || (elem == Elem::Bit && !dim.is_multiple_of(8)) {
            return Err(Error::Unsupported(format!(
                "{elem:?} vectors of dimension {dim}: expected 1 to {}{}",
                elem.max_dim(),
                if elem == Elem::Bit { ", a multiple of 8" } else { "" },
            )));
        }
        let stride = elem.bytes_per_row(dim);
        if !buffer.len().is_multiple_of(stride) {
            return Err(Error::Corrupt(format!(
                "{} bytes are not a whole number of rows of {stride} bytes",
                buffer.len()
            )));
        }
        let rows = buffer.len() / stride;
        if rows > Row::MAX as usize {
            return Err(Error::Corrupt(format!("{rows} rows are more than a segment can hold")));
        }
        Ok(Self { buffer, elem, dim, stride, rows })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements per row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Element type.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Bytes per row.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If `row` is not below [`Vectors::rows`].
    #[inline]
    #[must_use]
    pub fn row(&self, row: Row) -> &[u8] {
        let start = row as usize * self.stride;
        &self.buffer.as_slice()[start..start + self.stride]
    }

    /// The bytes of `len` rows from row `start` on.
    ///
    /// # Panics
    /// If the range is not within the rows.
    #[inline]
    #[must_use]
    pub fn range(&self, start: usize, len: usize) -> &[u8] {
        &self.buffer.as_slice()[start * self.stride..(start + len) * self.stride]
    }

    /// `len` rows from row `start` on as vectors of their own, without a copy: what a caller
    /// hands to a second core.
    ///
    /// # Panics
    /// If the range is not within the rows.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let buffer = self.buffer.slice_with_length(start * self.stride, len * self.stride);
        Self { buffer, rows: len, ..self.clone() }
    }

    /// # Errors
    /// [`Error::Dimension`] if `query` is not exactly one row wide.
    pub(crate) fn check_width(&self, query: &[u8]) -> Result<(), Error> {
        if query.len() == self.stride {
            return Ok(());
        }
        let actual = self.elem.dim_of(query.len());
        if actual == self.dim {
            return Err(Error::Malformed(format!(
                "{} bytes are not a whole number of {:?} elements",
                query.len(),
                self.elem
            )));
        }
        Err(Error::Dimension { expected: self.dim, actual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_not_whole_rows_is_refused() {
        let buffer = Buffer::from_vec(vec![0u8; 30]);
        assert!(matches!(Vectors::new(buffer.clone(), Elem::F32, 4), Err(Error::Corrupt(_))));
        assert!(matches!(Vectors::new(buffer.clone(), Elem::F32, 0), Err(Error::Unsupported(_))));
        assert!(matches!(Vectors::new(buffer.clone(), Elem::Bit, 12), Err(Error::Unsupported(_))));
        assert!(matches!(Vectors::new(buffer, Elem::I8, MAX_DIM + 1), Err(Error::Unsupported(_))));
    }

    #[test]
    fn a_query_of_another_width_names_both_widths() {
        let vectors = Vectors::new(Buffer::from_vec(vec![0u8; 32]), Elem::F32, 4).expect("2 rows");
        assert_eq!(vectors.check_width(&[0; 16]), Ok(()));
        let expected = Error::Dimension { expected: 4, actual: 2 };
        assert_eq!(vectors.check_width(&[0; 8]), Err(expected));
        assert!(matches!(vectors.check_width(&[0; 18]), Err(Error::Malformed(_))));
    }

    #[test]
    fn a_slice_shares_the_rows() {
        let bytes: Vec<u8> = (0..40).collect();
        let vectors = Vectors::new(Buffer::from_vec(bytes), Elem::I8, 4).expect("10 rows");
        let slice = vectors.slice(3, 2);
        assert_eq!(slice.rows(), 2);
        assert_eq!(slice.row(1), vectors.row(4));
        assert_eq!(slice.range(0, 2), vectors.range(3, 2));
    }
}
