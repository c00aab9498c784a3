//! FLAT over rows far larger than the last-level cache, in turns with a plain read of the same
//! bytes, which is the limit for one query, and with the multiply-adds of a core, which are that
//! of many.

#[path = "common/limits.rs"]
mod limits;
#[path = "common/numbers.rs"]
mod numbers;
#[path = "common/random.rs"]
mod random;

use std::thread;

use arrow_buffer::Buffer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elanus_index::{
    Cancel, Elem, FlatCodes, FlatIndex, Metric, Query, RowMask, SearchParams, VectorIndex, Vectors,
};

use limits::{Limit, beside};
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
    let read = Limit::read(&buffer);
    let read_by_two = Limit::new("the read bandwidth of two threads", buffer.len(), || {
        let (first, second) = buffer.split_at(buffer.len() / 2);
        thread::scope(|scope| {
            scope.spawn(|| limits::read(first));
            limits::read(second);
        });
    });
    read.bench(&mut group, "read", Throughput::Bytes);
    read_by_two.bench(&mut group, "read by two threads", Throughput::Bytes);
    let one = |index: &FlatIndex, allowed: &RowMask| {
        index.search(&queries[0], &params, allowed, &cancel).expect("a search");
    };
    for metric in [Metric::Ip, Metric::L2, Metric::Cosine] {
        let index = FlatIndex::new(vectors.clone(), metric);
        beside(&mut group, &format!("one query, {metric:?}"), &read, buffer.len(), || {
            one(&index, &all);
        });
    }
    let codes = FlatCodes::encode(&vectors);
    for metric in [Metric::Ip, Metric::L2, Metric::Cosine] {
        let index = FlatIndex::new(vectors.clone(), metric);
        let index = index.with_codes(codes.clone()).expect("codes of these rows");
        group.throughput(Throughput::Bytes(codes.scanned_bytes() as u64));
        let name = format!("one query on codes, {metric:?}");
        beside(&mut group, &name, &read, codes.scanned_bytes(), || one(&index, &all));
    }
    group.throughput(Throughput::Bytes(buffer.len() as u64));
    let half = |from| FlatIndex::new(vectors.slice(from, ROWS / 2), Metric::Ip);
    let (first, second, half) = (half(0), half(ROWS / 2), RowMask::all(ROWS / 2));
    beside(&mut group, "one query, two threads", &read_by_two, buffer.len(), || {
        thread::scope(|scope| {
            scope.spawn(|| one(&first, &half));
            one(&second, &half);
        });
    });
    let index = FlatIndex::new(vectors.clone(), Metric::Ip);
    for percent in [50, 10, 1] {
        let mut pick = Random(7);
        let some = RowMask::from_fn(ROWS, |_| pick.next() % 100 < percent);
        let bytes = some.count() * DIM * 4;
        group.throughput(Throughput::Bytes(bytes as u64));
        beside(&mut group, &format!("one query, {percent} % allowed"), &read, bytes, || {
            one(&index, &some);
        });
    }
    let peak = Limit::multiply_add();
    peak.bench(&mut group, "multiply-add", Throughput::Elements);
    for count in [4, 16, 64] {
        // Multiply and add count as two.
        let operations = 2 * ROWS * DIM * count;
        group.throughput(Throughput::Elements(operations as u64));
        for metric in [Metric::Ip, Metric::L2, Metric::Cosine] {
            let index = FlatIndex::new(vectors.clone(), metric);
            beside(&mut group, &format!("{count} queries, {metric:?}"), &peak, operations, || {
                let queries = &queries[..count];
                index.search_many(queries, &params, &all, &cancel).expect("a search");
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
    targets = flat
}
criterion_main!(benches);
