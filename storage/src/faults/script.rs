//! Operations on an engine, and a script of them.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int64Array, LargeBinaryArray, RecordBatch,
};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{Cancel, Metric};

use crate::catalog::{DEFAULT_DB, GraphDef, TTL, TermsDef};
use crate::filter::{Templates, compile};
use crate::schema::{DataType, Field, FunctionDef, Schema, Value};
use crate::segment::testing::field;
use crate::{Collection, CollectionChange, Engine, Error, Keys, NewCollection, NewIndex, Scope};

pub(super) const DB: &str = DEFAULT_DB;

/// The partitions of a partition key.
pub(super) const KEYED: [&str; 2] = ["_default_0", "_default_1"];

/// What a row reads that was written before `extra` was added.
pub(super) const EXTRA: i64 = 7;

/// One operation. Rows are pairs of key and value.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Create(&'static str),
    /// With a partition key, the value, of which the lowest bit chooses the partition.
    CreateKeyed(&'static str),
    Drop(&'static str),
    Rename(&'static str, &'static str),
    /// Into a partition; rows whose key exists anywhere are replaced.
    Insert(&'static str, &'static str, Vec<(i64, i64)>),
    /// Into both partitions of a new collection, as one write.
    InsertBoth(&'static str, Vec<(i64, i64)>, Vec<(i64, i64)>),
    /// By partition key, as one write.
    InsertKeyed(&'static str, Vec<(i64, i64)>),
    /// With this value for the added field.
    InsertExtra(&'static str, Vec<(i64, i64)>, i64),
    Delete(&'static str, Vec<i64>),
    DeleteIn(&'static str, &'static str, Vec<i64>),
    /// Rows whose value is below.
    DeleteBelow(&'static str, i64),
    Flush(&'static str),
    /// Everything into as few segments as possible; returns when that is done.
    Compact(&'static str),
    /// Waits for merges and indexes that are to be made anyway.
    Upkeep(&'static str),
    /// Rows expire after so many seconds.
    Expire(&'static str, u64),
    /// So many seconds pass.
    Pass(u64),
    Truncate(&'static str),
    CreateIndex(&'static str, &'static str),
    DropIndex(&'static str, &'static str),
    AddField(&'static str),
    /// Another model makes all vectors anew, and they are put in place.
    Refill(&'static str),
    Property(&'static str, &'static str),
    Load(&'static str),
    CreatePartition(&'static str, &'static str),
    DropPartition(&'static str, &'static str),
    CreateAlias(&'static str, &'static str),
    AlterAlias(&'static str, &'static str),
    DropAlias(&'static str),
    CreateDatabase(&'static str),
    DropDatabase(&'static str),
    /// The process ends in good order and another one begins.
    Restart,
}

/// What belongs into which of the [`KEYED`] partitions.
pub(super) fn by_partition(pairs: &[(i64, i64)]) -> [Vec<(i64, i64)>; 2] {
    [0, 1].map(|bit| pairs.iter().filter(|pair| pair.1 & 1 == bit).copied().collect())
}

/// What a model makes of a row. The vectors of two models are far from one another.
pub(super) fn vector(key: i64, value: i64, model: u32) -> [f32; 2] {
    [key as f32, value as f32 + 1_000.0 * model as f32]
}

/// The model that makes the vectors that are seen, and the one of those that are pending.
pub(super) fn models(schema: &Schema) -> (u32, Option<u32>) {
    let model = |function: &FunctionDef| function.description.parse().unwrap();
    let seen = schema.functions.first().map_or(0, model);
    (seen, schema.pending.first().map(|refill| model(&refill.function)))
}

fn vectors(pairs: &[(i64, i64)], model: u32) -> ArrayRef {
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let values = pairs.iter().flat_map(|pair| vector(pair.0, pair.1, model));
    let values = Arc::new(Float32Array::from_iter_values(values));
    Arc::new(FixedSizeListArray::new(item, 2, values, None))
}

pub(super) fn sparse(term: i64) -> Vec<u8> {
    let mut row = u32::try_from(term).unwrap().to_le_bytes().to_vec();
    row.extend_from_slice(&1.0_f32.to_le_bytes());
    row
}

/// Rows with the vectors of every model that is asked of a collection.
fn batch(collection: &Collection, pairs: &[(i64, i64)], extra: Option<i64>) -> RecordBatch {
    let schema = Arc::clone(&collection.info().schema);
    let numbers = |pick: fn(&(i64, i64)) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(pairs.iter().map(pick)))
    };
    let terms = pairs.iter().map(|pair| (pair.1 % 3 != 0).then(|| sparse(pair.1 % 3)));
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("id", numbers(|pair| pair.0)),
        ("value", numbers(|pair| pair.1)),
        ("terms", Arc::new(LargeBinaryArray::from_iter(terms))),
    ];
    let (seen, pending) = models(&schema);
    columns.push((schema.field("vector").unwrap().column(), vectors(pairs, seen)));
    for field in schema.pending_fields() {
        columns.push((field.column(), vectors(pairs, pending.unwrap())));
    }
    if let Some(extra) = extra {
        columns.push(("extra", Arc::new(Int64Array::from_value(extra, pairs.len()))));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

fn new_collection(name: &str) -> NewCollection {
    NewCollection {
        name: name.into(),
        schema: Schema {
            description: String::new(),
            fields: vec![
                Field { primary_key: true, nullable: false, ..field("id", DataType::Int64) },
                field("value", DataType::Int64),
                field("terms", DataType::SparseFloatVector),
                field("vector", DataType::FloatVector { dim: 2 }),
            ],
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

/// Has the next model make the vectors of all rows.
async fn refill(engine: &Engine, name: &str) -> Result<(), Error> {
    let collection = find(engine, name)?;
    let function = |model: u32| FunctionDef {
        id: 0,
        name: "f".into(),
        description: model.to_string(),
        kind: 1,
        inputs: vec!["id".into(), "value".into()],
        outputs: vec!["vector".into()],
        params: vec![],
    };
    let schema = Arc::clone(&collection.info().schema);
    let (seen, _) = models(&schema);
    let (now, pending) = (vec![function(seen)], vec![function(seen + 1)]);
    let change = CollectionChange::Functions { of: schema.version, now, pending };
    engine.alter_collection(DB, name, change).await?;
    while let Some(rows) = engine.next_unfilled(collection.id(), 3).await? {
        let numbers = |at: usize| rows.inputs.column(at).as_primitive::<Int64Type>().values();
        let pairs: Vec<(i64, i64)> =
            numbers(0).iter().copied().zip(numbers(1).iter().copied()).collect();
        engine.fill(rows, vec![vectors(&pairs, seen + 1)]).await?;
    }
    assert!(engine.end_refill(collection.id()).await?, "every row has a vector");
    Ok(())
}

fn find(engine: &Engine, name: &str) -> Result<Arc<Collection>, Error> {
    let catalog = engine.catalog();
    let id = catalog.collections(DB).find(|info| info.name == name).map(|info| info.id);
    id.and_then(|id| engine.collection(id))
        .ok_or_else(|| Error::CollectionNotFound { db: DB.into(), name: name.into() })
}

fn partition(collection: &Collection, name: &str) -> Result<i64, Error> {
    let info = collection.info();
    info.partition(name).map(|p| p.id).ok_or_else(|| Error::PartitionNotFound(name.into()))
}

/// Carries an operation out; [`Operation::Restart`] is the caller's.
pub(super) async fn run(engine: &Engine, operation: &Operation) -> Result<(), Error> {
    // An operation that takes place in the background is over when nothing is left to do.
    let rested = async |collection: &Collection| {
        while !collection.upkeep().is_idle() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let insert = async |name: &str, partition_name: &str, pairs: &[(i64, i64)], extra| {
        let collection = find(engine, name)?;
        let partition = partition(&collection, partition_name)?;
        collection.insert(partition, batch(&collection, pairs, extra)).await.map(drop)
    };
    let alter = async |name: &str, change: CollectionChange| {
        find(engine, name)?;
        engine.alter_collection(DB, name, change).await.map(drop)
    };
    match operation {
        Operation::Create(name) => {
            engine.create_collection(DB, new_collection(name)).await.map(drop)
        }
        Operation::CreateKeyed(name) => {
            let mut new = new_collection(name);
            new.schema.fields[1].partition_key = true;
            new.schema.fields[1].nullable = false;
            (new.partitions, new.num_partitions) = (KEYED.map(str::to_owned).into(), 2);
            engine.create_collection(DB, new).await.map(drop)
        }
        Operation::Drop(name) => engine.drop_collection(DB, name).await,
        Operation::Rename(old, new) => engine.rename_collection(DB, old, DB, new).await,
        Operation::Insert(name, partition, pairs) => insert(name, partition, pairs, None).await,
        Operation::InsertBoth(name, first, second) => {
            let collection = find(engine, name)?;
            let rows = |pairs: &[(i64, i64)]| batch(&collection, pairs, None);
            let parts = vec![
                (partition(&collection, "_default")?, rows(first)),
                (partition(&collection, "other")?, rows(second)),
            ];
            collection.insert_all(parts).await.map(drop)
        }
        Operation::InsertKeyed(name, pairs) => {
            let collection = find(engine, name)?;
            let mut parts = Vec::new();
            for (name, pairs) in KEYED.iter().zip(by_partition(pairs)) {
                parts.push((partition(&collection, name)?, batch(&collection, &pairs, None)));
            }
            collection.insert_all(parts).await.map(drop)
        }
        Operation::InsertExtra(name, pairs, extra) => {
            insert(name, "_default", pairs, Some(*extra)).await
        }
        Operation::Delete(name, keys) => {
            find(engine, name)?.delete(None, Keys::Int(keys.clone())).await.map(drop)
        }
        Operation::DeleteIn(name, partition_name, keys) => {
            let collection = find(engine, name)?;
            let only = vec![partition(&collection, partition_name)?];
            collection.delete(Some(only), Keys::Int(keys.clone())).await.map(drop)
        }
        Operation::DeleteBelow(name, bound) => {
            let collection = find(engine, name)?;
            let view = collection.view();
            let filter =
                compile(&format!("value < {bound}"), view.schema(), &Templates::new()).unwrap();
            let scope = Scope { partitions: None, filter: Some(&filter), ignore_growing: false };
            let selection = view.select(&scope, &Cancel::never())?;
            let found = view.take(&view.rows_by_key(&selection, 0, None)?, &["id"])?;
            let keys = found.column(0).as_primitive::<Int64Type>().values().to_vec();
            collection.delete(None, Keys::Int(keys)).await.map(drop)
        }
        Operation::Flush(name) => {
            let id = find(engine, name)?.id();
            engine.flush(id).await.map(drop)
        }
        Operation::Compact(name) => {
            let collection = find(engine, name)?;
            let id = engine.compact(collection.id())?;
            rested(&collection).await;
            let done = engine.compaction(id).filter(|compaction| compaction.done);
            match done.map(|compaction| compaction.failure) {
                Some(None) => Ok(()),
                // The disk's refusal, as a text.
                failure => Err(Error::DiskFull(format!("compaction: {failure:?}"))),
            }
        }
        Operation::Upkeep(name) => {
            let collection = find(engine, name)?;
            crate::upkeep::ask(engine.core(), &collection);
            rested(&collection).await;
            let pending = |index| collection.index_progress(index).pending;
            match collection.info().indexes.iter().map(pending).sum() {
                0 => Ok(()),
                rows => Err(Error::DiskFull(format!("{rows} rows lack an index"))),
            }
        }
        Operation::Expire(name, after) => {
            let set = vec![(TTL.to_owned(), after.to_string())];
            alter(name, CollectionChange::Properties { set, delete: vec![] }).await
        }
        Operation::Pass(_) => Ok(()),
        Operation::Truncate(name) => {
            let id = find(engine, name)?.id();
            engine.truncate(id).await
        }
        Operation::CreateIndex(name, field) => {
            let graph = GraphDef { metric: Metric::L2, m: 4, ef_construction: 16 };
            let new = NewIndex {
                graph: (*field == "vector").then_some(graph),
                terms: (*field == "value").then(TermsDef::default),
                name: String::new(),
                field: (*field).to_owned(),
                params: vec![
                    ("index_type".into(), "HNSW".into()),
                    ("metric_type".into(), "L2".into()),
                ],
            };
            engine.create_index(DB, name, new).await.map(drop)
        }
        Operation::DropIndex(name, field) => engine.drop_index(DB, name, field).await,
        Operation::AddField(name) => {
            let added =
                Field { default: Some(Value::Int(EXTRA)), ..field("extra", DataType::Int64) };
            alter(name, CollectionChange::AddField(Box::new(added))).await
        }
        Operation::Refill(name) => refill(engine, name).await,
        Operation::Property(name, value) => {
            let set = vec![("p".to_owned(), (*value).to_owned())];
            alter(name, CollectionChange::Properties { set, delete: vec![] }).await
        }
        Operation::Load(name) => alter(name, CollectionChange::Load(None)).await,
        Operation::CreatePartition(name, partition) => {
            engine.create_partition(DB, name, partition).await.map(drop)
        }
        Operation::DropPartition(name, partition) => {
            engine.drop_partition(DB, name, partition).await
        }
        Operation::CreateAlias(alias, name) => engine.create_alias(DB, alias, name).await,
        Operation::AlterAlias(alias, name) => engine.alter_alias(DB, alias, name).await,
        Operation::DropAlias(alias) => engine.drop_alias(DB, alias).await,
        Operation::CreateDatabase(name) => engine.create_database(name, vec![]).await,
        Operation::DropDatabase(name) => engine.drop_database(name).await,
        Operation::Restart => Ok(()),
    }
}

/// The fixed script: every operation, in orders that lean on one another.
pub(super) fn script() -> Vec<Operation> {
    use Operation::*;
    let some = |range: std::ops::Range<i64>, step: i64| -> Vec<(i64, i64)> {
        range.map(|key| (key, key * step)).collect()
    };
    vec![
        Create("a"),
        Insert("a", "_default", some(0..8, 1)),
        Insert("a", "other", some(6..12, 2)),
        Delete("a", vec![1, 7, 99]),
        CreateIndex("a", "vector"),
        Flush("a"),
        Insert("a", "_default", some(4..9, 3)),
        DeleteIn("a", "other", vec![4, 10]),
        CreateAlias("now", "a"),
        Create("b"),
        Insert("b", "_default", some(0..5, 5)),
        Flush("a"),
        Delete("a", vec![5, 11]),
        Flush("a"),
        InsertBoth("a", some(20..24, 1), some(22..26, 4)),
        AddField("a"),
        InsertExtra("a", some(0..3, 9), 70),
        Flush("a"),
        InsertExtra("a", some(2..5, 8), 71),
        CreatePartition("a", "third"),
        Insert("a", "third", some(30..34, 1)),
        Insert("a", "third", some(0..2, 2)),
        Refill("a"),
        Flush("a"),
        AlterAlias("now", "b"),
        DropPartition("a", "third"),
        CreatePartition("a", "third"),
        Insert("a", "third", some(33..36, 3)),
        DeleteBelow("a", 8),
        Property("a", "1"),
        Restart,
        Insert("a", "_default", some(3..7, 11)),
        Insert("b", "other", some(3..7, 6)),
        Flush("b"),
        Rename("b", "c"),
        Delete("c", vec![0, 3]),
        DropAlias("now"),
        CreateAlias("now", "c"),
        CreateDatabase("else"),
        Truncate("c"),
        Insert("c", "_default", some(0..4, 7)),
        Flush("c"),
        CreateIndex("c", "vector"),
        CreateIndex("c", "terms"),
        Insert("c", "other", some(2..6, 5)),
        DropIndex("c", "terms"),
        Load("c"),
        Flush("c"),
        Delete("c", vec![2, 3]),
        Create("d"),
        InsertBoth("d", some(0..3, 1), some(2..5, 2)),
        Flush("d"),
        Insert("d", "_default", some(1..4, 4)),
        Drop("c"),
        Create("c"),
        Insert("c", "_default", some(50..53, 1)),
        DropDatabase("else"),
        Flush("d"),
        Truncate("d"),
        Insert("d", "other", some(0..2, 3)),
        Restart,
        Flush("c"),
        DropPartition("d", "other"),
        Insert("d", "_default", some(0..6, 1)),
        DropIndex("a", "vector"),
        Property("a", "2"),
        Delete("a", vec![20, 22, 33]),
        Flush("a"),
        Insert("a", "_default", some(20..23, 10)),
        Flush("d"),
        Drop("d"),
        // Several segments with deletes, rows that can leave the disk, and graphs.
        Pass(60),
        Delete("a", vec![3, 23, 34]),
        Compact("a"),
        CreateIndex("a", "vector"),
        CreateIndex("a", "value"),
        Upkeep("a"),
        Delete("a", vec![6, 21]),
        Pass(60),
        Refill("a"),
        Compact("a"),
        Upkeep("a"),
        CreateKeyed("d"),
        InsertKeyed("d", some(0..6, 1)),
        Flush("d"),
        InsertKeyed("d", some(2..8, 3)),
        Rename("d", "b"),
        Flush("b"),
        // Rows of two ages: the older ones expire, and then all.
        Pass(100),
        Expire("b", 50),
        InsertKeyed("b", some(6..10, 1)),
        Compact("b"),
        AddField("b"),
        Flush("b"),
        Compact("b"),
        Pass(40),
        InsertKeyed("b", some(0..4, 5)),
        CreateAlias("now", "b"),
        Pass(20),
        Compact("b"),
        Restart,
        Truncate("b"),
        InsertKeyed("b", some(1..3, 2)),
        Pass(60),
        Flush("b"),
        Drop("c"),
    ]
}
