//! What the tests of the engine share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, RecordBatch};
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::schema::{DataType, Field, Schema};
use elanus_storage::{Collection, Engine, NewCollection, Options, ReadView, Scope};

pub(crate) fn field(name: &str, data_type: DataType) -> Field {
    Field {
        id: 0,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: true,
        default: None,
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        function_output: false,
        type_params: vec![],
        column: None,
    }
}

pub(crate) fn key(name: &str, data_type: DataType) -> Field {
    Field { primary_key: true, nullable: false, ..field(name, data_type) }
}

pub(crate) fn new_collection(name: &str, fields: Vec<Field>) -> NewCollection {
    NewCollection {
        name: name.into(),
        schema: Schema {
            description: String::new(),
            fields,
            enable_dynamic_field: false,
            functions: vec![],
            properties: vec![],
            version: 0,
            pending: vec![],
            next_field: 0,
        },
        shards: 1,
        consistency: 2,
        properties: vec![],
        partitions: vec!["other".into()],
        num_partitions: 0,
    }
}

pub(crate) fn items(name: &str) -> NewCollection {
    new_collection(
        name,
        vec![
            key("id", DataType::Int64),
            field("value", DataType::Int64),
            field("terms", DataType::SparseFloatVector),
        ],
    )
}

pub(crate) fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        search_threads: 1,
        build_threads: 1,
        // Too little for a reserve file: directories are copied, and files damaged, one by one.
        disk_reserve_bytes: 1,
        ..Options::default()
    }
}

pub(crate) async fn open(dir: &Path) -> Engine {
    Engine::open(options(dir)).await.unwrap()
}

pub(crate) async fn with_items(dir: &Path) -> (Engine, Arc<Collection>) {
    let engine = open(dir).await;
    let info = engine.create_collection(DEFAULT_DB, items("items")).await.unwrap();
    let collection = engine.collection(info.id).unwrap();
    (engine, collection)
}

pub(crate) fn find(engine: &Engine, name: &str) -> Arc<Collection> {
    let catalog = engine.catalog();
    engine.collection(catalog.resolve(DEFAULT_DB, name).unwrap().id).unwrap()
}

pub(crate) fn partition(collection: &Collection, name: &str) -> i64 {
    collection.info().partition(name).unwrap().id
}

pub(crate) fn rows(pairs: &[(i64, i64)]) -> RecordBatch {
    let terms = pairs.iter().map(|&(id, value)| {
        (value % 3 != 0).then(|| {
            let mut row = Vec::new();
            row.extend_from_slice(&((id % 100) as u32).to_le_bytes());
            row.extend_from_slice(&1.0_f32.to_le_bytes());
            row
        })
    });
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|pair| pair.0)))),
        ("value", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|pair| pair.1)))),
        ("terms", Arc::new(LargeBinaryArray::from_iter(terms))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn content_of(view: &ReadView, partitions: Option<&[i64]>) -> BTreeMap<i64, i64> {
    let scope = Scope { partitions, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let addresses = view.rows_by_key(&selection, 0, None).unwrap();
    assert_eq!(addresses.len(), view.count(&selection));
    let batch = view.take(&addresses, &["id", "value"]).unwrap();
    let numbers = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().to_vec();
    let (ids, values) = (numbers(0), numbers(1));
    assert!(ids.is_sorted_by(|a, b| a < b), "a key occurs twice: {ids:?}");
    ids.into_iter().zip(values).collect()
}

pub(crate) fn content(collection: &Collection) -> BTreeMap<i64, i64> {
    content_of(&collection.view(), None)
}

pub(crate) fn map(pairs: &[(i64, i64)]) -> BTreeMap<i64, i64> {
    pairs.iter().copied().collect()
}

/// A small generator of numbers that repeats for a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Copies a directory as it is.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).unwrap();
        }
    }
}

/// All files below a directory, in order.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = below(dir).unwrap();
    found.sort();
    found
}

fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(unless_gone(below(&path)));
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Nothing for what the engine took away between being listed and being looked at.
pub(crate) fn unless_gone<T: Default>(found: io::Result<T>) -> T {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => T::default(),
        found => found.unwrap(),
    }
}

/// Waits for what happens in the background.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to hold");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs one of these tests as a process of its own, which reports on its output what it has done, and
/// kills it some time after it has reported so often. Returns all that stands behind `word`.
pub(crate) fn run_and_kill(
    test: &str,
    env: &[(&str, &OsStr)],
    word: &'static str,
    (reports, then): (usize, Duration),
) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Read all the time: a full pipe would hold up the process that is to be killed at work.
    let (send, told) = mpsc::channel();
    std::thread::spawn(move || {
        // The test runner writes to the same stream.
        let behind = |line: String| Some(line.split_once(word)?.1.to_owned());
        lines.map_while(Result::ok).filter_map(behind).try_for_each(|line| send.send(line))
    });
    let in_time = std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(30)).ok());
    let mut found = Vec::from_iter(in_time.take(reports));
    std::thread::sleep(then);
    child.kill().unwrap();
    child.wait().unwrap();
    found.extend(told);
    assert!(found.len() >= reports, "{test} did too little: {found:?}");
    found
}
