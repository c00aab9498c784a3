//! Writes, views, flushes and changes of the catalog, each through a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, LargeStringArray, RecordBatch};
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::schema::{DataType, Field, Value};
use elanus_storage::{
    Collection, CollectionChange, Engine, Error, Keys, NewIndex, Options, Scope, SegmentState, Ts,
    Wall,
};

use crate::common::*;

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
        content_of(&collection.view_at(first.ts).unwrap(), None),
        map(&[(1, 10), (2, 20), (3, 30)])
    );
    assert_eq!(content_of(&collection.view_at(Ts(first.ts.0 - 1)).unwrap(), None), map(&[]));
    engine.shutdown().await;
    drop((engine, collection));

    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(content(&collection), expected);
    assert_eq!(
        content_of(&collection.view_at(first.ts).unwrap(), None),
        map(&[(1, 10), (2, 20), (3, 30)])
    );
    let sealed = engine.flush(collection.id()).await.unwrap();
    assert_eq!(sealed.len(), 1);
    assert_eq!(content(&collection), expected);
    assert_eq!(
        content_of(&collection.view_at(first.ts).unwrap(), None),
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

#[tokio::test]
async fn partitions_are_searched_deleted_from_and_dropped_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let (a, b) = (partition(&collection, "_default"), partition(&collection, "other"));
    let parts = vec![(a, rows(&[(1, 1), (2, 2)])), (b, rows(&[(2, 3), (4, 4)]))];
    let written = collection.insert_all(parts).await.unwrap();
    assert_eq!(written.rows, 4);
    // The later of two equal keys wins, whatever the partition.
    assert_eq!(content_of(&collection.view(), Some(&[a])), map(&[(1, 1)]));
    assert_eq!(content_of(&collection.view(), Some(&[b])), map(&[(2, 3), (4, 4)]));
    let none = collection.delete(Some(vec![a]), Keys::Int(vec![2, 4])).await.unwrap();
    assert_eq!(none.rows, 0);
    engine.flush(collection.id()).await.unwrap();
    let one = collection.delete(Some(vec![b]), Keys::Int(vec![1, 4])).await.unwrap();
    assert_eq!(one.rows, 1);
    // A row moves between partitions when its key is written again.
    collection.insert(a, rows(&[(2, 5)])).await.unwrap();
    assert_eq!(content_of(&collection.view(), Some(&[a])), map(&[(1, 1), (2, 5)]));
    assert_eq!(content_of(&collection.view(), Some(&[b])), map(&[]));

    collection.insert(b, rows(&[(9, 9)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(b, rows(&[(8, 8)])).await.unwrap();
    engine.drop_partition(DEFAULT_DB, "items", "other").await.unwrap();
    assert!(matches!(
        collection.insert(b, rows(&[(7, 7)])).await,
        Err(Error::PartitionNotFound(_))
    ));
    let again = engine.create_partition(DEFAULT_DB, "items", "other").await.unwrap();
    assert_ne!(again.id, b);
    collection.insert(again.id, rows(&[(6, 6)])).await.unwrap();
    let expected = map(&[(1, 1), (2, 5), (6, 6)]);
    assert_eq!(content(&collection), expected);
    engine.shutdown().await;
    drop((engine, collection));

    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(content(&collection), expected);
    engine.flush(collection.id()).await.unwrap();
    assert_eq!(content(&collection), expected);
}

#[tokio::test]
async fn truncate_leaves_nothing_and_takes_new_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    collection.insert(p, rows(&[(1, 1), (2, 2)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(p, rows(&[(3, 3)])).await.unwrap();
    engine.truncate(collection.id()).await.unwrap();
    assert_eq!(content(&collection), map(&[]));
    assert_eq!(collection.stats().rows, 0);
    collection.insert(p, rows(&[(2, 9)])).await.unwrap();
    engine.shutdown().await;
    drop((engine, collection));
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), map(&[(2, 9)]));
    let names = files(dir.path());
    assert!(names.iter().all(|f| f.extension().is_none_or(|e| e != "arrow")), "{names:?}");
}

#[tokio::test]
async fn string_keys_work_like_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    let fields = vec![key("name", DataType::VarChar { max_length: 100 })];
    let info = engine.create_collection(DEFAULT_DB, new_collection("s", fields)).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    let p = partition(&collection, "_default");
    let names = |names: &[&str]| {
        let column: ArrayRef = Arc::new(LargeStringArray::from(names.to_vec()));
        RecordBatch::try_from_iter([("name", column)]).unwrap()
    };
    collection.insert(p, names(&["b", "a", "ä", "b"])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(p, names(&["a", ""])).await.unwrap();
    let gone = collection.delete(None, Keys::Str(vec!["b".into(), "x".into()])).await.unwrap();
    assert_eq!(gone.rows, 1);
    assert!(matches!(collection.delete(None, Keys::Int(vec![1])).await, Err(Error::Invalid(_))));
    let all = || {
        let view = collection.view();
        let scope = Scope { partitions: None, filter: None, ignore_growing: false };
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        let found = view.rows_by_key(&selection, 0, None).unwrap();
        let batch = view.take(&found, &["name"]).unwrap();
        let column = batch.column(0).as_string::<i64>().clone();
        column.iter().map(|name| name.unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(all(), vec!["", "a", "ä"]);
    engine.flush(collection.id()).await.unwrap();
    assert_eq!(all(), vec!["", "a", "ä"]);
}

#[tokio::test]
async fn rows_deleted_or_replaced_during_a_checkpoint_stay_so() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let mut expected = BTreeMap::new();
    for round in 0..6_i64 {
        let many: Vec<(i64, i64)> = (0..20_000).map(|id| (id, round)).collect();
        collection.insert(p, rows(&many)).await.unwrap();
        expected.extend(many);
        let flush = {
            let (engine, id) = (engine.clone(), collection.id());
            tokio::spawn(async move { engine.flush(id).await })
        };
        // These meet the checkpoint at every stage.
        for i in 0..40_i64 {
            let id = (i * 497 + round * 31) % 20_000;
            if i % 2 == 0 {
                collection.delete(None, Keys::Int(vec![id])).await.unwrap();
                expected.remove(&id);
            } else {
                collection.insert(p, rows(&[(id, -i)])).await.unwrap();
                expected.insert(id, -i);
            }
            assert_eq!(collection.stats().rows, expected.len());
        }
        flush.await.unwrap().unwrap();
        assert_eq!(content(&collection), expected);
    }
    engine.shutdown().await;
    drop((engine, collection));
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), expected);
}

#[tokio::test]
async fn a_dropped_collection_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    collection.insert(p, rows(&[(1, 1)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    let data = dir.path().join("data").join(collection.id().to_string());
    assert!(data.is_dir());
    let reader = collection.view();
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    assert!(engine.collection(collection.id()).is_none());
    assert!(engine.catalog().resolve(DEFAULT_DB, "items").is_none());
    assert!(matches!(
        collection.insert(p, rows(&[(2, 2)])).await,
        Err(Error::CollectionNotFound { .. })
    ));
    drop(collection);
    // Whoever still reads sees what was there.
    assert_eq!(content_of(&reader, None), map(&[(1, 1)]));
    assert!(data.is_dir());
    drop(reader);
    for _ in 0..100 {
        if !data.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!data.exists());

    // The name is free again, and nothing of the old rows comes back.
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    engine.shutdown().await;
    drop(engine);
    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(collection.id(), info.id);
    assert_eq!(content(&collection), map(&[]));
}

#[tokio::test]
async fn nothing_unreferenced_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    collection.insert(p, rows(&[(1, 1)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    engine.shutdown().await;
    let sound = files(dir.path());
    let data = dir.path().join("data").join(collection.id().to_string());
    drop((engine, collection));
    for name in ["99.arrow", "99.arrow.tmp", "99-101.idx", "1-7.del", "manifest/1.json#1"] {
        fs_err::write(data.join(name), "left behind").unwrap();
    }
    fs_err::create_dir_all(dir.path().join("data/4711/manifest")).unwrap();
    fs_err::write(dir.path().join("data/4711/1.arrow"), "left behind").unwrap();
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), map(&[(1, 1)]));
    assert_eq!(files(dir.path()), sound);
}

#[tokio::test]
async fn finished_log_files_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let idle = engine.create_collection(DEFAULT_DB, items("idle")).await.unwrap();
    let p = partition(&collection, "_default");
    let logs = || files(&dir.path().join("log")).len();
    let few_are_left = async || {
        let deadline = Instant::now() + Duration::from_secs(30);
        while logs() > 2 {
            assert!(Instant::now() < deadline, "{} log files", logs());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    for i in 0..5 {
        collection.insert(p, rows(&[(i, i)])).await.unwrap();
        engine.flush(collection.id()).await.unwrap();
    }
    few_are_left().await;

    // A collection with unsealed rows holds the log back, until it is sealed as well.
    let other = engine.collection(idle.id).unwrap();
    other.insert(partition(&other, "_default"), rows(&[(1, 1)])).await.unwrap();
    for i in 0..5 {
        collection.insert(p, rows(&[(i, i)])).await.unwrap();
        engine.flush(collection.id()).await.unwrap();
    }
    assert!(logs() >= 5, "{} log files", logs());
    engine.flush(idle.id).await.unwrap();
    few_are_left().await;
    engine.shutdown().await;
    drop((engine, collection, other));
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")).len(), 5);
    assert_eq!(content(&find(&engine, "idle")).len(), 1);
}

#[tokio::test]
async fn many_rows_are_sealed_in_the_background_and_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { seal_rows: 500, log_limit_bytes: 1 << 20, ..options(dir.path()) };
    let engine = Engine::open(small).await.unwrap();
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    let p = partition(&collection, "_default");
    for i in 0..60 {
        let batch: Vec<(i64, i64)> = (0..100).map(|j| (i * 100 + j, j)).collect();
        collection.insert(p, rows(&batch)).await.unwrap();
    }
    let sealed = || {
        let segments = collection.stats().segments;
        segments.iter().filter(|s| s.state == SegmentState::Sealed).map(|s| s.rows).sum::<usize>()
    };
    for _ in 0..200 {
        if sealed() >= 5_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sealed() >= 5_000, "{} rows are sealed", sealed());
    assert_eq!(collection.stats().rows, 6_000);
    assert_eq!(content(&collection).len(), 6_000);
    assert!(collection.stats().segments.iter().any(|s| s.indexed == vec!["terms".to_owned()]));
}

#[tokio::test]
async fn too_many_unsealed_bytes_refuse_writes_until_they_are_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let tight = Options { memory_limit_bytes: 100_000, ..options(dir.path()) };
    let engine = Engine::open(tight).await.unwrap();
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    let p = partition(&collection, "_default");
    let batch: Vec<(i64, i64)> = (0..300).map(|i| (i, i)).collect();
    collection.insert(p, rows(&batch)).await.unwrap();
    let growing = engine.memory().growing;
    assert!((10_000..40_000).contains(&growing), "{growing}");
    engine.set_other_memory(80_000);
    assert!(matches!(collection.insert(p, rows(&[(1, 1)])).await, Err(Error::MemoryLimit(_))));
    assert!(engine.health().refusing_rows.is_some());
    collection.delete(None, Keys::Int(vec![1])).await.unwrap();
    // The refusal has begun to seal.
    for _ in 0..500 {
        if engine.memory().growing == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.memory().growing, 0);
    engine.set_other_memory(0);
    collection.insert(p, rows(&[(1, 1)])).await.unwrap();
    assert_eq!(engine.health().refusing_rows, None);
    assert_eq!(content(&collection).len(), 300);
}

#[tokio::test]
async fn batches_that_do_not_fit_are_refused_with_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let one = |name: &str, column: ArrayRef| {
        let id: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        RecordBatch::try_from_iter([("id", id), (name, column)]).unwrap()
    };
    let refused = async |batch: RecordBatch| {
        let error = collection.insert(p, batch).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        error.to_string()
    };
    let text: ArrayRef = Arc::new(LargeStringArray::from(vec!["x"]));
    assert!(refused(one("value", Arc::clone(&text))).await.contains("`value` expects Int64"));
    assert!(refused(one("nope", Arc::clone(&text))).await.contains("`nope` does not exist"));
    let odd: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values([b"123"]));
    assert!(refused(one("terms", odd)).await.contains("field `terms`, row 0"));
    let keyless = RecordBatch::try_from_iter([("value", text)]).unwrap();
    assert!(!refused(keyless).await.is_empty());
    let empty = collection.insert(p, rows(&[])).await.unwrap();
    assert_eq!(empty.rows, 0);
    // A field that is left out reads as null.
    let id: ArrayRef = Arc::new(Int64Array::from(vec![5]));
    collection.insert(p, RecordBatch::try_from_iter([("id", id)]).unwrap()).await.unwrap();
    assert_eq!(collection.stats().rows, 1);
}

#[tokio::test]
async fn a_field_can_be_added_to_a_collection_with_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    collection.insert(p, rows(&[(1, 1)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    collection.insert(p, rows(&[(2, 2)])).await.unwrap();
    let before = collection.info().updated;
    let added = Field { default: Some(Value::Int(7)), ..field("extra", DataType::Int64) };
    let change = CollectionChange::AddField(Box::new(added));
    let info = engine.alter_collection(DEFAULT_DB, "items", change).await.unwrap();
    assert!(info.updated > before);
    let id: ArrayRef = Arc::new(Int64Array::from(vec![3]));
    let extra: ArrayRef = Arc::new(Int64Array::from(vec![30]));
    let batch = RecordBatch::try_from_iter([("id", id), ("extra", extra)]).unwrap();
    collection.insert(p, batch).await.unwrap();
    let extras = |collection: &Collection| {
        let view = collection.view();
        let scope = Scope { partitions: None, filter: None, ignore_growing: false };
        let selection = view.select(&scope, &Cancel::never()).unwrap();
        let found = view.rows_by_key(&selection, 0, None).unwrap();
        let batch = view.take(&found, &["extra"]).unwrap();
        batch.column(0).as_primitive::<Int64Type>().values().to_vec()
    };
    assert_eq!(extras(&collection), vec![7, 7, 30]);
    engine.shutdown().await;
    drop((engine, collection));
    let engine = open(dir.path()).await;
    let collection = find(&engine, "items");
    assert_eq!(extras(&collection), vec![7, 7, 30]);
    engine.flush(collection.id()).await.unwrap();
    assert_eq!(extras(&collection), vec![7, 7, 30]);
}

#[tokio::test]
async fn the_catalog_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    engine.create_database("db", vec![]).await.unwrap();
    engine.create_collection("db", items("items")).await.unwrap();
    engine.create_alias(DEFAULT_DB, "alias", "items").await.unwrap();
    engine.rename_collection(DEFAULT_DB, "items", DEFAULT_DB, "renamed").await.unwrap();
    assert_eq!(collection.info().name, "renamed");
    let load = CollectionChange::Load(None);
    engine.alter_collection(DEFAULT_DB, "alias", load.clone()).await.unwrap();
    let version = engine.catalog().version();
    engine.alter_collection(DEFAULT_DB, "alias", load).await.unwrap();
    assert_eq!(engine.catalog().version(), version, "a change that changes nothing is no version");
    let index = NewIndex { name: "i".into(), field: "terms".into(), ..NewIndex::default() };
    engine.create_index(DEFAULT_DB, "renamed", index).await.unwrap();
    // Notes how far the log has come.
    engine.shutdown().await;
    let before = engine.catalog();
    drop((engine, collection));
    let engine = open(dir.path()).await;
    assert_eq!(engine.catalog().as_ref(), before.as_ref());
    assert!(engine.catalog().resolve(DEFAULT_DB, "alias").unwrap().loaded);
    let next = engine.clock().next();
    assert!(next > engine.catalog().resolve(DEFAULT_DB, "alias").unwrap().created);
    engine.drop_collection("db", "items").await.unwrap();
    engine.drop_database("db").await.unwrap();
}

#[tokio::test]
async fn time_never_goes_back_through_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |millis: u64| Options { wall: Wall::new(move || millis), ..options(dir.path()) };
    let engine = Engine::open(at(1_000_000)).await.unwrap();
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    let p = partition(&collection, "_default");
    let first = collection.insert(p, rows(&[(1, 1)])).await.unwrap().ts;
    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(at(10)).await.unwrap();
    let collection = find(&engine, "items");
    let second = collection.insert(p, rows(&[(1, 2)])).await.unwrap().ts;
    assert!(second > first);
    engine.flush(collection.id()).await.unwrap();
    engine.shutdown().await;
    drop((engine, collection));
    // Now the log is empty, and the manifest must remember.
    let engine = Engine::open(at(10)).await.unwrap();
    let collection = find(&engine, "items");
    assert!(collection.insert(p, rows(&[(1, 3)])).await.unwrap().ts > second);
    assert_eq!(content(&collection), map(&[(1, 3)]));
}

#[tokio::test]
async fn after_the_shutdown_views_stay_readable_and_writes_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    collection.insert(p, rows(&[(1, 1)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    let view = collection.view();
    engine.shutdown().await;
    assert!(matches!(collection.insert(p, rows(&[(2, 2)])).await, Err(Error::Closed)));
    assert!(engine.create_database("db", vec![]).await.is_err());
    assert_eq!(content_of(&view, None), map(&[(1, 1)]));
    open(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_to_another_key_is_seen_once_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let at = |key: i64| rows(&[(key, 7), (key + 1_000, 8)]);
    collection.insert(p, at(0)).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (collection, stop) = (Arc::clone(&collection), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let found: Vec<i64> = content(&collection).into_values().collect();
                assert_eq!(found, [7, 8]);
            }
        })
    };
    for key in 1..200 {
        let old = Keys::Int(vec![key - 1, key + 999]);
        collection.replace(old, vec![(p, at(key))]).await.unwrap();
        if key % 50 == 0 {
            engine.flush(collection.id()).await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    let wrong = collection.replace(Keys::Str(vec!["a".into()]), vec![(p, at(0))]).await;
    assert!(matches!(wrong, Err(Error::Invalid(_))));
    engine.shutdown().await;
    drop((engine, collection));
    let engine = open(dir.path()).await;
    assert_eq!(content(&find(&engine, "items")), map(&[(199, 7), (1_199, 8)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_half_of_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    // Every write sets all keys to the same value, so every view must show one value.
    let all = |value: i64| rows(&(0..50).map(|id| (id, value)).collect::<Vec<_>>());
    collection.insert(p, all(0)).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (collection, stop) = (Arc::clone(&collection), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut last, mut seen) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let found = content(&collection);
                    assert_eq!(found.len(), 50);
                    let values: Vec<i64> = found.into_values().collect();
                    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
                    assert!(values[0] >= last, "{} after {last}", values[0]);
                    last = values[0];
                    seen += 1;
                }
                seen
            })
        })
        .collect();
    for value in 1..200 {
        collection.insert(p, all(value)).await.unwrap();
        if value % 50 == 0 {
            engine.flush(collection.id()).await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

#[tokio::test]
async fn rows_of_one_sealed_segment_and_no_others_are_in_the_order_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = with_items(dir.path()).await;
    let p = partition(&collection, "_default");
    let in_order = |keys: Vec<i64>| {
        let (_, view) = collection.read();
        let found = view.locate(&Keys::Int(keys)).unwrap();
        let mut addrs: Vec<_> = found.into_iter().flatten().collect();
        addrs.sort_unstable();
        view.is_in_key_order(&addrs)
    };
    collection.insert(p, rows(&[(3, 0), (1, 0), (2, 0)])).await.unwrap();
    assert!(!in_order(vec![1, 2, 3]), "as they were written");
    engine.flush(collection.id()).await.unwrap();
    assert!(in_order(vec![1, 2, 3]));
    collection.insert(p, rows(&[(0, 0)])).await.unwrap();
    engine.flush(collection.id()).await.unwrap();
    assert!(!in_order(vec![0, 1]), "of two segments");
    assert!(in_order(vec![0]) && in_order(vec![]));
}
