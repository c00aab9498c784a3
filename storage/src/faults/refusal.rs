//! Calls that the disk refuses while the process goes on.
//!
//! An operation that fails may have happened or not; one that succeeds has happened. The engine
//! must at every moment show what one course of events explains, and so must recovery.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Mutex;

use super::script::{Model, Operation, run, script};
use super::*;
use crate::disk::memory::{Failure, Picture, Survival};

/// After so many failures the process is ended.
const FAILURES: usize = 3;

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
            expected.contains(&seen),
            "{context}\nfound {seen:#?}\nexpected one of {expected:#?}"
        );
    }
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
    at: u64,
    context: &str,
) {
    let pictures = std::mem::take(&mut *pictures.lock().unwrap());
    if pictures.is_empty() {
        return;
    }
    let context = format!("{context}, then a crash");
    let picture = &pictures[usize::try_from(at).unwrap() / 3 % pictures.len()];
    let engine = open(&picture.crashed(Survival::Some(at))).await;
    let engine = engine.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(engine.health().damaged, vec![], "{context}");
    Courses(before.union(&after.0).cloned().collect()).check(&engine, &context);
    engine.shutdown().await;
}

/// Runs the script with one failure; returns whether it was met.
async fn refuse(at: u64, failure: Failure, survival: Survival) -> bool {
    let disk = MemoryDisk::default();
    let mut engine = open(&disk).await.unwrap();
    disk.fail_after(at, failure);
    let mut courses = Courses([Model::fresh()].into());
    let mut failures = 0;
    for operation in script() {
        let context = format!("change {at} refused, {failure:?}, {operation:?}");
        if matches!(operation, Operation::Restart) {
            engine.shutdown().await;
            drop(engine);
            engine = match open(&disk).await {
                Ok(engine) => engine,
                // A disk that fails may refuse a start as well; it must not be damaged by that.
                Err(Error::Corrupt { path, detail }) => {
                    panic!("{context}: {}: {detail}", path.display())
                }
                Err(_) => {
                    disk.mend();
                    open(&disk).await.unwrap_or_else(|error| panic!("{context}: {error}"))
                }
            };
            continue;
        }
        let (pictures, before) = (watched(&disk, failures > 0), courses.0.clone());
        let result = run(&engine, &operation).await;
        if let Err(error @ (Error::Internal(_) | Error::Corrupt { .. })) = &result {
            panic!("{context}: {error}");
        }
        courses.advance(&operation, result.is_ok(), &context);
        courses.check(&engine, &context);
        crash_after(&pictures, &before, &courses, at, &context).await;
        failures += usize::from(result.is_err());
        let health = engine.health();
        assert_eq!(health.writable, health.reason.is_none());
        if failures == FAILURES {
            break;
        }
    }
    let met = disk.calls() > at;
    engine.shutdown().await;
    drop(engine);
    let context = format!("restart after change {at} was refused, {failure:?}, {survival:?}");
    let disk = disk.picture().crashed(survival);
    let engine = open(&disk).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(engine.health().damaged, vec![], "{context}");
    courses.check(&engine, &context);
    engine.shutdown().await;
    met
}

fn refuse_everywhere(failure: Failure) {
    runtime().block_on(async {
        let mut at = 0;
        // Every one of three: the process is the same, the crash loop meets all points.
        while refuse(at, failure, Survival::Some(at)).await {
            at += 3;
        }
        assert!(at > 300, "only {at} changes");
    });
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
        let engine = open(&disk).await.unwrap();
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
        let engine = open(&crashed).await.unwrap();
        assert_eq!(Model::seen(&engine).unwrap(), before);
        engine.shutdown().await;
    });
}

#[test]
fn a_single_writer_gets_a_sync_for_every_acknowledgement() {
    runtime().block_on(async {
        let disk = MemoryDisk::default();
        let engine = open(&disk).await.unwrap();
        run(&engine, &Operation::Create("a")).await.unwrap();
        let before = disk.syncs();
        for key in 0..20 {
            run(&engine, &Operation::Insert("a", "other", vec![(key, 1)])).await.unwrap();
        }
        assert!(disk.syncs() - before >= 20);
        engine.shutdown().await;
    });
}
