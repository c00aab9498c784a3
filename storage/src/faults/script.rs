//! Operations on an engine and on a model of it, and a script of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int64Array, LargeBinaryArray, RecordBatch,
};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_index::{Bounds, Cancel, Metric, Query, SearchParams, SparseRow};

use crate::catalog::{DEFAULT_DB, GraphDef};
use crate::filter::{Templates, compile};
use crate::schema::{DataType, Field, Schema, Value};
use crate::segment::testing::field;
use crate::{
    AnnQuery, Collection, CollectionChange, Engine, Error, Keys, NewCollection, NewIndex, ReadView,
    Scope,
};

const DB: &str = DEFAULT_DB;

/// What a row reads that was written before `extra` was added.
const EXTRA: i64 = 7;

/// One operation. Rows are pairs of key and value.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Create(&'static str),
    Drop(&'static str),
    Rename(&'static str, &'static str),
    /// Into a partition; rows whose key exists anywhere are replaced.
    Insert(&'static str, &'static str, Vec<(i64, i64)>),
    /// Into both partitions of a new collection, as one write.
    InsertBoth(&'static str, Vec<(i64, i64)>, Vec<(i64, i64)>),
    /// With this value for the added field.
    InsertExtra(&'static str, Vec<(i64, i64)>, i64),
    Delete(&'static str, Vec<i64>),
    DeleteIn(&'static str, &'static str, Vec<i64>),
    /// Rows whose value is below.
    DeleteBelow(&'static str, i64),
    Flush(&'static str),
    Truncate(&'static str),
    CreateIndex(&'static str, &'static str),
    DropIndex(&'static str, &'static str),
    AddField(&'static str),
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

/// What a row holds beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) value: i64,
    /// Of the added field, once there is one.
    pub(super) extra: Option<i64>,
}

/// What everybody can see of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Model {
    databases: BTreeSet<String>,
    pub(super) collections: BTreeMap<String, Contents>,
    aliases: BTreeMap<String, String>,
}

/// What everybody can see of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Contents {
    pub(super) partitions: BTreeMap<String, BTreeMap<i64, Row>>,
    has_extra: bool,
    indexes: BTreeSet<String>,
    property: Option<String>,
    loaded: bool,
}

impl Contents {
    fn put(&mut self, partition: &str, pairs: &[(i64, i64)], extra: Option<i64>) -> Option<()> {
        self.partitions.get(partition)?;
        let extra = self.has_extra.then(|| extra.unwrap_or(EXTRA));
        for &(key, value) in pairs {
            for rows in self.partitions.values_mut() {
                rows.remove(&key);
            }
            self.partitions.get_mut(partition)?.insert(key, Row { value, extra });
        }
        Some(())
    }

    fn rows(&self) -> impl Iterator<Item = (&i64, &Row)> {
        self.partitions.values().flatten()
    }
}

impl Model {
    /// A new data directory.
    pub(super) fn fresh() -> Self {
        Self { databases: [DB.to_owned()].into(), ..Self::default() }
    }

    /// What is there after an operation; `None` where it must be refused.
    pub(super) fn after(&self, operation: &Operation) -> Option<Self> {
        let mut next = self.clone();
        next.apply(operation)?;
        Some(next)
    }

    fn of(&mut self, name: &str) -> Option<&mut Contents> {
        self.collections.get_mut(name)
    }

    fn apply(&mut self, operation: &Operation) -> Option<()> {
        match operation {
            Operation::Create(name) => {
                if self.collections.contains_key(*name) {
                    return None;
                }
                let partitions =
                    ["_default", "other"].map(|name| (name.to_owned(), BTreeMap::new()));
                let contents = Contents { partitions: partitions.into(), ..Contents::default() };
                self.collections.insert((*name).to_owned(), contents);
            }
            Operation::Drop(name) => {
                self.collections.remove(*name)?;
                self.aliases.retain(|_, target| target != name);
            }
            Operation::Rename(old, new) => {
                if self.collections.contains_key(*new) {
                    return None;
                }
                let contents = self.collections.remove(*old)?;
                self.collections.insert((*new).to_owned(), contents);
                self.aliases.values_mut().filter(|target| *target == old).for_each(|target| {
                    *target = (*new).to_owned();
                });
            }
            Operation::Insert(name, partition, pairs) => {
                self.of(name)?.put(partition, pairs, None)?;
            }
            Operation::InsertBoth(name, first, second) => {
                let contents = self.of(name)?;
                contents.put("_default", first, None)?;
                contents.put("other", second, None)?;
            }
            Operation::InsertExtra(name, pairs, extra) => {
                let contents = self.of(name)?;
                if !contents.has_extra {
                    return None;
                }
                contents.put("_default", pairs, Some(*extra))?;
            }
            Operation::Delete(name, keys) => {
                for rows in self.of(name)?.partitions.values_mut() {
                    rows.retain(|key, _| !keys.contains(key));
                }
            }
            Operation::DeleteIn(name, partition, keys) => {
                self.of(name)?.partitions.get_mut(*partition)?.retain(|key, _| !keys.contains(key));
            }
            Operation::DeleteBelow(name, bound) => {
                for rows in self.of(name)?.partitions.values_mut() {
                    rows.retain(|_, row| row.value >= *bound);
                }
            }
            Operation::Truncate(name) => {
                self.of(name)?.partitions.values_mut().for_each(BTreeMap::clear);
            }
            Operation::Flush(name) => drop(self.of(name)?),
            Operation::CreateIndex(name, field) => {
                self.of(name)?.indexes.insert((*field).to_owned());
            }
            Operation::DropIndex(name, field) => {
                self.of(name)?.indexes.remove(*field).then_some(())?;
            }
            Operation::AddField(name) => {
                let contents = self.of(name)?;
                if std::mem::replace(&mut contents.has_extra, true) {
                    return None;
                }
                let rows = contents.partitions.values_mut().flat_map(BTreeMap::values_mut);
                rows.for_each(|row| row.extra = Some(EXTRA));
            }
            Operation::Property(name, value) => {
                self.of(name)?.property = Some((*value).to_owned());
            }
            Operation::Load(name) => self.of(name)?.loaded = true,
            Operation::CreatePartition(name, partition) => {
                let partitions = &mut self.of(name)?.partitions;
                if partitions.insert((*partition).to_owned(), BTreeMap::new()).is_some() {
                    return None;
                }
            }
            Operation::DropPartition(name, partition) => {
                self.of(name)?.partitions.remove(*partition)?;
            }
            Operation::CreateAlias(alias, name) => {
                self.of(name)?;
                if self.aliases.insert((*alias).to_owned(), (*name).to_owned()).is_some() {
                    return None;
                }
            }
            Operation::AlterAlias(alias, name) => {
                self.of(name)?;
                *self.aliases.get_mut(*alias)? = (*name).to_owned();
            }
            Operation::DropAlias(alias) => drop(self.aliases.remove(*alias)?),
            Operation::CreateDatabase(name) => {
                self.databases.insert((*name).to_owned()).then_some(())?;
            }
            Operation::DropDatabase(name) => self.databases.remove(*name).then_some(())?,
            Operation::Restart => {}
        }
        Some(())
    }

    /// What an engine shows. Searches are held against the rows.
    pub(super) fn seen(engine: &Engine) -> Result<Self, Error> {
        let catalog = engine.catalog();
        let mut seen = Self {
            databases: catalog.databases().map(|db| db.name.clone()).collect(),
            aliases: (catalog.aliases(DB))
                .map(|(alias, info)| (alias.to_owned(), info.name.clone()))
                .collect(),
            ..Self::default()
        };
        for info in catalog.collections(DB) {
            let collection = engine.collection(info.id).ok_or_else(|| {
                Error::Internal(format!("`{}` is in the catalog, but not open", info.name))
            })?;
            let view = collection.view();
            let mut contents = Contents {
                has_extra: info.schema.field("extra").is_some(),
                indexes: info.indexes.iter().map(|index| index.field.clone()).collect(),
                property: info.property("p").map(str::to_owned),
                loaded: info.loaded,
                ..Contents::default()
            };
            for partition in &info.partitions {
                let rows = rows_of(&view, partition.id, contents.has_extra)?;
                contents.partitions.insert(partition.name.clone(), rows);
            }
            assert_eq!(contents.rows().count(), collection.stats().rows, "{}", info.name);
            search(&view, &contents)?;
            seen.collections.insert(info.name.clone(), contents);
        }
        Ok(seen)
    }
}

fn rows_of(view: &ReadView, partition: i64, extra: bool) -> Result<BTreeMap<i64, Row>, Error> {
    let scope = Scope { partitions: Some(&[partition]), filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never())?;
    let addresses = view.rows_by_key(&selection, 0, None)?;
    assert_eq!(addresses.len(), view.count(&selection));
    let fields: &[&str] = if extra { &["id", "value", "extra"] } else { &["id", "value"] };
    let batch = view.take(&addresses, fields)?;
    let numbers = |i: usize| batch.column(i).as_primitive::<Int64Type>();
    let ids = numbers(0).values();
    assert!(ids.is_sorted_by(|a, b| a < b), "a key occurs twice: {ids:?}");
    let row = |at: usize| {
        let extra = extra.then(|| numbers(2).value(at));
        (ids[at], Row { value: numbers(1).value(at), extra })
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Every row is its own nearest neighbour, and the sparse index knows the rows with a term and no
/// others.
fn search(view: &ReadView, contents: &Contents) -> Result<(), Error> {
    let scope = Scope { partitions: None, filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never())?;
    let find = |field: &str, metric: Metric, k: usize, query: Query<'_>| {
        let params = SearchParams { k, ef: None, bounds: Bounds::default(), drop_ratio: 0.0 };
        let ann = AnnQuery { field, metric, queries: &[query], params, exact: false };
        let found = view.search(&selection, &ann, &Cancel::never())?.remove(0);
        let addresses: Vec<_> = found.iter().map(|found| found.addr).collect();
        let batch = view.take(&addresses, &["id"])?;
        Ok::<_, Error>(batch.column(0).as_primitive::<Int64Type>().values().to_vec())
    };
    for (key, row) in contents.rows().take(3) {
        let vector = vector(*key, row.value);
        let found = find("vector", Metric::L2, 1, Query::Dense(bytemuck::cast_slice(&vector)))?;
        assert_eq!(found, vec![*key], "the row nearest to that of {key}");
    }
    for term in [1, 2] {
        let bytes = sparse(term);
        let query = Query::Sparse(SparseRow::parse(&bytes).unwrap());
        let mut found = find("terms", Metric::Ip, 1000, query)?;
        found.sort_unstable();
        let mut expected: Vec<i64> = (contents.rows())
            .filter_map(|(key, row)| (row.value % 3 == term).then_some(*key))
            .collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "rows with term {term}");
    }
    Ok(())
}

fn vector(key: i64, value: i64) -> [f32; 2] {
    [key as f32, value as f32]
}

fn sparse(term: i64) -> Vec<u8> {
    let mut row = u32::try_from(term).unwrap().to_le_bytes().to_vec();
    row.extend_from_slice(&1.0_f32.to_le_bytes());
    row
}

fn batch(pairs: &[(i64, i64)], extra: Option<i64>) -> RecordBatch {
    let numbers = |pick: fn(&(i64, i64)) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(pairs.iter().map(pick)))
    };
    let terms = pairs.iter().map(|pair| (pair.1 % 3 != 0).then(|| sparse(pair.1 % 3)));
    let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
    let values = pairs.iter().flat_map(|pair| vector(pair.0, pair.1));
    let values = Arc::new(Float32Array::from_iter_values(values));
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("id", numbers(|pair| pair.0)),
        ("value", numbers(|pair| pair.1)),
        ("terms", Arc::new(LargeBinaryArray::from_iter(terms))),
        ("vector", Arc::new(FixedSizeListArray::new(item, 2, values, None))),
    ];
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
        },
        shards: 1,
        consistency: 2,
        properties: vec![],
        partitions: vec!["other".into()],
        num_partitions: 0,
    }
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
    let insert = async |name: &str, partition_name: &str, batch: RecordBatch| {
        let collection = find(engine, name)?;
        let partition = partition(&collection, partition_name)?;
        collection.insert(partition, batch).await.map(drop)
    };
    let alter = async |name: &str, change: CollectionChange| {
        find(engine, name)?;
        engine.alter_collection(DB, name, change).await.map(drop)
    };
    match operation {
        Operation::Create(name) => {
            engine.create_collection(DB, new_collection(name)).await.map(drop)
        }
        Operation::Drop(name) => engine.drop_collection(DB, name).await,
        Operation::Rename(old, new) => engine.rename_collection(DB, old, DB, new).await,
        Operation::Insert(name, partition, pairs) => {
            insert(name, partition, batch(pairs, None)).await
        }
        Operation::InsertBoth(name, first, second) => {
            let collection = find(engine, name)?;
            let parts = vec![
                (partition(&collection, "_default")?, batch(first, None)),
                (partition(&collection, "other")?, batch(second, None)),
            ];
            collection.insert_all(parts).await.map(drop)
        }
        Operation::InsertExtra(name, pairs, extra) => {
            insert(name, "_default", batch(pairs, Some(*extra))).await
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
        Operation::Truncate(name) => {
            let id = find(engine, name)?.id();
            engine.truncate(id).await
        }
        Operation::CreateIndex(name, field) => {
            let graph = GraphDef { metric: Metric::L2, m: 4, ef_construction: 16 };
            let new = NewIndex {
                graph: (*field == "vector").then_some(graph),
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
    ]
}
