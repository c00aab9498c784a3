//! What exists: databases, collections, partitions, aliases and index definitions.
//!
//! A [`CatalogView`] is one committed version of the catalog, immutable and complete; readers
//! load it without a lock. Changes are made in `edit` on a copy, which `store` commits as the
//! next version before anybody sees it.
//!
//! The catalog does not know rows, segments or files: those belong to each collection's manifest.

mod edit;
pub(crate) mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use elanus_index::Metric;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::clock::Ts;
use crate::schema::{Field, FunctionDef, Schema};

/// The database that always exists.
pub const DEFAULT_DB: &str = "default";

/// The partition that every collection has.
pub const DEFAULT_PARTITION: &str = "_default";

/// The property that says how many seconds rows live; without it, or from 0 down, for ever.
pub const TTL: &str = "collection.ttl.seconds";

/// A database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatabaseInfo {
    /// Never reused.
    pub id: i64,
    /// Unique in the node.
    pub name: String,
    /// When it was created.
    pub created: Ts,
    /// As the user set them.
    #[serde(default)]
    pub properties: Vec<(String, String)>,
}

/// A partition of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Never reused.
    pub id: i64,
    /// Unique in its collection.
    pub name: String,
    /// When it was created.
    pub created: Ts,
    /// Whether users asked for it to be searchable.
    pub loaded: bool,
}

/// The definition of an index over one field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexDef {
    /// Never reused.
    pub id: i64,
    /// Unique in its collection.
    pub name: String,
    /// Name of the field.
    pub field: String,
    /// As the user gave them (`index_type`, `metric_type`, ...), flat.
    #[serde(default)]
    pub params: Vec<(String, String)>,
    /// The graph that sealed segments get; without one the field is searched exactly.
    #[serde(default)]
    pub graph: Option<GraphDef>,
    /// The sorted terms that sealed segments get; without them filters look at every row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<TermsDef>,
}

impl IndexDef {
    /// Whether the index is the one that a field may have; a JSON field may have one for each path.
    pub fn covers(&self, field: &str, terms: Option<&TermsDef>) -> bool {
        let path = |terms: Option<&TermsDef>| {
            terms.and_then(|terms| terms.path.as_ref()).map(|path| path.steps.clone())
        };
        self.field == field && path(self.terms.as_ref()) == path(terms)
    }
}

/// Which terms of a scalar field are kept sorted, each with its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermsDef {
    /// The values at a path of a JSON field; without one, the values of the field itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<JsonPath>,
    /// Pieces of the texts instead of whole ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grams: Option<Grams>,
}

/// Values in JSON documents: rows with another type of value at the path have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonPath {
    /// From the document's root.
    pub steps: Vec<PathStep>,
    /// The type of the values, or of the elements.
    pub cast: JsonCast,
    /// The values are the elements of an array; those of another type are left out.
    pub array: bool,
}

/// One step into a JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathStep {
    /// A member of an object.
    Key(String),
    /// An element of an array.
    Index(usize),
}

/// Types of values in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonCast {
    /// True and false.
    Bool,
    /// All numbers.
    Double,
    /// Strings.
    VarChar,
}

/// Every run of so many characters of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grams {
    /// Fewest characters, at least one.
    pub min: usize,
    /// Most characters.
    pub max: usize,
}

/// What graph a dense vector field is searched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphDef {
    /// What nearness means to it; a search by another metric is answered exactly.
    #[serde(with = "MetricName")]
    pub metric: Metric,
    /// As in [`elanus_index::HnswParams`].
    pub m: usize,
    /// As in [`elanus_index::HnswParams`].
    pub ef_construction: usize,
}

/// How a metric is called on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Metric", rename_all = "lowercase")]
enum MetricName {
    L2,
    Ip,
    Cosine,
    Hamming,
    Jaccard,
}

/// A collection as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// Never reused; names the collection's directory.
    pub id: i64,
    /// Name of its database.
    pub db: String,
    /// Unique in its database, aliases included.
    pub name: String,
    /// Fields and functions.
    #[serde(with = "arc")]
    pub schema: Arc<Schema>,
    /// When it was created.
    pub created: Ts,
    /// When the schema changed last; nothing else moves it.
    pub updated: Ts,
    /// As asked for at creation; stored and echoed.
    pub shards: i32,
    /// The wire's number of the default consistency level; stored and echoed.
    pub consistency: i32,
    /// As the user set them.
    #[serde(default)]
    pub properties: Vec<(String, String)>,
    /// In order of creation, `_default` first (or the hashed partitions of a partition key).
    pub partitions: Vec<PartitionInfo>,
    /// In order of creation.
    #[serde(default)]
    pub indexes: Vec<IndexDef>,
    /// Whether any partition is loaded.
    pub loaded: bool,
    /// As asked for at creation (partition key); 0 if not.
    #[serde(default)]
    pub num_partitions: i64,
}

impl CollectionInfo {
    /// The partition of that name.
    pub fn partition(&self, name: &str) -> Option<&PartitionInfo> {
        self.partitions.iter().find(|partition| partition.name == name)
    }

    /// The partition with that id.
    pub fn partition_by_id(&self, id: i64) -> Option<&PartitionInfo> {
        self.partitions.iter().find(|partition| partition.id == id)
    }

    /// The index of that name.
    pub fn index(&self, name: &str) -> Option<&IndexDef> {
        self.indexes.iter().find(|index| index.name == name)
    }

    /// Whether the index over that field is to stay mapped, and not to be read into memory:
    /// `mmap.enabled` of the index, or else of the collection.
    pub fn is_index_mapped(&self, field: &str) -> bool {
        let of_index = self.index_of_field(field).map_or(&[][..], |index| &index.params);
        let mut settings = of_index.iter().chain(&self.properties);
        let setting = settings.find(|(key, _)| key == "mmap.enabled");
        setting
            .is_some_and(|(_, value)| matches!(&*value.trim().to_ascii_lowercase(), "true" | "1"))
    }

    /// The index over that field; of a JSON field, which may have one for each path, the first.
    pub fn index_of_field(&self, field: &str) -> Option<&IndexDef> {
        self.indexes.iter().find(|index| index.field == field)
    }

    /// The value of a property.
    pub fn property(&self, key: &str) -> Option<&str> {
        self.properties.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// How long rows live after they were written ([`TTL`]); `None`: for ever.
    pub fn ttl_ms(&self) -> Option<u64> {
        let seconds = self.property(TTL)?.trim().parse::<u64>().ok().filter(|ttl| *ttl > 0)?;
        Some(seconds.saturating_mul(1_000))
    }
}

/// What [`crate::Engine::create_collection`] needs to know.
#[derive(Clone, Debug)]
pub struct NewCollection {
    /// Its name.
    pub name: String,
    /// Field and function ids of 0 are assigned from 100 in order.
    pub schema: Schema,
    /// Stored and echoed.
    pub shards: i32,
    /// Stored and echoed.
    pub consistency: i32,
    /// Stored and echoed.
    pub properties: Vec<(String, String)>,
    /// Extra partitions besides `_default`. Where `num_partitions` is above 0, these are all.
    pub partitions: Vec<String>,
    /// Number of partitions that a partition key is hashed to; 0 without one.
    pub num_partitions: i64,
}

/// What [`crate::Engine::create_index`] needs to know.
#[derive(Clone, Debug, Default)]
pub struct NewIndex {
    /// Empty: named after the field.
    pub name: String,
    /// The field to index.
    pub field: String,
    /// Stored and echoed.
    pub params: Vec<(String, String)>,
    /// The graph to build over the field, which must hold dense vectors.
    pub graph: Option<GraphDef>,
    /// The sorted terms to build over the field, which must hold scalars.
    pub terms: Option<TermsDef>,
}

/// One change of a collection.
#[derive(Clone, Debug)]
pub enum CollectionChange {
    /// Sets and removes properties.
    Properties {
        /// Set, or replaced where they exist.
        set: Vec<(String, String)>,
        /// Removed; unknown ones are ignored.
        delete: Vec<String>,
    },
    /// The default consistency level, in the wire's numbers.
    Consistency(i32),
    /// The description.
    Description(String),
    /// Type parameters of a field; `max_length` and `max_capacity` change the type itself.
    /// Advances the schema timestamp.
    FieldParams {
        /// The field.
        field: String,
        /// Set, or replaced where they exist.
        set: Vec<(String, String)>,
        /// Removed; unknown ones are ignored.
        delete: Vec<String>,
    },
    /// Marks partitions as loaded (`None`: all).
    Load(Option<Vec<String>>),
    /// Marks partitions as not loaded (`None`: all).
    Release(Option<Vec<String>>),
    /// Adds a nullable or defaulted field; rows that exist read null or the default at once.
    /// Advances the schema timestamp.
    AddField(Box<Field>),
    /// Replaces the functions, and marks the fields that they fill; ids of 0 are assigned. Advances
    /// the schema timestamp, unless only what is pending changes.
    ///
    /// Refused with [`Error::SchemaChanged`] if the schema has another
    /// version by then: the lists were made from what it was.
    Functions {
        /// Version of the schema that the lists were made from.
        of: u32,
        /// What they are from now on.
        now: Vec<FunctionDef>,
        /// What some of them, by name, will be once their outputs are made anew for all rows
        /// ([`crate::schema::Refill`]). What was pending and is not among these is given up.
        pending: Vec<FunctionDef>,
    },
}

/// One committed version of the catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CatalogView {
    version: u64,
    /// Greater than every id given so far.
    next_id: i64,
    /// Greater than every segment id that a collection, dropped ones included, may have used.
    segment_floor: i64,
    /// The log holds every record from here on.
    log_start: u64,
    /// The log held every record below when a node was stopped in good order last.
    log_end: u64,
    /// Not below any timestamp in the catalog.
    ts: Ts,
    databases: BTreeMap<String, DatabaseInfo>,
    collections: BTreeMap<i64, Arc<CollectionInfo>>,
    names: HashMap<String, HashMap<String, i64>>,
    aliases: BTreeMap<String, BTreeMap<String, i64>>,
}

impl CatalogView {
    /// The number of this version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The collection of that name, or that an alias of that name points to.
    pub fn resolve(&self, db: &str, name_or_alias: &str) -> Option<&Arc<CollectionInfo>> {
        let id = (self.names.get(db).and_then(|names| names.get(name_or_alias)))
            .or_else(|| self.aliases.get(db).and_then(|aliases| aliases.get(name_or_alias)))?;
        self.collections.get(id)
    }

    /// The collection with that id.
    pub fn by_id(&self, id: i64) -> Option<&Arc<CollectionInfo>> {
        self.collections.get(&id)
    }

    /// All databases by name.
    pub fn databases(&self) -> impl Iterator<Item = &DatabaseInfo> {
        self.databases.values()
    }

    /// The database of that name.
    pub fn database(&self, name: &str) -> Option<&DatabaseInfo> {
        self.databases.get(name)
    }

    /// The collections of a database in order of creation.
    pub fn collections(&self, db: &str) -> impl Iterator<Item = &Arc<CollectionInfo>> {
        self.collections.values().filter(move |collection| collection.db == db)
    }

    /// All collections of all databases in order of creation.
    pub fn all_collections(&self) -> impl Iterator<Item = &Arc<CollectionInfo>> {
        self.collections.values()
    }

    /// The aliases of a database by name, each with its collection.
    pub fn aliases(&self, db: &str) -> impl Iterator<Item = (&str, &Arc<CollectionInfo>)> {
        (self.aliases.get(db).into_iter().flatten())
            .filter_map(|(alias, id)| Some((alias.as_str(), self.collections.get(id)?)))
    }

    /// The aliases of one collection by name.
    pub fn aliases_of(&self, collection: i64) -> impl Iterator<Item = &str> {
        (self.aliases.values().flatten())
            .filter(move |&(_, id)| *id == collection)
            .map(|(alias, _)| alias.as_str())
    }

    /// Like [`CatalogView::resolve`], with the errors a user should see.
    fn require(&self, db: &str, name: &str) -> Result<&Arc<CollectionInfo>, Error> {
        if !self.databases.contains_key(db) {
            return Err(Error::DatabaseNotFound(db.to_owned()));
        }
        self.resolve(db, name)
            .ok_or_else(|| Error::CollectionNotFound { db: db.to_owned(), name: name.to_owned() })
    }
}

/// Lets serde see through an `Arc`.
mod arc {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
