//! `kill -9` in the middle of changes of the catalog: each happened as a whole, or not at all.
//!
//! One process carries out a fixed sequence of changes and tells which are done. What a start
//! finds after the kill must be the state after all of those, or after one more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use elanus_index::Cancel;
use elanus_storage::catalog::DEFAULT_DB;
use elanus_storage::schema::{DataType, Field, Value};
use elanus_storage::{CollectionChange, Engine, Scope};

use crate::common::*;

const DIR: &str = "ELANUS_DDL_DIR";
const FROM: &str = "ELANUS_DDL_FROM";
const ALIAS: &str = "live";
const NAMES: [&str; 2] = ["first", "second"];

/// What clients can see.
#[derive(Clone, Debug, PartialEq)]
struct State {
    /// Name of the collection that changes; the other one is always `spare`.
    name: String,
    /// What the alias stands for.
    alias: String,
    /// Added fields, each with what all rows hold there.
    fields: BTreeMap<String, i64>,
    partitions: BTreeSet<String>,
    /// Rows of the collection that changes.
    rows: BTreeMap<i64, i64>,
}

impl State {
    fn start() -> Self {
        Self {
            name: NAMES[0].into(),
            alias: "spare".into(),
            fields: BTreeMap::new(),
            partitions: ["_default".to_owned(), "other".to_owned()].into(),
            rows: BTreeMap::new(),
        }
    }
}

/// The `step`-th change, in the engine or in the model.
async fn change(engine: Option<&Engine>, step: i64, state: &mut State) {
    let name = state.name.clone();
    let collection = engine.map(|engine| find(engine, &name));
    let part = format!("p{}", step / 8);
    match step % 8 {
        0 | 5 => {
            let batch: Vec<(i64, i64)> = (0..20).map(|i| (step * 100 + i, step)).collect();
            let to = if step % 8 == 5 { part.as_str() } else { "_default" };
            if let Some(collection) = &collection {
                let p = partition(collection, to);
                collection.insert(p, rows(&batch)).await.unwrap();
            }
            state.rows.extend(batch);
        }
        // Few: fields are there for good.
        1 if step < 80 => {
            let added = format!("extra{step}");
            if let Some(engine) = engine {
                let field =
                    Field { default: Some(Value::Int(step)), ..field(&added, DataType::Int64) };
                let change = CollectionChange::AddField(Box::new(field));
                engine.alter_collection(DEFAULT_DB, &name, change).await.unwrap();
            }
            state.fields.insert(added, step);
        }
        1 => {
            if let (Some(engine), Some(collection)) = (engine, &collection) {
                engine.flush(collection.id()).await.unwrap();
            }
        }
        2 => {
            let new = if name == NAMES[0] { NAMES[1] } else { NAMES[0] };
            if let Some(engine) = engine {
                let renamed = engine.rename_collection(DEFAULT_DB, &name, DEFAULT_DB, new);
                renamed.await.unwrap();
            }
            if state.alias == name {
                state.alias = new.to_owned();
            }
            state.name = new.to_owned();
        }
        3 => {
            let to = if state.alias == "spare" { name } else { "spare".to_owned() };
            if let Some(engine) = engine {
                engine.alter_alias(DEFAULT_DB, ALIAS, &to).await.unwrap();
            }
            state.alias = to;
        }
        4 => {
            if let Some(engine) = engine {
                engine.create_partition(DEFAULT_DB, &name, &part).await.unwrap();
            }
            state.partitions.insert(part);
        }
        6 => {
            if let Some(engine) = engine {
                engine.drop_partition(DEFAULT_DB, &name, &part).await.unwrap();
            }
            state.partitions.remove(&part);
            state.rows.retain(|key, _| key / 100 != step - 1);
        }
        _ if step % 16 == 7 => {
            if let (Some(engine), Some(collection)) = (engine, &collection) {
                engine.truncate(collection.id()).await.unwrap();
            }
            state.rows.clear();
        }
        _ => {}
    }
}

fn found(engine: &Engine) -> State {
    let catalog = engine.catalog();
    let names: Vec<String> = (catalog.collections(DEFAULT_DB))
        .map(|info| info.name.clone())
        .filter(|name| name != "spare")
        .collect();
    let [name] = &names[..] else { panic!("collections {names:?}") };
    let collection = find(engine, name);
    let info = collection.info();
    let added = info.schema.fields.iter().map(|field| field.name.clone());
    let added: Vec<String> = added.filter(|field| field.starts_with("extra")).collect();
    let view = collection.view();
    let scope = Scope { partitions: None, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never()).unwrap();
    let addresses = view.rows_by_key(&selection, 0, None).unwrap();
    let fields = (added.iter())
        .map(|field| {
            let column = view.take(&addresses, &[field.as_str()]).unwrap();
            let column = column.column(0).as_primitive::<Int64Type>().clone();
            let default = field["extra".len()..].parse().unwrap();
            assert!(column.iter().all(|value| value == Some(default)), "{field}: {column:?}");
            (field.clone(), default)
        })
        .collect();
    State {
        name: name.clone(),
        alias: catalog.resolve(DEFAULT_DB, ALIAS).unwrap().name.clone(),
        fields,
        partitions: info.partitions.iter().map(|partition| partition.name.clone()).collect(),
        rows: content(&collection),
    }
}

/// Not a test by itself: the process that is killed.
#[tokio::test]
async fn changes_until_killed() {
    let (Ok(dir), Ok(from)) = (std::env::var(DIR), std::env::var(FROM)) else { return };
    let engine = open(Path::new(&dir)).await;
    let mut state = found(&engine);
    for step in from.parse().unwrap().. {
        change(Some(&engine), step, &mut state).await;
        writeln!(std::io::stdout().lock(), "done {step}").unwrap();
    }
}

/// Goes on with the changes for a while; returns the last one that was told to be done.
fn last_done(dir: &Path, from: i64, then: Duration) -> i64 {
    let first = from.to_string();
    let env = [(DIR, dir.as_os_str()), (FROM, first.as_ref())];
    let done = run_and_kill("ddl::changes_until_killed", &env, "done ", (6, then));
    // The last line may be torn.
    done.iter().filter_map(|step| step.parse().ok()).max().unwrap()
}

#[tokio::test]
async fn changes_of_the_catalog_are_whole_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    for name in [NAMES[0], "spare"] {
        engine.create_collection(DEFAULT_DB, items(name)).await.unwrap();
    }
    engine.create_alias(DEFAULT_DB, ALIAS, "spare").await.unwrap();
    engine.shutdown().await;
    let (mut state, mut step) = (State::start(), 0);
    let mut random = Random::new(20_261_122);
    for round in 0..8 {
        let then = Duration::from_millis(random.below(300));
        let done = last_done(dir.path(), step, then);
        for step in step..=done {
            change(None, step, &mut state).await;
        }
        let engine = open(dir.path()).await;
        assert_eq!(engine.health().damaged, []);
        let after = found(&engine);
        let mut next = state.clone();
        change(None, done + 1, &mut next).await;
        let went_on = after == next;
        assert!(
            went_on || after == state,
            "round {round}, after {done}:\n{after:?}\nis neither\n{state:?}\nnor\n{next:?}"
        );
        // A change that was cut off may have been the last one of its kind: go on behind it.
        (state, step) = if went_on { (next, done + 2) } else { (state, done + 1) };
        engine.shutdown().await;
    }
}
