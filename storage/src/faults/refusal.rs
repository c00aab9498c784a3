//! Calls that the disk refuses while the process goes on.
//!
//! An operation that fails may have happened or not; one that succeeds has happened. The engine
//! must at every moment show what one course of events explains, and so must recovery.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Mutex;

use super::model::Model;
use super::script::{Operation, run, script};
use super::*;
use crate::disk::memory::{Failure, Picture, Survival};

/// After so many failed operations the process is ended.
const FAILURES: usize = 3;

/// So many operations are run after the call that was refused.
const OPERATIONS: usize = 6;

/// Every model that the operations so far can explain.
struct Courses(BTreeSet<Model>);

impl Courses {
    fn advance(&mut self, operation: &Operation, succeeded: bool, context: &str) {
        let after = self.0.iter().filter_map(|model| model.after(operation)).collect();
        if succeeded {
            self.0 = after;
            assert!(!self.0.is_empty(), "{context}: {operation:?} should have been refused");
        } else {
            self.0.extend(after);
        }
    }

    fn check(&self, engine: &Engine, context: &str) {
        let seen = Model::seen(engine).unwrap_or_else(|error| panic!("{context}: {error}"));
        let expected = &self.0;
        assert!(
            expected.iter().any(|model| model.visible() == seen),
            "{context}\nfound {seen:#?}\nexpected one of {expected:#?}"
        );
    }
}

/// The disk before an operation, and what it holds.
struct Start {
    picture: Picture,
    model: Model,
}

/// The disk before each operation of the script, when nothing fails.
fn starts(operations: &[Operation]) -> Vec<Start> {
    runtime().block_on(async {
        let (disk, mut model) = (MemoryDisk::default(), Model::fresh());
        let time = Time::new(model.now().into());
        let mut engine = open(&disk, &time).await.unwrap();
        let mut starts = Vec::new();
        for operation in operations {
            starts.push(Start { picture: disk.picture(), model: model.clone() });
            model = model.after(operation).unwrap();
            time.store(model.now(), Ordering::SeqCst);
            if matches!(operation, Operation::Restart) {
                engine.shutdown().await;
                drop(engine);
                engine = open(&disk, &time).await.unwrap();
            } else {
                run(&engine, operation).await.unwrap();
            }
        }
        engine.shutdown().await;
        starts
    })
}

/// Pictures of the disk from now on, if they are wanted.
fn watched(disk: &MemoryDisk, wanted: bool) -> Arc<Mutex<Vec<Picture>>> {
    let pictures = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&pictures);
    if wanted {
        disk.watch(move |picture| keep.lock().unwrap().push(picture.clone()));
    }
    pictures
}

/// A crash at one of these moments: what a refused call left must not come between.
async fn crash_after(
    pictures: &Mutex<Vec<Picture>>,
    before: &BTreeSet<Model>,
    after: &Courses,
    (at, time): (u64, &Time),
    context: &str,
) {
    let pictures = std::mem::take(&mut *pictures.lock().unwrap());
    if pictures.is_empty() {
        return;
    }
    let context = format!("{context}, then a crash");
    let picture = &pictures[usize::try_from(at).unwrap() / 3 % pictures.len()];
    let engine = open(&picture.crashed(Survival::Some(at)), time).await;
    let engine = engine.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(engine.health().damaged, vec![], "{context}");
    Courses(before.union(&after.0).cloned().collect()).check(&engine, &context);
    engine.shutdown().await;
}

/// Runs operations from a start, with a failure after `at` changes; returns whether the first
/// of them met it.
async fn refuse(start: &Start, operations: &[Operation], at: u64, failure: Failure) -> bool {
    let disk = start.picture.crashed(Survival::Everything);
    let time = Time::new(start.model.now().into());
    let mut engine = open(&disk, &time).await.unwrap();
    let first = disk.calls();
    disk.fail_after(at, failure);
    let mut courses = Courses([start.model.clone()].into());
    let (mut failures, mut met) = (0, false);
    for (i, operation) in operations.iter().take(OPERATIONS).enumerate() {
        let context = format!("change {at} refused, {failure:?}, {operation:?}");
        if let Operation::Pass(seconds) = operation {
            time.fetch_add(*seconds, Ordering::SeqCst);
        }
        if matches!(operation, Operation::Restart) {
            engine.shutdown().await;
            drop(engine);
            engine = match open(&disk, &time).await {
                // A disk that fails may refuse a start as well; it must not be damaged by that.
                Err(Error::Corrupt { path, detail }) => {
                    panic!("{context}: {}: {detail}", path.display())
                }
                // Nor may what it refused to one collection.
                Ok(engine) if !engine.health().damaged.is_empty() => {
                    engine.shutdown().await;
                    disk.mend();
                    open(&disk, &time).await.unwrap_or_else(|error| panic!("{context}: {error}"))
                }
                Ok(engine) => engine,
                Err(_) => {
                    disk.mend();
                    open(&disk, &time).await.unwrap_or_else(|error| panic!("{context}: {error}"))
                }
            };
        } else {
            let (pictures, before) = (watched(&disk, failures > 0), courses.0.clone());
            let result = run(&engine, operation).await;
            if let Err(error @ (Error::Internal(_) | Error::Corrupt { .. })) = &result {
                panic!("{context}: {error}");
            }
            courses.advance(operation, result.is_ok(), &context);
            courses.check(&engine, &context);
            crash_after(&pictures, &before, &courses, (at, &time), &context).await;
            failures += usize::from(result.is_err());
            let health = engine.health();
            assert_eq!(health.writable, health.reason.is_none());
        }
        if i == 0 {
            met = disk.calls() - first > at;
        }
        if !met || failures == FAILURES {
            break;
        }
    }
    engine.shutdown().await;
    drop(engine);
    let survival = Survival::Some(at);
    let context = format!("restart after change {at} was refused, {failure:?}, {survival:?}");
    let disk = disk.picture().crashed(survival);
    let engine = open(&disk, &time).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(engine.health().damaged, vec![], "{context}");
    courses.check(&engine, &context);
    engine.shutdown().await;
    met
}

fn refuse_everywhere(failure: Failure) {
    let operations = script();
    let starts = starts(&operations);
    let changes = AtomicU64::new(0);
    for_each(starts.len(), async |i| {
        // Every second one: the process is the same, the crash loop meets all points.
        let mut at = i as u64 % 2;
        while refuse(&starts[i], &operations[i..], at, failure).await {
            at += 2;
            changes.fetch_add(1, Ordering::Relaxed);
        }
    });
    let changes = changes.into_inner();
    println!("{changes} calls were refused, {failure:?}");
    assert!(changes > 300);
}

#[test]
fn a_call_that_fails_once_leaves_nothing_by_half() {
    refuse_everywhere(Failure::Once(ErrorKind::Other));
}

#[test]
fn a_disk_that_is_full_from_now_on_loses_nothing() {
    refuse_everywhere(Failure::FromNowOn(ErrorKind::StorageFull));
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_reads_go_on_and_health_says_why() {
    runtime().block_on(async {
        let disk = MemoryDisk::default();
        let time = Time::new(Model::fresh().now().into());
        let engine = open(&disk, &time).await.unwrap();
        let operations = script();
        for operation in &operations[..4] {
            run(&engine, operation).await.unwrap();
        }
        let before = Model::seen(&engine).unwrap();
        disk.fail_syncs();
        let insert = Operation::Insert("a", "_default", vec![(1, 1)]);
        assert!(matches!(run(&engine, &insert).await, Err(Error::LogPoisoned(_))));
        disk.mend();
        // The kernel may have dropped what it could not write: no later sync can be trusted.
        for operation in [&insert, &Operation::Delete("a", vec![0]), &Operation::Flush("a")] {
            let error = run(&engine, operation).await.unwrap_err();
            assert!(matches!(error, Error::LogPoisoned(_)), "{operation:?}: {error}");
        }
        assert_eq!(Model::seen(&engine).unwrap(), before);
        let health = engine.health();
        assert!(!health.writable);
        assert!(health.reason.unwrap().contains("the disk is broken"));
        let crashed = disk.picture().crashed(Survival::Synced);
        drop(engine);
        let engine = open(&crashed, &time).await.unwrap();
        assert_eq!(Model::seen(&engine).unwrap(), before);
        engine.shutdown().await;
    });
}

#[test]
fn a_single_writer_gets_a_sync_for_every_acknowledgement() {
    runtime().block_on(async {
        let disk = MemoryDisk::default();
        let time = Time::new(Model::fresh().now().into());
        let engine = open(&disk, &time).await.unwrap();
        run(&engine, &Operation::Create("a")).await.unwrap();
        let before = disk.syncs();
        for key in 0..20 {
            run(&engine, &Operation::Insert("a", "other", vec![(key, 1)])).await.unwrap();
        }
        assert!(disk.syncs() - before >= 20);
        engine.shutdown().await;
    });
}
