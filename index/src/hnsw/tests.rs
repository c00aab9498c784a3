//! The graph against exact search, and against damaged bytes.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use arrow_buffer::Buffer;
use proptest::prelude::*;

use super::*;
use crate::sections::InMemory;
use crate::testing::{Random, encode};
use crate::{
    Bounds, Cancel, Elem, Error, FlatIndex, Hit, Metric, Progress, Query, Row, RowMask,
    SearchParams, VectorIndex, Vectors,
};

fn build(vectors: &Vectors, metric: Metric, params: &HnswParams) -> InMemory {
    let built = HnswIndex::build(vectors, metric, params, &Progress::default(), &Cancel::never());
    in_memory(built, vectors.rows())
}

fn in_memory(built: Result<Vec<(&'static str, Vec<u8>)>, Error>, rows: usize) -> InMemory {
    InMemory::new(built.expect("a build"), rows)
}

const PARAMS: HnswParams = HnswParams { m: 12, ef_construction: 100, seed: 1 };

pub(crate) fn open(vectors: &Vectors, metric: Metric) -> HnswIndex {
    let sections = build(vectors, metric, &PARAMS);
    HnswIndex::open(&sections, vectors.clone(), metric).expect("as built")
}

/// What the numbers look like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Clusters, as embeddings have.
    Clustered,
    /// Rows of very different lengths.
    Lengths,
    /// Two dimensions thirty times as large as the others, far from zero.
    Outliers,
}

/// Rows around `rows / 50` centres; queries come from the same seed.
fn numbers(shape: Shape, rows: usize, dim: usize, noise: u64) -> Vec<f32> {
    let centre = &mut Random(99);
    let centres: Vec<Vec<f32>> =
        (0..40).map(|_| (0..dim).map(|_| centre.float()).collect()).collect();
    let random = &mut Random(noise);
    let mut all = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let centre = &centres[random.below(centres.len())];
        let length = match shape {
            Shape::Lengths => 0.2 + 10.0 * random.float().abs(),
            Shape::Clustered | Shape::Outliers => 1.0,
        };
        for (d, x) in centre.iter().enumerate() {
            let x = x + 0.7 * random.float();
            all.push(match shape {
                Shape::Outliers if d < 2 => 100.0 + 30.0 * x,
                Shape::Clustered | Shape::Lengths | Shape::Outliers => x * length,
            });
        }
    }
    all
}

pub(crate) fn vectors(shape: Shape, elem: Elem, rows: usize, dim: usize, seed: u64) -> Vectors {
    let mut numbers = numbers(shape, rows, dim, seed);
    if elem == Elem::I8 {
        numbers.iter_mut().for_each(|x| *x *= 60.0);
    }
    Vectors::new(Buffer::from_vec(encode(elem, &numbers)), elem, dim).expect("whole rows")
}

pub(crate) fn params(k: usize, ef: usize) -> SearchParams {
    SearchParams { k, ef: Some(ef), ..SearchParams::default() }
}

/// Share of the exact results that the index finds; checks order and scores on the way.
pub(crate) fn recall(
    index: &HnswIndex,
    vectors: &Vectors,
    metric: Metric,
    queries: &Vectors,
    params: &SearchParams,
    allowed: &RowMask,
) -> f64 {
    let flat = FlatIndex::new(vectors.clone(), metric);
    let (mut found, mut wanted) = (0, 0);
    for row in 0..queries.rows() as Row {
        let query = Query::Dense(queries.row(row));
        let exact = flat.search(&query, params, allowed, &Cancel::never()).expect("a search");
        let hits = index.search(&query, params, allowed, &Cancel::never()).expect("a search");
        assert_eq!(hits.len(), exact.len(), "as many as there are");
        assert!(hits.is_sorted_by(|a, b| a.best_first(b).is_lt()));
        assert!(hits.iter().all(|hit| allowed.contains(hit.row)));
        let worst = exact.last().map_or(f32::INFINITY, |hit| hit.score);
        found += hits.iter().filter(|hit| hit.score >= worst).count();
        wanted += exact.len();
    }
    found as f64 / wanted as f64
}

#[test]
fn recall_is_that_of_a_walk_on_the_rows_themselves() {
    for (shape, elem, coded) in [
        (Shape::Clustered, Elem::F32, [true; 3]),
        (Shape::Clustered, Elem::F16, [true; 3]),
        (Shape::Clustered, Elem::Bf16, [true; 3]),
        (Shape::Clustered, Elem::I8, [true; 3]),
        (Shape::Lengths, Elem::F32, [true; 3]),
        // By cosine these rows differ by less than the steps of the two large dimensions.
        (Shape::Outliers, Elem::F32, [true, true, false]),
    ] {
        let data = vectors(shape, elem, 2000, 48, 1);
        let queries = vectors(shape, elem, 100, 48, 2);
        for (metric, coded) in [Metric::L2, Metric::Ip, Metric::Cosine].into_iter().zip(coded) {
            let of = |plain: bool| {
                let sections = if plain {
                    in_memory(build::build_plain(&data, metric, &PARAMS), 2000)
                } else {
                    build(&data, metric, &PARAMS)
                };
                let index = HnswIndex::open(&sections, data.clone(), metric).expect("as built");
                assert_eq!(index.is_coded(), !plain && coded, "{shape:?} {elem:?} {metric:?}");
                let all = RowMask::all(2000);
                recall(&index, &data, metric, &queries, &params(10, 80), &all)
            };
            let (found, plain) = (of(false), of(true));
            assert!(found >= 0.98, "{shape:?} {elem:?} {metric:?}: {found}");
            assert!(found >= plain - 0.003, "{shape:?} {elem:?} {metric:?}: {found} of {plain}");
        }
    }
}

/// Rows of twelve dimensions in a space of many, as those of embeddings are.
fn embedded(rows: usize, dim: usize, seed: u64) -> Vectors {
    let of_space = &mut Random(99);
    let space: Vec<[f32; 12]> =
        (0..dim).map(|_| std::array::from_fn(|_| of_space.float())).collect();
    let random = &mut Random(seed);
    let numbers: Vec<f32> = (0..rows)
        .flat_map(|_| {
            let latent: [f32; 12] = std::array::from_fn(|_| random.float() + random.float());
            let along = move |axis: &[f32; 12]| axis.iter().zip(latent).map(|(a, x)| a * x).sum();
            space.iter().map(along).collect::<Vec<f32>>()
        })
        .collect();
    Vectors::new(Buffer::from_vec(encode(Elem::F32, &numbers)), Elem::F32, dim).expect("whole rows")
}

#[test]
fn a_walk_on_half_bytes_finds_as_much_as_one_on_the_rows() {
    let (data, queries) = (embedded(1500, 700, 1), embedded(100, 700, 2));
    let all = RowMask::all(1500);
    for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
        let index = open(&data, metric);
        let plain = in_memory(build::build_plain(&data, metric, &PARAMS), 1500);
        let plain = HnswIndex::open(&plain, data.clone(), metric).expect("as built");
        assert!(index.is_coarse() && !plain.is_coarse(), "{metric:?}");
        for ef in [10, 20, 40] {
            let of = |index| recall(index, &data, metric, &queries, &params(10, ef), &all);
            let (found, wanted) = (of(&index), of(&plain));
            assert!(found >= wanted - 0.01, "{metric:?} ef {ef}: {found} of {wanted}");
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_rows_finds_what_a_look_at_every_row_does() {
    // On half bytes, on codes, and on rows that codes do not suffice for.
    let outliers = |rows, seed| vectors(Shape::Outliers, Elem::F32, rows, 40, seed);
    let clustered = |rows, seed| vectors(Shape::Clustered, Elem::F32, rows, 40, seed);
    for (data, queries) in [
        (embedded(1500, 700, 1), embedded(100, 700, 2)),
        (clustered(1500, 1), clustered(100, 2)),
        (outliers(1500, 1), outliers(100, 2)),
    ] {
        let index = open(&data, Metric::L2);
        let all = RowMask::all(1500);
        let found = recall(&index, &data, Metric::L2, &queries, &params(10, 1500), &all);
        assert!(found >= 0.999, "{found}, half bytes: {}", index.is_coarse());
    }
}

#[test]
fn a_search_leaves_nothing_behind_for_one_in_a_narrower_index() {
    let wide = vectors(Shape::Clustered, Elem::F32, 500, 300, 1);
    let narrow = vectors(Shape::Clustered, Elem::F32, 2000, 48, 1);
    let queries = vectors(Shape::Clustered, Elem::F32, 50, 48, 2);
    let (other, index) = (open(&wide, Metric::Ip), open(&narrow, Metric::L2));
    let all = RowMask::all(2000);
    let of = || recall(&index, &narrow, Metric::L2, &queries, &params(10, 20), &all);
    let before = of();
    let query = Query::Dense(wide.row(7));
    let hits = other.search(&query, &params(10, 20), &RowMask::all(500), &Cancel::never());
    assert!(hits.is_ok());
    assert_eq!(of(), before);
}

#[test]
fn scores_are_exact() {
    let data = vectors(Shape::Clustered, Elem::F32, 3000, 40, 1);
    let queries = vectors(Shape::Clustered, Elem::F32, 5, 40, 2);
    for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
        let (index, flat) = (open(&data, metric), FlatIndex::new(data.clone(), metric));
        for row in 0..5 {
            let query = Query::Dense(queries.row(row));
            let all = RowMask::all(3000);
            let every = SearchParams { k: 3000, ..SearchParams::default() };
            let exact: HashMap<Row, f32> = flat
                .search(&query, &every, &all, &Cancel::never())
                .expect("a search")
                .into_iter()
                .map(|hit| (hit.row, hit.score))
                .collect();
            let hits = index.search(&query, &params(20, 50), &all, &Cancel::never());
            for hit in hits.expect("a search") {
                assert_eq!(hit.score.to_bits(), exact[&hit.row].to_bits(), "{metric:?}");
            }
        }
    }
}

#[test]
fn filtered_recall_is_high_at_every_share_scattered_or_far_from_the_query() {
    let rows = 8000;
    let data = vectors(Shape::Clustered, Elem::F32, rows, 32, 1);
    let queries = vectors(Shape::Clustered, Elem::F32, 40, 32, 2);
    let index = open(&data, Metric::Cosine);
    // Rows far from the first query: the lower half by similarity.
    let flat = FlatIndex::new(data.clone(), Metric::Cosine);
    let every = SearchParams { k: rows, ..SearchParams::default() };
    let query = Query::Dense(queries.row(0));
    let all = RowMask::all(rows);
    let ranked = flat.search(&query, &every, &all, &Cancel::never()).expect("a search");
    let mut far = RowMask::none(rows);
    ranked[rows / 2..].iter().for_each(|hit| far.insert(hit.row));
    let random = &mut Random(5);
    let mut masks = vec![(0, far)];
    for percent in [1, 10, 30, 50, 58, 62, 80, 95] {
        let picked = RowMask::from_fn(rows, |_| random.below(100) < percent);
        masks.push((percent, picked));
    }
    for (percent, allowed) in masks {
        let recall = recall(&index, &data, Metric::Cosine, &queries, &params(10, 100), &allowed);
        assert!(recall >= 0.97, "{percent} %: {recall}");
    }
}

#[test]
fn as_many_rows_come_back_as_are_asked_for_and_allowed() {
    let data = vectors(Shape::Clustered, Elem::F32, 3000, 16, 1);
    let index = open(&data, Metric::L2);
    let query = Query::Dense(data.row(7));
    for k in [1, 10, 1000, 2999, 3000, 5000] {
        for allowed in [RowMask::all(3000), RowMask::from_fn(3000, |row| row % 3 == 0)] {
            let hits = index.search(&query, &params(k, 16), &allowed, &Cancel::never());
            assert_eq!(hits.expect("a search").len(), k.min(allowed.count()));
        }
    }
    let none = index.search(&query, &params(10, 16), &RowMask::none(3000), &Cancel::never());
    assert_eq!(none, Ok(vec![]));
    assert_eq!(
        index.search(&query, &params(0, 16), &RowMask::all(3000), &Cancel::never()),
        Ok(vec![])
    );
}

#[test]
fn bounds_cut_the_results() {
    let data = vectors(Shape::Clustered, Elem::F32, 3000, 16, 1);
    let index = open(&data, Metric::L2);
    let query = Query::Dense(data.row(7));
    let search = |params| {
        index.search(&query, &params, &RowMask::all(3000), &Cancel::never()).expect("a search")
    };
    let unbounded = search(params(10, 100));
    let bounds = Bounds { above: Some(unbounded[6].score), at_most: Some(unbounded[1].score) };
    let bounded = search(SearchParams { bounds, ..params(10, 100) });
    assert_eq!(bounded, unbounded[1..6]);
}

#[test]
fn a_range_that_begins_far_from_the_query_is_complete() {
    let data = vectors(Shape::Clustered, Elem::F32, 12_000, 16, 1);
    let (index, flat) = (open(&data, Metric::L2), FlatIndex::new(data.clone(), Metric::L2));
    let queries = vectors(Shape::Clustered, Elem::F32, 10, 16, 2);
    let (all, never) = (RowMask::all(12_000), Cancel::never());
    let third = RowMask::from_fn(12_000, |row| row % 3 == 0);
    let (mut found, mut wanted) = (0, 0);
    for row in 0..10 {
        let query = Query::Dense(queries.row(row));
        for allowed in [&all, &third] {
            let every = SearchParams { k: 12_000, ..SearchParams::default() };
            let ranked = flat.search(&query, &every, allowed, &never).expect("a search");
            for (from, to) in [(10, 30), (300, 310), (2000, 2020), (3990, 4000)] {
                let bounds = Bounds {
                    at_most: Some(ranked[from].score),
                    above: ranked.get(to).map(|hit| hit.score),
                };
                let params = SearchParams { bounds, ..params(100, 32) };
                let hits = index.search(&query, &params, allowed, &never).expect("a search");
                assert!(hits.iter().all(|hit| ranked[from..to].contains(hit)));
                found += hits.len();
                wanted += to - from;
            }
        }
    }
    assert!(found as f64 >= 0.99 * wanted as f64, "{found} of {wanted}");
}

#[test]
fn many_results_are_as_good_as_few() {
    let data = vectors(Shape::Clustered, Elem::F32, 12_000, 32, 1);
    let index = open(&data, Metric::Ip);
    let queries = vectors(Shape::Clustered, Elem::F32, 5, 32, 2);
    let all = RowMask::all(12_000);
    for k in [100, 1000, 5000] {
        let recall = recall(&index, &data, Metric::Ip, &queries, &params(k, 16), &all);
        assert!(recall >= 0.97, "{k}: {recall}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let data = vectors(Shape::Clustered, Elem::F32, 1500, 16, 1);
    let params = |seed| HnswParams { m: 8, ef_construction: 40, seed };
    let build = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let progress = Progress::default();
        let built = pool.install(|| {
            HnswIndex::build(&data, Metric::Ip, &params(seed), &progress, &Cancel::never())
        });
        assert_eq!((progress.done(), progress.total()), (1500, 1500));
        built.expect("a build")
    };
    let once = build(1, 1);
    assert_eq!(once, build(1, 1));
    assert_eq!(once, build(1, 3));
    assert_ne!(once, build(2, 1));
}

#[test]
fn few_rows_equal_rows_and_rows_of_nan_break_nothing() {
    for rows in [0, 1, 2, 3, 70] {
        for data in [
            vectors(Shape::Clustered, Elem::F32, rows, 8, 1),
            Vectors::new(Buffer::from_vec(encode(Elem::F32, &vec![0.5; rows * 8])), Elem::F32, 8)
                .expect("whole rows"),
            Vectors::new(
                Buffer::from_vec(encode(Elem::F32, &vec![f32::NAN; rows * 8])),
                Elem::F32,
                8,
            )
            .expect("whole rows"),
        ] {
            for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
                let index = open(&data, metric);
                for query in [[1.0; 8], [f32::NAN; 8], [f32::INFINITY; 8], [0.0; 8]] {
                    let query = encode(Elem::F32, &query);
                    let all = RowMask::all(rows);
                    let query = Query::Dense(&query);
                    let hits = index.search(&query, &params(5, 10), &all, &Cancel::never());
                    assert_eq!(hits.expect("a search").len(), rows.min(5));
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let data = vectors(Shape::Clustered, Elem::F32, 100, 16, 1);
    let never = Cancel::never();
    for params in [
        HnswParams { m: 1, ..HnswParams::default() },
        HnswParams { m: 2049, ..HnswParams::default() },
        HnswParams { ef_construction: 0, ..HnswParams::default() },
    ] {
        let refused = HnswIndex::build(&data, Metric::L2, &params, &Progress::default(), &never);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{params:?}");
    }
    let hamming = HnswIndex::build(
        &data,
        Metric::Hamming,
        &HnswParams::default(),
        &Progress::default(),
        &never,
    );
    assert!(matches!(hamming, Err(Error::Unsupported(_))));
    let sections = build(&data, Metric::L2, &HnswParams::default());
    let other = HnswIndex::open(&sections, data.clone(), Metric::Ip);
    assert!(matches!(other, Err(Error::Corrupt(_))));
    let index = HnswIndex::open(&sections, data.clone(), Metric::L2).expect("as built");
    let all = RowMask::all(100);
    let narrow = index.search(&Query::Dense(&[0; 8]), &params(1, 1), &all, &never);
    assert_eq!(narrow, Err(Error::Dimension { expected: 16, actual: 2 }));
    let raised = Cancel::never();
    raised.flag().store(true, Ordering::Relaxed);
    let query = Query::Dense(data.row(0));
    assert_eq!(index.search(&query, &params(1, 1), &all, &raised), Err(Error::Cancelled));
    let stopped =
        HnswIndex::build(&data, Metric::L2, &HnswParams::default(), &Progress::default(), &raised);
    assert_eq!(stopped, Err(Error::Cancelled));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_sections_are_refused_or_answer_without_breaking(
        seed in any::<u64>(),
        damages in 1usize..4,
    ) {
        let random = &mut Random(seed);
        let data = vectors(Shape::Clustered, Elem::F32, 600, 8, 1);
        let mut sections = UNDAMAGED.clone();
        for _ in 0..damages {
            damage(random, &mut sections);
        }
        match HnswIndex::open(&sections, data.clone(), Metric::L2) {
            Err(Error::Corrupt(_) | Error::Format { .. }) => {}
            Err(other) => prop_assert!(false, "not {other:?}"),
            Ok(index) => {
                for allowed in [RowMask::all(600), RowMask::from_fn(600, |row| row % 2 == 0)] {
                    let query = Query::Dense(data.row(3));
                    let hits = index.search(&query, &params(4, 8), &allowed, &Cancel::never());
                    let hits: Vec<Hit> = hits.expect("a search");
                    prop_assert_eq!(hits.len(), 4);
                    prop_assert!(hits.iter().all(|hit| allowed.contains(hit.row)));
                }
            }
        }
    }
}

static UNDAMAGED: LazyLock<InMemory> = LazyLock::new(|| {
    let data = vectors(Shape::Clustered, Elem::F32, 600, 8, 1);
    build(&data, Metric::L2, &HnswParams { m: 4, ef_construction: 20, seed: 1 })
});

/// Changes some bytes of one section, its length, its alignment, or the number of rows.
fn damage(random: &mut Random, sections: &mut InMemory) {
    let names: Vec<&str> = sections.sections.keys().copied().collect();
    let name = names[random.below(names.len())];
    let buffer = sections.sections.get_mut(name).expect("a key of the map");
    let mut bytes = buffer.to_vec();
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => bytes.extend([random.next() as u8; 8]),
        2 => sections.rows = random.below(700),
        3 => {
            sections.sections.remove(name);
            return;
        }
        _ if bytes.is_empty() => {}
        4 | 5 => {
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
    *buffer = Buffer::from_slice_ref(&bytes);
}
