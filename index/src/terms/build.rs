//! Writing sorted terms: two passes over the rows, the first to count, the second to fill.
//!
//! | section | holds |
//! |---|---|
//! | [`META`] | `[format, rows]` as `u64` |
//! | [`NUMBERS`] | terms that are numbers, strictly ascending, `u64` |
//! | [`TEXT_ENDS`] | end of each term that is a text, `u64` |
//! | [`TEXTS`] | their bytes, the texts strictly ascending |
//! | [`ENDS`] | end of each term's rows, `u64`; numbers first |
//! | [`ROWS`] | the rows of each term, `u32` |
//! | [`PRESENT`] | a bit for each row that has a value, `u64` |
//!
//! The rows of a term are a list, ascending, or a bit for each row of the segment: whichever is
//! shorter, so that its length tells which it is.

use std::collections::HashMap;

use super::Term;
use crate::{Cancel, Error, Progress, Row, RowMask};

/// Raised whenever the sections change their meaning.
pub(super) const FORMAT: u64 = 1;

pub(super) const META: &str = "terms.meta";
pub(super) const NUMBERS: &str = "terms.numbers";
pub(super) const TEXT_ENDS: &str = "terms.text_ends";
pub(super) const TEXTS: &str = "terms.texts";
pub(super) const ENDS: &str = "terms.ends";
pub(super) const ROWS: &str = "terms.rows";
pub(super) const PRESENT: &str = "terms.present";

/// Rows between two looks at whether to go on.
const ROWS_PER_CHECK: usize = 4096;

/// Words of 32 bits in a bitmap of that many rows: a shorter list of rows stays a list.
pub(super) fn bitmap_words(rows: usize) -> usize {
    rows.div_ceil(32)
}

/// One term while the index is made.
#[derive(Default)]
struct Entry {
    rows: usize,
    /// The last row seen, plus one: zero before the first.
    last: Row,
    /// Where its next row goes, or where its bitmap begins.
    next: usize,
}

impl Entry {
    /// Whether the row has not been seen with this term.
    fn enters(&mut self, row: Row) -> bool {
        std::mem::replace(&mut self.last, row + 1) != row + 1
    }
}

/// See [`super::TermIndex::build`].
pub(super) fn build<'a>(
    rows: usize,
    values: impl Fn(usize, &mut dyn FnMut(Term<'a>)) -> bool,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    progress.begin(rows);
    let mut places: HashMap<Term<'a>, usize> = HashMap::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut present = RowMask::none(rows);
    for row in 0..rows {
        if row % ROWS_PER_CHECK == 0 {
            cancel.check()?;
        }
        let has_value = values(row, &mut |term| {
            let place = *places.entry(term).or_insert_with(|| {
                entries.push(Entry::default());
                entries.len() - 1
            });
            let entry = &mut entries[place];
            entry.rows += usize::from(entry.enters(row as Row));
        });
        if has_value {
            present.insert(row as Row);
        }
    }

    let mut sorted: Vec<(Term<'a>, usize)> = places.iter().map(|(&t, &place)| (t, place)).collect();
    sorted.sort_unstable();
    let bitmap = bitmap_words(rows);
    let (mut numbers, mut text_ends, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let mut ends = Vec::with_capacity(sorted.len() * 8);
    let mut words = 0;
    for (term, place) in sorted {
        match term {
            Term::Number(number) => numbers.extend(number.to_le_bytes()),
            Term::Text(text) => {
                texts.extend_from_slice(text);
                text_ends.extend((texts.len() as u64).to_le_bytes());
            }
        }
        let entry = &mut entries[place];
        (entry.next, entry.last) = (words, 0);
        words += entry.rows.min(bitmap);
        ends.extend((words as u64).to_le_bytes());
    }

    let mut lists = vec![0_u8; words * 4];
    for row in 0..rows {
        if row % ROWS_PER_CHECK == 0 {
            cancel.check()?;
            progress.add(ROWS_PER_CHECK.min(rows - row));
        }
        values(row, &mut |term| {
            let entry = &mut entries[places[&term]];
            if !entry.enters(row as Row) {
            } else if entry.rows < bitmap {
                lists[entry.next * 4..][..4].copy_from_slice(&(row as Row).to_le_bytes());
                entry.next += 1;
            } else {
                lists[entry.next * 4 + row / 8] |= 1 << (row % 8);
            }
        });
    }
    let meta = [FORMAT, rows as u64];
    Ok(vec![
        (META, meta.into_iter().flat_map(u64::to_le_bytes).collect()),
        (NUMBERS, numbers),
        (TEXT_ENDS, text_ends),
        (TEXTS, texts),
        (ENDS, ends),
        (ROWS, lists),
        (PRESENT, present.words().iter().flat_map(|word| word.to_le_bytes()).collect()),
    ])
}
