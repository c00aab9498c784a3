//! Every kernel over rows that stay in the first two caches: what the arithmetic allows, in turns
//! with a plain read of the same bytes. `flat` shows what memory allows.

#[path = "common/limits.rs"]
mod limits;
#[path = "common/numbers.rs"]
mod numbers;
#[path = "common/random.rs"]
mod random;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elanus_index::kernel::{
    Kernel, Level, Limit as Bound, NIBBLES, Picked, Step, TILE_QUERIES, TILE_ROWS, Tiles,
    code_dot_at, nibble_dot_at, select_at,
};
use elanus_index::{Bounds, Elem, Metric, Row, TopK};
use half::{bf16, f16};

use limits::{Limit, beside};
use random::Random;

/// 768 dimensions, a common width, also for bits.
const DIM: usize = 768;
const ROWS: usize = 64;

fn kernels(criterion: &mut Criterion) {
    let mut random = Random(42);
    let count = DIM * (ROWS + 1);
    for (elem, metrics) in [
        (Elem::F32, &[Metric::L2, Metric::Ip, Metric::Cosine][..]),
        (Elem::F16, &[Metric::L2, Metric::Ip, Metric::Cosine]),
        (Elem::Bf16, &[Metric::L2, Metric::Ip, Metric::Cosine]),
        (Elem::I8, &[Metric::L2, Metric::Ip, Metric::Cosine]),
        (Elem::Bit, &[Metric::Hamming, Metric::Jaccard]),
    ] {
        let width = elem.bytes_per_row(DIM);
        let bytes = match elem {
            Elem::F32 => random.numbers(count, f32::to_le_bytes),
            Elem::F16 => random.numbers(count, |number| f16::from_f32(number).to_le_bytes()),
            Elem::Bf16 => random.numbers(count, |number| bf16::from_f32(number).to_le_bytes()),
            Elem::I8 => random.numbers(count, |number| [(number * 127.0) as i8 as u8]),
            Elem::Bit => random.numbers(count / 8, |number| [(number * 1e6) as i32 as u8]),
        };
        let (query, rows) = bytes.split_at(width);
        for &metric in metrics {
            let mut group = criterion.benchmark_group(format!("{elem:?}/{metric:?}"));
            group.throughput(Throughput::Bytes(rows.len() as u64));
            for level in levels() {
                let kernel = Kernel::at(level, metric, elem).expect("available");
                let mut out = [0.0; ROWS];
                let limit = Limit::read(rows);
                beside(&mut group, &format!("{level:?}"), &limit, rows.len(), || {
                    (kernel.block)(black_box(query), black_box(rows), &mut out);
                });
            }
            group.finish();
        }
    }
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// Rows of a byte, and of half a byte, for each dimension.
fn codes(criterion: &mut Criterion) {
    let mut random = Random(42);
    let codes: Vec<u8> = (0..ROWS * DIM).map(|_| random.next() as u8).collect();
    let query = vec![Step([3; 64]); DIM / 64];
    let limit = Limit::read(&codes);
    let mut group = criterion.benchmark_group("codes");
    group.throughput(Throughput::Bytes(codes.len() as u64));
    let places: Vec<u32> = (0..(ROWS * NIBBLES / 64) as u32).collect();
    let picked = |stride| {
        let places = &places[..codes.len() / stride];
        Picked { bytes: &codes, stride, places }
    };
    let mut out = vec![0.0; places.len()];
    for level in levels() {
        let kernel = code_dot_at(level).expect("available");
        beside(&mut group, &format!("bytes, {level:?}"), &limit, codes.len(), || {
            (kernel.picked)(&query, &query, picked(DIM), &mut out[..ROWS]);
        });
        let kernel = nibble_dot_at(level).expect("available");
        let rows = picked(DIM / NIBBLES * 64);
        beside(&mut group, &format!("half bytes, {level:?}"), &limit, codes.len(), || {
            (kernel.picked)(&query, rows, &mut out[..rows.places.len()]);
        });
    }
    group.finish();
}

/// The best ten of 60,000 scores in no order: kept in a heap, and marked where they may be better.
fn heap(criterion: &mut Criterion) {
    let mut random = Random(42);
    let scores: Vec<f32> = (0..60_032).map(|_| random.unit()).collect();
    let bytes = size_of_val(&*scores);
    let limit = Limit::read(bytemuck::cast_slice(&scores));
    let mut group = criterion.benchmark_group("heap");
    group.throughput(Throughput::Elements(scores.len() as u64));
    beside(&mut group, "the best ten", &limit, bytes, || {
        let mut top = TopK::new(10, Bounds::default());
        for (row, score) in (0 as Row..).zip(&scores) {
            if top.floor().is_none_or(|floor| *score > floor) {
                top.push(row, *score);
            }
        }
        black_box(top.into_hits());
    });
    let mut words = vec![0; scores.len() / 64];
    for level in levels() {
        let select = select_at(level).expect("available");
        beside(&mut group, &format!("select, {level:?}"), &limit, bytes, || {
            select(black_box(&scores), 0.999, &mut words);
        });
    }
    group.finish();
}

/// Six rows with many queries, in turns with the multiply-adds of a core.
fn tiles(criterion: &mut Criterion) {
    let mut random = Random(42);
    let queries = random.numbers(TILE_QUERIES * DIM, f32::to_le_bytes);
    let queries: Vec<&[u8]> = queries.chunks_exact(DIM * 4).collect();
    let rows = random.numbers(TILE_ROWS * DIM, f32::to_le_bytes);
    let rows: Vec<&[u8]> = rows.chunks_exact(DIM * 4).collect();
    let rows: [&[u8]; TILE_ROWS] = rows.try_into().expect("a tile");
    let limit = Limit::multiply_add();
    let mut group = criterion.benchmark_group("tiles");
    limit.bench(&mut group, "multiply-add", Throughput::Elements);
    for count in [16, TILE_QUERIES] {
        let operations = 2 * TILE_ROWS * count * DIM;
        group.throughput(Throughput::Elements(operations as u64));
        for level in levels() {
            let mut tiles = Tiles::new(level, &queries[..count], 0.0);
            let bound = Bound { constant: f32::MAX, linear: 0.0 };
            (0..count).for_each(|query| tiles.set_limit(query, bound));
            let name = format!("{count} queries, {level:?}");
            beside(&mut group, &name, &limit, operations, || {
                black_box(tiles.pass(black_box(rows), rows));
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
    targets = kernels, codes, heap, tiles
}
criterion_main!(benches);
