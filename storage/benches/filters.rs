//! What a filter over a million rows costs with and without indexes on its fields: CPU time of
//! making the mask, the two taking turns, the median of some rounds.
//!
//! `cargo bench -p elanus-storage --bench filters [-- rows [part of a filter]]`

#![expect(clippy::print_stdout, reason = "its figures are what a benchmark is for")]

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, LargeBinaryArray, LargeStringArray, RecordBatch};
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::filter::{Predicate, Templates, compile};
use elanus_storage::schema::{DataType, Field, Schema};
use elanus_storage::{
    Collection, Durability, Engine, Grams, JsonCast, JsonPath, NewCollection, NewIndex, Options,
    PathStep, ReadView, Scope, TermsDef,
};

const ROUNDS: usize = 3;
/// A round makes the mask again and again until so much time was spent: the kernel counts in ticks of
/// some milliseconds.
const ROUND: Duration = Duration::from_millis(200);

const FILTERS: [&str; 23] = [
    "number == 123456",
    "number in [1, 1000, 50000, 123456, 900000]",
    "number < 1000",
    "number < 10000",
    "number < 100000",
    "number < 500000",
    "number != 5",
    "number > 500000 and number < 500100",
    "hundred == 7",
    "hundred < 50",
    "category == \"category 7\"",
    "category in [\"category 7\", \"category 77\"]",
    "category != \"category 7\"",
    "category like \"category 7%\"",
    "category like \"%gory 99%\"",
    "title == \"title 123456 of a row\"",
    "title like \"title 1234%\"",
    "title like \"%e 12345%\"",
    "title like \"%title%\"",
    "doc[\"n\"] == 123456",
    "doc[\"n\"] < 100000",
    "doc[\"n\"] >= 500000",
    "hundred == 7 and number < 500000 and category like \"%1%\"",
];

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let rows = args.first().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    let part = args.get(1).map_or("", String::as_str);
    let dir = tempfile::tempdir().expect("a directory to work in");
    let options = Options {
        dir: dir.path().to_owned(),
        durability: Durability::Async,
        seal_rows: usize::MAX,
        seal_bytes: usize::MAX,
        ..Options::default()
    };
    let engine = Engine::open(options).await.expect("an engine");
    let plain = filled(&engine, "plain", rows).await;
    let indexed = filled(&engine, "indexed", rows).await;
    for index in definitions() {
        let (name, before) = (index.name.clone(), cpu());
        let index = engine.create_index(DEFAULT_DB, "indexed", index).await.expect("an index");
        while indexed.index_progress(&index).pending > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("built {name} in {:.2} s of CPU time", (cpu() - before).as_secs_f64());
    }
    println!("{:60} {:>9} {:>12} {:>12}", "filter", "rows", "without, us", "with, us");
    let views = [plain.view(), indexed.view()];
    for text in FILTERS.into_iter().filter(|text| text.contains(part)) {
        let filters = views.each_ref().map(|view| {
            compile(text, view.schema(), &Templates::default()).expect("a filter of the language")
        });
        let mut micros = [Vec::new(), Vec::new()];
        let mut found = [0; 2];
        for _ in 0..ROUNDS {
            for side in 0..2 {
                let (before, mut times) = (cpu(), 0);
                while cpu() - before < ROUND {
                    for _ in 0..4 {
                        found[side] = select(&views[side], &filters[side]);
                        times += 1;
                    }
                }
                micros[side].push((cpu() - before).as_secs_f64() * 1e6 / f64::from(times));
            }
        }
        assert_eq!(found[0], found[1], "{text}");
        let us = micros.map(|mut rounds| {
            rounds.sort_by(f64::total_cmp);
            rounds[ROUNDS / 2]
        });
        println!("{text:60} {:>9} {:>12.0} {:>12.0}", found[0], us[0], us[1]);
    }
    engine.shutdown().await;
}

fn select(view: &ReadView, filter: &Predicate) -> usize {
    let scope = Scope { filter: Some(filter), ..Scope::default() };
    view.select(&scope, &Cancel::never()).expect("sound rows").rows()
}

/// CPU time of the process so far, as Linux counts it for each of its threads.
fn cpu() -> Duration {
    let tasks = fs_err::read_dir("/proc/self/task").expect("Linux tells its threads");
    let of_task = |task: std::io::Result<fs_err::DirEntry>| {
        let counted = fs_err::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        counted.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of_task).sum())
}

fn definitions() -> Vec<NewIndex> {
    let index = |name: &str, field: &str, terms| NewIndex {
        name: name.into(),
        field: field.into(),
        terms: Some(terms),
        ..NewIndex::default()
    };
    let path =
        JsonPath { steps: vec![PathStep::Key("n".into())], cast: JsonCast::Double, array: false };
    vec![
        index("number", "number", TermsDef::default()),
        index("hundred", "hundred", TermsDef::default()),
        index("category", "category", TermsDef::default()),
        index(
            "title, n-grams",
            "title",
            TermsDef { path: None, grams: Some(Grams { min: 2, max: 3 }) },
        ),
        index("doc[\"n\"]", "doc", TermsDef { path: Some(path), grams: None }),
    ]
}

async fn filled(engine: &Engine, name: &str, rows: i64) -> Arc<Collection> {
    let text = || DataType::VarChar { max_length: 64 };
    let field = |name: &str, data_type| Field {
        id: 0,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: false,
        default: None,
        primary_key: name == "id",
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        function_output: false,
        column: None,
        type_params: vec![],
    };
    let fields = vec![
        field("id", DataType::Int64),
        field("number", DataType::Int64),
        field("hundred", DataType::Int64),
        field("category", text()),
        field("title", text()),
        field("doc", DataType::Json),
    ];
    let new = NewCollection {
        name: name.into(),
        schema: Schema {
            description: String::new(),
            fields,
            enable_dynamic_field: false,
            functions: vec![],
            properties: vec![],
            version: 0,
            next_field: 0,
            pending: vec![],
        },
        shards: 1,
        consistency: 0,
        properties: vec![],
        partitions: vec![],
        num_partitions: 0,
    };
    let info = engine.create_collection(DEFAULT_DB, new).await.expect("a new collection");
    let collection = engine.collection(info.id).expect("it was created");
    let partition = collection.info().partitions[0].id;
    for start in (0..rows).step_by(50_000) {
        let keys = start..(start + 50_000).min(rows);
        collection.insert(partition, batch(keys, rows)).await.expect("room for the rows");
    }
    engine.flush(collection.id()).await.expect("room for the rows");
    collection
}

/// Numbers are a permutation of the keys, so that rows with neighbouring values lie apart.
fn batch(keys: std::ops::Range<i64>, rows: i64) -> RecordBatch {
    let number = |key: i64| (key * 7_919 + 13) % rows;
    let numbers = |of: fn(i64) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(keys.clone().map(|key| of(number(key)))))
    };
    let texts = |of: fn(i64) -> String| -> ArrayRef {
        Arc::new(LargeStringArray::from_iter_values(keys.clone().map(|key| of(number(key)))))
    };
    let docs = keys.clone().map(|key| format!(r#"{{"a":"some text","n":{}}}"#, number(key)));
    RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(keys.clone())) as ArrayRef),
        ("number", numbers(|number| number)),
        ("hundred", numbers(|number| number % 100)),
        ("category", texts(|number| format!("category {}", number % 1_000))),
        ("title", texts(|number| format!("title {number} of a row"))),
        ("doc", Arc::new(LargeBinaryArray::from_iter_values(docs))),
    ])
    .expect("columns of one length")
}
