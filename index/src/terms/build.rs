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

/// Raised whenever the sections change their meaning, or the bytes that stand for a value as a
/// term do: those of [`Term::int`] and [`Term::float`], and those that callers make.
pub(super) const FORMAT: u64 = 1;

pub(super) const META: &str = "terms.meta";
pub(super) const NUMBERS: &str = "terms.numbers";
pub(super) const TEXT_ENDS: &str = "terms.text_ends";
pub(super) const TEXTS: &str = "terms.texts";
pub(super) const ENDS: &str = "terms.ends";
pub(super) const ROWS: &str = "terms.rows";
pub(super) const PRESENT: &str = "terms.present";

/// Rows between two reports of progress.
const ROWS_PER_REPORT: usize = 4096;

/// Steps between two looks at whether to go on: a row, a term or 16 bytes of one.
const STEPS_PER_CHECK: usize = 65_536;

/// What a term takes at the worst moment, beside the bytes of a text: its place in a table that may
/// be half empty, its entry, its place in the order and in the sections. The process was seen to
/// grow by 81 to 109 for each of 900,000 to 2,100,000 numbers.
pub(super) const TERM_BYTES: usize = 120;

/// What a row in a list takes.
pub(super) const POSTING_BYTES: usize = size_of::<Row>();

/// Words of 32 bits in a bitmap of that many rows: a shorter list of rows stays a list.
pub(super) fn bitmap_words(rows: usize) -> usize {
    rows.div_ceil(32)
}

/// One term while the index is made.
#[derive(Default)]
struct Entry {
    rows: Row,
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

    /// Words that its rows take.
    fn words(&self, bitmap: usize) -> usize {
        bitmap.min(self.rows as usize)
    }
}

/// Looks now and then whether to go on.
struct Pace<'c> {
    cancel: &'c Cancel,
    steps: usize,
}

impl Pace<'_> {
    fn step(&mut self, steps: usize) -> Result<(), Error> {
        if let Some(left) = self.steps.checked_sub(steps) {
            self.steps = left;
            return Ok(());
        }
        self.steps = STEPS_PER_CHECK;
        self.cancel.check()
    }

    fn term(&mut self, term: Term<'_>) -> Result<(), Error> {
        self.step(match term {
            Term::Number(_) => 1,
            Term::Text(text) => 1 + text.len() / 16,
        })
    }
}

/// The terms so far, and how many rows have each.
struct Terms<'a> {
    places: HashMap<Term<'a>, usize>,
    entries: Vec<Entry>,
    text_bytes: usize,
    /// Words of all lists and bitmaps.
    words: usize,
}

impl<'a> Terms<'a> {
    fn add(&mut self, row: Row, term: Term<'a>, bitmap: usize) {
        let place = *self.places.entry(term).or_insert_with(|| {
            if let Term::Text(text) = term {
                self.text_bytes += text.len();
            }
            self.entries.push(Entry::default());
            self.entries.len() - 1
        });
        let entry = &mut self.entries[place];
        if entry.enters(row) {
            self.words -= entry.words(bitmap);
            entry.rows += 1;
            self.words += entry.words(bitmap);
        }
    }

    /// About what the index takes while it is made.
    fn bytes(&self) -> usize {
        self.entries.len() * TERM_BYTES + self.text_bytes + self.words * POSTING_BYTES
    }
}

/// See [`super::TermIndex::build`].
pub(super) fn build<'a>(
    rows: usize,
    values: impl Fn(usize, &mut dyn FnMut(Term<'a>)) -> bool,
    most_bytes: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    progress.begin(rows);
    let bitmap = bitmap_words(rows);
    let mut pace = Pace { cancel, steps: 0 };
    let mut terms = Terms { places: HashMap::new(), entries: Vec::new(), text_bytes: 0, words: 0 };
    let mut present = RowMask::none(rows);
    for row in 0..rows {
        // A row may have a million terms, so it is given up in between.
        let mut going = pace.step(1);
        let has_value = values(row, &mut |term| {
            if going.is_err() {
                return;
            }
            terms.add(row as Row, term, bitmap);
            going = pace.term(term).and_then(|()| match terms.bytes() {
                needed if needed > most_bytes => {
                    Err(Error::TooLarge { needed, rows: row + 1, of: rows, allowed: most_bytes })
                }
                _ => Ok(()),
            });
        });
        going?;
        if has_value {
            present.insert(row as Row);
        }
    }

    let Terms { places, mut entries, text_bytes, words } = terms;
    let mut sorted: Vec<(Term<'a>, usize)> = places.iter().map(|(&t, &place)| (t, place)).collect();
    sorted.sort_unstable();
    let count = sorted.partition_point(|(term, _)| matches!(term, Term::Number(_)));
    let mut numbers = Vec::with_capacity(count * 8);
    let mut text_ends = Vec::with_capacity((sorted.len() - count) * 8);
    let mut texts = Vec::with_capacity(text_bytes);
    let mut ends = Vec::with_capacity(sorted.len() * 8);
    let mut end = 0;
    for (term, place) in sorted {
        match term {
            Term::Number(number) => numbers.extend(number.to_le_bytes()),
            Term::Text(text) => {
                texts.extend_from_slice(text);
                text_ends.extend((texts.len() as u64).to_le_bytes());
            }
        }
        let entry = &mut entries[place];
        (entry.next, entry.last) = (end, 0);
        end += entry.words(bitmap);
        ends.extend((end as u64).to_le_bytes());
    }

    let mut lists = vec![0_u8; words * POSTING_BYTES];
    for row in 0..rows {
        let mut going = pace.step(1);
        values(row, &mut |term| {
            if going.is_err() {
                return;
            }
            let entry = &mut entries[places[&term]];
            if !entry.enters(row as Row) {
            } else if (entry.rows as usize) < bitmap {
                lists[entry.next * 4..][..4].copy_from_slice(&(row as Row).to_le_bytes());
                entry.next += 1;
            } else {
                lists[entry.next * 4 + row / 8] |= 1 << (row % 8);
            }
            going = pace.term(term);
        });
        going?;
        if row % ROWS_PER_REPORT == 0 {
            progress.add(ROWS_PER_REPORT.min(rows - row));
        }
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
