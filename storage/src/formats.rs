//! Data directories that were written once and are opened for ever: `tests/formats/v1` holds one
//! with a file of every kind in format 1, `v2` one with catalogs and manifests of format 2, which know
//! columns that were made later, pending functions and sorted terms; and so will a directory beside
//! them for every format to come. None is ever written anew; a node that cannot open one of them
//! cannot be released.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use arrow_select::concat::concat_batches;
use elanus_index::{Bounds, Cancel, Metric, Query, SearchParams, SparseRow};

use crate::catalog::{DEFAULT_DB, TermsDef};
use crate::filter::{Templates, compile};
use crate::schema::{DataType, Field, FunctionDef, Value};
use crate::segment::testing::{every_type, field, rows, schema};
use crate::{
    AnnQuery, Collection, CollectionChange, Engine, GraphDef, Keys, NewCollection, NewIndex,
    Options, Scope, offline,
};

/// Of the collection with a field of every type: sealed, deleted after that, and in the log.
const SEALED: i64 = 24;
const DELETED: [i64; 3] = [0, 7, 21];
const LATE: i64 = 40;
const REPLACED: i64 = 3;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        search_threads: 1,
        build_threads: 1,
        index_rows: 8,
        disk_reserve_bytes: 1,
        ..Options::default()
    }
}

fn find(engine: &Engine, name: &str) -> Arc<Collection> {
    engine.collection(engine.catalog().resolve(DEFAULT_DB, name).unwrap().id).unwrap()
}

/// What a model makes of some keys: models differ in the second number.
fn vectors(keys: &[i64], model: u32) -> ArrayRef {
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let numbers: Vec<f32> = keys.iter().flat_map(|key| [*key as f32, model as f32]).collect();
    let numbers = Arc::new(Float32Array::from(numbers));
    Arc::new(FixedSizeListArray::new(item, 2, numbers, None))
}

fn function(model: u32) -> FunctionDef {
    FunctionDef {
        id: 0,
        name: "f".into(),
        description: model.to_string(),
        kind: 1,
        inputs: vec!["id".into()],
        outputs: vec!["v".into()],
        params: vec![],
    }
}

fn model_of(function: &FunctionDef) -> u32 {
    function.description.parse().unwrap()
}

/// Rows whose values are twice their keys, with the vectors of the functions that are seen and pending.
async fn insert_made(collection: &Collection, keys: std::ops::Range<i64>) {
    let info = collection.info();
    let keys: Vec<i64> = keys.collect();
    let values: Vec<i64> = keys.iter().map(|key| key * 2).collect();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(keys.clone()))),
        ("value", Arc::new(Int64Array::from(values))),
    ];
    let seen = info.schema.field("v").unwrap();
    columns.push((seen.column(), vectors(&keys, model_of(&info.schema.functions[0]))));
    for refill in &info.schema.pending {
        columns.push((refill.fields[0].column(), vectors(&keys, model_of(&refill.function))));
    }
    let partition = info.partition("_default").unwrap().id;
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    collection.insert(partition, batch).await.unwrap();
}

async fn change_model(engine: &Engine, collection: &Collection, now: u32, pending: u32) {
    let of = collection.info().schema.version;
    let (now, pending) = (vec![function(now)], vec![function(pending)]);
    let change = CollectionChange::Functions { of, now, pending };
    engine.alter_collection(DEFAULT_DB, "anew", change).await.unwrap();
}

async fn fill(engine: &Engine, collection: &Collection, most: usize) -> bool {
    let Some(rows) = engine.next_unfilled(collection.id(), most).await.unwrap() else {
        return false;
    };
    let model = model_of(&collection.info().schema.pending[0].function);
    let keys = rows.inputs.column(0).as_primitive::<Int64Type>().values().to_vec();
    engine.fill(rows, vec![vectors(&keys, model)]).await.unwrap();
    true
}

/// A collection with sorted terms, a column that was made later and is seen, and another one that is
/// half done.
async fn write_anew(engine: &Engine) {
    let mut schema = schema(vec![
        Field { primary_key: true, nullable: false, ..field("id", DataType::Int64) },
        field("value", DataType::Int64),
        field("v", DataType::FloatVector { dim: 2 }),
    ]);
    schema.functions = vec![function(1)];
    let new = NewCollection {
        name: "anew".into(),
        schema,
        shards: 1,
        consistency: 2,
        properties: vec![],
        partitions: vec![],
        num_partitions: 0,
    };
    engine.create_collection(DEFAULT_DB, new).await.unwrap();
    let new =
        NewIndex { field: "value".into(), terms: Some(TermsDef::default()), ..NewIndex::default() };
    engine.create_index(DEFAULT_DB, "anew", new).await.unwrap();
    let collection = find(engine, "anew");
    insert_made(&collection, 0..12).await;
    engine.flush(collection.id()).await.unwrap();
    wait_for_indexes(&collection, &["value"]).await;
    change_model(engine, &collection, 1, 2).await;
    while fill(engine, &collection, 100).await {}
    assert!(engine.end_refill(collection.id()).await.unwrap());
    collection.delete(None, Keys::Int(vec![4])).await.unwrap();
    change_model(engine, &collection, 2, 3).await;
    assert!(fill(engine, &collection, 5).await);
    insert_made(&collection, 12..14).await;
}

/// Goes on with what [`write_anew`] left.
async fn check_anew(engine: &Engine) {
    let collection = find(engine, "anew");
    let check = |model: u32| {
        let found = everything(&collection);
        let keys: Vec<i64> = (0..14).filter(|key| *key != 4).collect();
        assert_eq!(found.column(0).as_primitive::<Int64Type>().values()[..], keys);
        let lists = found.column_by_name("v").unwrap().as_fixed_size_list();
        let numbers = lists.values().as_primitive::<Float32Type>();
        let expected = vectors(&keys, model);
        let expected = expected.as_fixed_size_list().values().as_primitive::<Float32Type>();
        assert_eq!(numbers.values()[..], expected.values()[..]);
    };
    check(2);
    let view = collection.view();
    let filter = compile("value in [4, 8, 26]", view.schema(), &Templates::new()).unwrap();
    let scope = Scope { partitions: None, filter: Some(&filter), ignore_growing: false };
    assert_eq!(view.count(&view.select(&scope, &Cancel::never()).unwrap()), 2);
    drop(view);
    wait_for_indexes(&collection, &["value"]).await;
    let progress = collection.refill_progress().unwrap();
    assert_eq!((progress.rows, progress.filled), (14, 7));
    while fill(engine, &collection, 100).await {}
    assert!(engine.end_refill(collection.id()).await.unwrap());
    check(3);
}

/// What is in a directory of the newest format. It is kept for whoever needs another one in a later format.
async fn write(dir: &Path) {
    let engine = Engine::open(options(dir)).await.unwrap();
    let new = NewCollection {
        name: "every".into(),
        schema: every_type(),
        shards: 1,
        consistency: 2,
        properties: vec![("note".into(), "of format 1".into())],
        partitions: vec!["other".into()],
        num_partitions: 0,
    };
    engine.create_collection(DEFAULT_DB, new).await.unwrap();
    engine.create_alias(DEFAULT_DB, "alias", "every").await.unwrap();
    let collection = find(&engine, "every");
    let partition = |name: &str| collection.info().partition(name).unwrap().id;
    let schema = every_type();
    let new = NewIndex {
        field: "f11".into(),
        graph: Some(GraphDef { metric: Metric::L2, m: 4, ef_construction: 16 }),
        ..NewIndex::default()
    };
    engine.create_index(DEFAULT_DB, "every", new).await.unwrap();
    collection.insert(partition("_default"), rows(&schema, 24, 0)).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.delete(None, Keys::Int(DELETED.into())).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    wait_for_indexes(&collection, &["f11", "f16"]).await;
    let added =
        crate::schema::Field { default: Some(Value::Int(70)), ..field("added", DataType::Int64) };
    let change = CollectionChange::AddField(Box::new(added));
    engine.alter_collection(DEFAULT_DB, "every", change).await.unwrap();
    // What stays in the log: one record of each kind.
    collection.insert(partition("other"), rows(&schema, 2, LATE)).await.unwrap();
    collection.delete(None, Keys::Int(vec![5])).await.unwrap();
    let replaced = vec![(partition("_default"), rows(&schema, 1, REPLACED + 1000))];
    collection.replace(Keys::Int(vec![REPLACED]), replaced).await.unwrap();
    write_anew(&engine).await;
    engine.shutdown().await;
}

async fn wait_for_indexes(collection: &Collection, expected: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let segments = collection.stats().segments;
        let mut names: Vec<String> = segments.into_iter().flat_map(|s| s.indexed).collect();
        names.sort();
        if names == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The rows by key, by the code that wrote them.
fn expected() -> RecordBatch {
    let schema = every_type();
    let sealed = rows(&schema, 24, 0);
    let gone = |key: &i64| DELETED.contains(key) || [5, REPLACED].contains(key);
    let mut parts: Vec<RecordBatch> = (0..SEALED)
        .filter(|key| !gone(key))
        .map(|key| sealed.slice(usize::try_from(key).unwrap(), 1))
        .collect();
    parts.push(rows(&schema, 2, LATE));
    parts.push(rows(&schema, 1, REPLACED + 1000));
    concat_batches(&sealed.schema(), &parts).unwrap()
}

fn everything(collection: &Collection) -> RecordBatch {
    let view = collection.view();
    let scope = Scope { partitions: None, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let found = view.rows_by_key(&selection, 0, None).unwrap();
    let names: Vec<String> = view.schema().fields.iter().map(|field| field.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    view.take(&found, &names).unwrap()
}

fn keys_of(collection: &Collection, field: &str, metric: Metric, query: Query<'_>) -> Vec<i64> {
    let view = collection.view();
    let scope = Scope { partitions: None, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let params = SearchParams { k: 5, ef: None, bounds: Bounds::default(), drop_ratio: 0.0 };
    let ann = AnnQuery { field, metric, queries: &[query], params, exact: false };
    let found = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
    let found: Vec<_> = found.iter().map(|found| found.addr).collect();
    view.take(&found, &["id"]).unwrap().column(0).as_primitive::<Int64Type>().values().to_vec()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/formats")
}

fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn a_directory_of_format_1_is_opened_and_goes_on() {
    opens_and_goes_on("v1").await;
}

#[tokio::test]
async fn a_directory_of_format_2_is_opened_and_goes_on() {
    opens_and_goes_on("v2").await;
}

async fn opens_and_goes_on(version: &str) {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixtures().join(version), dir.path());
    let report = {
        let dir = dir.path().to_owned();
        tokio::task::spawn_blocking(move || offline::verify(&dir, true)).await.unwrap().unwrap()
    };
    assert_eq!(report.findings, []);

    let engine = Engine::open(options(dir.path())).await.unwrap();
    assert_eq!(engine.health().damaged, []);
    let collection = find(&engine, "alias");
    assert_eq!(collection.info().name, "every");
    assert_eq!(collection.info().property("note"), Some("of format 1"), "as when it was new");
    let expected = expected();
    let found = everything(&collection);
    for (at, column) in expected.columns().iter().enumerate() {
        let name = expected.schema().field(at).name().clone();
        assert_eq!(found.column_by_name(&name).unwrap(), column, "{name}");
    }
    let added = found.column_by_name("added").unwrap().as_primitive::<Int64Type>();
    assert!(added.values().iter().all(|value| *value == 70));
    assert_eq!(collection.stats().partitions.iter().map(|(_, rows)| rows).sum::<usize>(), 22);

    // The vector of row `i` of a batch from `first` begins with `first + 4 i`.
    let vector: Vec<u8> = (0..4_u8).flat_map(|i| (f32::from(i) + 40.0).to_le_bytes()).collect();
    let near = keys_of(&collection, "f11", Metric::L2, Query::Dense(&vector));
    assert_eq!(near.first(), Some(&10), "the graph of format 1 finds {near:?}");
    let mut term = 10_u32.to_le_bytes().to_vec();
    term.extend_from_slice(&1.0_f32.to_le_bytes());
    let query = Query::Sparse(SparseRow::parse(&term).unwrap());
    assert_eq!(keys_of(&collection, "f16", Metric::Ip, query), [10]);
    // Read in place, or built anew where an index has another format by now.
    wait_for_indexes(&collection, &["f11", "f16"]).await;
    let near = keys_of(&collection, "f11", Metric::L2, Query::Dense(&vector));
    assert_eq!(near.first(), Some(&10), "the graph finds {near:?}");

    let partition = collection.info().partition("other").unwrap().id;
    let more = rows(&every_type(), 3, 200);
    collection.insert(partition, more).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    if version == "v2" {
        check_anew(&engine).await;
    }
    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(options(dir.path())).await.unwrap();
    assert_eq!(everything(&find(&engine, "every")).num_rows(), expected.num_rows() + 3);
    engine.shutdown().await;
}

/// Every kind of file says its format where it stands in version 2, and a newer one is refused by
/// name, whatever else the file holds.
#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let mut refused = BTreeMap::new();
    let original = fixtures().join("v2");
    for path in files(&original) {
        let ending = path.extension().map(|ending| ending.to_string_lossy().into_owned());
        let ending = ending.unwrap_or_default();
        let mut bytes = fs_err::read(&path).unwrap();
        match ending.as_str() {
            // Behind the magic.
            "idx" | "del" => bytes[8..12].copy_from_slice(&9_u32.to_le_bytes()),
            "log" => {
                bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
                let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..32]);
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            }
            "arrow" | "column" => {
                let text = b"elanus.format";
                let at = bytes.windows(text.len()).rposition(|found| found == text).unwrap();
                let one = bytes[..at].iter().rposition(|byte| *byte == b'1');
                let after = bytes[at..].iter().position(|byte| *byte == b'1').map(|i| at + i);
                // The value is the text `1`, with its length before it.
                let is_value = |i: &usize| bytes[i - 4..*i] == 1_u32.to_le_bytes();
                let value = one.into_iter().chain(after).find(is_value).unwrap();
                bytes[value] = b'9';
            }
            "json" => {
                let text =
                    String::from_utf8(bytes).unwrap().replacen("\"format\":2,", "\"format\":9,", 1);
                let body = text.len() - crate::document::STAMP;
                bytes = crate::document::stamp(text.as_bytes()[..body].to_vec());
            }
            _ => continue,
        }
        let dir = tempfile::tempdir().unwrap();
        copy(&original, dir.path());
        let target = dir.path().join(path.strip_prefix(&original).unwrap());
        fs_err::write(&target, &bytes).unwrap();
        let report = {
            let dir = dir.path().to_owned();
            tokio::task::spawn_blocking(move || offline::verify(&dir, true)).await.unwrap()
        };
        let text = format!("{report:?}");
        let name = target.file_name().unwrap().to_string_lossy().into_owned();
        let newest = if ending == "json" { crate::document::FORMAT } else { 1 };
        let refusal = format!("format 9 is newer than this node reads ({newest})");
        assert!(text.contains(&refusal), "{name}: {text}");
        assert!(text.contains(&name), "{name}: {text}");
        *refused.entry(ending).or_insert(0) += 1;
    }
    let kinds: Vec<&str> = refused.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["arrow", "column", "del", "idx", "json", "log"]);
}

/// `ELANUS_FIXTURE=DIR cargo test --release --workspace --lib -- --ignored a_fixture_is_written`
#[tokio::test]
#[ignore = "fixtures are written once, when a format is new"]
async fn a_fixture_is_written() {
    let dir = std::env::var("ELANUS_FIXTURE").expect("ELANUS_FIXTURE names a new directory");
    write(Path::new(&dir)).await;
}
