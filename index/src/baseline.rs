//! Recall at equal effort against what it was, which `recall.txt` beside this file keeps: a line
//! for each data set, filter and width. `make baselines` writes it anew.

use std::fmt::Write;

use arrow_buffer::Buffer;

use crate::hnsw::tests::{Shape, open, params, recall, vectors};
use crate::sparse::tests::{index, scan, skewed};
use crate::testing::{Random, encode};
use crate::{
    Cancel, Elem, Metric, Query, Row, RowMask, SearchParams, SparseRow, VectorIndex, Vectors,
};

const ROWS: usize = 6000;
const DIM: usize = 64;
const QUERIES: usize = 200;
/// What recall may fall by.
const TOLERANCE: f64 = 0.003;
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/recall.txt");

#[test]
fn recall_at_equal_effort_does_not_fall_below_the_baseline() {
    let found: Vec<(String, f64)> = dense().into_iter().chain(sparse()).collect();
    if std::env::var("ELANUS_BASELINES").is_ok_and(|value| value == "write") {
        let lines = found.iter().fold(String::new(), |mut lines, (name, recall)| {
            writeln!(lines, "{name} {recall:.4}").expect("a string takes all");
            lines
        });
        std::fs::write(PATH, lines).expect("a writable checkout");
        return;
    }
    let kept = include_str!("recall.txt").lines().filter_map(|line| line.rsplit_once(' '));
    let kept: Vec<(&str, f64)> =
        kept.map(|(name, recall)| (name, recall.parse().expect("a number"))).collect();
    assert_eq!(kept.len(), found.len(), "lines of recall.txt; write it anew: make baselines");
    for ((name, recall), (kept_name, baseline)) in found.iter().zip(kept) {
        assert_eq!(name, kept_name, "write recall.txt anew: make baselines");
        assert!(*recall >= baseline - TOLERANCE, "{name} {recall:.4}, was {baseline:.4}");
    }
}

/// Rows of a few dimensions sent through a random network to many: about as hard for a graph as
/// embeddings are.
fn embedded(rows: usize, seed: u64) -> Vectors {
    const LATENT: usize = 12;
    let of_network = &mut Random(77);
    let mut weights = |count: usize| (0..count).map(|_| of_network.float()).collect::<Vec<f32>>();
    let (first, second) = (weights(LATENT * DIM), weights(DIM * DIM));
    let through = |input: &[f32], weights: &[f32]| -> Vec<f32> {
        let sums = weights.chunks_exact(input.len());
        let sums = sums.map(|row| row.iter().zip(input).map(|(w, x)| w * x).sum::<f32>());
        // In place of tanh, whose last bit differs between machines.
        sums.map(|x| x / (1.0 + x.abs())).collect()
    };
    let random = &mut Random(seed);
    let numbers: Vec<f32> = (0..rows)
        .flat_map(|_| {
            let latent: Vec<f32> = (0..LATENT).map(|_| 2.0 * random.float()).collect();
            through(&through(&latent, &first), &second)
        })
        .collect();
    Vectors::new(Buffer::from_vec(encode(Elem::F32, &numbers)), Elem::F32, DIM).expect("whole rows")
}

fn dense() -> Vec<(String, f64)> {
    let random = &mut Random(5);
    let masks = [
        ("all", RowMask::all(ROWS)),
        ("half of", RowMask::from_fn(ROWS, |_| random.below(2) == 0)),
        ("a fifth of", RowMask::from_fn(ROWS, |_| random.below(5) == 0)),
        ("the first third of", RowMask::from_fn(ROWS, |row| (row as usize) < ROWS / 3)),
    ];
    let shaped = |shape, elem, seed, rows| vectors(shape, elem, rows, DIM, seed);
    let mut found = Vec::new();
    for (name, metric, of) in [
        ("embedded f32 by cosine", Metric::Cosine, &embedded as &dyn Fn(usize, u64) -> Vectors),
        ("clustered f16 by L2", Metric::L2, &|rows, seed| {
            shaped(Shape::Clustered, Elem::F16, seed, rows)
        }),
        ("clustered i8 by L2", Metric::L2, &|rows, seed| {
            shaped(Shape::Clustered, Elem::I8, seed, rows)
        }),
        ("unequal lengths f32 by IP", Metric::Ip, &|rows, seed| {
            shaped(Shape::Lengths, Elem::F32, seed, rows)
        }),
        ("outliers f32 by cosine", Metric::Cosine, &|rows, seed| {
            shaped(Shape::Outliers, Elem::F32, seed, rows)
        }),
    ] {
        let (data, queries) = (of(ROWS, 1), of(QUERIES, 2));
        let index = open(&data, metric);
        for (of_which, allowed) in &masks {
            // With 4 a fifth of the rows is walked over, with more scanned.
            for ef in [4, 10, 20, 40] {
                let params = params(ef.min(10), ef);
                let recall = recall(&index, &data, metric, &queries, &params, allowed);
                found.push((format!("{of_which} {name}, ef {ef}:"), recall));
            }
        }
    }
    found
}

/// The sparse index is exact, unless a drop ratio asks for less of as many rows as here.
fn sparse() -> Vec<(String, f64)> {
    const ROWS: usize = 80_000;
    const QUERIES: usize = 60;
    let random = &mut Random(7);
    let rows: Vec<Vec<u8>> = (0..ROWS).map(|_| skewed(random, 30)).collect();
    let queries: Vec<Vec<u8>> = (0..QUERIES).map(|_| skewed(random, 80)).collect();
    let (index, scan) = (index(&rows), scan(&rows));
    let (all, never) = (RowMask::all(ROWS), Cancel::never());
    let search = |index: &dyn VectorIndex, drop_ratio: f32| -> Vec<Vec<Row>> {
        let one = |query: &Vec<u8>| {
            let query = Query::Sparse(SparseRow::parse(query).expect("a row"));
            let params = SearchParams { k: 10, drop_ratio, ..SearchParams::default() };
            let hits = index.search(&query, &params, &all, &never).expect("a search");
            hits.into_iter().map(|hit| hit.row).collect()
        };
        queries.iter().map(one).collect()
    };
    let exact = search(&scan, 0.0);
    [0.0, 0.1, 0.3, 0.6]
        .into_iter()
        .map(|drop_ratio| {
            let found = search(&index, drop_ratio);
            let hits = found
                .iter()
                .zip(&exact)
                .map(|(found, exact)| found.iter().filter(|row| exact.contains(row)).count());
            let recall = hits.sum::<usize>() as f64 / (10 * QUERIES) as f64;
            (format!("all sparse, drop ratio {drop_ratio}:"), recall)
        })
        .collect()
}
