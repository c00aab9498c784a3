//! Exact search against scoring every row one by one.

use std::sync::atomic::Ordering;

use arrow_buffer::Buffer;
use proptest::prelude::*;

use super::*;
use crate::Bounds;
use crate::testing::{DENSE, Random, combinations, decode, encode};

/// Small whole numbers: all sums are exact, and many scores tie.
fn whole_numbers(random: &mut Random, elem: Elem, rows: usize, dim: usize) -> Vectors {
    let numbers: Vec<f32> = (0..rows * dim).map(|_| random.below(5) as f32 - 2.0).collect();
    match elem {
        Elem::Bit => {
            let bytes = (0..rows * dim).map(|_| (random.next() & random.next()) as u8).collect();
            Vectors::new(Buffer::from_vec::<u8>(bytes), elem, dim * 8).expect("whole rows")
        }
        Elem::F32 | Elem::F16 | Elem::Bf16 | Elem::I8 => {
            let bytes = encode(elem, &numbers);
            Vectors::new(Buffer::from_vec(bytes), elem, dim).expect("whole rows")
        }
    }
}

fn floats_of(random: &mut Random, rows: usize, dim: usize) -> Vectors {
    let numbers: Vec<f32> = (0..rows * dim).map(|_| random.float()).collect();
    of_floats(&numbers, dim)
}

/// Each row of another size, down to where squares vanish and up to where they overflow.
fn sizes_of(random: &mut Random, rows: usize, dim: usize) -> Vectors {
    let mut numbers = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let size = [1.0, 1.0, 3.0, 0.0, 1e-16, 1e-22, 1e-38, 1e18, 1e20, 3e38][random.below(10)];
        numbers.extend((0..dim).map(|_| random.float() * size));
    }
    of_floats(&numbers, dim)
}

fn of_floats(numbers: &[f32], dim: usize) -> Vectors {
    Vectors::new(Buffer::from_vec(encode(Elem::F32, numbers)), Elem::F32, dim).expect("whole rows")
}

fn score(metric: Metric, elem: Elem, query: &[u8], row: &[u8]) -> f32 {
    let (query, row) = (decode(elem, query), decode(elem, row));
    let sum = |of: fn(f64, f64) -> f64| -> f32 {
        query.iter().zip(&row).map(|(q, r)| of(*q, *r)).sum::<f64>() as f32
    };
    let dot = sum(|q, r| q * r);
    let (q, r) = (sum(|q, _| q * q), sum(|_, r| r * r));
    match metric {
        Metric::L2 => -sum(|q, r| (q - r) * (q - r)),
        Metric::Ip => dot,
        Metric::Cosine if q == 0.0 || r == 0.0 => 0.0,
        Metric::Cosine => dot / r.sqrt() * (1.0 / q.sqrt()),
        Metric::Hamming => -sum(|q, r| (q - r).abs()),
        Metric::Jaccard => {
            let either = sum(f64::max);
            if either == 0.0 { -1.0 } else { -((either - dot) / either) }
        }
    }
}

fn by_sorting(
    vectors: &Vectors,
    metric: Metric,
    query: &[u8],
    params: &SearchParams,
    allowed: &RowMask,
) -> Vec<Hit> {
    let mut hits: Vec<Hit> = allowed
        .iter()
        .map(|row| Hit { row, score: score(metric, vectors.elem(), query, vectors.row(row)) + 0.0 })
        .filter(|hit| params.bounds.above.is_none_or(|above| hit.score > above))
        .filter(|hit| params.bounds.at_most.is_none_or(|at_most| hit.score <= at_most))
        .collect();
    hits.sort_by(Hit::best_first);
    hits.truncate(params.k);
    hits
}

/// All, most, half, few or none of the rows, in runs or scattered.
fn mask(random: &mut Random, rows: usize) -> RowMask {
    match random.below(6) {
        0 | 1 => RowMask::all(rows),
        2 => RowMask::from_fn(rows, |_| random.below(50) > 0),
        3 => RowMask::from_fn(rows, |_| random.below(2) > 0),
        4 => RowMask::from_fn(rows, |row| row / 100 % 3 == 1),
        _ => RowMask::from_fn(rows, |_| random.below(40) == 0),
    }
}

fn params(random: &mut Random, rows: usize, likely: f32) -> SearchParams {
    let mut bound = || (random.below(3) == 0).then(|| random.float() * likely);
    let bounds = Bounds { above: bound(), at_most: bound() };
    let k = [0, 1, 10, 100, rows, rows + 7][random.below(6)];
    SearchParams { k, bounds, ..SearchParams::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_hits_are_those_of_scoring_every_row(
        rows in 0usize..400,
        dim in 1usize..40,
        seed in any::<u64>(),
    ) {
        let random = &mut Random(seed);
        for (metric, elem) in combinations() {
            let vectors = whole_numbers(random, elem, rows, dim);
            let query = whole_numbers(random, elem, 1, dim);
            let index = FlatIndex::new(vectors.clone(), metric);
            let allowed = mask(random, rows);
            let params = params(random, rows, dim as f32);
            let hits = index
                .search(&Query::Dense(query.row(0)), &params, &allowed, &Cancel::never())
                .expect("a search");
            let expected = by_sorting(&vectors, metric, query.row(0), &params, &allowed);
            prop_assert_eq!(hits, expected, "{:?} {:?}", metric, elem);
        }
    }

    #[test]
    fn many_queries_at_once_find_exactly_what_each_finds_alone(
        rows in 0usize..1500,
        dim in 1usize..60,
        count in 0usize..80,
        seed in any::<u64>(),
    ) {
        let random = &mut Random(seed);
        let elem = if random.below(4) > 0 { Elem::F32 } else { DENSE[random.below(4)] };
        // Whole numbers tie often, floats round often.
        let make: fn(&mut Random, Elem, usize, usize) -> Vectors = match random.below(3) {
            0 if elem == Elem::F32 => |random, _, rows, dim| floats_of(random, rows, dim),
            1 if elem == Elem::F32 => |random, _, rows, dim| sizes_of(random, rows, dim),
            _ => whole_numbers,
        };
        let vectors = make(random, elem, rows, dim);
        let queries = make(random, elem, count, dim);
        let queries: Vec<_> = (0..count).map(|i| Query::Dense(queries.row(i as Row))).collect();
        for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
            let index = FlatIndex::new(vectors.clone(), metric);
            let allowed = mask(random, rows);
            let params = params(random, rows, dim as f32);
            let together = index
                .search_many(&queries, &params, &allowed, &Cancel::never())
                .expect("a search");
            let alone: Result<Vec<_>, _> = queries
                .iter()
                .map(|query| index.search(query, &params, &allowed, &Cancel::never()))
                .collect();
            prop_assert_eq!(together, alone.expect("a search"), "{:?}", metric);
        }
    }
}

#[test]
fn rows_far_from_the_origin_and_close_together_are_told_apart_in_a_batch() {
    // |q|² - 2qx + |x|² loses every digit of these distances; the exact score must decide.
    let random = &mut Random(7);
    let (rows, dim) = (2000, 32);
    let numbers: Vec<f32> = (0..rows * dim).map(|_| 1e4 + random.float()).collect();
    let vectors = Vectors::new(Buffer::from_vec(encode(Elem::F32, &numbers)), Elem::F32, dim)
        .expect("whole rows");
    let index = FlatIndex::new(vectors.clone(), Metric::L2);
    let queries: Vec<_> = (0..16).map(|i| Query::Dense(vectors.row(i * 100))).collect();
    let params = SearchParams { k: 10, ..SearchParams::default() };
    let all = RowMask::all(rows);
    let together = index.search_many(&queries, &params, &all, &Cancel::never()).expect("a search");
    for (i, hits) in together.iter().enumerate() {
        assert_eq!(hits[0], Hit { row: i as Row * 100, score: 0.0 });
        let alone = index.search(&queries[i], &params, &all, &Cancel::never()).expect("a search");
        assert_eq!(*hits, alone);
    }
}

#[test]
fn rows_of_nan_and_infinity_come_last_and_break_nothing() {
    let (rows, dim) = (600, 8);
    let numbers: Vec<f32> = (0..rows * dim)
        .map(|i| match i / dim % 5 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::MAX,
            row => (row + i / dim) as f32,
        })
        .collect();
    let vectors = Vectors::new(Buffer::from_vec(encode(Elem::F32, &numbers)), Elem::F32, dim)
        .expect("whole rows");
    let queries = vec![encode(Elem::F32, &[1.0; 8]); 5];
    let queries: Vec<_> = queries.iter().map(|query| Query::Dense(query)).collect();
    let params = SearchParams { k: rows, ..SearchParams::default() };
    for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
        let index = FlatIndex::new(vectors.clone(), metric);
        let all = RowMask::all(rows);
        let hits = index.search(&queries[0], &params, &all, &Cancel::never()).expect("a search");
        assert_eq!(hits.len(), rows, "{metric:?}");
        assert!(hits.is_sorted_by(|a, b| a.best_first(b).is_lt()), "{metric:?}");
        assert!(hits.iter().all(|hit| !hit.score.is_nan()));
        let many = index.search_many(&queries, &params, &all, &Cancel::never()).expect("a search");
        assert!(many.iter().all(|of_one| *of_one == hits), "{metric:?}");
    }
}

#[test]
fn a_zero_vector_has_cosine_zero_with_everything() {
    let vectors = Vectors::new(
        Buffer::from_vec(encode(Elem::F32, &[0.0, 0.0, 3.0, 4.0, -3.0, -4.0])),
        Elem::F32,
        2,
    )
    .expect("whole rows");
    let index = FlatIndex::new(vectors, Metric::Cosine);
    let params = SearchParams { k: 3, ..SearchParams::default() };
    let search = |query: &[f32]| {
        let query = encode(Elem::F32, query);
        let all = RowMask::all(3);
        index.search(&Query::Dense(&query), &params, &all, &Cancel::never()).expect("a search")
    };
    let scores = |hits: Vec<Hit>| hits.iter().map(|hit| (hit.row, hit.score)).collect::<Vec<_>>();
    assert_eq!(scores(search(&[6.0, 8.0])), [(1, 1.0), (0, 0.0), (2, -1.0)]);
    assert_eq!(scores(search(&[0.0, 0.0])), [(0, 0.0), (1, 0.0), (2, 0.0)]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let index = FlatIndex::new(floats_of(&mut Random(1), 10, 4), Metric::Ip);
    let params = SearchParams { k: 1, ..SearchParams::default() };
    let search = |query: Query<'_>, rows| {
        let all = RowMask::all(rows);
        let one = index.search(&query, &params, &all, &Cancel::never());
        let many = index.search_many(&[query; 5], &params, &all, &Cancel::never());
        assert_eq!(one.as_ref().err(), many.as_ref().err());
        one
    };
    let wrong = Error::Dimension { expected: 4, actual: 3 };
    assert_eq!(search(Query::Dense(&[0; 12]), 10), Err(wrong));
    assert!(matches!(search(Query::Dense(&[0; 16]), 9), Err(Error::Unsupported(_))));
    let sparse = Query::Sparse(crate::SparseRow::trusted(&[]));
    assert!(matches!(search(sparse, 10), Err(Error::Unsupported(_))));
    let bits = FlatIndex::new(floats_of(&mut Random(1), 10, 4), Metric::Hamming);
    let refused =
        bits.search(&Query::Dense(&[0; 16]), &params, &RowMask::all(10), &Cancel::never());
    assert!(matches!(refused, Err(Error::Unsupported(_))));
}

#[test]
fn a_raised_flag_ends_the_search() {
    let index = FlatIndex::new(floats_of(&mut Random(1), 5000, 4), Metric::Ip);
    let params = SearchParams { k: 1, ..SearchParams::default() };
    let cancel = Cancel::never();
    cancel.flag().store(true, Ordering::Relaxed);
    let query = [Query::Dense(&[0; 16]); 8];
    let all = RowMask::all(5000);
    assert_eq!(index.search(&query[0], &params, &all, &cancel), Err(Error::Cancelled));
    assert_eq!(index.search_many(&query, &params, &all, &cancel), Err(Error::Cancelled));
}
