//! Graphs over sealed segments: built in the background, exact until then, kept as defined.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{Bounds, Cancel, Metric, Query, SearchParams};
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::filter::{Templates, compile};
use elanus_storage::schema::{DataType, Field};
use elanus_storage::{AnnQuery, Collection, Engine, GraphDef, Keys, NewIndex, Options, Scope};

use crate::common::*;

const DIM: usize = 16;
const ROWS: i64 = 3_000;

fn graph_options(dir: &Path) -> Options {
    Options { index_rows: 500, ..options(dir) }
}

/// The vector of a key: one of 30 centres, and some noise.
fn vector(key: i64) -> [f32; DIM] {
    let mut centre = Random::new(key as u64 % 30);
    let mut noise = Random::new(1_000 + key as u64);
    let float = |random: &mut Random| random.below(2_000) as f32 / 1_000.0 - 1.0;
    std::array::from_fn(|_| float(&mut centre) + 0.4 * float(&mut noise))
}

fn vectors(keys: impl Iterator<Item = i64> + Clone) -> RecordBatch {
    let numbers: Vec<f32> = keys.clone().flat_map(vector).collect();
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let list =
        FixedSizeListArray::new(item, DIM as i32, Arc::new(Float32Array::from(numbers)), None);
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from_iter_values(keys.clone()))),
        ("value", Arc::new(Int64Array::from_iter_values(keys.map(|key| key % 100)))),
        ("v", Arc::new(list)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn with_vectors(dir: &Path) -> (Engine, Arc<Collection>) {
    let engine = Engine::open(graph_options(dir)).await.unwrap();
    let dense = Field { nullable: false, ..field("v", DataType::FloatVector { dim: DIM as u32 }) };
    let fields = vec![key("id", DataType::Int64), field("value", DataType::Int64), dense];
    let info = engine.create_collection(DEFAULT_DB, new_collection("items", fields)).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

/// The same with [`ROWS`] sealed rows and their graph.
async fn with_graph(dir: &Path) -> (Engine, Arc<Collection>) {
    let (engine, collection) = with_vectors(dir).await;
    engine.create_index(DEFAULT_DB, "items", definition(8)).await.unwrap();
    insert(&collection, 0..ROWS).await;
    engine.flush(collection.id()).await.unwrap();
    built(&collection).await;
    (engine, collection)
}

fn definition(m: usize) -> NewIndex {
    NewIndex {
        field: "v".into(),
        params: vec![("M".into(), m.to_string())],
        graph: Some(GraphDef { metric: Metric::L2, m, ef_construction: 60 }),
        ..NewIndex::default()
    }
}

fn index_files(dir: &Path) -> Vec<String> {
    let name = |path: std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    files(dir).into_iter().map(name).filter(|name| name.ends_with(".idx")).collect()
}

/// Waits until no row lacks its index.
async fn built(collection: &Collection) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let info = collection.info();
        let progress = info.indexes.iter().map(|index| collection.index_progress(index));
        let progress: Vec<_> = progress.collect();
        if progress.iter().all(|progress| progress.pending == 0) {
            return;
        }
        assert!(Instant::now() < deadline, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the data directory has so many index files.
async fn index_files_are(dir: &Path, expected: usize) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = index_files(dir);
        if found.len() == expected {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Ask<'a> {
    k: usize,
    filter: Option<&'a str>,
    bounds: Bounds,
    exact: bool,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { k: 10, filter: None, bounds: Bounds::default(), exact: false }
    }
}

/// Keys found for the vector of a key, best first.
fn search(collection: &Collection, of: i64, ask: &Ask<'_>) -> Vec<i64> {
    let view = collection.view();
    let filter =
        ask.filter.map(|text| compile(text, view.schema(), &Templates::default()).unwrap());
    let scope = Scope { filter: filter.as_ref(), ..Scope::default() };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let query: Vec<u8> = vector(of).iter().flat_map(|x| x.to_le_bytes()).collect();
    let ann = AnnQuery {
        field: "v",
        metric: Metric::L2,
        queries: &[Query::Dense(&query)],
        params: SearchParams { k: ask.k, bounds: ask.bounds, ..SearchParams::default() },
        exact: ask.exact,
    };
    let found = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
    found.iter().map(|found| key_of(&view.take(&[found.addr], &["id"]).unwrap())).collect()
}

fn key_of(batch: &RecordBatch) -> i64 {
    use arrow_array::cast::AsArray;
    batch.column(0).as_primitive::<arrow_array::types::Int64Type>().value(0)
}

/// Share of the exact answers that the graph finds.
fn recall(collection: &Collection, filter: Option<&str>) -> f64 {
    let (mut found, mut wanted) = (0, 0);
    for of in (0..ROWS).step_by(97) {
        let exact = search(collection, of, &Ask { filter, exact: true, ..Ask::default() });
        let walked = search(collection, of, &Ask { filter, ..Ask::default() });
        assert_eq!(walked.len(), exact.len(), "as many rows as there are");
        found += exact.iter().filter(|key| walked.contains(key)).count();
        wanted += exact.len();
    }
    found as f64 / wanted as f64
}

async fn insert(collection: &Collection, keys: std::ops::Range<i64>) {
    let p = partition(collection, "_default");
    collection.insert(p, vectors(keys)).await.unwrap();
}

#[tokio::test]
async fn a_sealed_segment_gets_a_graph_that_finds_what_a_scan_finds() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_vectors(dir.path()).await;
    engine.create_index(DEFAULT_DB, "items", definition(8)).await.unwrap();
    insert(&collection, 0..ROWS).await;
    let index = collection.info().indexes[0].clone();
    assert_eq!(collection.index_progress(&index).pending, 0, "recent rows lack nothing");
    engine.flush(collection.id()).await.unwrap();
    built(&collection).await;
    assert_eq!(index_files(dir.path()).len(), 1);
    assert_eq!(collection.stats().segments[0].indexed, ["v"]);
    assert!(recall(&collection, None) > 0.97);
    assert!(recall(&collection, Some("value < 30")) > 0.97);
    assert!(recall(&collection, Some("value == 3")) > 0.97);

    // Deleted rows are not found, rows that replace others are.
    collection.delete(None, Keys::Int(vec![5])).await.unwrap();
    insert(&collection, 6..7).await;
    assert_eq!(search(&collection, 6, &Ask::default())[0], 6);
    assert!(!search(&collection, 5, &Ask::default()).contains(&5));

    // A range, and a page behind a bound, are complete.
    let bounds = Bounds { above: Some(-4.0), at_most: None };
    let all = Ask { k: ROWS as usize, ..Ask::default() };
    let range = search(&collection, 7, &Ask { bounds, ..all });
    let exact = search(&collection, 7, &Ask { bounds, exact: true, k: 3_000, ..Ask::default() });
    assert!(range.len() > 20);
    assert_eq!(range, exact);
    assert_eq!(search(&collection, 7, &Ask { k: 3_000, ..Ask::default() }).len(), 2_999);

    // A restart opens the same file, which is now to stay mapped.
    eventually(|| engine.memory().indexes > 0).await;
    let mapped = vec![("mmap.enabled".into(), "true".into())];
    engine.alter_index(DEFAULT_DB, "items", &index.name, mapped, Vec::new()).await.unwrap();
    engine.shutdown().await;
    drop((engine, collection));
    let before = index_files(dir.path());
    let engine = Engine::open(graph_options(dir.path())).await.unwrap();
    let collection = find(&engine, "items");
    assert!(recall(&collection, None) > 0.97);
    assert_eq!(engine.memory().indexes, 0);
    assert_eq!(index_files(dir.path()), before);
}

#[tokio::test]
async fn the_memory_of_a_graph_comes_back_with_its_collection_and_is_not_taken_where_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_graph(dir.path()).await;
    eventually(|| engine.memory().indexes > 0).await;
    engine.shutdown().await;
    drop((engine, collection));

    // Models have it all.
    let engine = Engine::open(graph_options(dir.path())).await.unwrap();
    let collection = find(&engine, "items");
    engine.set_other_memory(engine.memory().limit / 3);
    assert!(recall(&collection, None) > 0.97);
    engine.shutdown().await;
    assert_eq!(engine.memory().indexes, 0);
    drop((engine, collection));

    let engine = Engine::open(graph_options(dir.path())).await.unwrap();
    let collection = find(&engine, "items");
    assert!(recall(&collection, None) > 0.97);
    eventually(|| engine.memory().indexes > 0).await;
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    drop(collection);
    eventually(|| engine.memory().indexes == 0).await;
}

#[tokio::test]
async fn a_graph_is_built_for_segments_that_were_there_before_and_again_when_defined_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_vectors(dir.path()).await;
    insert(&collection, 0..ROWS).await;
    engine.flush(collection.id()).await.unwrap();
    // Too small to be worth a graph.
    insert(&collection, ROWS..ROWS + 400).await;
    engine.flush(collection.id()).await.unwrap();
    assert_eq!(index_files(dir.path()), Vec::<String>::new());

    engine.create_index(DEFAULT_DB, "items", definition(4)).await.unwrap();
    built(&collection).await;
    let first = index_files_are(dir.path(), 1).await;
    engine.drop_index(DEFAULT_DB, "items", "v").await.unwrap();
    index_files_are(dir.path(), 0).await;
    assert!(recall(&collection, None) == 1.0, "without a graph, all rows are looked at");

    engine.create_index(DEFAULT_DB, "items", definition(8)).await.unwrap();
    engine.drop_index(DEFAULT_DB, "items", "v").await.unwrap();
    engine.create_index(DEFAULT_DB, "items", definition(10)).await.unwrap();
    built(&collection).await;
    let again = index_files_are(dir.path(), 1).await;
    assert_ne!(first, again);
    assert!(recall(&collection, None) > 0.97);

    engine.drop_index(DEFAULT_DB, "items", "v").await.unwrap();
    let info = collection.info();
    let exact = NewIndex { field: "v".into(), ..NewIndex::default() };
    let exact = engine.create_index(DEFAULT_DB, "items", exact).await.unwrap();
    index_files_are(dir.path(), 0).await;
    assert_eq!(collection.index_progress(&exact).pending, 0, "FLAT is never behind");
    assert_eq!(info.indexes.len(), 0);
}

#[tokio::test]
async fn a_damaged_or_missing_graph_is_built_anew_and_no_search_notices() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_graph(dir.path()).await;
    engine.shutdown().await;
    drop((engine, collection));
    for cut in [true, false] {
        let old = index_files(dir.path());
        let path = files(dir.path()).into_iter().find(|path| path.ends_with(&old[0])).unwrap();
        if cut {
            fs_err::remove_file(&path).unwrap();
        } else {
            let mut bytes = fs_err::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs_err::write(&path, bytes).unwrap();
        }
        let engine = Engine::open(graph_options(dir.path())).await.unwrap();
        let collection = find(&engine, "items");
        let ask = Ask { exact: true, ..Ask::default() };
        assert_eq!(search(&collection, 3, &Ask::default()), search(&collection, 3, &ask));
        built(&collection).await;
        assert!(recall(&collection, None) > 0.97);
        assert_ne!(index_files_are(dir.path(), 1).await, old);
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn merged_segments_get_one_graph_in_the_place_of_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_vectors(dir.path()).await;
    engine.create_index(DEFAULT_DB, "items", definition(8)).await.unwrap();
    for part in 0..3 {
        insert(&collection, part * 1_000..(part + 1) * 1_000).await;
        engine.flush(collection.id()).await.unwrap();
    }
    built(&collection).await;
    assert_eq!(index_files(dir.path()).len(), 3);
    collection.delete(None, Keys::Int((0..100).collect())).await.unwrap();
    let exact = |of| search(&collection, of, &Ask { exact: true, ..Ask::default() });
    let before: Vec<_> = (0..50).map(exact).collect();
    let compaction = crate::compact::compact(&engine, &collection).await;
    assert_eq!(compaction.merges.len(), 1);
    assert_eq!((0..50).map(exact).collect::<Vec<_>>(), before);
    built(&collection).await;
    index_files_are(dir.path(), 1).await;
    assert!(recall(&collection, None) > 0.97);
}

#[tokio::test]
async fn a_build_ends_with_its_collection_and_with_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_vectors(dir.path()).await;
    insert(&collection, 0..40_000).await;
    engine.flush(collection.id()).await.unwrap();
    let slow = GraphDef { metric: Metric::L2, m: 64, ef_construction: 2_000 };
    let index = NewIndex { graph: Some(slow), ..definition(64) };
    engine.create_index(DEFAULT_DB, "items", index).await.unwrap();
    let index = collection.info().indexes[0].clone();
    let pending = collection.index_progress(&index).pending;
    assert!(pending > 0 && pending <= 40_000, "{pending}");
    assert_eq!(search(&collection, 9, &Ask::default())[0], 9, "exact until it is built");
    let began = Instant::now();
    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(graph_options(dir.path())).await.unwrap();
    let collection = find(&engine, "items");
    assert!(collection.index_progress(&index).pending > 0);
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    drop(collection);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !files(&dir.path().join("data")).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", files(dir.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.shutdown().await;
    assert!(began.elapsed() < Duration::from_secs(20), "nobody waits for a build");
}
