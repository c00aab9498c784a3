//! Which rows a query may see: a packed bit per row.
//!
//! Filters are evaluated into words, deletes clear bits, and every index walks or probes the
//! same words. For rest on disk there are compressed bitmaps; they are not made here.

use arrow_buffer::{BooleanBuffer, Buffer};

use crate::{Row, kernel};

const BITS: usize = u64::BITS as usize;

/// A set of rows out of `0..len`. Bits past `len` are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMask {
    words: Vec<u64>,
    len: usize,
}

impl RowMask {
    /// Every row of `0..len`.
    #[must_use]
    pub fn all(len: usize) -> Self {
        Self::from_words(vec![!0; len.div_ceil(BITS)], len)
    }

    /// No row of `0..len`.
    #[must_use]
    pub fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(BITS)], len }
    }

    /// The rows of `0..len` for which `allowed` holds.
    #[must_use]
    pub fn from_fn(len: usize, mut allowed: impl FnMut(Row) -> bool) -> Self {
        let word = |start: usize| {
            let bits = start..len.min(start + BITS);
            bits.fold(0, |word, row| word | u64::from(allowed(row as Row)) << (row - start))
        };
        Self { words: (0..len).step_by(BITS).map(word).collect(), len }
    }

    /// The set bits of an Arrow buffer, whatever its offset.
    #[must_use]
    pub fn from_boolean_buffer(buffer: &BooleanBuffer) -> Self {
        let len = buffer.len();
        let mut words: Vec<u64> = buffer.bit_chunks().iter_padded().collect();
        words.truncate(len.div_ceil(BITS));
        Self::from_words(words, len)
    }

    /// The same bits as an Arrow buffer.
    #[must_use]
    pub fn to_boolean_buffer(&self) -> BooleanBuffer {
        BooleanBuffer::new(Buffer::from_vec(self.words.clone()), 0, self.len)
    }

    fn from_words(words: Vec<u64>, len: usize) -> Self {
        let mut mask = Self { words, len };
        mask.clear_padding();
        mask
    }

    fn clear_padding(&mut self) {
        let used = self.len % BITS;
        if used > 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    /// Rows covered, allowed or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mask covers no rows at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rows in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        kernel::count_ones(&self.words)
    }

    /// Whether every row is in the set.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let full = self.len / BITS;
        self.words[..full].iter().all(|&word| word == !0)
            && self.words[full..].iter().all(|word| word.count_ones() as usize == self.len % BITS)
    }

    /// Whether no row is in the set.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether `row` is in the set; false for rows past the end.
    #[inline]
    #[must_use]
    pub fn contains(&self, row: Row) -> bool {
        let row = row as usize;
        self.words.get(row / BITS).is_some_and(|word| word >> (row % BITS) & 1 == 1)
    }

    /// Adds `row`.
    ///
    /// # Panics
    /// If `row` is not below [`RowMask::len`].
    pub fn insert(&mut self, row: Row) {
        let row = self.position(row);
        self.words[row / BITS] |= 1 << (row % BITS);
    }

    /// Takes `row` out.
    ///
    /// # Panics
    /// If `row` is not below [`RowMask::len`].
    pub fn remove(&mut self, row: Row) {
        let row = self.position(row);
        self.words[row / BITS] &= !(1 << (row % BITS));
    }

    /// Adds rows; those past the end are none.
    pub(crate) fn insert_all(&mut self, rows: &[Row]) {
        for &row in rows {
            if (row as usize) < self.len {
                self.words[row as usize / BITS] |= 1 << (row as usize % BITS);
            }
        }
    }

    /// Adds the rows of which the bit is set, 32 to a word; those past the end are none.
    pub(crate) fn insert_bits(&mut self, bits: &[u32]) {
        for (word, bits) in self.words.iter_mut().zip(bits.chunks(2)) {
            let high = bits.get(1).map_or(0, |&high| u64::from(high) << 32);
            *word |= u64::from(bits[0]) | high;
        }
        self.clear_padding();
    }

    fn position(&self, row: Row) -> usize {
        let row = row as usize;
        assert!(row < self.len, "row {row} is outside a mask of {} rows", self.len);
        row
    }

    /// Keeps the rows that are also in `other`.
    ///
    /// # Panics
    /// If the two masks cover different numbers of rows, as the other set operations do.
    pub fn and_with(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & theirs);
    }

    /// Adds the rows of `other`.
    ///
    /// # Panics
    /// As [`RowMask::and_with`].
    pub fn or_with(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine | theirs);
    }

    /// Takes the rows of `other` out.
    ///
    /// # Panics
    /// As [`RowMask::and_with`].
    pub fn and_not_with(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    fn combine(&mut self, other: &Self, op: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.len, other.len, "masks over different numbers of rows");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = op(*mine, *theirs);
        }
    }

    /// The rows of `0..len` that are not in the set.
    #[must_use]
    pub fn not(&self) -> Self {
        Self::from_words(self.words.iter().map(|word| !word).collect(), self.len)
    }

    /// The rows in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Row> + '_ {
        let starts = (0..).step_by(BITS);
        self.words
            .iter()
            .zip(starts)
            .flat_map(|(&word, start): (_, Row)| ones(word).map(move |bit| start + bit))
    }

    /// Puts the rows in the set into `rows`, ascending, from those of the word `from` on, until there
    /// are `enough`: at most 63 more. Returns the word to go on from.
    pub(crate) fn fill(&self, from: usize, enough: usize, rows: &mut Vec<Row>) -> usize {
        // As many at a time as most words have where a filter is worth a scan: how many a word has
        // exactly, no branch predictor could tell.
        const AT_ONCE: usize = 4;
        rows.resize(enough + BITS, 0);
        let mut count = 0;
        let mut at = from;
        while let (Some(&word), true) = (self.words.get(at), count < enough) {
            let start = (at * BITS) as Row;
            let ones = word.count_ones() as usize;
            let (fours, _) = rows[count..count + BITS].as_chunks_mut::<AT_ONCE>();
            let mut left = word;
            for four in fours.iter_mut().take(ones.div_ceil(AT_ONCE)) {
                for row in four {
                    *row = start + left.trailing_zeros();
                    left &= left.wrapping_sub(1);
                }
            }
            count += ones;
            at += 1;
        }
        rows.truncate(count);
        at
    }

    /// Rows `offset..offset + len` as a mask of their own, counted from zero.
    ///
    /// # Panics
    /// If the range is not within the mask.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "rows {offset}..+{len} of a mask of {} rows",
            self.len
        );
        let (first, shift) = (offset / BITS, offset % BITS);
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        let words = (first..first + len.div_ceil(BITS))
            // Shifting twice keeps a shift of zero from becoming a shift by the word's width.
            .map(|at| word(at) >> shift | word(at + 1) << 1 << (BITS - 1 - shift))
            .collect();
        Self::from_words(words, len)
    }

    /// The bits, 64 rows to a word, the first row lowest.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

/// Positions of the set bits of `word`, ascending.
#[inline]
pub(crate) fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(bits: &[bool]) -> RowMask {
        RowMask::from_fn(bits.len(), |row| bits[row as usize])
    }

    fn rows(bits: &[bool]) -> Vec<Row> {
        (0..).zip(bits).filter(|(_, bit)| **bit).map(|(row, _)| row).collect()
    }

    #[test]
    fn all_and_none_know_what_they_are_at_every_length() {
        for len in 0..200 {
            let all = RowMask::all(len);
            assert!(all.is_all() && all.count() == len, "{len}");
            assert!(all.not().is_none() && all.not() == RowMask::none(len), "{len}");
            assert_eq!(RowMask::none(len).is_all(), len == 0);
            assert!(!all.contains(len as Row));
        }
    }

    proptest! {
        #[test]
        fn a_mask_behaves_as_a_vector_of_bools(
            pairs in proptest::collection::vec(any::<(bool, bool)>(), 0..300),
            from in 0usize..300,
            len in 0usize..300,
        ) {
            let (a, b): (Vec<bool>, Vec<bool>) = pairs.into_iter().unzip();
            let (left, right) = (mask(&a), mask(&b));
            prop_assert_eq!(left.iter().collect::<Vec<_>>(), rows(&a));
            prop_assert_eq!(left.count(), rows(&a).len());
            let (mut filled, mut piece, mut word) = (Vec::new(), Vec::new(), 0);
            let enough = len.max(1);
            while word < left.words().len() {
                word = left.fill(word, enough, &mut piece);
                let ended = word == left.words().len();
                prop_assert!(piece.len() < enough + 64 && (ended || piece.len() >= enough));
                filled.extend_from_slice(&piece);
            }
            prop_assert_eq!(filled, rows(&a));
            prop_assert_eq!(left.is_all(), a.iter().all(|bit| *bit));
            prop_assert_eq!(left.is_none(), !a.iter().any(|bit| *bit));
            for (row, bit) in (0..).zip(&a) {
                prop_assert_eq!(left.contains(row), *bit);
            }
            let both = |op: fn(bool, bool) -> bool| {
                mask(&a.iter().zip(&b).map(|(&a, &b)| op(a, b)).collect::<Vec<_>>())
            };
            let mut out = left.clone();
            out.and_with(&right);
            prop_assert_eq!(&out, &both(|a, b| a & b));
            out = left.clone();
            out.or_with(&right);
            prop_assert_eq!(&out, &both(|a, b| a | b));
            out = left.clone();
            out.and_not_with(&right);
            prop_assert_eq!(&out, &both(|a, b| a & !b));
            prop_assert_eq!(&left.not(), &both(|a, _| !a));

            let from = from.min(a.len());
            let len = len.min(a.len() - from);
            prop_assert_eq!(left.slice(from, len), mask(&a[from..from + len]));

            let arrow = BooleanBuffer::from(a.clone());
            prop_assert_eq!(&RowMask::from_boolean_buffer(&arrow), &left);
            prop_assert_eq!(&left.to_boolean_buffer(), &arrow);
            let part = arrow.slice(from, len);
            prop_assert_eq!(RowMask::from_boolean_buffer(&part), mask(&a[from..from + len]));
        }

        #[test]
        fn inserting_and_removing_touch_one_row(len in 1usize..200, row in 0usize..200) {
            let row = (row % len) as Row;
            let mut mask = RowMask::none(len);
            mask.insert(row);
            prop_assert_eq!(mask.iter().collect::<Vec<_>>(), vec![row]);
            mask.remove(row);
            prop_assert!(mask.is_none());
        }
    }
}
