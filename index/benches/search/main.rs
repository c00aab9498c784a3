//! How fast kernels and indexes are, beside what the machine allows.
//!
//! `cargo bench -p elanus-index -- <part of a name>` runs some of them.

mod flat;
mod kernels;
mod random;
mod sparse;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = short();
    targets = kernels::kernels, flat::flat, sparse::sparse
}
criterion_main!(benches);
