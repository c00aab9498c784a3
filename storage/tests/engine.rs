//! The engine through its public face: writes, views, restarts, crashes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, RecordBatch};
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::schema::{DataType, Field, Schema};
use elanus_storage::Scope;
use elanus_storage::{
    Collection, Engine, Error, Keys, NewCollection, Options, ReadView, SegmentState, Ts,
};

fn field(name: &str, data_type: DataType) -> Field {
    Field {
        id: 0,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: true,
        default: None,
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        function_output: false,
        type_params: vec![],
    }
}

fn key(name: &str, data_type: DataType) -> Field {
    Field { primary_key: true, nullable: false, ..field(name, data_type) }
}

fn new_collection(name: &str, fields: Vec<Field>) -> NewCollection {
    NewCollection {
        name: name.into(),
        schema: Schema {
            description: String::new(),
            fields,
            enable_dynamic_field: false,
            functions: vec![],
            properties: vec![],
            version: 0,
        },
        shards: 1,
        consistency: 2,
        properties: vec![],
        partitions: vec!["other".into()],
        num_partitions: 0,
    }
}

fn items(name: &str) -> NewCollection {
    new_collection(
        name,
        vec![
            key("id", DataType::Int64),
            field("value", DataType::Int64),
            field("terms", DataType::SparseFloatVector),
        ],
    )
}

fn options(dir: &Path) -> Options {
    Options { dir: dir.to_owned(), search_threads: 1, build_threads: 1, ..Options::default() }
}

async fn open(dir: &Path) -> Engine {
    Engine::open(options(dir)).await.unwrap()
}

async fn with_items(dir: &Path) -> (Engine, Arc<Collection>) {
    let engine = open(dir).await;
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

fn find(engine: &Engine, name: &str) -> Arc<Collection> {
    let catalog = engine.catalog();
    engine.collection(catalog.resolve(DEFAULT_DB, name).unwrap().id).unwrap()
}

fn partition(collection: &Collection, name: &str) -> i64 {
    collection.info().partition(name).unwrap().id
}

fn rows(pairs: &[(i64, i64)]) -> RecordBatch {
    let terms = pairs.iter().map(|&(id, value)| {
        (value % 3 != 0).then(|| {
            let mut row = Vec::new();
            row.extend_from_slice(&((id % 100) as u32).to_le_bytes());
            row.extend_from_slice(&1.0_f32.to_le_bytes());
            row
        })
    });
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|pair| pair.0)))),
        ("value", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|pair| pair.1)))),
        ("terms", Arc::new(LargeBinaryArray::from_iter(terms))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn content_of(view: &ReadView, partitions: Option<&[i64]>) -> BTreeMap<i64, i64> {
    let scope = Scope { partitions, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let addresses = view.rows_by_key(&selection, 0, None).unwrap();
    assert_eq!(addresses.len(), view.count(&selection));
    let batch = view.take(&addresses, &["id", "value"]).unwrap();
    let numbers = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().to_vec();
    let (ids, values) = (numbers(0), numbers(1));
    assert!(ids.is_sorted_by(|a, b| a < b), "a key occurs twice: {ids:?}");
    ids.into_iter().zip(values).collect()
}

fn content(collection: &Collection) -> BTreeMap<i64, i64> {
    content_of(&collection.view(), None)
}

fn map(pairs: &[(i64, i64)]) -> BTreeMap<i64, i64> {
    pairs.iter().copied().collect()
}

#[tokio::test]
async fn writes_are_seen_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let first = collection.insert(p, rows(&[(3, 30), (1, 10), (2, 20)])).await.unwrap();
    assert_eq!(first.rows, 3);
    collection.insert(p, rows(&[(2, 21), (4, 40), (4, 41)])).await.unwrap();
    let gone = collection.delete(None, Keys::Int(vec![1, 77])).await.unwrap();
    assert_eq!(gone.rows, 1);
    let expected = map(&[(2, 21), (3, 30), (4, 41)]);
    assert_eq!(content(&collection), expected);
    assert_eq!(
        content_of(&collection.view_at(first.ts), None),
        map(&[(1, 10), (2, 20), (3, 30)])
    );
    assert_eq!(content_of(&collection.view_at(Ts(first.ts.0 - 1)), None), map(&[]));
    engine.shutdown().await;
    drop((engine, collection));

    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(content(&collection), expected);
    assert_eq!(
        content_of(&collection.view_at(first.ts), None),
        map(&[(1, 10), (2, 20), (3, 30)])
    );
    let sealed = engine.flush(collection.id()).await.unwrap();
    assert_eq!(sealed.len(), 1);
    assert_eq!(content(&collection), expected);
    assert_eq!(
        content_of(&collection.view_at(first.ts), None),
        map(&[(1, 10), (2, 20), (3, 30)])
    );
    collection.insert(p, rows(&[(3, 31)])).await.unwrap();
    collection.delete(None, Keys::Int(vec![2])).await.unwrap();
    assert_eq!(content(&collection), map(&[(3, 31), (4, 41)]));
    let stats = collection.stats();
    assert_eq!(stats.rows, 2);
    assert!(stats.segments.iter().any(|segment| segment.state == SegmentState::Sealed));
    engine.shutdown().await;
    drop((engine, collection));

    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), map(&[(3, 31), (4, 41)]));
    let error = Engine::open(options(dir.path())).await.unwrap_err();
    assert!(
        matches!(&error, Error::Locked { pid, .. } if *pid == std::process::id().to_string()),
        "{error}"
    );
}
