//! The graph over made-up clustered rows, with its recall against exact search.

#[path = "common/random.rs"]
mod random;

use std::time::Instant;

use arrow_buffer::Buffer;
use criterion::{Criterion, criterion_group, criterion_main};
use elanus_index::{
    Cancel, Elem, FlatIndex, HnswIndex, HnswParams, InMemory, Metric, Progress, Query, RowMask,
    SearchParams, VectorIndex, Vectors,
};

use random::Random;

const ROWS: usize = 60_000;
const DIM: usize = 384;
const QUERIES: usize = 200;
/// Dimensions that the rows really have: their numbers are random mixtures of so many.
const INTRINSIC: usize = 24;

/// `count` rows of unit length in a curved surface of [`INTRINSIC`] dimensions.
fn rows(random: &mut Random, count: usize) -> Vec<u8> {
    let mut fixed = Random(9);
    let mix: Vec<f32> = (0..INTRINSIC * DIM).map(|_| fixed.unit() * 2.0 - 1.0).collect();
    let centres: Vec<f32> = (0..100 * INTRINSIC).map(|_| fixed.unit() * 4.0 - 2.0).collect();
    let mut bytes = Vec::with_capacity(count * DIM * 4);
    for _ in 0..count {
        let centre = (random.unit() * 100.0) as usize * INTRINSIC;
        let inner: Vec<f32> = centres[centre..centre + INTRINSIC]
            .iter()
            .map(|x| x + random.unit() * 2.0 - 1.0)
            .collect();
        let outer: Vec<f32> = mix
            .chunks_exact(INTRINSIC)
            .map(|mix| mix.iter().zip(&inner).map(|(m, x)| m * x).sum::<f32>().tanh())
            .collect();
        let length = outer.iter().map(|x| x * x).sum::<f32>().sqrt();
        bytes.extend(outer.iter().flat_map(|x| (x / length).to_le_bytes()));
    }
    bytes
}

fn hnsw(criterion: &mut Criterion) {
    let mut random = Random(42);
    let vectors = Vectors::new(Buffer::from_vec(rows(&mut random, ROWS)), Elem::F32, DIM);
    let vectors = vectors.expect("whole rows");
    let queries = rows(&mut random, QUERIES);
    let queries: Vec<_> = queries.chunks_exact(DIM * 4).map(Query::Dense).collect();
    let (cancel, all) = (Cancel::never(), RowMask::all(ROWS));

    let started = Instant::now();
    let params = HnswParams::default();
    let built = HnswIndex::build(&vectors, Metric::Ip, &params, &Progress::default(), &cancel)
        .expect("a build");
    eprintln!("hnsw build: {:.1} s", started.elapsed().as_secs_f32());
    let sections = InMemory::new(built, ROWS);
    let index = HnswIndex::open(&sections, vectors.clone(), Metric::Ip).expect("as built");

    let flat = FlatIndex::new(vectors, Metric::Ip);
    let mut group = criterion.benchmark_group("hnsw");
    for percent in [100, 50, 10, 1] {
        let mut pick = Random(7);
        let some = RowMask::from_fn(ROWS, |_| pick.unit() * 100.0 < percent as f32);
        let allowed = if percent == 100 { &all } else { &some };
        for ef in [32, 64, 128] {
            let params = SearchParams { k: 10, ef: Some(ef), ..SearchParams::default() };
            let found = index.search_many(&queries, &params, allowed, &cancel).expect("a search");
            let exact = flat.search_many(&queries, &params, allowed, &cancel).expect("a search");
            let hits = found
                .iter()
                .zip(&exact)
                .map(|(found, exact)| exact.iter().filter(|hit| found.contains(hit)).count());
            let recall = hits.sum::<usize>() as f64 / (10 * QUERIES) as f64;
            let mut next = queries.iter().cycle();
            group.bench_function(format!("{percent} %, ef {ef}, recall {recall:.3}"), |bencher| {
                bencher.iter(|| {
                    let query = next.next().expect("a cycle");
                    index.search(query, &params, allowed, &cancel).expect("a search")
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = hnsw
}
criterion_main!(benches);
