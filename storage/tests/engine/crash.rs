//! `kill -9` at random moments of a process with several writers, checkpoints in between.
//!
//! Each writer's operations follow from the seed and its number, so that after a crash its keys
//! must show either all operations that it saw acknowledged, or one more.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::{Collection, Engine, Keys, Options};

use crate::common::*;

const WRITERS: u64 = 4;
const KEYS: u64 = 40;
const DIR: &str = "ELANUS_CRASH_DIR";
const ROUND: &str = "ELANUS_CRASH_ROUND";

/// What one operation of a writer does: rows, or keys to delete.
enum Operation {
    Insert(Vec<(i64, i64)>),
    Delete(Vec<i64>),
}

fn operations(round: u64, writer: u64) -> impl Iterator<Item = Operation> {
    let mut random = Random::new(round * 1000 + writer);
    std::iter::repeat_with(move || {
        let key = |random: &mut Random| (writer * KEYS + random.below(KEYS)) as i64;
        let n = 1 + random.below(5);
        if random.below(3) == 0 {
            Operation::Delete((0..n).map(|_| key(&mut random)).collect())
        } else {
            let value = (round * 1_000_000 + random.below(1_000_000)) as i64;
            Operation::Insert((0..n).map(|i| (key(&mut random), value + i as i64)).collect())
        }
    })
}

fn apply(model: &mut BTreeMap<i64, i64>, operation: &Operation) {
    match operation {
        Operation::Insert(pairs) => model.extend(pairs.iter().copied()),
        Operation::Delete(keys) => model.retain(|key, _| !keys.contains(key)),
    }
}

async fn carry_out(collection: &Collection, operation: Operation) {
    let p = partition(collection, "_default");
    match operation {
        Operation::Insert(pairs) => drop(collection.insert(p, rows(&pairs)).await.unwrap()),
        Operation::Delete(keys) => drop(collection.delete(None, Keys::Int(keys)).await.unwrap()),
    }
}

/// Not a test by itself: the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_until_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    let engine =
        Engine::open(Options { seal_rows: 300, ..options(Path::new(&dir)) }).await.unwrap();
    let collection = find(&engine, "items");
    for writer in 0..WRITERS {
        let collection = find(&engine, "items");
        tokio::spawn(async move {
            for (done, operation) in (1..).zip(operations(round, writer)) {
                carry_out(&collection, operation).await;
                let mut out = std::io::stdout().lock();
                writeln!(out, "ack {writer} {done}").unwrap();
            }
        });
    }
    loop {
        engine.flush(collection.id()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs the writers for a while and kills them; returns how many operations of each writer were
/// acknowledged.
fn acknowledged(dir: &Path, round: u64) -> Vec<usize> {
    let number = round.to_string();
    let env = [(DIR, dir.as_os_str()), (ROUND, number.as_ref())];
    let then = Duration::from_millis(Random::new(round).below(400));
    let mut acknowledged = vec![0; WRITERS as usize];
    for line in run_and_kill("crash::writers_until_killed", &env, "ack ", (20, then)) {
        // The last line may be torn.
        let Some((writer, done)) = line.split_once(' ') else { continue };
        if let (Ok(writer), Ok(done)) = (writer.parse::<usize>(), done.parse::<usize>()) {
            acknowledged[writer] = acknowledged[writer].max(done);
        }
    }
    acknowledged
}

#[tokio::test]
async fn killed_writers_lose_nothing_and_nothing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = with_items(dir.path()).await;
    engine.shutdown().await;
    drop(engine);
    let mut before = BTreeMap::new();
    for round in 1..=6 {
        let acknowledged = acknowledged(dir.path(), round);
        let engine = open(dir.path()).await;
        let collection = find(&engine, "items");
        let after = content(&collection);
        for (writer, &done) in (0..WRITERS).zip(&acknowledged) {
            let mine = (writer * KEYS) as i64..((writer + 1) * KEYS) as i64;
            let found: BTreeMap<i64, i64> =
                after.range(mine.clone()).map(|(k, v)| (*k, *v)).collect();
            let mut model: BTreeMap<i64, i64> =
                before.range(mine).map(|(k, v): (&i64, &i64)| (*k, *v)).collect();
            let mut operations = operations(round, writer);
            operations.by_ref().take(done).for_each(|operation| apply(&mut model, &operation));
            let acked = model.clone();
            apply(&mut model, &operations.next().unwrap());
            assert!(
                found == acked || found == model,
                "round {round}, writer {writer}: after {done} operations\n{acked:?}\nfound\n{found:?}"
            );
        }
        before = after;
        assert_eq!(engine.catalog().resolve(DEFAULT_DB, "items").unwrap().id, collection.id());
        engine.shutdown().await;
    }
}
