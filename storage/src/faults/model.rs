//! What an engine must show: a model that the operations change as they change the engine.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use elanus_index::{Bounds, Cancel, Metric, Query, SearchParams, SparseRow};

use super::script::{DB, EXTRA, KEYED, Operation, by_partition, models, sparse, vector};
use crate::filter::{Templates, compile};
use crate::{AnnQuery, Engine, Error, ReadView, Scope};

/// When the script begins, in seconds.
const START: u64 = 1_000_000;

/// What a row holds beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) value: i64,
    /// Of the added field, once there is one.
    pub(super) extra: Option<i64>,
    /// When it was written, in seconds; 0 in what is seen.
    written: u64,
}

/// What is in an engine, and what everybody can [see](Model::visible) of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Model {
    databases: BTreeSet<String>,
    pub(super) collections: BTreeMap<String, Contents>,
    aliases: BTreeMap<String, String>,
    /// The time, in seconds; 0 in what is seen.
    now: u64,
}

/// What is in a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Contents {
    pub(super) partitions: BTreeMap<String, BTreeMap<i64, Row>>,
    has_extra: bool,
    /// Which model made the vectors.
    model: u32,
    indexes: BTreeSet<String>,
    property: Option<String>,
    expire_after: Option<u64>,
    loaded: bool,
}

impl Contents {
    fn put(
        &mut self,
        partition: &str,
        pairs: &[(i64, i64)],
        extra: Option<i64>,
        written: u64,
    ) -> Option<()> {
        self.partitions.get(partition)?;
        let extra = self.has_extra.then(|| extra.unwrap_or(EXTRA));
        for &(key, value) in pairs {
            for rows in self.partitions.values_mut() {
                rows.remove(&key);
            }
            self.partitions.get_mut(partition)?.insert(key, Row { value, extra, written });
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
        Self { databases: [DB.to_owned()].into(), now: START, ..Self::default() }
    }

    /// The time, in seconds.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// The same at another time.
    pub(super) fn at(&self, now: u64) -> Self {
        Self { now, ..self.clone() }
    }

    /// What everybody can see of it.
    pub(super) fn visible(&self) -> Self {
        let mut seen = self.at(0);
        for contents in seen.collections.values_mut() {
            let oldest = contents.expire_after.map_or(0, |after| self.now.saturating_sub(after));
            for rows in contents.partitions.values_mut() {
                rows.retain(|_, row| row.written >= oldest);
                rows.values_mut().for_each(|row| row.written = 0);
            }
        }
        seen
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
        let now = self.now;
        match operation {
            Operation::Create(name) | Operation::CreateKeyed(name) => {
                if self.collections.contains_key(*name) {
                    return None;
                }
                let keyed = matches!(operation, Operation::CreateKeyed(_));
                let partitions = if keyed { KEYED } else { ["_default", "other"] };
                let partitions = partitions.map(|name| (name.to_owned(), BTreeMap::new()));
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
                self.of(name)?.put(partition, pairs, None, now)?;
            }
            Operation::InsertBoth(name, first, second) => {
                let contents = self.of(name)?;
                contents.put("_default", first, None, now)?;
                contents.put("other", second, None, now)?;
            }
            Operation::InsertKeyed(name, pairs) => {
                let contents = self.of(name)?;
                for (partition, pairs) in KEYED.iter().zip(by_partition(pairs)) {
                    contents.put(partition, &pairs, None, now)?;
                }
            }
            Operation::InsertExtra(name, pairs, extra) => {
                let contents = self.of(name)?;
                if !contents.has_extra {
                    return None;
                }
                contents.put("_default", pairs, Some(*extra), now)?;
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
            Operation::Flush(name) | Operation::Compact(name) | Operation::Upkeep(name) => {
                self.of(name)?;
            }
            Operation::Refill(name) => self.of(name)?.model += 1,
            Operation::Expire(name, after) => self.of(name)?.expire_after = Some(*after),
            Operation::Pass(seconds) => self.now += seconds,
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
                model: models(&info.schema).0,
                indexes: info.indexes.iter().map(|index| index.field.clone()).collect(),
                property: info.property("p").map(str::to_owned),
                expire_after: info.ttl_ms().map(|ms| ms / 1000),
                loaded: info.loaded,
                ..Contents::default()
            };
            for partition in &info.partitions {
                let rows = rows_of(&view, partition.id, &contents)?;
                contents.partitions.insert(partition.name.clone(), rows);
            }
            assert_eq!(contents.rows().count(), collection.stats().rows, "{}", info.name);
            search(&view, &contents)?;
            seen.collections.insert(info.name.clone(), contents);
        }
        Ok(seen)
    }
}

/// The rows of a partition. Their vectors are those that the model of the collection makes.
fn rows_of(
    view: &ReadView,
    partition: i64,
    contents: &Contents,
) -> Result<BTreeMap<i64, Row>, Error> {
    let scope = Scope { partitions: Some(&[partition]), filter: None, ignore_growing: false };
    let selection = view.select(&scope, &Cancel::never())?;
    let addresses = view.rows_by_key(&selection, 0, None)?;
    assert_eq!(addresses.len(), view.count(&selection));
    let extra = contents.has_extra;
    let fields = ["id", "value", "vector", "extra"];
    let batch = view.take(&addresses, &fields[..if extra { 4 } else { 3 }])?;
    let numbers = |i: usize| batch.column(i).as_primitive::<Int64Type>();
    let ids = numbers(0).values();
    assert!(ids.is_sorted_by(|a, b| a < b), "a key occurs twice: {ids:?}");
    let vectors = batch.column(2).as_fixed_size_list();
    let row = |at: usize| {
        let (key, value) = (ids[at], numbers(1).value(at));
        let found = vectors.value(at);
        let found = found.as_primitive::<Float32Type>().values();
        assert_eq!(found[..], vector(key, value, contents.model), "the vector of {key}");
        let extra = extra.then(|| numbers(3).value(at));
        (key, Row { value, extra, written: 0 })
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
        if metric == Metric::L2 {
            assert_eq!(found.first().map(|found| found.score), Some(0.0), "a row and itself");
        }
        let addresses: Vec<_> = found.iter().map(|found| found.addr).collect();
        let batch = view.take(&addresses, &["id"])?;
        Ok::<_, Error>(batch.column(0).as_primitive::<Int64Type>().values().to_vec())
    };
    for (key, row) in contents.rows().take(3) {
        let vector = vector(*key, row.value, contents.model);
        let found = find("vector", Metric::L2, 1, Query::Dense(bytemuck::cast_slice(&vector)))?;
        assert_eq!(found, vec![*key], "the row nearest to that of {key}");
    }
    for (key, row) in contents.rows().take(2) {
        let text = format!("value == {}", row.value);
        let filter = compile(&text, view.schema(), &Templates::new()).unwrap();
        let scope = Scope { partitions: None, filter: Some(&filter), ignore_growing: false };
        let found = view.rows_by_key(&view.select(&scope, &Cancel::never())?, 0, None)?;
        let found = view.take(&found, &["id"])?;
        let found = found.column(0).as_primitive::<Int64Type>().values().to_vec();
        let with_value = contents.rows().filter(|(_, other)| other.value == row.value);
        let mut expected: Vec<i64> = with_value.map(|(key, _)| *key).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "rows with the value of {key}");
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
