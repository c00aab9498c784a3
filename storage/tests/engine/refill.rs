//! Columns that are made anew while rows come and go: nobody sees a mix of old and new.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{Cancel, Metric, Query, SearchParams};
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::offline::{Severity, repair, verify};
use elanus_storage::schema::{DataType, FunctionDef};
use elanus_storage::{
    AnnQuery, Collection, CollectionChange, Engine, Error, GraphDef, Keys, NewIndex, Options,
    ReadView, Scope,
};

use crate::common::*;

/// What a model makes of a key: models differ in the second number.
fn vector(key: i64, model: u32) -> [f32; 2] {
    [key as f32, model as f32]
}

fn vectors(keys: &[i64], model: u32) -> ArrayRef {
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let numbers: Vec<f32> = keys.iter().flat_map(|key| vector(*key, model)).collect();
    Arc::new(FixedSizeListArray::new(item, 2, Arc::new(Float32Array::from(numbers)), None))
}

fn function(model: u32) -> FunctionDef {
    FunctionDef {
        id: 0,
        name: "f".into(),
        description: String::new(),
        kind: 1,
        inputs: vec!["id".into()],
        outputs: vec!["v".into()],
        params: vec![("model".into(), model.to_string())],
    }
}

fn model_of(function: &FunctionDef) -> u32 {
    function.params[0].1.parse().unwrap()
}

fn small(dir: &Path) -> Options {
    Options { index_rows: 20, ..options(dir) }
}

async fn start(dir: &Path) -> Engine {
    Engine::open(small(dir)).await.unwrap()
}

/// A collection whose vectors model 1 makes.
async fn with_function(dir: &Path) -> (Engine, Arc<Collection>) {
    let engine = start(dir).await;
    let fields = vec![
        key("id", DataType::Int64),
        field("value", DataType::Int64),
        field("v", DataType::FloatVector { dim: 2 }),
    ];
    let mut new = new_collection("items", fields);
    new.schema.functions = vec![function(1)];
    let info = engine.create_collection(DEFAULT_DB, new).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

/// Rows as a server would make them by this schema: with what every function makes.
fn made(keys: &[i64], collection: &Collection) -> RecordBatch {
    let info = collection.info();
    let numbers = || Arc::new(Int64Array::from(keys.to_vec())) as ArrayRef;
    let written = info.schema.written();
    let mut columns = vec![("id".to_owned(), numbers()), ("value".to_owned(), numbers())];
    for function in &written.functions {
        let output = written.field(&function.outputs[0]).unwrap();
        columns.push((output.column().to_owned(), vectors(keys, model_of(function))));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn insert(collection: &Collection, keys: &[i64]) {
    let partition = partition(collection, "_default");
    collection.insert(partition, made(keys, collection)).await.unwrap();
}

async fn alter(engine: &Engine, now: u32, pending: Option<u32>) {
    let id = engine.catalog().collections(DEFAULT_DB).find(|info| info.name == "items").unwrap().id;
    let change = CollectionChange::Functions {
        of: engine.collection(id).unwrap().info().schema.version,
        now: vec![function(now)],
        pending: pending.map(function).into_iter().collect(),
    };
    engine.alter_collection(DEFAULT_DB, "items", change).await.unwrap();
}

/// Makes values for the next rows that lack them; false if there are none.
async fn fill_some(engine: &Engine, collection: &Collection, most: usize) -> bool {
    let Some(rows) = engine.next_unfilled(collection.id(), most).await.unwrap() else {
        return false;
    };
    let schema = Arc::clone(&collection.info().schema);
    let model = model_of(&schema.pending[0].function);
    let keys = rows.inputs.column(0).as_primitive::<arrow_array::types::Int64Type>().values();
    let values = vectors(keys, model);
    engine.fill(rows, vec![values]).await.unwrap();
    true
}

/// The keys and second numbers of all vectors, found by searching: nearest to the origin first.
fn found(view: &ReadView) -> Vec<(i64, u32)> {
    let selection = view.select(&Scope::default(), &Cancel::never()).unwrap();
    let query: Vec<u8> = [0.0_f32, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let ann = AnnQuery {
        field: "v",
        metric: Metric::L2,
        queries: &[Query::Dense(&query)],
        params: SearchParams { k: 1_000, ..SearchParams::default() },
        exact: false,
    };
    let hits = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
    let addrs: Vec<_> = hits.iter().map(|hit| hit.addr).collect();
    let batch = view.take(&addrs, &["id", "v"]).unwrap();
    let ids = batch.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec();
    let lists = batch.column_by_name("v").unwrap().as_fixed_size_list();
    let numbers = lists.values().as_primitive::<arrow_array::types::Float32Type>();
    let mut rows: Vec<(i64, u32)> = Vec::new();
    for (row, (id, hit)) in ids.iter().zip(&hits).enumerate() {
        let (first, second) = (numbers.value(2 * row), numbers.value(2 * row + 1));
        assert_eq!(first, *id as f32, "the vector of the row");
        let distance = first * first + second * second;
        assert!((hit.score + distance).abs() <= distance * 1e-5, "{hit:?}: {first} {second}");
        rows.push((*id, second as u32));
    }
    rows.sort_unstable();
    rows
}

fn all(keys: impl IntoIterator<Item = i64>, model: u32) -> Vec<(i64, u32)> {
    keys.into_iter().map(|key| (key, model)).collect()
}

fn data_files(dir: &Path, ending: &str) -> usize {
    files(dir).iter().filter(|path| path.to_str().unwrap().ends_with(ending)).count()
}

async fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn all_rows_change_at_once_whatever_came_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    let graph = NewIndex {
        field: "v".into(),
        graph: Some(GraphDef { metric: Metric::L2, m: 8, ef_construction: 40 }),
        ..NewIndex::default()
    };
    engine.create_index(DEFAULT_DB, "items", graph).await.unwrap();
    insert(&collection, &(0..30).collect::<Vec<_>>()).await;
    engine.flush(collection.id()).await.unwrap();
    insert(&collection, &(25..40).collect::<Vec<_>>()).await;
    let before = collection.view();
    alter(&engine, 1, Some(2)).await;
    assert!(!engine.end_refill(collection.id()).await.unwrap(), "rows lack their vectors");
    insert(&collection, &[3, 40]).await;
    let delete = collection.delete(None, Keys::Int(vec![5, 26])).await.unwrap();
    assert_eq!(delete.rows, 2);
    let live = || (0..42).filter(|key| ![5, 26, 41].contains(key));

    // Seven rows at a time, with a restart after each of the first.
    let (mut engine, mut collection) = (engine, collection);
    for step in 0.. {
        let progress = collection.refill_progress().unwrap();
        assert_eq!(found(&collection.view()), all(live(), 1), "old vectors until the end");
        if step < 4 {
            engine.shutdown().await;
            let report = verify(dir.path(), true).unwrap();
            assert!(report.findings.is_empty(), "{:?}", report.findings);
            engine = start(dir.path()).await;
            collection = find(&engine, "items");
            assert_eq!(collection.refill_progress().unwrap().filled, progress.filled);
        }
        if !fill_some(&engine, &collection, 7).await {
            assert_eq!(progress.rows, progress.filled);
            break;
        }
        assert!(step < 20, "{progress:?}");
    }
    wait_for("graphs over the new vectors", || {
        collection.refill_progress().unwrap().unindexed == 0
    })
    .await;
    let during = collection.view();
    assert!(engine.end_refill(collection.id()).await.unwrap());
    let after = collection.view();
    assert_eq!(found(&after), all(live(), 2));
    assert_eq!(found(&during), all(live(), 1), "a view does not change");
    assert_eq!(found(&before), all(0..40, 1));
    assert_eq!(after.schema().field("v").unwrap().name, "v");
    assert_eq!(model_of(&collection.info().schema.functions[0]), 2);
    assert!(collection.info().schema.pending.is_empty() && collection.refill_progress().is_none());

    // Merged, the old vectors are gone from the disk, and the new ones lie among the other columns.
    drop((before, during, after));
    insert(&collection, &[41]).await;
    let compaction = engine.compact(collection.id()).unwrap();
    wait_for("a compaction", || engine.compaction(compaction).is_some_and(|c| c.done)).await;
    wait_for("only one file of rows", || data_files(dir.path(), ".arrow") == 1).await;
    wait_for("no column of its own", || data_files(dir.path(), ".column") == 0).await;
    let rows = files(dir.path()).into_iter().find(|f| f.extension().is_some_and(|e| e == "arrow"));
    let file = arrow_ipc::reader::FileReader::try_new(
        fs_err::File::open(rows.unwrap()).unwrap().into_file(),
        None,
    );
    let schema = file.unwrap().schema();
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    assert_eq!(names, ["id", "value", "v@103", "_ts"]);
    let live = || (0..42).filter(|key| ![5, 26].contains(key));
    assert_eq!(found(&collection.view()), all(live(), 2));
    engine.shutdown().await;
    let engine = start(dir.path()).await;
    assert_eq!(found(&find(&engine, "items").view()), all(live(), 2));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_slow_model_leaves_few_files() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    insert(&collection, &(0..100).collect::<Vec<_>>()).await;
    engine.flush(collection.id()).await.unwrap();
    alter(&engine, 1, Some(2)).await;
    // One row at a time: as many files as the number of rows made has ones in binary.
    for made in 1..100_usize {
        assert!(fill_some(&engine, &collection, 1).await);
        assert_eq!(collection.refill_progress().unwrap().filled, made);
        wait_for("files of their own for few runs", || {
            data_files(dir.path(), ".column") == made.count_ones() as usize
        })
        .await;
    }
    engine.shutdown().await;
    let report = verify(dir.path(), true).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let engine = start(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(collection.refill_progress().unwrap().filled, 99);
    while fill_some(&engine, &collection, 1).await {}
    assert!(engine.end_refill(collection.id()).await.unwrap());
    assert_eq!(found(&collection.view()), all(0..100, 2));
    wait_for("one file", || data_files(dir.path(), ".column") == 1).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn rows_made_before_a_change_are_refused_and_those_made_before_its_end_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    let partition = partition(&collection, "_default");
    let early = made(&[1], &collection);
    alter(&engine, 1, Some(2)).await;
    let refused = collection.insert(partition, early).await.unwrap_err();
    assert!(matches!(refused, Error::SchemaChanged), "{refused}");
    let both = made(&[1], &collection);
    assert!(engine.end_refill(collection.id()).await.unwrap(), "there is nothing to do");
    collection.insert(partition, both).await.unwrap();
    assert_eq!(found(&collection.view()), [(1, 2)]);
    engine.shutdown().await;
}

#[tokio::test]
async fn functions_are_only_replaced_by_who_knows_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    insert(&collection, &[1]).await;
    alter(&engine, 1, Some(2)).await;
    let of = collection.info().schema.version;
    while fill_some(&engine, &collection, 1).await {}
    assert!(engine.end_refill(collection.id()).await.unwrap());
    // Who would give the change up comes too late: its function would be asked for the vectors of
    // the new one.
    let back = CollectionChange::Functions { of, now: vec![function(1)], pending: vec![] };
    let late = engine.alter_collection(DEFAULT_DB, "items", back).await.unwrap_err();
    assert!(matches!(late, Error::SchemaChanged), "{late}");
    assert_eq!(model_of(&collection.info().schema.functions[0]), 2);
    assert!(!engine.end_refill(collection.id()).await.unwrap(), "nothing is pending");
    assert_eq!(collection.info().schema.version, of + 1);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_view_reads_its_columns_after_they_were_replaced_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    insert(&collection, &(0..10).collect::<Vec<_>>()).await;
    engine.flush(collection.id()).await.unwrap();
    let mut views = vec![collection.view()];
    for model in 2..5 {
        alter(&engine, model - 1, Some(model)).await;
        while fill_some(&engine, &collection, 100).await {}
        assert!(engine.end_refill(collection.id()).await.unwrap());
        views.push(collection.view());
    }
    // Upkeep looks for columns that nobody has.
    insert(&collection, &[10]).await;
    engine.flush(collection.id()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (view, model) in views.iter().zip(1..) {
        assert_eq!(found(view), all(0..10, model));
    }
    assert_eq!(data_files(dir.path(), ".column"), 3);
    drop(views);
    insert(&collection, &[11]).await;
    engine.flush(collection.id()).await.unwrap();
    wait_for("columns that nobody reads are gone", || data_files(dir.path(), ".column") <= 1).await;
    assert_eq!(found(&collection.view()), all(0..12, 4));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_change_that_is_given_up_leaves_nothing_and_is_not_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    insert(&collection, &(0..10).collect::<Vec<_>>()).await;
    alter(&engine, 1, Some(2)).await;
    assert!(fill_some(&engine, &collection, 100).await);
    assert!(!fill_some(&engine, &collection, 100).await);
    assert_eq!(data_files(dir.path(), ".column"), 1);
    // Of rows that were taken before, nothing is stored.
    insert(&collection, &[10]).await;
    alter(&engine, 1, Some(3)).await;
    let late = engine.next_unfilled(collection.id(), 4).await.unwrap().unwrap();
    assert_eq!(late.fields[0].name, "v@104");
    alter(&engine, 1, None).await;
    engine.fill(late, vec![vectors(&[0, 1, 2, 3], 3)]).await.unwrap();
    wait_for("no columns are left", || data_files(dir.path(), ".column") == 0).await;
    assert!(engine.next_unfilled(collection.id(), 1).await.unwrap().is_none());
    assert_eq!(found(&collection.view()), all(0..11, 1));

    alter(&engine, 1, Some(4)).await;
    let fields: Vec<i64> = collection.info().schema.pending_fields().map(|f| f.id).collect();
    assert_eq!(fields, [105], "no id is used twice");
    while fill_some(&engine, &collection, 3).await {}
    assert!(engine.end_refill(collection.id()).await.unwrap());
    assert_eq!(found(&collection.view()), all(0..11, 4));

    // Gone under a change, and dropped.
    alter(&engine, 4, Some(5)).await;
    assert!(fill_some(&engine, &collection, 2).await);
    let late = engine.next_unfilled(collection.id(), 4).await.unwrap().unwrap();
    engine.truncate(collection.id()).await.unwrap();
    engine.fill(late, vec![vectors(&[2, 3, 4, 5], 5)]).await.unwrap();
    insert(&collection, &[1]).await;
    assert!(engine.end_refill(collection.id()).await.unwrap());
    assert_eq!(found(&collection.view()), [(1, 5)]);
    alter(&engine, 5, Some(6)).await;
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    let gone = engine.next_unfilled(collection.id(), 4).await.unwrap_err();
    assert!(matches!(gone, Error::CollectionNotFound { .. }), "{gone}");
    engine.shutdown().await;
}

#[tokio::test]
async fn nobody_sees_a_mix_while_rows_are_written_merged_and_searched() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_function(dir.path()).await;
    let writer = {
        let (engine, collection) = (engine.clone(), Arc::clone(&collection));
        tokio::spawn(async move {
            let target = partition(&collection, "_default");
            for round in 0..80_i64 {
                let keys: Vec<i64> = (0..4).map(|n| (round * 3 + n) % 50).collect();
                // As a server whose client writes again.
                while let Err(error) = collection.insert(target, made(&keys, &collection)).await {
                    assert!(matches!(error, Error::SchemaChanged), "{error}");
                }
                if round % 10 == 0 {
                    engine.flush(collection.id()).await.unwrap();
                }
                if round % 25 == 0 {
                    engine.compact(collection.id()).unwrap();
                }
            }
        })
    };
    for model in 2..6 {
        alter(&engine, model - 1, Some(model)).await;
        loop {
            while fill_some(&engine, &collection, 5).await {
                let seen = found(&collection.view());
                assert!(seen.iter().all(|row| row.1 == model - 1), "{model}: {seen:?}");
            }
            if engine.end_refill(collection.id()).await.unwrap() {
                break;
            }
        }
        let view = collection.view();
        let seen = found(&view);
        let selection = view.select(&Scope::default(), &Cancel::never()).unwrap();
        assert_eq!(seen.len(), view.count(&selection), "no row is without a vector");
        assert!(seen.iter().all(|row| row.1 == model), "{model}: {seen:?}");
    }
    writer.await.unwrap();
    assert_eq!(found(&collection.view()), all(0..50, 5));
    engine.shutdown().await;
}

/// The files of columns, oldest first.
fn column_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = files(dir);
    found.retain(|path| path.extension().is_some_and(|ending| ending == "column"));
    found.sort();
    found
}

const DAMAGES: [fn(&Path); 3] = [
    // In the values, which lie between header and footer.
    |path| {
        let mut bytes = fs_err::read(path).unwrap();
        let value = 9.0_f32.to_le_bytes();
        let at = bytes.windows(4).position(|found| found == value).unwrap();
        bytes[at + 1] ^= 1;
        fs_err::write(path, bytes).unwrap();
    },
    |path| {
        let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 9).unwrap();
    },
    |path| fs_err::remove_file(path).unwrap(),
];

#[tokio::test]
async fn a_damaged_column_that_nobody_sees_yet_is_named_and_made_again() {
    for (kind, damage) in DAMAGES.iter().enumerate() {
        // Complete, or the second of some runs.
        for most in [100, 6] {
            let dir = tempfile::tempdir().unwrap();
            let (engine, collection) = with_function(dir.path()).await;
            insert(&collection, &(0..30).collect::<Vec<_>>()).await;
            alter(&engine, 1, Some(2)).await;
            for _ in 0..2 {
                fill_some(&engine, &collection, most).await;
            }
            engine.shutdown().await;
            drop((engine, collection));
            let file = column_files(dir.path()).pop().unwrap();
            damage(&file);
            let report = verify(dir.path(), true).unwrap();
            let [finding] = &report.findings[..] else { panic!("{kind} {most}: {report:?}") };
            assert_eq!((finding.severity, &finding.path), (Severity::Index, &file), "{finding:?}");

            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let dropped = repair(copy.path(), true).unwrap().dropped;
            assert!(dropped[0].contains("is made again") && dropped.len() == 1, "{dropped:?}");
            assert_eq!(verify(copy.path(), true).unwrap().findings, []);
            assert_eq!(column_files(&copy.path().join("data")).len(), 0);
            for dir in [dir.path(), copy.path()] {
                let engine = start(dir).await;
                assert_eq!(engine.health().damaged, []);
                let collection = find(&engine, "items");
                assert_eq!(found(&collection.view()), all(0..30, 1));
                insert(&collection, &[30]).await;
                let mut rounds = 0;
                loop {
                    while fill_some(&engine, &collection, 7).await {}
                    rounds += 1;
                    if engine.end_refill(collection.id()).await.unwrap() {
                        break;
                    }
                    assert!(rounds < 4, "{kind} {most}: it does not end");
                }
                assert_eq!(found(&collection.view()), all(0..31, 2), "{kind} {most}");
                engine.shutdown().await;
                assert!(verify(dir, true).unwrap().is_sound());
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_column_that_is_seen_is_an_error() {
    for damage in DAMAGES {
        let dir = tempfile::tempdir().unwrap();
        let (engine, collection) = with_function(dir.path()).await;
        insert(&collection, &(0..10).collect::<Vec<_>>()).await;
        alter(&engine, 1, Some(2)).await;
        while fill_some(&engine, &collection, 100).await {}
        assert!(engine.end_refill(collection.id()).await.unwrap());
        engine.shutdown().await;
        drop((engine, collection));
        let file = column_files(dir.path()).pop().unwrap();
        damage(&file);
        let report = verify(dir.path(), true).unwrap();
        assert!(!report.is_sound() && report.findings[0].path == file, "{report:?}");
        let engine = start(dir.path()).await;
        let view = find(&engine, "items").view();
        let taken = view
            .select(&Scope::default(), &Cancel::never())
            .and_then(|selection| view.take(&view.rows_by_key(&selection, 0, None)?, &["v"]));
        let error = taken.unwrap_err().to_string();
        assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
        engine.shutdown().await;
    }
}
