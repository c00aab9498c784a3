//! Random operations against a map in memory, with restarts in between. Exact searches are exact,
//! and those on graphs find no row that is not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{Cancel, Metric, Query, SearchParams, SparseRow};
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::schema::{DataType, Field};
use elanus_storage::{
    AnnQuery, Collection, Engine, GraphDef, Keys, NewCollection, NewIndex, Options, Scope, Ts,
};

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
    /// Nearest rows that searches on graphs found, and how many there were to find.
    recall: (usize, usize),
}

/// Items with a vector beside the rest, which lies at (key, value).
fn with_vectors(name: &str) -> NewCollection {
    let mut new = items(name);
    let vector = field("v", DataType::FloatVector { dim: 2 });
    new.schema.fields.push(Field { nullable: false, ..vector });
    new
}

fn batch(pairs: &[(i64, i64)]) -> RecordBatch {
    let items = rows(pairs);
    let numbers = pairs.iter().flat_map(|pair| [pair.0 as f32, pair.1 as f32]);
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let numbers = Arc::new(Float32Array::from_iter_values(numbers));
    let vectors: ArrayRef = Arc::new(FixedSizeListArray::new(item, 2, numbers, None));
    let names = ["id", "value", "terms"];
    let columns = names.map(|name| (name, Arc::clone(items.column_by_name(name).unwrap())));
    RecordBatch::try_from_iter(columns.into_iter().chain([("v", vectors)])).unwrap()
}

/// Keys and values of the best rows, best first.
fn search(
    collection: &Collection,
    (field, metric, query): (&str, Metric, Query<'_>),
    k: usize,
    exact: bool,
) -> Vec<(i64, i64)> {
    let view = collection.view();
    let selection = view.select(&Scope::default(), &Cancel::never()).unwrap();
    let params = SearchParams { k, ..SearchParams::default() };
    let ann = AnnQuery { field, metric, queries: &[query], params, exact };
    let found = view.search(&selection, &ann, &Cancel::never()).unwrap().remove(0);
    let found: Vec<_> = found.iter().map(|found| found.addr).collect();
    let batch = view.take(&found, &["id", "value"]).unwrap();
    let numbers = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().to_vec();
    numbers(0).into_iter().zip(numbers(1)).collect()
}

fn values(model: &Model) -> BTreeMap<i64, i64> {
    model.iter().map(|(key, (_, value))| (*key, *value)).collect()
}

impl Run {
    async fn open(dir: &Path, seed: u64) -> Engine {
        let seal_rows = if seed.is_multiple_of(2) { 150 } else { 200_000 };
        let upkeep_every_ms = if seed.is_multiple_of(3) { 2 } else { 30_000 };
        let options = Options { seal_rows, upkeep_every_ms, index_rows: 8, ..options(dir) };
        Engine::open(options).await.unwrap()
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
            0..42 => {
                let p = self.partition(&collection);
                let n = 1 + self.random.below(20);
                let pairs: Vec<(i64, i64)> = (0..n)
                    .map(|_| (self.random.below(80) as i64, self.random.below(1000) as i64))
                    .collect();
                let written = collection.insert(p, batch(&pairs)).await.unwrap();
                self.model.extend(pairs.iter().map(|&(key, value)| (key, (p, value))));
                self.past.push((written.ts, values(&self.model)));
            }
            42..45 => {
                let engine = self.engine();
                if collection.info().index_of_field("v").is_some() {
                    engine.drop_index(DEFAULT_DB, "items", "v").await.unwrap();
                } else {
                    let graph = GraphDef { metric: Metric::L2, m: 8, ef_construction: 40 };
                    let new =
                        NewIndex { field: "v".into(), graph: Some(graph), ..NewIndex::default() };
                    engine.create_index(DEFAULT_DB, "items", new).await.unwrap();
                }
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
        self.check_searches(&collection, seed, step);
        if !self.past.is_empty() {
            let at = self.random.below(self.past.len() as u64);
            let (ts, expected) = &self.past[usize::try_from(at).unwrap()];
            let found = content_of(&collection.view_at(*ts).unwrap(), None);
            assert_eq!(&found, expected, "seed {seed}, step {step}, at {ts}");
        }
    }
}

impl Run {
    fn check_searches(&mut self, collection: &Collection, seed: u64, step: usize) {
        let context = format!("seed {seed}, step {step}");
        let at = (self.random.below(80) as i64, self.random.below(1000) as i64);
        let bytes: Vec<u8> = [at.0, at.1].iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        let near = ("v", Metric::L2, Query::Dense(&bytes));
        let mut expected: Vec<(i64, i64)> = values(&self.model).into_iter().collect();
        expected.sort_by_key(|row| (row.0 - at.0).pow(2) + (row.1 - at.1).pow(2));
        expected.truncate(10);
        let distance = |row: &(i64, i64)| (row.0 - at.0).pow(2) + (row.1 - at.1).pow(2);
        let distances: Vec<i64> = expected.iter().map(distance).collect();

        // Rows at the same distance may come in any order.
        let exact = search(collection, near, 10, true);
        assert_eq!(exact.iter().map(distance).collect::<Vec<_>>(), distances, "{context}");
        let walked = search(collection, near, 10, false);
        let mut keys = std::collections::BTreeSet::new();
        for (key, value) in &walked {
            let row = self.model.get(key).map(|(_, value)| value);
            assert_eq!(row, Some(value), "{context}: row {key} is not there, and found");
            assert!(keys.insert(key), "{context}: row {key} is found twice");
        }
        let last = distances.last().copied().unwrap_or(0);
        self.recall.0 += walked.iter().filter(|row| distance(row) <= last).count();
        self.recall.1 += expected.len();

        let mut term = u32::try_from(at.0).unwrap().to_le_bytes().to_vec();
        term.extend_from_slice(&1.0_f32.to_le_bytes());
        let query = Query::Sparse(SparseRow::parse(&term).unwrap());
        let found = search(collection, ("terms", Metric::Ip, query), 10, false);
        let row = self.model.get(&at.0).map(|(_, value)| (at.0, *value));
        let expected: Vec<(i64, i64)> = row.into_iter().filter(|row| row.1 % 3 != 0).collect();
        assert_eq!(found, expected, "{context}: rows with term {}", at.0);
    }
}

async fn run(seed: u64, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Run::open(dir.path(), seed).await;
    engine.create_collection(DEFAULT_DB, with_vectors("items")).await.unwrap();
    let mut run = Run {
        random: Random::new(seed),
        dir,
        engine: Some(engine),
        model: Model::new(),
        past: Vec::new(),
        recall: (0, 0),
    };
    for step in 0..steps {
        run.step(seed).await;
        run.check(seed, step);
    }
    let (found, expected) = run.recall;
    assert!(found * 100 >= expected * 98, "seed {seed}: recall {found} of {expected}");
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
