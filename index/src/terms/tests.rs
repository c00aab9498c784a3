use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::{Cancel, InMemory, Progress, RowMask, Sections};

/// Rows as lists of terms; `None` has no value.
type Rows = Vec<Option<Vec<Value>>>;

#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Text(String),
}

impl Value {
    fn term(&self) -> Term<'_> {
        match self {
            Self::Number(number) => Term::Number(*number),
            Self::Text(text) => Term::Text(text.as_bytes()),
        }
    }
}

/// What a build asks for.
fn values<'a>(rows: &'a Rows) -> impl Fn(usize, &mut dyn FnMut(Term<'a>)) -> bool {
    |row, add| {
        let values = rows[row].as_ref();
        values.into_iter().flatten().for_each(|value| add(value.term()));
        values.is_some()
    }
}

fn built(rows: &Rows) -> InMemory {
    let progress = Progress::default();
    let never = Cancel::never();
    let sections = TermIndex::build(rows.len(), values(rows), &progress, &never).unwrap();
    assert_eq!(progress.done(), rows.len());
    InMemory::new(sections, rows.len())
}

fn rows() -> impl Strategy<Value = Rows> {
    let value = prop_oneof![
        3 => (0_u64..40).prop_map(Value::Number),
        1 => Just(Value::Number(u64::MAX)),
        2 => "[ab]{0,3}".prop_map(Value::Text),
        // Common enough to be a bitmap.
        2 => Just(Value::Number(7)),
    ];
    let row = proptest::option::weighted(0.8, proptest::collection::vec(value, 0..4));
    proptest::collection::vec(row, 0..200)
}

fn mask(index: &TermIndex, terms: Range<usize>) -> RowMask {
    let mut mask = RowMask::none(index.rows());
    index.add(terms, &mut mask);
    mask
}

#[test]
fn numbers_are_in_their_order() {
    let floats = [f64::NEG_INFINITY, -1e300, -1.0, -1e-300, 0.0, 1e-300, 0.5, 7.0, f64::INFINITY];
    assert!(floats.is_sorted_by(|&a, &b| Term::float(a) < Term::float(b)));
    assert_eq!(Term::float(-0.0), Term::float(0.0));
    assert!(Term::float(f64::INFINITY) < Term::NAN);
    assert_eq!(Term::float(-f64::NAN), Term::NAN);
    let ints = [i64::MIN, -5, -1, 0, 1, i64::MAX - 1, i64::MAX];
    assert!(ints.is_sorted_by(|&a, &b| Term::int(a) < Term::int(b)));
}

#[test]
fn a_build_can_be_stopped() {
    let stopped = Cancel::never();
    stopped.flag().store(true, std::sync::atomic::Ordering::Relaxed);
    let rows: Rows = vec![None; 10];
    let built = TermIndex::build(10, values(&rows), &Progress::default(), &stopped);
    assert!(matches!(built, Err(crate::Error::Cancelled)));
}

proptest! {
    #[test]
    fn every_run_of_terms_has_the_rows_of_its_values(rows in rows(), from in 0_usize..50, len in 0_usize..50) {
        let mut expected: BTreeMap<Term<'_>, Vec<u32>> = BTreeMap::new();
        for (row, values) in (0..).zip(&rows) {
            for value in values.iter().flatten() {
                let rows = expected.entry(value.term()).or_default();
                if rows.last() != Some(&row) {
                    rows.push(row);
                }
            }
        }
        let index = TermIndex::open(&built(&rows)).unwrap();
        prop_assert_eq!(index.len(), expected.len());
        for (at, (&term, rows)) in expected.iter().enumerate() {
            prop_assert_eq!(index.term(at), term);
            prop_assert_eq!(index.find(term), at..at + 1);
            prop_assert_eq!(&mask(&index, at..at + 1).iter().collect::<Vec<_>>(), rows);
        }
        prop_assert!(index.find(Term::Text(b"zz")).is_empty());
        let from = from.min(index.len());
        let run = from..(from + len).min(index.len());
        let within = RowMask::from_fn(rows.len(), |row| {
            expected.values().skip(run.start).take(run.len()).any(|rows| rows.contains(&row))
        });
        prop_assert_eq!(mask(&index, run), within);
        let present = RowMask::from_fn(rows.len(), |row| rows[row as usize].is_some());
        prop_assert_eq!(index.present(), present);
    }

    #[test]
    fn no_change_of_the_sections_makes_a_reader_panic(rows in rows(), section in 0_usize..7, at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let sections = built(&rows);
        let name = [build::META, build::NUMBERS, build::TEXT_ENDS, build::TEXTS, build::ENDS, build::ROWS, build::PRESENT][section];
        let mut bytes = sections.section(name).unwrap().to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
        }
        let mut changed = sections;
        changed.sections.insert(name, arrow_buffer::Buffer::from_slice_ref(&bytes));
        if let Ok(index) = TermIndex::open(&changed) {
            let everything = mask(&index, 0..index.len());
            prop_assert!(everything.count() <= rows.len());
            prop_assert!(index.present().count() <= rows.len());
            for at in 0..index.len() {
                let _ = index.find(index.term(at));
            }
        }
    }
}
