use std::cell::Cell;
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
    let build = TermIndex::build(rows.len(), values(rows), usize::MAX, &progress, &never);
    let sections = build.unwrap();
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
    let built = TermIndex::build(10, values(&rows), usize::MAX, &Progress::default(), &stopped);
    assert!(matches!(built, Err(crate::Error::Cancelled)));
}

#[test]
fn a_build_is_stopped_in_the_midst_of_a_row() {
    for pass in 0..2 {
        let (cancel, asked) = (Cancel::never(), Cell::new(0));
        let row = |row: usize, add: &mut dyn FnMut(Term<'static>)| {
            assert_eq!(row, 0, "no other row is looked at");
            if asked.replace(asked.get() + 1) == pass {
                cancel.flag().store(true, std::sync::atomic::Ordering::Relaxed);
            }
            (0..200_000).for_each(|number| add(Term::Number(number)));
            true
        };
        let rows = if pass == 0 { 2 } else { 1 };
        let built = TermIndex::build(rows, row, usize::MAX, &Progress::default(), &cancel);
        assert!(matches!(built, Err(crate::Error::Cancelled)));
        assert_eq!(asked.get(), pass + 1);
    }
}

#[test]
fn a_build_that_takes_too_much_memory_is_given_up_early() {
    type Terms = fn(usize, &mut dyn FnMut(Term<'static>));
    let build = |terms: Terms, most| {
        let seen = Cell::new(0);
        let row = |row: usize, add: &mut dyn FnMut(Term<'static>)| {
            seen.set(seen.get().max(row + 1));
            terms(row, add);
            true
        };
        let (progress, never) = (Progress::default(), Cancel::never());
        (TermIndex::build(10_000, row, most, &progress, &never), seen.get())
    };
    let different: Terms = |row, add| add(Term::int(row as i64));
    let same: Terms = |_, add| add(Term::int(7));
    // Two thousand in a row, of which every row has the same.
    let many: Terms = |_, add| (0..2_000).for_each(|number| add(Term::Number(number)));
    let long: Terms = |_, add| add(Term::Text(&[7; 150_000]));
    assert!(build(same, 100_000).0.is_ok());
    assert!(build(different, TermIndex::build_bytes(10_000, 10_000)).0.is_ok());
    for (terms, rows) in [(different, 807), (many, 1), (long, 1)] {
        let (built, seen) = build(terms, 100_000);
        let Err(crate::Error::TooLarge { needed, rows: looked_at, of: 10_000, allowed: 100_000 }) =
            built
        else {
            panic!("{built:?}");
        };
        assert!(needed > 100_000);
        assert_eq!((looked_at, seen), (rows, rows));
    }
}

#[test]
fn the_sections_are_what_other_versions_read() {
    let numbers = [
        (Term::int(-1), 0x7fff_ffff_ffff_ffff),
        (Term::int(5), 0x8000_0000_0000_0005),
        (Term::float(-1.5), 0x4007_ffff_ffff_ffff),
        (Term::float(-0.0), 0x8000_0000_0000_0000),
        (Term::float(2.5), 0xc004_0000_0000_0000),
        (Term::NAN, u64::MAX),
    ];
    for (term, number) in numbers {
        assert_eq!(term, Term::Number(number), "raise FORMAT");
    }
    // A bitmap of 70 rows has three words.
    let mut rows: Rows = vec![Some(vec![]); 70];
    rows[3] = Some(vec![Value::Text("é".into()), Value::Number(0x0102)]);
    rows[66] = Some(vec![Value::Number(0x0102)]);
    rows[69] = None;
    (0..40).for_each(|row| rows[row].as_mut().unwrap().push(Value::Number(9)));
    let sections = built(&rows);
    let bytes = |name: &str| sections.section(name).unwrap().to_vec();
    assert_eq!(bytes(build::META), [[1, 0, 0, 0, 0, 0, 0, 0], [70, 0, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(
        bytes(build::NUMBERS),
        [[9, 0, 0, 0, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0, 0, 0]].concat()
    );
    assert_eq!(bytes(build::TEXT_ENDS), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(build::TEXTS), [0xc3, 0xa9]);
    let ends = [[3, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0]];
    assert_eq!(bytes(build::ENDS), ends.concat());
    let lists = [[0xff; 4], [0xff, 0, 0, 0], [0; 4], [3, 0, 0, 0], [66, 0, 0, 0], [3, 0, 0, 0]];
    assert_eq!(bytes(build::ROWS), lists.concat());
    let present = [[0xff; 8], [0x1f, 0, 0, 0, 0, 0, 0, 0]];
    assert_eq!(bytes(build::PRESENT), present.concat());
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
