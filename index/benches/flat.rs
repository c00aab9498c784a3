//! FLAT over rows far larger than the last-level cache, beside a plain read of the same bytes,
//! which is the limit for one query.

#[path = "common/numbers.rs"]
mod numbers;
#[path = "common/random.rs"]
mod random;

use std::hint::black_box;

use arrow_buffer::Buffer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elanus_index::{
    Cancel, Elem, FlatIndex, Metric, Query, RowMask, SearchParams, VectorIndex, Vectors,
};

use random::Random;

/// 250,000 x 768 float32 are 768 MB.
const ROWS: usize = 250_000;
const DIM: usize = 768;

fn flat(criterion: &mut Criterion) {
    let mut random = Random(42);
    let buffer = Buffer::from_vec(random.numbers(ROWS * DIM, f32::to_le_bytes));
    let queries = random.numbers(64 * DIM, f32::to_le_bytes);
    let queries: Vec<_> = queries.chunks_exact(DIM * 4).map(Query::Dense).collect();
    let vectors = Vectors::new(buffer.clone(), Elem::F32, DIM).expect("whole rows");
    let params = SearchParams { k: 10, ..SearchParams::default() };
    let (all, cancel) = (RowMask::all(ROWS), Cancel::never());

    let mut group = criterion.benchmark_group("flat");
    group.throughput(Throughput::Bytes(buffer.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let words: &[u64] = buffer.typed_data();
            black_box(words.iter().fold(0, |folded, word| folded ^ word))
        });
    });
    for metric in [Metric::Ip, Metric::L2, Metric::Cosine] {
        let index = FlatIndex::new(vectors.clone(), metric);
        group.bench_function(format!("one query, {metric:?}"), |bencher| {
            bencher.iter(|| index.search(&queries[0], &params, &all, &cancel).expect("a search"));
        });
    }
    let index = FlatIndex::new(vectors.clone(), Metric::Ip);
    for percent in [50, 10, 1] {
        let mut pick = Random(7);
        let some = RowMask::from_fn(ROWS, |_| pick.next() % 100 < percent);
        group.throughput(Throughput::Bytes((some.count() * DIM * 4) as u64));
        group.bench_function(format!("one query, {percent} % allowed"), |bencher| {
            bencher.iter(|| index.search(&queries[0], &params, &some, &cancel).expect("a search"));
        });
    }
    // Multiply and add count as two.
    group.throughput(Throughput::Elements((2 * ROWS * DIM * queries.len()) as u64));
    for metric in [Metric::Ip, Metric::L2, Metric::Cosine] {
        let index = FlatIndex::new(vectors.clone(), metric);
        group.bench_function(format!("64 queries, {metric:?}"), |bencher| {
            bencher.iter(|| index.search_many(&queries, &params, &all, &cancel).expect("a search"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = flat
}
criterion_main!(benches);
