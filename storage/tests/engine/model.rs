//! Random operations against a map in memory, with restarts in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::{Collection, Engine, Keys, Options, Ts};

use crate::common::*;

/// Key to partition and value.
type Model = BTreeMap<i64, (i64, i64)>;

struct Run {
    random: Random,
    dir: tempfile::TempDir,
    engine: Option<Engine>,
    model: Model,
    /// Moments of the past with what a view of them shows.
    past: Vec<(Ts, BTreeMap<i64, i64>)>,
}

fn values(model: &Model) -> BTreeMap<i64, i64> {
    model.iter().map(|(key, (_, value))| (*key, *value)).collect()
}

impl Run {
    async fn open(dir: &Path, seed: u64) -> Engine {
        let seal_rows = if seed.is_multiple_of(2) { 150 } else { 200_000 };
        let upkeep_every_ms = if seed.is_multiple_of(3) { 2 } else { 30_000 };
        Engine::open(Options { seal_rows, upkeep_every_ms, ..options(dir) }).await.unwrap()
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn collection(&self) -> Arc<Collection> {
        find(self.engine(), "items")
    }

    fn partition(&mut self, collection: &Collection) -> i64 {
        let partitions = &collection.info().partitions;
        partitions[usize::try_from(self.random.below(partitions.len() as u64)).unwrap()].id
    }

    async fn step(&mut self, seed: u64) {
        let collection = self.collection();
        match self.random.below(100) {
            0..45 => {
                let p = self.partition(&collection);
                let n = 1 + self.random.below(20);
                let pairs: Vec<(i64, i64)> = (0..n)
                    .map(|_| (self.random.below(80) as i64, self.random.below(1000) as i64))
                    .collect();
                let written = collection.insert(p, rows(&pairs)).await.unwrap();
                self.model.extend(pairs.iter().map(|&(key, value)| (key, (p, value))));
                self.past.push((written.ts, values(&self.model)));
            }
            45..70 => {
                let p = self.partition(&collection);
                let only = self.random.below(3) == 0;
                let n = self.random.below(6);
                let keys: Vec<i64> = (0..n).map(|_| self.random.below(80) as i64).collect();
                let before = self.model.len();
                for key in &keys {
                    if self.model.get(key).is_some_and(|(q, _)| !only || *q == p) {
                        self.model.remove(key);
                    }
                }
                let scope = only.then(|| vec![p]);
                let written = collection.delete(scope, Keys::Int(keys)).await.unwrap();
                assert_eq!(written.rows, before - self.model.len());
                if n > 0 {
                    self.past.push((written.ts, values(&self.model)));
                }
            }
            70..80 => drop(self.engine().flush(collection.id()).await.unwrap()),
            80..82 => drop(self.engine().compact(collection.id()).unwrap()),
            82..85 => drop(crate::compact::compact(self.engine(), &collection).await),
            85..90 => {
                drop(collection);
                self.restart(seed).await;
            }
            90..92 => {
                self.engine().truncate(collection.id()).await.unwrap();
                self.model.clear();
                self.past.clear();
            }
            92..94 => {
                let engine = self.engine();
                let gone = partition(&collection, "other");
                engine.drop_partition(DEFAULT_DB, "items", "other").await.unwrap();
                engine.create_partition(DEFAULT_DB, "items", "other").await.unwrap();
                self.model.retain(|_, (p, _)| *p != gone);
                self.past.clear();
            }
            _ => {
                drop(collection);
                self.crash(seed).await;
            }
        }
    }

    async fn restart(&mut self, seed: u64) {
        self.engine().shutdown().await;
        self.engine = None;
        self.engine = Some(Self::open(self.dir.path(), seed).await);
    }

    /// Ends in the middle of a write that was never acknowledged: a shutdown writes nothing that
    /// a killed process would not have written, so only the torn end is to be added.
    async fn crash(&mut self, seed: u64) {
        self.engine().shutdown().await;
        self.engine = None;
        let last = files(&self.dir.path().join("log")).pop().unwrap();
        let mut bytes = fs_err::read(&last).unwrap();
        let tail = 1 + self.random.below(200);
        bytes.extend((0..tail).map(|_| self.random.below(256) as u8));
        fs_err::write(&last, bytes).unwrap();
        self.engine = Some(Self::open(self.dir.path(), seed).await);
    }

    fn check(&mut self, seed: u64, step: usize) {
        let collection = self.collection();
        assert_eq!(content(&collection), values(&self.model), "seed {seed}, step {step}");
        assert_eq!(collection.stats().rows, self.model.len(), "seed {seed}, step {step}");
        for info in &collection.info().partitions {
            let expected = (self.model.iter())
                .filter(|(_, (p, _))| *p == info.id)
                .map(|(key, (_, value))| (*key, *value))
                .collect();
            let found = content_of(&collection.view(), Some(&[info.id]));
            assert_eq!(found, expected, "seed {seed}, step {step}, partition {}", info.name);
        }
        if !self.past.is_empty() {
            let at = self.random.below(self.past.len() as u64);
            let (ts, expected) = &self.past[usize::try_from(at).unwrap()];
            let found = content_of(&collection.view_at(*ts), None);
            assert_eq!(&found, expected, "seed {seed}, step {step}, at {ts}");
        }
    }
}

async fn run(seed: u64, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Run::open(dir.path(), seed).await;
    engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let mut run = Run {
        random: Random::new(seed),
        dir,
        engine: Some(engine),
        model: Model::new(),
        past: Vec::new(),
    };
    for step in 0..steps {
        run.step(seed).await;
        run.check(seed, step);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_agrees_with_a_map() {
    for seed in 1..=8 {
        run(seed, 250).await;
    }
}

/// `ELANUS_SEED=7 ELANUS_STEPS=100000 cargo test --release -p elanus-storage a_long_run -- --ignored`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for as long as ELANUS_STEPS says"]
async fn a_long_run_agrees_with_a_map() {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(default)
    };
    let (seed, steps) = (number("ELANUS_SEED", 1), number("ELANUS_STEPS", 20_000));
    println!("ELANUS_SEED={seed} ELANUS_STEPS={steps}");
    run(seed, usize::try_from(steps).unwrap()).await;
}
