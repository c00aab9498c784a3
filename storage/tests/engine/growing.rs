//! Rows that are not sealed: found exactly, in whatever pieces they came, before a restart and after.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow_buffer::{Buffer, NullBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{
    Bounds, Cancel, Elem, FlatIndex, Metric, Query, RowMask, SearchParams, VectorIndex, Vectors,
};
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::filter::{Templates, compile};
use elanus_storage::schema::{DataType, Field};
use elanus_storage::{AnnQuery, Collection, Engine, Keys, Scope};

use crate::common::*;

/// Wide enough for codes.
const DIM: usize = 96;
const ROWS: i64 = 6_000;

/// The vector of a key: one of 40 centres, and noise; whole numbers for some, so that scores tie.
fn vector(key: i64) -> [f32; DIM] {
    let mut centre = Random::new(key as u64 % 40);
    let mut noise = Random::new(1_000 + key as u64);
    let float = |random: &mut Random| random.below(2_000) as f32 / 1_000.0 - 1.0;
    match key % 5 {
        0 => std::array::from_fn(|_| float(&mut centre).round()),
        _ => std::array::from_fn(|_| float(&mut centre) + 0.4 * float(&mut noise)),
    }
}

fn has_vector(key: i64) -> bool {
    key % 17 != 0
}

fn batch(keys: std::ops::Range<i64>) -> RecordBatch {
    let numbers: Vec<f32> = keys.clone().flat_map(vector).collect();
    let nulls: NullBuffer = keys.clone().map(has_vector).collect::<Vec<_>>().into();
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let numbers = Arc::new(Float32Array::from(numbers));
    let list = FixedSizeListArray::new(item, DIM as i32, numbers, Some(nulls));
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from_iter_values(keys.clone()))),
        ("value", Arc::new(Int64Array::from_iter_values(keys.map(|key| key % 100)))),
        ("v", Arc::new(list)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn with_vectors(dir: &Path) -> (Engine, Arc<Collection>) {
    let engine = open(dir).await;
    let dense = field("v", DataType::FloatVector { dim: DIM as u32 });
    let fields: Vec<Field> =
        vec![key("id", DataType::Int64), field("value", DataType::Int64), dense];
    let info = engine.create_collection(DEFAULT_DB, new_collection("items", fields)).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

/// A look at the vectors of all keys, by key.
fn truth(metric: Metric) -> FlatIndex {
    let bytes: Vec<u8> = (0..ROWS).flat_map(vector).flat_map(f32::to_le_bytes).collect();
    FlatIndex::new(Vectors::new(Buffer::from_vec(bytes), Elem::F32, DIM).unwrap(), metric)
}

/// What is found is what a look at the vectors of the live keys finds.
fn is_exact(collection: &Collection, is_live: impl Fn(i64) -> bool) {
    let view = collection.view();
    for (filter, passes) in [(None, 100), (Some("value < 50"), 50), (Some("value < 3"), 3)] {
        let predicate =
            filter.map(|text| compile(text, view.schema(), &Templates::default()).unwrap());
        let scope = Scope { filter: predicate.as_ref(), ..Scope::default() };
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        let allowed = RowMask::from_fn(ROWS as usize, |row| {
            let key = i64::from(row);
            is_live(key) && has_vector(key) && key % 100 < passes
        });
        for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
            let truth = truth(metric);
            for (of, k) in [(0, 1), (5, 10), (123, 10), (2_001, 100), (4_444, 1_000)] {
                let query: Vec<u8> = vector(of).iter().flat_map(|x| x.to_le_bytes()).collect();
                let params = SearchParams { k, ..SearchParams::default() };
                let search = |bounds| {
                    let params = SearchParams { bounds, ..params };
                    let queries = &[Query::Dense(&query)];
                    let ann = AnnQuery { field: "v", metric, queries, params, exact: false };
                    let found = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
                    let addrs: Vec<_> = found.iter().map(|found| found.addr).collect();
                    let ids = view.take(&addrs, &["id"]).unwrap();
                    let ids = ids.column(0).as_primitive::<Int64Type>().values().to_vec();
                    let expected = truth
                        .search(&queries[0], &params, &allowed, &Cancel::never())
                        .unwrap()
                        .into_iter()
                        .map(|hit| (i64::from(hit.row), hit.score));
                    let found: Vec<_> =
                        ids.into_iter().zip(found.iter().map(|f| f.score)).collect();
                    assert_eq!(
                        found,
                        expected.collect::<Vec<_>>(),
                        "{metric:?} {filter:?} {bounds:?}"
                    );
                    found
                };
                let open = search(Bounds::default());
                let Some((_, middle)) = open.get(open.len() / 2) else { continue };
                search(Bounds { above: Some(*middle), at_most: None });
                search(Bounds { above: None, at_most: Some(*middle) });
            }
        }
    }
}

#[tokio::test]
async fn growing_rows_are_found_exactly_before_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_vectors(dir.path()).await;
    let p = partition(&collection, "_default");
    let mut next = 0;
    let sizes = [1, 1, 1, 5, 70, 900, 2_000, 3, 64, 500];
    for size in sizes.into_iter().chain(std::iter::repeat(400)) {
        let end = (next + size).min(ROWS);
        collection.insert(p, batch(next..end)).await.unwrap();
        next = end;
        if next == ROWS {
            break;
        }
    }
    let taken = engine.memory().growing;
    let rows = ROWS as usize;
    // The vectors; half of that again for codes of a byte, in lines of 128; what else rows take.
    let least = rows * (DIM * 4 + 128);
    assert!((least..least + rows * 150).contains(&taken), "{taken}, {least} at least");
    is_exact(&collection, |_| true);
    collection.delete(None, Keys::Int((0..ROWS).step_by(10).collect())).await.unwrap();
    is_exact(&collection, |key| key % 10 != 0);
    engine.shutdown().await;
    drop((engine, collection));

    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert!(engine.memory().growing >= least, "still in the log, and in memory");
    is_exact(&collection, |key| key % 10 != 0);
    // Some sealed, some not.
    engine.flush(collection.id()).await.unwrap();
    collection.insert(partition(&collection, "_default"), batch(20..21)).await.unwrap();
    is_exact(&collection, |key| key % 10 != 0 || key == 20);
    engine.shutdown().await;
}
