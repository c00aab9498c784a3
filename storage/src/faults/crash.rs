//! A crash at every call that changes the disk, recovery, and a crash during recovery.
//!
//! The script runs once, and before every change the disk keeps a picture of itself, with the
//! number of operations that had begun and that had been acknowledged. Each picture is a crash at
//! that call: nothing that the process would have done later can matter. What of the unsynced
//! changes survives is decided three ways.
//!
//! After recovery the engine must show what the model shows after all acknowledged operations, or
//! after one more that had begun.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use super::model::Model;
use super::script::{KEYED, Operation, run, script};
use super::*;
use crate::disk::memory::{Picture, Survival};

/// A moment of the script.
#[derive(Clone)]
struct Moment {
    picture: Picture,
    acknowledged: usize,
    begun: usize,
    now: u64,
}

/// Runs operations on a new disk; the moments before every change, and the model after each
/// operation.
fn record(operations: &[Operation]) -> (Vec<Moment>, Vec<Model>) {
    let disk = MemoryDisk::default();
    let (acknowledged, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut models = vec![Model::fresh()];
    let time = Time::new(models[0].now().into());
    let moments = Arc::new(Mutex::new(Vec::new()));
    disk.watch({
        let (acknowledged, begun) = (Arc::clone(&acknowledged), Arc::clone(&begun));
        let (moments, time) = (Arc::clone(&moments), Arc::clone(&time));
        move |picture| {
            moments.lock().unwrap().push(Moment {
                picture: picture.clone(),
                acknowledged: acknowledged.load(Ordering::SeqCst),
                begun: begun.load(Ordering::SeqCst),
                now: time.load(Ordering::SeqCst),
            });
        }
    });
    runtime().block_on(async {
        let mut engine = open(&disk, &time).await.unwrap();
        for (i, operation) in operations.iter().enumerate() {
            let next = models[i].after(operation).unwrap_or_else(|| panic!("{i}: {operation:?}"));
            models.push(next);
            begun.store(i + 1, Ordering::SeqCst);
            time.store(models[i + 1].now(), Ordering::SeqCst);
            if matches!(operation, Operation::Restart) {
                engine.shutdown().await;
                drop(engine);
                engine = open(&disk, &time).await.unwrap();
            } else {
                run(&engine, operation).await.unwrap_or_else(|e| panic!("{operation:?}: {e}"));
            }
            acknowledged.store(i + 1, Ordering::SeqCst);
            assert_eq!(
                Model::seen(&engine).unwrap(),
                models[i + 1].visible(),
                "{i}: {operation:?}"
            );
        }
        settle(&disk).await;
        engine.shutdown().await;
    });
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    (moments, models)
}

/// What may be found, and which disks were seen to show it.
struct Search<'a> {
    models: &'a [Model],
    operations: &'a [Operation],
    /// Many moments leave the same disk, which needs to be looked at once.
    known: Mutex<HashSet<u64>>,
}

/// One crash.
struct Crash<'a> {
    disk: MemoryDisk,
    /// What must have happened, up to what may have.
    allowed: &'a [Model],
    time: Time,
    context: String,
}

impl Crash<'_> {
    /// Recovers and compares; returns what was found and the pictures of recovery.
    async fn recover(&self) -> (Model, Vec<Picture>) {
        let Self { disk, allowed, time, context } = self;
        let pictures = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&pictures);
        disk.watch(move |picture| keep.lock().unwrap().push(picture.clone()));
        let engine = open(disk, time).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(engine.health().damaged, vec![], "{context}");
        let seen = Model::seen(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
        let now = time.load(Ordering::SeqCst);
        let found = allowed.iter().map(|model| model.at(now)).find(|model| model.visible() == seen);
        let Some(found) = found else {
            panic!("{context}\nfound {seen:#?}\nexpected one of {allowed:#?} at {now}")
        };
        engine.shutdown().await;
        (found, std::mem::take(&mut *pictures.lock().unwrap()))
    }

    /// What was recovered takes writes, seals and merges them, and is the same after a restart.
    async fn goes_on(&self, mut model: Model) {
        let Self { disk, time, context, .. } = self;
        let engine = open(disk, time).await.unwrap();
        let names: Vec<String> = model.collections.keys().cloned().collect();
        for name in names {
            let name: &'static str = script_name(&name);
            let rows = vec![(2, 1), (900, 2)];
            let is_keyed = model.collections[name].partitions.contains_key(KEYED[0]);
            for operation in [
                if is_keyed {
                    Operation::InsertKeyed(name, rows)
                } else {
                    Operation::Insert(name, "_default", rows)
                },
                Operation::Flush(name),
                Operation::Delete(name, vec![3, 900]),
                Operation::Compact(name),
            ] {
                run(&engine, &operation)
                    .await
                    .unwrap_or_else(|e| panic!("{context}: {operation:?}: {e}"));
                model = model.after(&operation).unwrap();
            }
        }
        assert_eq!(Model::seen(&engine).unwrap(), model.visible(), "{context}, going on");
        let disk = disk.picture().crashed(Survival::Synced);
        engine.shutdown().await;
        let context = format!("{context}, going on, then a power cut");
        Crash { disk, allowed: &[model], time: Arc::clone(time), context }.recover().await;
    }
}

fn script_name(name: &str) -> &'static str {
    ["a", "b", "c", "d"].into_iter().find(|known| *known == name).unwrap()
}

impl Search<'_> {
    /// What a crash leaves, unless it was looked at before.
    fn crash(
        &self,
        picture: &Picture,
        survival: Survival,
        moment: &Moment,
        context: &str,
    ) -> Option<Crash<'_>> {
        let disk = picture.crashed(survival);
        let mut hasher = DefaultHasher::new();
        (moment.acknowledged, moment.begun, moment.now).hash(&mut hasher);
        disk.picture().hash(&mut hasher);
        let is_new = self.known.lock().unwrap().insert(hasher.finish());
        let allowed = &self.models[moment.acknowledged..=moment.begun];
        let time = Time::new(moment.now.into());
        is_new.then(|| Crash { disk, allowed, time, context: format!("{context}, {survival:?}") })
    }

    /// Crashes at one moment in every way, and once more while recovering.
    async fn crash_at(&self, i: usize, moment: &Moment) {
        let seed = i as u64;
        let after = self.operations.get(moment.begun.saturating_sub(1));
        for survival in [Survival::Synced, Survival::Everything, Survival::Some(seed)] {
            let context = format!("crash at change {i}, after {after:?}");
            let Some(crash) = self.crash(&moment.picture, survival, moment, &context) else {
                continue;
            };
            let (found, pictures) = crash.recover().await;
            if i.is_multiple_of(8) {
                crash.goes_on(found).await;
            }
            if pictures.is_empty() {
                continue;
            }
            // One moment of recovery and one way now, so that all points of the script together
            // cover them all.
            let at = i % pictures.len();
            let second =
                if i.is_multiple_of(2) { Survival::Synced } else { Survival::Some(seed + 1) };
            let context = format!("{}, then at change {at} of recovery", crash.context);
            if let Some(again) = self.crash(&pictures[at], second, moment, &context) {
                again.recover().await;
            }
        }
    }
}

#[test]
fn a_crash_at_any_change_loses_nothing_acknowledged_and_leaves_nothing_by_half() {
    let operations = script();
    assert!(operations.len() >= 60);
    let (moments, models) = record(&operations);
    let search =
        Search { models: &models, operations: &operations, known: Mutex::new(HashSet::new()) };
    for_each(moments.len(), async |i| search.crash_at(i, &moments[i]).await);
    let crashes = search.known.lock().unwrap().len();
    println!("{} operations, {} crash points, {crashes} disks", operations.len(), moments.len());
}
