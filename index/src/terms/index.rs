//! Reading sorted terms in place.

use std::ops::Range;

use arrow_buffer::{BooleanBuffer, Buffer, ScalarBuffer};

use super::Term;
use super::build::{
    self, ENDS, FORMAT, META, NUMBERS, PRESENT, ROWS, TEXT_ENDS, TEXTS, bitmap_words,
};
use crate::sections::typed;
use crate::{Cancel, Error, Progress, Row, RowMask, Sections};

/// The distinct values of a segment's rows in order, and which rows have each. Terms are known by
/// their positions in the order.
#[derive(Debug)]
pub struct TermIndex {
    rows: usize,
    numbers: ScalarBuffer<u64>,
    text_ends: ScalarBuffer<u64>,
    texts: Buffer,
    ends: ScalarBuffer<u64>,
    lists: ScalarBuffer<Row>,
    present: ScalarBuffer<u64>,
}

impl TermIndex {
    /// Makes the named sections of an index over that many rows. `values` is asked twice for each
    /// row; it hands over the row's terms, in any order, and says whether the row has a value at
    /// all: an empty array has one and no terms, null is none.
    ///
    /// # Errors
    /// [`Error::TooLarge`] as soon as it is seen that more than about `most_bytes` of memory would
    /// be taken, [`Error::Cancelled`] once `cancel` is set.
    pub fn build<'a>(
        rows: usize,
        values: impl Fn(usize, &mut dyn FnMut(Term<'a>)) -> bool,
        most_bytes: usize,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        build::build(rows, values, most_bytes, progress, cancel)
    }

    /// About how much memory a build takes for so many different terms, of so many rows in all.
    #[must_use]
    pub fn build_bytes(terms: usize, postings: usize) -> usize {
        let of_terms = terms.saturating_mul(build::TERM_BYTES);
        of_terms.saturating_add(postings.saturating_mul(build::POSTING_BYTES))
    }

    /// Opens an index over its sections, read in place. That the terms ascend is left to the
    /// sections' checksums: without it an answer is wrong, and nothing else.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a section is missing, has another length than the others ask for, or
    /// points outside.
    pub fn open(sections: &dyn Sections) -> Result<Self, Error> {
        let rows = sections.rows();
        let meta = typed::<u64>(sections, META)?;
        let &[format, of_rows] = &*meta else {
            return Err(Error::Corrupt(format!("`{META}` has {} numbers, expected 2", meta.len())));
        };
        if format != FORMAT {
            return Err(Error::Corrupt(format!(
                "the sorted terms have format {format}, this version reads {FORMAT}"
            )));
        }
        if of_rows != rows as u64 {
            return Err(Error::Corrupt(format!(
                "the sorted terms cover {of_rows} rows, the segment has {rows}"
            )));
        }
        let texts = sections.section(TEXTS);
        let index = Self {
            rows,
            numbers: typed(sections, NUMBERS)?,
            text_ends: typed(sections, TEXT_ENDS)?,
            texts: texts.ok_or_else(|| Error::Corrupt(format!("section `{TEXTS}` is missing")))?,
            ends: typed(sections, ENDS)?,
            lists: typed(sections, ROWS)?,
            present: typed(sections, PRESENT)?,
        };
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(Error::Corrupt(format!("sorted terms: {what}"))) }
        };
        let terms = index.numbers.len() + index.text_ends.len();
        let last = |ends: &[u64]| ends.last().copied().unwrap_or(0);
        require(index.ends.len() == terms, "rows for each term")?;
        require(index.ends.is_sorted(), "a term's rows come after the term's before")?;
        require(last(&index.ends) == index.lists.len() as u64, "terms use all rows")?;
        require(index.text_ends.is_sorted(), "a text comes after the text before")?;
        require(last(&index.text_ends) == index.texts.len() as u64, "texts use all bytes")?;
        require(index.present.len() == rows.div_ceil(64), "a bit for each row")?;
        Ok(index)
    }

    /// Rows of the segment.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many terms there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no row has a term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The term at a position.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn term(&self, at: usize) -> Term<'_> {
        match at.checked_sub(self.numbers.len()) {
            None => Term::Number(self.numbers[at]),
            // Ends were found to ascend to the length of the texts on opening.
            Some(at) => Term::Text(&self.texts[span(&self.text_ends, at..at + 1)]),
        }
    }

    /// How many terms come before all for which `before` does not hold; it must hold of the first
    /// ones, and of no other.
    #[must_use]
    pub fn partition_point(&self, before: impl Fn(Term<'_>) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if before(self.term(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The position of a term, as a run of one; an empty run where no row has it.
    #[must_use]
    pub fn find(&self, term: Term<'_>) -> Range<usize> {
        let at = self.partition_point(|other| other < term);
        at..at + usize::from(at < self.len() && self.term(at) == term)
    }

    /// How many words [`TermIndex::add`] reads for a run of terms: what it costs, and an upper
    /// bound of the rows where it is below that of a bitmap of all.
    ///
    /// # Panics
    /// If there are not so many terms, or the run ends before it begins.
    #[must_use]
    pub fn words(&self, terms: Range<usize>) -> usize {
        span(&self.ends, terms).len()
    }

    /// Adds the rows of a run of terms.
    ///
    /// # Panics
    /// As [`TermIndex::words`], and if the mask covers another number of rows.
    pub fn add(&self, terms: Range<usize>, mask: &mut RowMask) {
        assert_eq!(mask.len(), self.rows, "a mask of another segment");
        let bitmap = bitmap_words(self.rows);
        let all = span(&self.ends, terms.clone());
        if all.len() < bitmap {
            return mask.insert_all(&self.lists[all]);
        }
        for term in terms {
            let list = &self.lists[span(&self.ends, term..term + 1)];
            if list.len() < bitmap { mask.insert_all(list) } else { mask.insert_bits(list) }
        }
    }

    /// The rows that have a value, be it without a term.
    #[must_use]
    pub fn present(&self) -> RowMask {
        let bits = BooleanBuffer::new(self.present.inner().clone(), 0, self.rows);
        RowMask::from_boolean_buffer(&bits)
    }
}

/// From the end of what is before the run to its own end.
fn span(ends: &[u64], run: Range<usize>) -> Range<usize> {
    let end = |at: usize| if at == 0 { 0 } else { ends[at - 1] as usize };
    end(run.start)..end(run.end)
}
