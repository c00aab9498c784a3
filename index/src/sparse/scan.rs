//! Exact search over sparse rows as they are stored, for segments too young for an index.

use std::hash::{BuildHasher, RandomState};

use arrow_buffer::{Buffer, ScalarBuffer};

use super::query::Terms;
use crate::kernel;
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

    pub(super) fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Asks the caches for where `row` lies.
    pub(super) fn prefetch_offsets(&self, row: usize) {
        kernel::prefetch(self.offsets.get(row..).unwrap_or_default(), 1);
    }

    pub(super) fn row(&self, row: usize) -> Result<SparseRow<'_>, Error> {
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

/// The query's weights by id: a hash table with linear probing.
///
/// The multiplier is drawn anew for each search (multiply-shift, Dietzfelbinger et al. 1997), so
/// that no query can be made up whose ids all meet in one place.
pub(super) struct Weights {
    /// A power of two of slots, few of them taken, so that a miss is seen at the first look.
    slots: Vec<(u32, f32)>,
    multiplier: u64,
    shift: u32,
}

impl Weights {
    /// An id that no row has.
    const FREE: u32 = u32::MAX;

    pub(super) fn new(terms: &Terms) -> Self {
        let bits = (terms.len() * 16).next_power_of_two().ilog2();
        let slots = vec![(Self::FREE, 0.0); 1 << bits];
        let multiplier = RandomState::new().hash_one(bits) | 1;
        let mut weights = Self { slots, multiplier, shift: u64::BITS - bits };
        for (id, weight) in terms.iter() {
            let slot = weights.find(id);
            weights.slots[slot] = (id, weight);
        }
        weights
    }

    /// The slot of `id`, or the free one where it would be.
    #[inline]
    fn find(&self, id: u32) -> usize {
        let mut slot = (u64::from(id).wrapping_mul(self.multiplier) >> self.shift) as usize;
        while self.slots[slot].0 != id && self.slots[slot].0 != Self::FREE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    /// Inner product with a row; `None` if they share no id. Without a branch on whether an id
    /// is shared, which nothing can predict.
    pub(super) fn score(&self, row: SparseRow<'_>) -> Option<f32> {
        let (mut score, mut shared) = (0.0, false);
        for (id, weight) in row.iter() {
            let (found, asked) = self.slots[self.find(id)];
            // A damaged row may hold the id that marks a free slot.
            let hit = (found == id) & (id != Self::FREE);
            shared |= hit;
            score += if hit { asked * weight } else { 0.0 };
        }
        shared.then_some(score)
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
        let weights = Weights::new(&terms);
        let mut top = TopK::new(params.k, params.bounds);
        for (word, start) in allowed.words().iter().zip((0..).step_by(64)) {
            if start % ROWS_PER_CHECK == 0 {
                cancel.check()?;
            }
            for bit in ones(*word) {
                let row = start + bit as usize;
                if let Some(score) = weights.score(self.row(row)?) {
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
