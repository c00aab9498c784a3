//! Scan and inverted index against adding up products one by one, and against damaged bytes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use proptest::prelude::*;

use super::row::encode;
use super::*;
use crate::sections::InMemory;
use crate::testing::Random;
use crate::{Bounds, Cancel, Error, Hit, Query, Row, RowMask, SearchParams, VectorIndex};

type Entries = Vec<(u32, f32)>;

fn built(rows: &[Vec<u8>]) -> InMemory {
    let built = SparseIndex::build(rows.iter().map(|row| SparseRow::trusted(row)));
    InMemory::new(built, rows.len())
}

fn aligned(bytes: &[u8]) -> Buffer {
    Buffer::from_slice_ref(bytes)
}

pub(crate) fn index(rows: &[Vec<u8>]) -> SparseIndex {
    SparseIndex::open(&built(rows), scan(rows)).expect("as built")
}

pub(crate) fn scan(rows: &[Vec<u8>]) -> SparseScan {
    let offsets = OffsetBuffer::<i64>::from_lengths(rows.iter().map(Vec::len));
    SparseScan::new(offsets.into_inner(), Buffer::from_vec(rows.concat()))
}

fn by_sorting(
    rows: &[Vec<u8>],
    query: &Entries,
    params: &SearchParams,
    allowed: &RowMask,
) -> Vec<Hit> {
    let asked: BTreeMap<u32, f32> = query.iter().copied().collect();
    let score = |row: Row| {
        let entries = SparseRow::trusted(&rows[row as usize]).iter();
        let products = entries.filter_map(|(id, weight)| asked.get(&id).map(|q| q * weight));
        products.reduce(|sum, product| sum + product)
    };
    let mut hits: Vec<Hit> = allowed
        .iter()
        .filter_map(|row| Some(Hit { row, score: score(row)? + 0.0 }))
        .filter(|hit| params.bounds.above.is_none_or(|above| hit.score > above))
        .filter(|hit| params.bounds.at_most.is_none_or(|at_most| hit.score <= at_most))
        .collect();
    hits.sort_by(Hit::best_first);
    hits.truncate(params.k);
    hits
}

/// Entries whose sums are exact, so that the order of adding does not matter and ties are
/// common: positive only, or with negative numbers and zeros of both signs.
fn entries(random: &mut Random, ids: usize, most: usize, signed: bool) -> Entries {
    let wanted = random.below(most + 1);
    let unique: BTreeMap<u32, f32> = (0..wanted)
        .map(|_| {
            // Low ids are common, and the largest one allowed appears.
            let id = random.below(ids).min(random.below(ids)) as u32;
            let id = if id == 3 { u32::MAX - 1 } else { id * 37 };
            let size = random.below(9) as f32 / 4.0;
            let weight = match (signed, random.below(3)) {
                (true, 0) => -size,
                (true, 1) => [0.0, -0.0, 1e-30, -1e-30][random.below(4)],
                _ => size + 0.25,
            };
            (id, weight)
        })
        .collect();
    unique.into_iter().collect()
}

fn mask(random: &mut Random, rows: usize) -> RowMask {
    match random.below(4) {
        0 | 1 => RowMask::all(rows),
        2 => RowMask::from_fn(rows, |_| random.below(2) > 0),
        _ => RowMask::from_fn(rows, |_| random.below(30) == 0),
    }
}

fn agree(random: &mut Random, row_count: usize, ids: usize, signed: bool) {
    let rows: Vec<Vec<u8>> =
        (0..row_count).map(|_| encode(&entries(random, ids, 12, signed))).collect();
    let index = index(&rows);
    let scan = scan(&rows);
    for _ in 0..4 {
        let query = entries(random, ids, 10, signed);
        let mut bound = || (random.below(3) == 0).then(|| random.float() * 4.0);
        let bounds = Bounds { above: bound(), at_most: bound() };
        let k = [0, 1, 10, 100, row_count, row_count + 7][random.below(6)];
        let params = SearchParams { k, bounds, ..SearchParams::default() };
        let allowed = mask(random, row_count);
        let expected = by_sorting(&rows, &query, &params, &allowed);
        let bytes = encode(&query);
        let query = Query::Sparse(SparseRow::parse(&bytes).expect("ascending ids"));
        let found = index.search(&query, &params, &allowed, &Cancel::never()).expect("a search");
        assert_eq!(found, expected, "inverted index");
        let found = scan.search(&query, &params, &allowed, &Cancel::never()).expect("a search");
        assert_eq!(found, expected, "scan");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_hits_are_those_of_scoring_every_row(
        rows in 0usize..300,
        ids in 1usize..200,
        signed in any::<bool>(),
        seed in any::<u64>(),
    ) {
        agree(&mut Random(seed), rows, ids, signed);
    }

    #[test]
    fn scan_and_small_index_agree_to_the_last_bit_whatever_the_drop_ratio(
        seed in any::<u64>(),
        drop_ratio in 0.0f32..1.0,
    ) {
        let random = &mut Random(seed);
        let rough = |random: &mut Random| {
            let mut entries = entries(random, 60, 20, false);
            entries.iter_mut().for_each(|(_, weight)| *weight = random.float());
            encode(&entries)
        };
        let rows: Vec<Vec<u8>> = (0..200).map(|_| rough(random)).collect();
        let index = index(&rows);
        let bytes = rough(random);
        let query = Query::Sparse(SparseRow::parse(&bytes).expect("ascending ids"));
        let all = RowMask::all(rows.len());
        let search = |index: &dyn VectorIndex, drop_ratio: f32| {
            let params = SearchParams { k: 50, drop_ratio, ..SearchParams::default() };
            index.search(&query, &params, &all, &Cancel::never()).expect("a search")
        };
        let exact = search(&index, 0.0);
        prop_assert_eq!(&search(&index, drop_ratio), &exact);
        prop_assert_eq!(&search(&scan(&rows), drop_ratio), &exact);
    }

    #[test]
    fn damaged_sections_are_refused_or_answer_without_breaking(
        seed in any::<u64>(),
        damages in 1usize..4,
    ) {
        let random = &mut Random(seed);
        let rows: Vec<Vec<u8>> = (0..150).map(|_| encode(&entries(random, 40, 8, true))).collect();
        let mut sections = built(&rows);
        for _ in 0..damages {
            damage(random, &mut sections);
        }
        let query = encode(&[(0, 1.0), (37, 0.5), (74, -1.0), (u32::MAX - 1, 2.0)]);
        let query = Query::Sparse(SparseRow::parse(&query).expect("ascending ids"));
        match SparseIndex::open(&sections, scan(&rows)) {
            Err(Error::Corrupt(_) | Error::Format { .. }) => {}
            Err(other) => prop_assert!(false, "not {other:?}"),
            Ok(index) => {
                let params = SearchParams { k: 10, ..SearchParams::default() };
                let all = RowMask::all(sections.rows);
                let hits = index.search(&query, &params, &all, &Cancel::never());
                for hit in hits.expect("a search") {
                    prop_assert!((hit.row as usize) < sections.rows);
                }
            }
        }
        // Nothing that a damaged index left behind may show in the next search of this thread.
        agree(random, 50, 20, false);
    }
}

/// Changes some bytes of one section, its length, its alignment, or the number of rows.
fn damage(random: &mut Random, sections: &mut InMemory) {
    let names: Vec<&str> = sections.sections.keys().copied().collect();
    let name = names[random.below(names.len())];
    let buffer = sections.sections.get_mut(name).expect("a key of the map");
    let mut bytes = buffer.to_vec();
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => bytes.extend([random.next() as u8; 8]),
        2 => {
            bytes.insert(0, 0);
            *buffer = aligned(&bytes).slice(1);
            return;
        }
        3 => {
            sections.rows = random.below(400);
            return;
        }
        4 => {
            sections.sections.remove(name);
            return;
        }
        _ if bytes.is_empty() => {}
        5 => {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        6 => {
            let at = random.below(bytes.len());
            bytes[at..].fill(0xFF);
        }
        _ => {
            let at = random.below(bytes.len());
            bytes[at..].rotate_left(1);
        }
    }
    *buffer = aligned(&bytes);
}

#[test]
fn more_rows_than_one_window_are_all_found() {
    let random = &mut Random(11);
    let rows: Vec<Vec<u8>> = (0..150_000)
        .map(|row| {
            let mut entries = entries(random, 3000, 3, false);
            // Only in the first and the third window, and in single rows near their ends.
            if matches!(row, 5 | 65_535 | 65_536 | 140_000 | 149_999) {
                entries.push((u32::MAX - 1, 9.0 + row as f32));
                entries.dedup_by_key(|(id, _)| *id);
            }
            encode(&entries)
        })
        .collect();
    let index = index(&rows);
    let allowed = RowMask::from_fn(rows.len(), |row| row % 7 != 2);
    for (query, k) in [
        (vec![(u32::MAX - 1, 1.0)], 10),
        (vec![(0, 1.0), (37, 0.5), (74, 2.0), (37 * 50, 1.0)], 1000),
        (vec![(37 * 2999, 1.0)], 10),
    ] {
        let params = SearchParams { k, ..SearchParams::default() };
        let expected = by_sorting(&rows, &query, &params, &allowed);
        let bytes = encode(&query);
        let query = Query::Sparse(SparseRow::parse(&bytes).expect("ascending ids"));
        let hits = index.search(&query, &params, &allowed, &Cancel::never()).expect("a search");
        assert_eq!(hits, expected);
    }
}

/// A row as texts have them: common ids with small weights, rare ones with large.
pub(crate) fn skewed(random: &mut Random, draws: usize) -> Vec<u8> {
    let entries: BTreeMap<u32, f32> = (0..draws)
        .map(|_| {
            let id = 500.0 * random.float().abs().powi(3);
            (id as u32, (0.05 + random.float().abs()) * id.sqrt())
        })
        .collect();
    encode(&entries.into_iter().collect::<Vec<_>>())
}

/// Enough rows and terms for sketches, in two windows.
#[test]
fn approximate_hits_are_nearly_the_best_and_have_true_scores() {
    let random = &mut Random(23);
    let rows: Vec<Vec<u8>> = (0..70_000).map(|_| skewed(random, 20)).collect();
    let (index, scan) = (index(&rows), scan(&rows));
    for (drop_ratio, least) in [(0.01, 0.985), (0.2, 0.985), (0.5, 0.95), (0.9, 0.3)] {
        let (mut found, mut wanted) = (0, 0);
        for round in 0..12 {
            let query = skewed(random, 80);
            let query = Query::Sparse(SparseRow::parse(&query).expect("ascending ids"));
            let k = [1, 10, 40][round % 3];
            let allowed = match round % 4 {
                3 => RowMask::from_fn(rows.len(), |_| random.below(2) == 0),
                _ => RowMask::all(rows.len()),
            };
            let search = |index: &dyn VectorIndex, drop_ratio: f32, allowed: &RowMask| {
                let params = SearchParams { k, drop_ratio, ..SearchParams::default() };
                index.search(&query, &params, allowed, &Cancel::never()).expect("a search")
            };
            let exact = search(&index, 0.0, &allowed);
            let hits = search(&index, drop_ratio, &allowed);
            let mut those = RowMask::none(rows.len());
            hits.iter().for_each(|hit| those.insert(hit.row));
            assert_eq!(hits, search(&scan, 0.0, &those), "ratio {drop_ratio}, round {round}");
            assert_eq!(hits.len(), k);
            found +=
                hits.iter().filter(|hit| allowed.contains(hit.row) && exact.contains(hit)).count();
            wanted += k;
        }
        let recall = found as f64 / wanted as f64;
        assert!(recall >= least, "ratio {drop_ratio}: {recall}");
        // Or no row was left out, and this tests nothing.
        assert!(drop_ratio < 0.9 || recall < 1.0, "ratio {drop_ratio}: {recall}");
    }
}

/// All rows have the same common terms; a few have a rare one too.
#[test]
fn rows_that_a_sketch_cannot_tell_apart_are_searched_exactly() {
    let common: Entries = (0..40).map(|id| (id, 1.0)).collect();
    let row = |at: usize| {
        let rare = (at % 2000 == 7).then(|| (99, 5.0 + at as f32 / 1e5));
        encode(&common.iter().copied().chain(rare).collect::<Vec<_>>())
    };
    let rows: Vec<Vec<u8>> = (0..70_000).map(row).collect();
    let (index, scan) = (index(&rows), scan(&rows));
    let all = RowMask::all(rows.len());
    for query in [common.clone(), [&common[..], &[(99, 2.0)]].concat(), vec![(99, 1.0)]] {
        let query = encode(&query);
        let query = Query::Sparse(SparseRow::parse(&query).expect("ascending ids"));
        for k in [1, 10, 30, 40, 1000] {
            let params = SearchParams { k, drop_ratio: 0.1, ..SearchParams::default() };
            let hits = index.search(&query, &params, &all, &Cancel::never()).expect("a search");
            let exact = scan.search(&query, &params, &all, &Cancel::never()).expect("a search");
            assert_eq!(hits, exact, "{k}");
        }
    }
}

/// Of two windows; the common terms of the first are masks, those of the short second one too.
#[test]
fn bounds_leave_no_row_out_and_change_no_bit_of_the_answer() {
    let random = &mut Random(17);
    let rows: Vec<Vec<u8>> = (0..70_000)
        .map(|_| {
            let draws = 1 + random.below(20);
            skewed(random, draws)
        })
        .collect();
    let (index, scan) = (index(&rows), scan(&rows));
    for round in 0..40 {
        let draws = 1 + random.below(15);
        let mut query = skewed(random, draws);
        if round % 8 == 7 {
            // Weights that single precision cannot add, and more terms than there is room for.
            let id = |at: u32| at.wrapping_mul(97) % 4096 + at;
            let many: BTreeMap<u32, f32> = (0..31_000).map(|at| (id(at), 3e37)).collect();
            query = encode(&many.into_iter().collect::<Vec<_>>());
        }
        let query = Query::Sparse(SparseRow::parse(&query).expect("ascending ids"));
        let bounds = match round % 5 {
            0 => Bounds { above: Some(20.0), at_most: None },
            1 => Bounds { above: None, at_most: Some(12.0) },
            2 => Bounds { above: Some(3.0), at_most: Some(3.5) },
            _ => Bounds::default(),
        };
        let k = [1, 10, 300][round % 3];
        let params = SearchParams { k, bounds, ..SearchParams::default() };
        let allowed = mask(random, rows.len());
        let found = index.search(&query, &params, &allowed, &Cancel::never()).expect("a search");
        let scanned = scan.search(&query, &params, &allowed, &Cancel::never()).expect("a search");
        assert_eq!(found, scanned, "round {round}");
    }
}

#[test]
fn an_index_of_another_format_is_refused_to_be_built_anew() {
    let rows = [encode(&[(1, 2.0)])];
    let mut sections = built(&rows);
    let mut meta = sections.sections["sparse.meta"].to_vec();
    meta[..8].copy_from_slice(&3u64.to_le_bytes());
    sections.sections.insert("sparse.meta", aligned(&meta));
    let refused = SparseIndex::open(&sections, scan(&rows));
    assert!(matches!(refused, Err(Error::Format { found: 3, read: 4 })), "{refused:?}");
}

#[test]
fn a_shared_id_makes_a_hit_whatever_the_score() {
    let rows = [encode(&[(1, 2.0)]), encode(&[(2, 1.0)]), encode(&[(1, 0.0)]), encode(&[])];
    let index = index(&rows);
    let query = encode(&[(1, -1.0)]);
    let query = Query::Sparse(SparseRow::parse(&query).expect("ascending ids"));
    let params = SearchParams { k: 10, ..SearchParams::default() };
    let expected = [Hit { row: 2, score: 0.0 }, Hit { row: 0, score: -2.0 }];
    for index in [&index as &dyn VectorIndex, &scan(&rows)] {
        let hits = index.search(&query, &params, &RowMask::all(4), &Cancel::never());
        assert_eq!(hits.expect("a search"), expected);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rows = [encode(&[(1, 2.0)])];
    let index = index(&rows);
    let params = SearchParams { k: 1, ..SearchParams::default() };
    let raised = Cancel::never();
    raised.flag().store(true, Ordering::Relaxed);
    for index in [&index as &dyn VectorIndex, &scan(&rows)] {
        let dense =
            index.search(&Query::Dense(&[0; 8]), &params, &RowMask::all(1), &Cancel::never());
        assert!(matches!(dense, Err(Error::Unsupported(_))));
        let query = Query::Sparse(SparseRow::trusted(&rows[0]));
        let short = index.search(&query, &params, &RowMask::all(0), &Cancel::never());
        assert!(matches!(short, Err(Error::Unsupported(_))));
        let stopped = index.search(&query, &params, &RowMask::all(1), &raised);
        assert_eq!(stopped, Err(Error::Cancelled));
        let ratio = SearchParams { drop_ratio: 1.0, ..params };
        let refused = index.search(&query, &ratio, &RowMask::all(1), &Cancel::never());
        assert!(matches!(refused, Err(Error::Unsupported(_))));
    }
}

#[test]
fn offsets_outside_the_values_are_corrupt_and_not_a_panic() {
    let query = encode(&[(1, 1.0)]);
    let query = Query::Sparse(SparseRow::trusted(&query));
    let params = SearchParams { k: 1, ..SearchParams::default() };
    for offsets in [[0, 800], [-8, 8], [8, 0]] {
        let scan =
            SparseScan::new(ScalarBuffer::from(offsets.to_vec()), Buffer::from_vec(vec![0u8; 16]));
        let result = scan.search(&query, &params, &RowMask::all(1), &Cancel::never());
        assert!(matches!(result, Err(Error::Corrupt(_))), "{offsets:?}");
    }
}
