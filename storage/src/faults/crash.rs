//! A crash at every call that changes the disk, recovery, and a crash during recovery.
//!
//! The script runs once, and before every change the disk keeps a picture of itself, with the
//! number of operations that had begun and that had been acknowledged. Each picture is a crash at
//! that call: nothing that the process would have done later can matter. What of the unsynced
//! changes survives is decided three ways.
//!
//! After recovery the engine must show what the model shows after all acknowledged operations, or
//! after one more that had begun.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::script::{Model, Operation, run, script};
use super::*;
use crate::disk::memory::{Picture, Survival};

/// A moment of the script.
#[derive(Clone)]
struct Moment {
    picture: Picture,
    acknowledged: usize,
    begun: usize,
}

/// Runs operations on a new disk; the moments before every change, and the model after each
/// operation.
fn record(operations: &[Operation]) -> (Vec<Moment>, Vec<Model>) {
    let disk = MemoryDisk::default();
    let (acknowledged, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let moments = Arc::new(Mutex::new(Vec::new()));
    disk.watch({
        let (acknowledged, begun) = (Arc::clone(&acknowledged), Arc::clone(&begun));
        let moments = Arc::clone(&moments);
        move |picture| {
            moments.lock().unwrap().push(Moment {
                picture: picture.clone(),
                acknowledged: acknowledged.load(Ordering::SeqCst),
                begun: begun.load(Ordering::SeqCst),
            });
        }
    });
    let mut models = vec![Model::fresh()];
    runtime().block_on(async {
        let mut engine = open(&disk).await.unwrap();
        for (i, operation) in operations.iter().enumerate() {
            let next = models[i].after(operation).unwrap_or_else(|| panic!("{i}: {operation:?}"));
            models.push(next);
            begun.store(i + 1, Ordering::SeqCst);
            if matches!(operation, Operation::Restart) {
                engine.shutdown().await;
                drop(engine);
                engine = open(&disk).await.unwrap();
            } else {
                run(&engine, operation).await.unwrap_or_else(|e| panic!("{operation:?}: {e}"));
            }
            acknowledged.store(i + 1, Ordering::SeqCst);
            assert_eq!(Model::seen(&engine).unwrap(), models[i + 1], "{i}: {operation:?}");
        }
        settle(&disk).await;
        engine.shutdown().await;
    });
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    (moments, models)
}

/// Recovers and compares; returns the pictures of recovery.
async fn recover(disk: &MemoryDisk, models: &[Model], context: &str) -> Vec<Picture> {
    let pictures = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&pictures);
    disk.watch(move |picture| keep.lock().unwrap().push(picture.clone()));
    let engine = open(disk).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(engine.health().damaged, vec![], "{context}");
    let seen = Model::seen(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(models.contains(&seen), "{context}\nfound {seen:#?}\nexpected one of {models:#?}");
    engine.shutdown().await;
    std::mem::take(&mut *pictures.lock().unwrap())
}

/// What was recovered takes writes, seals them, and is the same after a restart.
async fn goes_on(disk: &MemoryDisk, context: &str) {
    let engine = open(disk).await.unwrap();
    let mut model = Model::seen(&engine).unwrap();
    let names: Vec<String> = model.collections.keys().cloned().collect();
    for name in names {
        let name: &'static str = script_name(&name);
        for operation in [
            Operation::Insert(name, "_default", vec![(2, 1), (900, 2)]),
            Operation::Flush(name),
            Operation::Delete(name, vec![3, 900]),
        ] {
            run(&engine, &operation)
                .await
                .unwrap_or_else(|e| panic!("{context}: {operation:?}: {e}"));
            model = model.after(&operation).unwrap();
        }
    }
    assert_eq!(Model::seen(&engine).unwrap(), model, "{context}, going on");
    engine.shutdown().await;
    drop(engine);
    recover(disk, &[model], context).await;
}

fn script_name(name: &str) -> &'static str {
    ["a", "b", "c", "d"].into_iter().find(|known| *known == name).unwrap()
}

/// Crashes at one moment in every way, and once more while recovering.
async fn crash_at(i: usize, moment: &Moment, models: &[Model], operations: &[Operation]) {
    let allowed = &models[moment.acknowledged..=moment.begun];
    let seed = i as u64;
    for survival in [Survival::Synced, Survival::Everything, Survival::Some(seed)] {
        let context = format!(
            "crash at change {i}, {survival:?}, after {:?}",
            operations.get(moment.begun.saturating_sub(1))
        );
        let disk = moment.picture.crashed(survival);
        let pictures = recover(&disk, allowed, &context).await;
        if i.is_multiple_of(5) {
            goes_on(&disk, &context).await;
        }
        if pictures.is_empty() {
            continue;
        }
        // One moment of recovery now, so that all points of the script together cover them all.
        let at = i % pictures.len();
        for survival in [Survival::Synced, Survival::Some(seed + 1)] {
            let context = format!("{context}, then at change {at} of recovery, {survival:?}");
            recover(&pictures[at].crashed(survival), allowed, &context).await;
        }
    }
}

#[test]
fn a_crash_at_any_change_loses_nothing_acknowledged_and_leaves_nothing_by_half() {
    let operations = script();
    assert!(operations.len() >= 60);
    let (moments, models) = record(&operations);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                runtime().block_on(async {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(moment) = moments.get(i) else { break };
                        crash_at(i, moment, &models, &operations).await;
                    }
                });
            });
        }
    });
    println!("{} operations, {} crash points", operations.len(), moments.len());
}
