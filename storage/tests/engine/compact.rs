//! Merging segments: the same rows in fewer files, and space that comes back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use elanus_storage::catalog::{DEFAULT_DB, TTL};
use elanus_storage::{
    Collection, CollectionChange, Compaction, Engine, Keys, Options, SegmentState, Ts, Wall,
};

use crate::common::*;

/// No merging but when it is asked for.
fn by_hand(dir: &Path) -> Options {
    Options { upkeep_every_ms: 3_600_000, retention_ms: 0, ..options(dir) }
}

async fn open_with(options: Options) -> (Engine, Arc<Collection>) {
    let engine = Engine::open(options).await.unwrap();
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

pub(crate) async fn compact(engine: &Engine, collection: &Collection) -> Compaction {
    let id = engine.compact(collection.id()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = engine.compaction(id).unwrap();
        if found.done {
            return found;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn insert(collection: &Collection, pairs: impl Iterator<Item = (i64, i64)>) {
    let p = partition(collection, "_default");
    collection.insert(p, rows(&pairs.collect::<Vec<_>>())).await.unwrap();
}

fn sealed(collection: &Collection) -> usize {
    let stats = collection.stats();
    stats.segments.iter().filter(|segment| segment.state == SegmentState::Sealed).count()
}

/// Bytes of the collections' files.
fn bytes(dir: &Path) -> u64 {
    let size = |path| unless_gone(fs_err::metadata(path).map(|metadata| metadata.len()));
    files(&dir.join("data")).iter().map(size).sum()
}

fn data_files(dir: &Path) -> usize {
    let is_data = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "arrow");
    files(&dir.join("data")).iter().filter(is_data).count()
}

#[tokio::test]
async fn many_small_segments_become_one_with_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = open_with(by_hand(dir.path())).await;
    for round in 0..3 {
        insert(&collection, (0..200).map(|i| (i * 3 + round, round))).await;
        engine.flush(collection.id()).await.unwrap();
    }
    insert(&collection, (0..10).map(|i| (i, 9))).await;
    collection.delete(None, Keys::Int((300..400).collect())).await.unwrap();
    let before = content(&collection);
    let old = collection.view();
    let merged = compact(&engine, &collection).await;
    assert_eq!(merged.failure, None);
    assert_eq!(merged.merges.len(), 1);
    assert_eq!(merged.merges[0].sources.len(), 4, "recent rows are sealed first");
    assert_eq!(content(&collection), before);
    assert_eq!(sealed(&collection), 1);

    // A reader of the old segments is not disturbed, and is the last who needs their files.
    assert_eq!(content_of(&old, None), before);
    assert_eq!(data_files(dir.path()), 4);
    drop(old);
    assert_eq!(data_files(dir.path()), 1);
    assert_eq!(compact(&engine, &collection).await.merges, vec![], "there is nothing left to do");

    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(by_hand(dir.path())).await.unwrap();
    assert_eq!(content(&find(&engine, "items")), before);
}

#[tokio::test]
async fn small_segments_are_merged_without_being_asked_and_large_ones_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 60_000, ..by_hand(dir.path()) };
    let (engine, collection) = open_with(options).await;
    for round in 0..40 {
        insert(&collection, (0..100).map(|i| (round * 100 + i, i))).await;
        engine.flush(collection.id()).await.unwrap();
    }
    eventually(|| sealed(&collection) <= 10).await;
    let largest = collection.stats().segments.iter().map(|segment| segment.bytes).max().unwrap();
    assert!(largest <= 70_000, "{largest}");
    assert_eq!(content(&collection).len(), 4_000);
}

#[tokio::test]
async fn on_a_full_disk_only_merges_that_free_space_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = open_with(by_hand(dir.path())).await;
    for round in 0..2 {
        insert(&collection, (0..100).map(|i| (i + 100 * round, i))).await;
        engine.flush(collection.id()).await.unwrap();
    }
    let free = engine.disk_space().unwrap().free;
    engine.shutdown().await;
    drop((engine, collection));
    let options = Options { disk_reserve_bytes: 2 * free, ..by_hand(dir.path()) };
    let engine = Engine::open(options).await.unwrap();
    let collection = find(&engine, "items");
    let failure = compact(&engine, &collection).await.failure.unwrap();
    assert!(failure.contains("are kept back"), "{failure}");
    assert_eq!(sealed(&collection), 2);
    collection.delete(None, Keys::Int((0..50).collect())).await.unwrap();
    assert_eq!(compact(&engine, &collection).await.failure, None);
    assert_eq!((sealed(&collection), content(&collection).len()), (1, 150));
}

#[tokio::test]
async fn deleted_rows_leave_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = open_with(by_hand(dir.path())).await;
    insert(&collection, (0..20_000).map(|i| (i, i))).await;
    engine.flush(collection.id()).await.unwrap();
    let full = bytes(dir.path());
    collection.delete(None, Keys::Int((0..19_000).collect())).await.unwrap();
    compact(&engine, &collection).await;
    // Files go when the last thread lets go of them, which may be after the answer: here, at less than
    // a fifteenth of the bytes for a twentieth of the rows.
    eventually(|| bytes(dir.path()) < full / 15).await;
    let left = bytes(dir.path());
    assert_eq!(content(&collection).len(), 1_000);

    // The same size as if the others had never been there.
    let fresh = tempfile::tempdir().unwrap();
    let (other, same) = open_with(by_hand(fresh.path())).await;
    insert(&same, (19_000..20_000).map(|i| (i, i))).await;
    other.flush(same.id()).await.unwrap();
    assert!(left.abs_diff(bytes(fresh.path())) < 2_000, "{left}, {}", bytes(fresh.path()));

    collection.delete(None, Keys::Int((19_000..20_000).collect())).await.unwrap();
    compact(&engine, &collection).await;
    eventually(|| (sealed(&collection), data_files(dir.path())) == (0, 0)).await;
    // What is dropped leaves nothing behind.
    insert(&collection, (0..100).map(|i| (i, i))).await;
    engine.flush(collection.id()).await.unwrap();
    engine.drop_collection(DEFAULT_DB, "items").await.unwrap();
    drop(collection);
    eventually(|| files(&dir.path().join("data")).is_empty()).await;
}

#[tokio::test]
async fn a_view_of_the_past_sees_what_it_saw_before_a_merge() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retention_ms: 3_600_000, ..by_hand(dir.path()) };
    let (engine, collection) = open_with(options).await;
    let mut past = Vec::new();
    for round in 0..6 {
        insert(&collection, (0..50).map(|i| (i + round * 10, round))).await;
        collection.delete(None, Keys::Int(vec![round, round * 7])).await.unwrap();
        past.push((collection.view().ts(), content(&collection)));
        if round % 2 == 1 {
            compact(&engine, &collection).await;
        }
    }
    for (ts, expected) in &past {
        assert_eq!(&content_of(&collection.view_at(*ts).unwrap(), None), expected);
    }
    engine.shutdown().await;
    drop((engine, collection));
    let options = Options { retention_ms: 3_600_000, ..by_hand(dir.path()) };
    let engine = Engine::open(options).await.unwrap();
    for (ts, expected) in &past {
        assert_eq!(&content_of(&find(&engine, "items").view_at(*ts).unwrap(), None), expected);
    }
}

#[tokio::test]
async fn a_view_of_what_is_not_retained_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000));
    let with_retention = |retention_ms| {
        let clock = Arc::clone(&now);
        let wall = Wall::new(move || clock.load(Ordering::Relaxed));
        Options { wall, retention_ms, ..by_hand(dir.path()) }
    };
    let (engine, collection) = open_with(with_retention(10_000)).await;
    insert(&collection, (0..10).map(|i| (i, 0))).await;
    engine.flush(collection.id()).await.unwrap();
    let (early, all) = (collection.view().ts(), content(&collection));
    now.fetch_add(60_000, Ordering::Relaxed);
    let unchanged = collection.view_at(early).unwrap();
    assert_eq!(content_of(&unchanged, None), all, "however old it is");
    collection.delete(None, Keys::Int(vec![1, 2, 3])).await.unwrap();
    let refusal = collection.view_at(early).unwrap_err().to_string();
    assert!(
        refusal.contains("60000 ms ago") && refusal.contains("`retention_seconds`"),
        "{refusal}"
    );
    let late = collection.view().ts();
    insert(&collection, (1..5).map(|i| (i, 1))).await;
    now.fetch_add(10_000, Ordering::Relaxed);
    assert_eq!(content_of(&collection.view_at(late).unwrap(), None).len(), 7);
    assert_eq!(content_of(&unchanged, None), all, "as it was when it was taken");

    now.fetch_add(1_000, Ordering::Relaxed);
    compact(&engine, &collection).await;
    engine.shutdown().await;
    drop((engine, collection));
    // What was forgotten does not come back with a longer retention.
    let engine = Engine::open(with_retention(3_600_000)).await.unwrap();
    let collection = find(&engine, "items");
    collection.view_at(late).unwrap_err();
    assert_eq!(content(&collection).len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_and_deleted_during_merges_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, collection) = open_with(by_hand(dir.path())).await;
    let compacting = {
        let (engine, collection) = (engine.clone(), Arc::clone(&collection));
        tokio::spawn(async move {
            for _ in 0..25 {
                compact(&engine, &collection).await;
            }
        })
    };
    let mut random = Random::new(11);
    let mut expected = std::collections::BTreeMap::new();
    while !compacting.is_finished() {
        let key = random.below(400) as i64;
        if random.below(3) == 0 {
            let keys: Vec<i64> = (key..key + 20).collect();
            expected.retain(|key, _| !keys.contains(key));
            collection.delete(None, Keys::Int(keys)).await.unwrap();
        } else {
            let value = random.below(1_000) as i64;
            insert(&collection, (key..key + 10).map(|key| (key, value))).await;
            expected.extend((key..key + 10).map(|key| (key, value)));
        }
        assert_eq!(content(&collection), expected);
    }
    compacting.await.unwrap();
    engine.shutdown().await;
    drop((engine, collection));
    let engine = Engine::open(by_hand(dir.path())).await.unwrap();
    assert_eq!(content(&find(&engine, "items")), expected);
}

#[tokio::test]
async fn rows_past_their_time_are_gone_at_once_and_leave_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000));
    let clock = Arc::clone(&now);
    let wall = Wall::new(move || clock.load(Ordering::Relaxed));
    let options = Options { wall, retention_ms: 60_000, ..by_hand(dir.path()) };
    let (engine, collection) = open_with(options).await;
    insert(&collection, (0..100).map(|i| (i, 0))).await;
    engine.flush(collection.id()).await.unwrap();
    let early = collection.view().ts();
    now.fetch_add(10_000, Ordering::Relaxed);
    insert(&collection, (100..200).map(|i| (i, 1))).await;
    insert(&collection, (0..5).map(|i| (i, 1))).await;
    let set = |seconds: &str| CollectionChange::Properties {
        set: vec![(TTL.into(), seconds.into())],
        delete: vec![],
    };
    engine.alter_collection(DEFAULT_DB, "items", set("15")).await.unwrap();
    assert_eq!(content(&collection).len(), 200);
    now.fetch_add(6_000, Ordering::Relaxed);
    let expected: Vec<(i64, i64)> = (0..5).chain(100..200).map(|i| (i, 1)).collect();
    assert_eq!(content(&collection), map(&expected));
    assert_eq!(content_of(&collection.view_at(early).unwrap(), None), map(&[]));
    assert_eq!(collection.stats().rows, 105, "what has expired does not count");
    assert_eq!(content_of(&collection.view_at(Ts::MAX).unwrap(), None).len(), 105);
    compact(&engine, &collection).await;
    assert_eq!(content(&collection), map(&expected));
    assert_eq!(collection.stats().rows, 105, "the others are not even there");

    now.fetch_add(20_000, Ordering::Relaxed);
    assert_eq!(content(&collection), map(&[]));
    engine.alter_collection(DEFAULT_DB, "items", set("-1")).await.unwrap();
    // As long as upkeep has not removed them.
    let back = content(&collection);
    assert!(back.is_empty() || back == map(&expected), "{back:?}");
}
