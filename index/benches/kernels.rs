//! Bytes per second of every kernel over 64 rows that stay in the first-level cache's reach:
//! what the arithmetic allows. `flat` shows what memory allows.

#[path = "common/numbers.rs"]
mod numbers;
#[path = "common/random.rs"]
mod random;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elanus_index::kernel::{Kernel, Level};
use elanus_index::{Elem, Metric};
use half::{bf16, f16};

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
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let kernel = Kernel::at(level, metric, elem).expect("available");
                let mut out = [0.0; ROWS];
                group.bench_function(format!("{level:?}"), |bencher| {
                    bencher.iter(|| (kernel.block)(black_box(query), black_box(rows), &mut out));
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = kernels
}
criterion_main!(benches);
