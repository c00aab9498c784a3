//! The vectors, queries and truths of a benchmark, from `.npy` files.
//!
//! | file | holds |
//! |---|---|
//! | `dense.npy`, `dense_q.npy` | rows and queries, float32, one a row |
//! | `NAME.npy`, `NAME_offsets.npy` | sparse rows, each a run of (u32 id, f32 weight) records, as bytes; where each begins and the last ends, in bytes, int64 |
//! | `NAME_q.npy`, `NAME_q_offsets.npy` | sparse queries |
//! | `price.npy` | a number of each row, int64 |
//! | `gt_NAME.npy` | the true results of each query, best first: row numbers, int32, -1 where there are no more |
//! | `mask_NAME.npy` | a byte for each row, zero where it is filtered out |

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use arrow_buffer::{ArrowNativeType, Buffer, ScalarBuffer};
use elanus_index::{Elem, SparseRow, Vectors};

/// How far two sums of the same products may lie apart.
const ROUNDING: f32 = 1e-5;
/// Bytes of an entry of a sparse row.
const ENTRY: usize = 8;

/// An array as it lies in a file: its bytes behind the header, and its shape.
#[derive(Debug)]
struct Array {
    bytes: Buffer,
    shape: Vec<usize>,
}

impl Array {
    /// Reads a file of that element type, in C order.
    fn read(path: &Path, kind: &str) -> Result<Self> {
        let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&file, kind).with_context(|| {
            format!("{}: expected an .npy file of {kind} in C order", path.display())
        })
    }

    fn parse(file: &[u8], kind: &str) -> Result<Self> {
        ensure!(file.starts_with(b"\x93NUMPY"), "it does not begin as one");
        let (len, from) = match *file.get(6).context("it is cut off")? {
            1 => (file.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 10),
            _ => {
                let len = file.get(8..12).and_then(|b| b.first_chunk());
                (len.map(|b| u32::from_le_bytes(*b) as usize), 12)
            }
        };
        let end = len.and_then(|len| len.checked_add(from)).context("it is cut off")?;
        let header = std::str::from_utf8(file.get(from..end).context("it is cut off")?)?;
        ensure!(
            header.contains(kind) && header.contains("'fortran_order': False"),
            "it says {header}"
        );
        let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
        let (shape, _) = shape.context("it has no shape")?;
        let shape = shape.split(',').map(str::trim).filter(|part| !part.is_empty());
        let shape: Vec<usize> = shape.map(str::parse).collect::<Result<_, _>>()?;
        let elem = kind.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>()?;
        let bytes = shape.iter().try_fold(elem, |len, part| len.checked_mul(*part));
        ensure!(bytes == Some(file.len() - end), "its shape {shape:?} does not fit its length");
        Ok(Self { bytes: Buffer::from_slice_ref(&file[end..]), shape })
    }

    fn numbers<T: ArrowNativeType>(self) -> ScalarBuffer<T> {
        self.bytes.into()
    }

    fn width(&self) -> Result<usize> {
        match *self.shape {
            [_, width] if width > 0 => Ok(width),
            _ => bail!("expected an array of rows, it has the shape {:?}", self.shape),
        }
    }
}

/// Rows of one field, or the queries for it.
#[derive(Debug)]
pub(super) enum Rows {
    Dense(Vectors),
    Sparse { offsets: ScalarBuffer<i64>, bytes: Buffer },
}

impl Rows {
    /// The rows of `field`: `dense`, or the name of sparse ones.
    pub(super) fn read(dir: &Path, field: &str) -> Result<Self> {
        Self::read_named(dir, field, field == "dense")
    }

    /// The queries for `field`.
    pub(super) fn read_queries(dir: &Path, field: &str) -> Result<Self> {
        Self::read_named(dir, &format!("{field}_q"), field == "dense")
    }

    fn read_named(dir: &Path, name: &str, dense: bool) -> Result<Self> {
        let path = dir.join(format!("{name}.npy"));
        if dense {
            let array = Array::read(&path, "<f4")?;
            let width = array.width()?;
            return Ok(Self::Dense(Vectors::new(array.bytes, Elem::F32, width)?));
        }
        let bytes = Array::read(&path, "|u1")?.bytes;
        let offsets = dir.join(format!("{name}_offsets.npy"));
        let offsets = Array::read(&offsets, "<i8")?.numbers::<i64>();
        let inside = |end: &i64| usize::try_from(*end).is_ok_and(|end| end <= bytes.len());
        ensure!(
            !offsets.is_empty() && offsets.is_sorted() && offsets.iter().all(inside),
            "{}: the offsets of {name} do not fit its rows",
            dir.display()
        );
        let rows = Self::Sparse { offsets, bytes };
        for row in 0..rows.len() {
            SparseRow::parse(rows.bytes(row)).with_context(|| format!("{name}, row {row}"))?;
        }
        Ok(rows)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Dense(vectors) => vectors.rows(),
            Self::Sparse { offsets, .. } => offsets.len() - 1,
        }
    }

    /// A row as it is sent, and as an index takes it.
    pub(super) fn bytes(&self, row: usize) -> &[u8] {
        match self {
            Self::Dense(vectors) => vectors.row(row as u32),
            Self::Sparse { offsets, bytes } => {
                &bytes[offsets[row] as usize..offsets[row + 1] as usize]
            }
        }
    }

    /// Dimensions of dense rows; of sparse ones, one more than the largest id.
    pub(super) fn dim(&self) -> usize {
        match self {
            Self::Dense(vectors) => vectors.dim(),
            Self::Sparse { bytes, .. } => {
                let ids = bytes.chunks_exact(ENTRY).filter_map(|entry| entry.first_chunk());
                ids.map(|id| u32::from_le_bytes(*id) as usize + 1).max().unwrap_or(0)
            }
        }
    }

    /// Inner product of a row with a query of the same kind.
    fn score(&self, row: usize, queries: &Self, query: usize) -> f32 {
        let (row, query) = (self.bytes(row), queries.bytes(query));
        let float = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
        if matches!(self, Self::Dense(_)) {
            let pairs = row.as_chunks().0.iter().zip(query.as_chunks().0);
            return pairs.map(|(a, b)| float(a) * float(b)).sum();
        }
        let (row, query) = (SparseRow::trusted(row), SparseRow::trusted(query));
        let mut of_query = query.iter().peekable();
        let mut sum = 0.0;
        for (id, weight) in row.iter() {
            while of_query.next_if(|(other, _)| *other < id).is_some() {}
            if let Some((_, other)) = of_query.next_if(|(other, _)| *other == id) {
                sum += weight * other;
            }
        }
        sum
    }
}

/// The true results of each query.
#[derive(Debug)]
pub(super) struct Truth {
    ids: ScalarBuffer<i32>,
    width: usize,
}

impl Truth {
    /// Reads an array of row numbers.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let array = Array::read(path, "<i4")?;
        Ok(Self { width: array.width()?, ids: array.numbers() })
    }

    /// The first `k` true results of a query.
    fn of(&self, query: usize, k: usize) -> Vec<usize> {
        let ids = self.ids.chunks_exact(self.width).nth(query).unwrap_or_default().iter();
        ids.take(k).filter_map(|id| usize::try_from(*id).ok()).collect()
    }

    /// How many of the `k` true results of a query were found, and how many there are.
    pub(super) fn found(&self, query: usize, k: usize, found: &[usize]) -> (usize, usize) {
        let truth = self.of(query, k);
        let hits = found.iter().take(k).filter(|row| truth.contains(row)).count();
        (hits, truth.len())
    }

    /// [`Truth::found`] where a row counts that is as close as the last true result: texts that
    /// come twice have equal scores.
    pub(super) fn found_by_score(
        &self,
        (rows, queries): (&Rows, &Rows),
        query: usize,
        k: usize,
        found: &[usize],
    ) -> (usize, usize) {
        let truth = self.of(query, k);
        let scores = truth.iter().map(|row| rows.score(*row, queries, query));
        let worst = scores.fold(f32::INFINITY, f32::min);
        let enough = worst - worst.abs() * ROUNDING;
        let known = found.iter().take(k).filter(|row| **row < rows.len());
        let hits = known.filter(|row| rows.score(**row, queries, query) >= enough).count();
        (hits.min(truth.len()), truth.len())
    }
}

/// A number of each row, where there is one.
pub(super) fn prices(dir: &Path) -> Result<Option<ScalarBuffer<i64>>> {
    let path = dir.join("price.npy");
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Array::read(&path, "<i8")?.numbers()))
}

/// A byte for each row.
pub(super) fn mask(path: &Path) -> Result<Buffer> {
    Ok(Array::read(path, "|u1")?.bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An `.npy` file.
    pub(crate) fn npy(kind: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(bytes);
        file
    }

    fn floats(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn arrays_are_read_and_broken_ones_are_refused() {
        let file = npy("<f4", "2, 3", &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let array = Array::parse(&file, "<f4").unwrap();
        assert_eq!(array.shape, [2, 3]);
        assert_eq!(array.numbers::<f32>()[5], 6.0);
        for end in 0..file.len() {
            assert!(Array::parse(&file[..end], "<f4").is_err(), "{end}");
        }
        assert!(Array::parse(&file, "<i4").is_err());
        let too_large = npy("<f4", "18446744073709551615, 3", &[]);
        assert!(Array::parse(&too_large, "<f4").is_err());
    }

    #[test]
    fn rows_as_close_as_the_last_true_one_count() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
        put("dense.npy", npy("<f4", "4, 1", &floats(&[1.0, 2.0, 2.0, 3.0])));
        put("dense_q.npy", npy("<f4", "1, 1", &floats(&[1.0])));
        let ids: Vec<u8> = [3i32, 1, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
        put("gt.npy", npy("<i4", "1, 3", &ids));
        let rows = Rows::read(dir.path(), "dense").unwrap();
        let queries = Rows::read_queries(dir.path(), "dense").unwrap();
        let truth = Truth::read(&dir.path().join("gt.npy")).unwrap();
        assert_eq!(truth.found(0, 2, &[3, 2]), (1, 2));
        assert_eq!(truth.found_by_score((&rows, &queries), 0, 2, &[3, 2]), (2, 2));
        assert_eq!(truth.found_by_score((&rows, &queries), 0, 2, &[0, 9]), (0, 2));
        assert_eq!(truth.found_by_score((&rows, &queries), 0, 3, &[3, 2, 1]), (2, 2));
    }

    #[test]
    fn sparse_rows_are_read_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
        let entry = |id: u32, weight: f32| [id.to_le_bytes(), weight.to_le_bytes()].concat();
        let rows = [entry(1, 2.0), entry(7, 1.0), entry(7, 4.0)].concat();
        let offsets =
            |ends: &[i64]| ends.iter().flat_map(|end| end.to_le_bytes()).collect::<Vec<_>>();
        put("bm25.npy", npy("|u1", "24,", &rows));
        put("bm25_offsets.npy", npy("<i8", "3,", &offsets(&[0, 16, 24])));
        put("bm25_q.npy", npy("|u1", "16,", &[entry(2, 1.0), entry(7, 3.0)].concat()));
        put("bm25_q_offsets.npy", npy("<i8", "2,", &offsets(&[0, 16])));
        let rows = Rows::read(dir.path(), "bm25").unwrap();
        let queries = Rows::read_queries(dir.path(), "bm25").unwrap();
        assert_eq!((rows.len(), rows.dim()), (2, 8));
        assert_eq!(rows.score(0, &queries, 0), 3.0);
        assert_eq!(rows.score(1, &queries, 0), 12.0);
        put("bm25_offsets.npy", npy("<i8", "3,", &offsets(&[0, 16, 32])));
        assert!(Rows::read(dir.path(), "bm25").is_err(), "past the end");
    }
}
