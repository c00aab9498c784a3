//! Data directories that were written once and are opened for ever: `tests/formats/v1` holds one
//! with a file of every kind in format 1, and so will a directory beside it for every format to
//! come. None is ever written anew; a node that cannot open one of them cannot be released.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_select::concat::concat_batches;
use elanus_index::{Bounds, Cancel, Metric, Query, SearchParams, SparseRow};

use crate::catalog::DEFAULT_DB;
use crate::schema::{DataType, Value};
use crate::segment::testing::{every_type, field, rows};
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

fn find(engine: &Engine, name: &str) -> std::sync::Arc<Collection> {
    engine.collection(engine.catalog().resolve(DEFAULT_DB, name).unwrap().id).unwrap()
}

/// What is in a directory of format 1. It is kept for whoever needs another one in a later format.
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
    wait_for_indexes(&collection).await;
    let added =
        crate::schema::Field { default: Some(Value::Int(70)), ..field("added", DataType::Int64) };
    let change = CollectionChange::AddField(Box::new(added));
    engine.alter_collection(DEFAULT_DB, "every", change).await.unwrap();
    // What stays in the log: one record of each kind.
    collection.insert(partition("other"), rows(&schema, 2, LATE)).await.unwrap();
    collection.delete(None, Keys::Int(vec![5])).await.unwrap();
    let replaced = vec![(partition("_default"), rows(&schema, 1, REPLACED + 1000))];
    collection.replace(Keys::Int(vec![REPLACED]), replaced).await.unwrap();
    engine.shutdown().await;
}

async fn wait_for_indexes(collection: &Collection) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let segments = collection.stats().segments;
        let mut names: Vec<String> = segments.into_iter().flat_map(|s| s.indexed).collect();
        names.sort();
        if names == ["f11", "f16"] {
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
    let dir = tempfile::tempdir().unwrap();
    copy(&fixtures().join("v1"), dir.path());
    let report = {
        let dir = dir.path().to_owned();
        tokio::task::spawn_blocking(move || offline::verify(&dir, true)).await.unwrap().unwrap()
    };
    assert_eq!(report.findings, []);

    let engine = Engine::open(options(dir.path())).await.unwrap();
    assert_eq!(engine.health().damaged, []);
    let collection = find(&engine, "alias");
    assert_eq!(collection.info().name, "every");
    assert_eq!(collection.info().property("note"), Some("of format 1"));
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
    wait_for_indexes(&collection).await;
    let near = keys_of(&collection, "f11", Metric::L2, Query::Dense(&vector));
    assert_eq!(near.first(), Some(&10), "the graph finds {near:?}");

    let partition = collection.info().partition("other").unwrap().id;
    let more = rows(&every_type(), 3, 200);
    collection.insert(partition, more).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(options(dir.path())).await.unwrap();
    assert_eq!(everything(&find(&engine, "every")).num_rows(), expected.num_rows() + 3);
    engine.shutdown().await;
}

/// Every kind of file says its format where it stands in version 1, and a newer one is refused by
/// name, whatever else the file holds.
#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let mut refused = BTreeMap::new();
    let original = fixtures().join("v1");
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
            "arrow" => {
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
                let text = String::from_utf8(bytes).unwrap().replacen(":1,", ":9,", 1);
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
    assert_eq!(kinds, ["arrow", "del", "idx", "json", "log"]);
}

/// `ELANUS_FIXTURE=DIR cargo test --release --workspace --lib -- --ignored a_fixture_is_written`
#[tokio::test]
#[ignore = "fixtures are written once, when a format is new"]
async fn a_fixture_is_written() {
    let dir = std::env::var("ELANUS_FIXTURE").expect("ELANUS_FIXTURE names a new directory");
    write(Path::new(&dir)).await;
}
