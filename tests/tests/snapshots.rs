//! A reader sees one moment: each key once, whole batches, and never an older moment than before.
//!
//! Writers replace all rows of a key range in one call, over and over, while flushes move rows
//! from the log to sealed files. A reader that sees a key twice, misses one, finds two versions
//! of one batch, or goes back in time, has seen something that never was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use elanus_proto::milvus::{FlushRequest, InsertRequest, UpsertRequest};
use elanus_tests::wire::{self, Client};
use elanus_tests::{Random, TestNode};

const COLLECTION: &str = "moments";
const DIM: usize = 2;
const WRITERS: usize = 2;
const READERS: usize = 3;
/// Rows of one writer; all of them are replaced in one call.
const BATCH: i64 = 200;
const LASTS: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_each_batch_whole_and_each_key_once_while_rows_are_replaced_and_sealed() {
    let node = TestNode::start().unwrap();
    let mut client = node.client().await.unwrap();
    let schema = wire::counting_schema(COLLECTION, &["writer", "version"], DIM);
    wire::create_and_load(&mut client, &schema).await.unwrap();
    for writer in 0..WRITERS {
        let answer = client.insert(batch(writer, 0)).await.unwrap().into_inner();
        wire::check(answer.status.as_ref()).unwrap();
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let client = node.client().await.unwrap();
        tasks.push(tokio::spawn(write(client, writer, stop.clone())));
    }
    tasks.push(tokio::spawn(seal(node.client().await.unwrap(), stop.clone())));
    for reader in 0..READERS {
        let client = node.client().await.unwrap();
        tasks.push(tokio::spawn(read(client, reader, stop.clone())));
    }
    tokio::time::sleep(LASTS).await;
    stop.store(true, Ordering::Relaxed);
    let mut rounds = Vec::new();
    for task in tasks {
        rounds.push(task.await.unwrap().unwrap());
    }
    eprintln!("calls of {WRITERS} writers, the sealer and {READERS} readers: {rounds:?}");
    assert!(rounds.iter().all(|calls| *calls > 5), "somebody hardly ran: the test proves nothing");
}

/// Replaces all rows of one writer with those of the next version.
async fn write(mut client: Client, writer: usize, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut version = 0;
    while !stop.load(Ordering::Relaxed) {
        version += 1;
        let insert = batch(writer, version);
        let request = UpsertRequest {
            collection_name: insert.collection_name,
            fields_data: insert.fields_data,
            num_rows: insert.num_rows,
            ..UpsertRequest::default()
        };
        let answer = client.upsert(request).await?.into_inner();
        wire::check(answer.status.as_ref())?;
    }
    Ok(version as usize)
}

async fn seal(mut client: Client, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut flushes = 0;
    while !stop.load(Ordering::Relaxed) {
        let request = FlushRequest {
            collection_names: vec![COLLECTION.to_owned()],
            ..FlushRequest::default()
        };
        wire::check(client.flush(request).await?.into_inner().status.as_ref())?;
        flushes += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(flushes)
}

/// Looks at everything again and again, by query and by search.
async fn read(mut client: Client, reader: usize, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut random = Random::new(reader as u64);
    let mut newest = [0; WRITERS];
    let mut looks = 0;
    let all: BTreeSet<i64> = (0..WRITERS as i64 * BATCH).collect();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let (keys, writers, versions) = if random.chance(50) {
            let request = wire::query(COLLECTION, "id >= 0", &["id", "writer", "version"]);
            let answer = client.query(request).await?.into_inner();
            wire::check(answer.status.as_ref())?;
            let column = |name| wire::longs_of(&answer.fields_data, name);
            (column("id"), column("writer"), column("version"))
        } else {
            let mut request = wire::search(COLLECTION, "vector", &[0.0; DIM], all.len() * 2);
            request.output_fields = vec!["writer".to_owned(), "version".to_owned()];
            let answer = client.search(request).await?.into_inner();
            wire::check(answer.status.as_ref())?;
            let hits = answer.results.unwrap_or_default();
            let column = |name| wire::longs_of(&hits.fields_data, name);
            (wire::int_ids(hits.ids.as_ref()), column("writer"), column("version"))
        };
        let found: BTreeSet<i64> = keys.iter().copied().collect();
        ensure!(found.len() == keys.len(), "look {looks}: a key appears twice");
        ensure!(found == all, "look {looks}: {} of {} keys", found.len(), all.len());
        let mut seen = [None; WRITERS];
        for (writer, version) in writers.into_iter().zip(versions) {
            let slot = &mut seen[usize::try_from(writer)?];
            ensure!(
                *slot.get_or_insert(version) == version,
                "look {looks}: two versions of one batch"
            );
        }
        for (newest, seen) in newest.iter_mut().zip(seen.into_iter().flatten()) {
            ensure!(seen >= *newest, "look {looks}: version {seen} after {newest}");
            *newest = seen;
        }
        looks += 1;
        ensure!(
            began.elapsed() < Duration::from_secs(10),
            "look {looks} took {:?}",
            began.elapsed()
        );
    }
    Ok(looks)
}

fn batch(writer: usize, version: i64) -> InsertRequest {
    let first = writer as i64 * BATCH;
    let keys: Vec<i64> = (first..first + BATCH).collect();
    let vectors = keys.iter().flat_map(|key| [*key as f32, version as f32]).collect();
    InsertRequest {
        collection_name: COLLECTION.to_owned(),
        num_rows: keys.len() as u32,
        fields_data: vec![
            wire::longs("writer", vec![writer as i64; keys.len()]),
            wire::longs("version", vec![version; keys.len()]),
            wire::floats("vector", DIM, vectors),
            wire::longs("id", keys),
        ],
        ..InsertRequest::default()
    }
}
