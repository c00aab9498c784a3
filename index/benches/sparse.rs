//! Sparse search over made-up rows shaped like learned sparse ones: 51 entries a row, 42 a
//! query, ids drawn by a power law from 30,522, so that a query of a 60,000-row segment touches
//! on the order of 100,000 postings.

#[path = "common/random.rs"]
mod random;

use std::collections::{BTreeMap, HashMap};

use arrow_buffer::{Buffer, OffsetBuffer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elanus_index::{
    Cancel, InMemory, Query, RowMask, SearchParams, SparseIndex, SparseRow, SparseScan, VectorIndex,
};

use random::Random;

const IDS: f32 = 30_522.0;

/// Entries of one row: `count` draws of `id = IDS * u^skew`.
fn row(random: &mut Random, count: usize, skew: f32) -> Vec<u8> {
    let entries: BTreeMap<u32, f32> = (0..count)
        .map(|_| ((IDS * random.unit().powf(skew)) as u32, 0.05 + 2.0 * random.unit()))
        .collect();
    entries.iter().flat_map(|(id, w)| [id.to_le_bytes(), w.to_le_bytes()].concat()).collect()
}

fn sparse(criterion: &mut Criterion) {
    let params = SearchParams { k: 10, ..SearchParams::default() };
    let cancel = Cancel::never();
    for count in [60_000, 600_000] {
        let mut random = Random(42);
        let rows: Vec<Vec<u8>> = (0..count).map(|_| row(&mut random, 51, 4.0)).collect();
        let queries: Vec<Vec<u8>> = (0..100).map(|_| row(&mut random, 42, 4.0)).collect();
        let queries: Vec<_> =
            queries.iter().map(|q| Query::Sparse(SparseRow::parse(q).expect("a row"))).collect();
        let all = RowMask::all(count);
        let build = || SparseIndex::build(rows.iter().map(|row| SparseRow::trusted(row)));
        let sections = InMemory::new(build(), count);
        let bytes = sections.bytes();
        let postings: usize = rows.iter().map(|row| row.len() / 8).sum();
        let touched: usize = {
            let mut of_id = HashMap::<u32, usize>::new();
            let ids = rows.iter().flat_map(|row| SparseRow::trusted(row).iter());
            ids.for_each(|(id, _)| *of_id.entry(id).or_default() += 1);
            let asked = queries.iter().filter_map(|query| match query {
                Query::Sparse(row) => Some(row.iter()),
                Query::Dense(_) => None,
            });
            asked.flatten().filter_map(|(id, _)| of_id.get(&id)).sum::<usize>() / queries.len()
        };
        eprintln!(
            "{count} rows: {bytes} bytes, {:.2} a posting; {touched} postings a query",
            bytes as f64 / postings as f64
        );
        let offsets = OffsetBuffer::<i64>::from_lengths(rows.iter().map(Vec::len));
        let values = Buffer::from_vec(rows.concat());
        let column = || SparseScan::new(offsets.inner().clone(), values.clone());
        let index = SparseIndex::open(&sections, column()).expect("as built");
        let mut group = criterion.benchmark_group(format!("sparse {count}"));
        group.throughput(Throughput::Elements(touched as u64));
        let mut next = queries.iter().cycle();
        group.bench_function("index", |bencher| {
            bencher.iter(|| {
                let query = next.next().expect("a cycle");
                index.search(query, &params, &all, &cancel).expect("a search")
            });
        });
        if count == 60_000 {
            let scan = column();
            group.bench_function("scan", |bencher| {
                bencher
                    .iter(|| scan.search(&queries[0], &params, &all, &cancel).expect("a search"));
            });
            group.throughput(Throughput::Elements(postings as u64));
            group.bench_function("build", |bencher| bencher.iter(build));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = sparse
}
criterion_main!(benches);
