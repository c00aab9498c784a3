//! Exact search over sparse rows as they are stored, for segments too young for an index.

use arrow_buffer::{Buffer, ScalarBuffer};

use super::query::Terms;
use crate::mask::ones;
use crate::search::check_mask;
use crate::{Cancel, Error, Hit, Query, Row, RowMask, SearchParams, SparseRow, TopK, VectorIndex};

/// 4,096 rows between looks at the clock: a few hundred microseconds at 50 entries a row.
const ROWS_PER_CHECK: usize = 4096;

/// The rows of an Arrow large-binary column, each in the layout of [`SparseRow`].
#[derive(Debug)]
pub struct SparseScan {
    offsets: ScalarBuffer<i64>,
    values: Buffer,
}

impl SparseScan {
    /// Rows `i` lie at `offsets[i]..offsets[i + 1]` of `values`; nothing is read or copied.
    #[must_use]
    pub fn new(offsets: ScalarBuffer<i64>, values: Buffer) -> Self {
        Self { offsets, values }
    }

    fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn row(&self, row: usize) -> Result<SparseRow<'_>, Error> {
        let (start, end) = (self.offsets[row], self.offsets[row + 1]);
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        range
            .and_then(|(start, end)| self.values.as_slice().get(start..end))
            .map(SparseRow::trusted)
            .ok_or_else(|| {
                Error::Corrupt(format!(
                    "sparse row {row} lies at {start}..{end} of {} bytes",
                    self.values.len()
                ))
            })
    }
}

/// A small filter in front of the query's terms: one bit per id, by its low bits.
struct Filter {
    words: [u64; Self::WORDS],
}

impl Filter {
    /// 4,096 bits in 512 bytes: few enough for the first-level cache, enough to turn away 99 %
    /// of the ids for a query of 42 terms.
    const WORDS: usize = 64;

    fn new(terms: &Terms) -> Self {
        let mut words = [0; Self::WORDS];
        for (id, _) in terms.iter() {
            words[id as usize / 64 % Self::WORDS] |= 1 << (id % 64);
        }
        Self { words }
    }

    fn may_contain(&self, id: u32) -> bool {
        self.words[id as usize / 64 % Self::WORDS] >> (id % 64) & 1 == 1
    }
}

impl VectorIndex for SparseScan {
    fn search(
        &self,
        query: &Query<'_>,
        params: &SearchParams,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Hit>, Error> {
        let terms = Terms::new(query.sparse()?, params.drop_ratio)?;
        check_mask(self.rows(), allowed)?;
        cancel.check()?;
        if params.k == 0 || terms.is_empty() {
            return Ok(Vec::new());
        }
        let filter = Filter::new(&terms);
        let mut top = TopK::new(params.k, params.bounds);
        for (word, start) in allowed.words().iter().zip((0..).step_by(64)) {
            if start % ROWS_PER_CHECK == 0 {
                cancel.check()?;
            }
            for bit in ones(*word) {
                let row = start + bit as usize;
                let mut score = None;
                for (id, weight) in self.row(row)?.iter() {
                    if filter.may_contain(id)
                        && let Some(asked) = terms.weight(id)
                    {
                        score = Some(score.unwrap_or(0.0) + asked * weight);
                    }
                }
                if let Some(score) = score {
                    top.push(row as Row, score);
                }
            }
        }
        Ok(top.into_hits())
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
