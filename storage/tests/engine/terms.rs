//! Sorted terms over scalars: built in the background, the same answers before and after, kept as
//! defined.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, LargeStringArray, RecordBatch};
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::filter::{Templates, compile};
use elanus_storage::schema::DataType;
use elanus_storage::{
    Collection, Engine, Grams, JsonCast, JsonPath, Keys, NewIndex, Options, PathStep, Scope,
    TermsDef,
};

use crate::common::*;

const ROWS: i64 = 6_000;

const FILTERS: [&str; 9] = [
    "value == 7",
    "value in [3, 4, 400]",
    "value != 7",
    "value > 95 and text like \"word 1%\"",
    "text == \"word 12\" or text == \"word 99\"",
    "text like \"%rd 4%\"",
    "doc[\"n\"] == 12",
    "not (doc[\"n\"] < 90)",
    "doc[\"s\"] like \"%7%\" and value < 50",
];

fn rows(keys: impl Iterator<Item = i64> + Clone) -> RecordBatch {
    let doc = |key: i64| format!(r#"{{"n":{},"s":"s{}"}}"#, key % 100, key % 1000);
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(keys.clone()))),
        ("value", Arc::new(Int64Array::from_iter_values(keys.clone().map(|key| key % 100)))),
        (
            "text",
            Arc::new(LargeStringArray::from_iter(
                keys.clone().map(|key| (key % 5 != 0).then(|| format!("word {}", key % 60))),
            )),
        ),
        ("doc", Arc::new(LargeBinaryArray::from_iter_values(keys.map(doc)))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn with_rows(dir: &Path) -> (Engine, Arc<Collection>) {
    filled(open(dir).await).await
}

async fn filled(engine: Engine) -> (Engine, Arc<Collection>) {
    let fields = vec![
        key("id", DataType::Int64),
        field("value", DataType::Int64),
        field("text", DataType::VarChar { max_length: 32 }),
        field("doc", DataType::Json),
    ];
    let info = engine.create_collection(DEFAULT_DB, new_collection("items", fields)).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    let partition = collection.info().partition("_default").unwrap().id;
    collection.insert(partition, rows(0..ROWS)).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    (engine, collection)
}

async fn open(dir: &Path) -> Engine {
    Engine::open(Options { index_rows: 500, ..options(dir) }).await.unwrap()
}

fn definitions() -> Vec<NewIndex> {
    let index = |name: &str, field: &str, terms| NewIndex {
        name: name.into(),
        field: field.into(),
        terms: Some(terms),
        ..NewIndex::default()
    };
    let path = |key: &str, cast| {
        Some(JsonPath { steps: vec![PathStep::Key(key.into())], cast, array: false })
    };
    let grams = Some(Grams { min: 2, max: 3 });
    vec![
        index("value", "value", TermsDef::default()),
        index("text", "text", TermsDef { path: None, grams }),
        index("n", "doc", TermsDef { path: path("n", JsonCast::Double), grams: None }),
        index("s", "doc", TermsDef { path: path("s", JsonCast::VarChar), grams: None }),
    ]
}

async fn define(engine: &Engine) {
    for index in definitions() {
        engine.create_index(DEFAULT_DB, "items", index).await.unwrap();
    }
}

async fn built(collection: &Collection, files: usize, dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let info = collection.info();
        let pending: usize =
            info.indexes.iter().map(|index| collection.index_progress(index).pending).sum();
        let found = index_files(dir).len();
        if (pending, found) == (0, files) {
            return;
        }
        assert!(Instant::now() < deadline, "{pending} rows wait, {found} files");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn index_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let is_index = |path: &std::path::PathBuf| path.extension().is_some_and(|ext| ext == "idx");
    files(dir).into_iter().filter(is_index).collect()
}

/// The keys that each filter finds.
fn answers(collection: &Collection) -> Vec<Vec<i64>> {
    let view = collection.view();
    let answer = |text: &&str| {
        let filter = compile(text, view.schema(), &Templates::default()).unwrap();
        let scope = Scope { filter: Some(&filter), ..Scope::default() };
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        keys_of(&view.take(&view.rows_by_key(&selection, 0, None).unwrap(), &["id"]).unwrap())
    };
    FILTERS.iter().map(answer).collect()
}

fn keys_of(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_finds_the_same_rows_with_and_without_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_rows(dir.path()).await;
    let plain = answers(&collection);
    assert_eq!(plain[0].len(), 60);
    define(&engine).await;
    let info = collection.info();
    assert!(info.indexes.iter().all(|index| collection.index_progress(index).rows == 6_000));
    built(&collection, 4, dir.path()).await;
    assert_eq!(answers(&collection), plain);

    // Rows that died are not found, nor are those lost that are growing.
    let partition = info.partition("_default").unwrap().id;
    collection.delete(None, Keys::Int(vec![7, 12])).await.unwrap();
    collection.insert(partition, rows(ROWS..ROWS + 100)).await.unwrap();
    let changed = answers(&collection);
    assert_eq!(changed[0].len(), 60);
    assert!(!changed[0].contains(&7) && changed[0].contains(&6_007));

    // Another node finds the files, and drops what no definition asks for.
    engine.shutdown().await;
    let engine = open(dir.path()).await;
    let collection = engine.collection(info.id).unwrap();
    assert_eq!(answers(&collection), changed);
    for name in ["value", "n"] {
        engine.drop_index(DEFAULT_DB, "items", name).await.unwrap();
    }
    built(&collection, 2, dir.path()).await;
    assert_eq!(answers(&collection), changed);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_built_anew_while_filters_look_at_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_rows(dir.path()).await;
    define(&engine).await;
    built(&collection, 4, dir.path()).await;
    let (id, plain) = (collection.id(), answers(&collection));
    drop(collection);
    engine.shutdown().await;
    let before = index_files(dir.path());
    for path in &before {
        let mut bytes = fs_err::read(path).unwrap();
        bytes[70] ^= 1;
        fs_err::write(path, bytes).unwrap();
    }
    let engine = open(dir.path()).await;
    let collection = engine.collection(id).unwrap();
    assert_eq!(answers(&collection), plain);
    let deadline = Instant::now() + Duration::from_secs(30);
    while index_files(dir.path()).iter().any(|path| before.contains(path)) {
        assert!(Instant::now() < deadline, "{:?}", index_files(dir.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    built(&collection, 4, dir.path()).await;
    assert_eq!(answers(&collection), plain);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_memory_does_not_suffice_for_is_given_up_until_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    // A quarter of it is less than what as many terms as rows take.
    let few = Options { index_rows: 500, memory_limit_bytes: 2_000_000, ..options(dir.path()) };
    let (engine, collection) = filled(Engine::open(few).await.unwrap()).await;
    let id = collection.id();
    let index = |name: &str| NewIndex {
        name: name.into(),
        field: name.into(),
        terms: Some(TermsDef::default()),
        ..NewIndex::default()
    };
    let keys = engine.create_index(DEFAULT_DB, "items", index("id")).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let failure = loop {
        if let Some(why) = collection.index_progress(&keys).failure {
            break why;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(
        failure.contains("may take 500000") && failure.contains("look at the rows"),
        "{failure}"
    );

    // Others are built, and it is told all the while.
    let value = engine.create_index(DEFAULT_DB, "items", index("value")).await.unwrap();
    while collection.index_progress(&value).pending > 0 {
        assert!(Instant::now() < deadline);
        assert_eq!(collection.index_progress(&keys).failure.as_ref(), Some(&failure));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(collection.index_progress(&keys).pending, 6_000);
    assert_eq!(index_files(dir.path()).len(), 1);
    let found = answers(&collection);
    assert_eq!(found[0].len(), 60);
    drop(collection);
    engine.shutdown().await;

    let engine = open(dir.path()).await;
    let collection = engine.collection(id).unwrap();
    built(&collection, 2, dir.path()).await;
    assert_eq!(collection.index_progress(&keys).failure, None);
    assert_eq!(answers(&collection), found);
    engine.shutdown().await;
}
