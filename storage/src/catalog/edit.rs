//! Changes of the catalog, each a pure step from one version to the next.
//!
//! Every method checks all it needs before it changes anything; names refer to collections
//! directly or through an alias, except where a collection itself is dropped or renamed.

use std::collections::HashSet;
use std::sync::Arc;

use super::{
    CatalogView, CollectionChange, CollectionInfo, DEFAULT_DB, DEFAULT_PARTITION, DatabaseInfo,
    IndexDef, NewCollection, NewIndex, PartitionInfo,
};
use crate::Error;
use crate::clock::Ts;
use crate::log::Lsn;
use crate::schema::{DataType, Field, FunctionDef, Refill, Schema};

/// Ids of fields and functions begin here, as in Milvus.
const FIRST_FIELD_ID: i64 = 100;

impl CatalogView {
    fn new_id(&mut self) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Notes what every version must not fall behind.
    pub(crate) fn advance(&mut self, ts: Ts, segment_floor: i64) {
        self.ts = self.ts.max(ts);
        self.segment_floor = self.segment_floor.max(segment_floor);
    }

    /// Notes that the log before `start` is about to be removed.
    pub(crate) fn set_log_start(&mut self, start: Lsn) {
        self.log_start = self.log_start.max(start);
    }

    /// Notes how far the log has come.
    pub(crate) fn set_log_end(&mut self, end: Lsn) {
        self.log_end = self.log_end.max(end);
    }

    fn database_mut(&mut self, name: &str) -> Result<&mut DatabaseInfo, Error> {
        self.databases.get_mut(name).ok_or_else(|| Error::DatabaseNotFound(name.to_owned()))
    }

    pub(crate) fn create_database(
        &mut self,
        name: &str,
        properties: Vec<(String, String)>,
        ts: Ts,
    ) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("a database needs a name".into()));
        }
        if self.databases.contains_key(name) {
            return Err(Error::DatabaseExists(name.to_owned()));
        }
        let database =
            DatabaseInfo { id: self.new_id(), name: name.to_owned(), created: ts, properties };
        self.databases.insert(name.to_owned(), database);
        Ok(())
    }

    pub(crate) fn drop_database(&mut self, name: &str) -> Result<(), Error> {
        self.database_mut(name)?;
        if name == DEFAULT_DB {
            return Err(Error::Invalid(format!("database `{DEFAULT_DB}` cannot be dropped")));
        }
        if self.collections(name).next().is_some() {
            return Err(Error::DatabaseNotEmpty(name.to_owned()));
        }
        self.databases.remove(name);
        self.aliases.remove(name);
        Ok(())
    }

    pub(crate) fn alter_database(
        &mut self,
        name: &str,
        set: Vec<(String, String)>,
        delete: &[String],
    ) -> Result<(), Error> {
        change_pairs(&mut self.database_mut(name)?.properties, set, delete);
        Ok(())
    }

    /// Whether the name is free for a new collection.
    fn check_name(&self, db: &str, name: &str) -> Result<(), Error> {
        if !self.databases.contains_key(db) {
            return Err(Error::DatabaseNotFound(db.to_owned()));
        }
        if name.is_empty() {
            return Err(Error::Invalid("a collection needs a name".into()));
        }
        if self.is_collection(db, name) {
            return Err(Error::CollectionExists { db: db.to_owned(), name: name.to_owned() });
        }
        if self.is_alias(db, name) {
            return Err(Error::AliasNameConflict(name.to_owned()));
        }
        Ok(())
    }

    fn is_collection(&self, db: &str, name: &str) -> bool {
        self.names.get(db).is_some_and(|names| names.contains_key(name))
    }

    fn is_alias(&self, db: &str, name: &str) -> bool {
        self.aliases.get(db).is_some_and(|aliases| aliases.contains_key(name))
    }

    pub(crate) fn create_collection(
        &mut self,
        db: &str,
        new: NewCollection,
        ts: Ts,
    ) -> Result<Arc<CollectionInfo>, Error> {
        self.check_name(db, &new.name)?;
        let mut schema = new.schema;
        assign_ids(&mut schema);
        schema.validate()?;
        let mut names = new.partitions;
        if new.num_partitions == 0 && !names.iter().any(|name| name == DEFAULT_PARTITION) {
            names.insert(0, DEFAULT_PARTITION.to_owned());
        }
        let mut seen = HashSet::new();
        if names.is_empty() {
            return Err(Error::Invalid("a collection needs at least one partition".into()));
        }
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::PartitionExists(twice.clone()));
        }
        let id = self.new_id();
        let partitions = names
            .into_iter()
            .map(|name| PartitionInfo { id: self.new_id(), name, created: ts, loaded: false })
            .collect();
        let info = Arc::new(CollectionInfo {
            id,
            db: db.to_owned(),
            name: new.name,
            schema: Arc::new(schema),
            created: ts,
            updated: ts,
            shards: new.shards,
            consistency: new.consistency,
            properties: new.properties,
            partitions,
            indexes: Vec::new(),
            loaded: false,
            num_partitions: new.num_partitions,
        });
        self.collections.insert(id, Arc::clone(&info));
        Ok(info)
    }

    /// A collection by its own name; aliases do not count.
    fn own_name(&self, db: &str, name: &str) -> Result<i64, Error> {
        let info = self.require(db, name)?;
        if info.name == name { Ok(info.id) } else { Err(Error::AliasNameConflict(name.to_owned())) }
    }

    pub(crate) fn drop_collection(&mut self, db: &str, name: &str) -> Result<i64, Error> {
        let id = self.own_name(db, name)?;
        self.collections.remove(&id);
        for aliases in self.aliases.values_mut() {
            aliases.retain(|_, target| *target != id);
        }
        Ok(id)
    }

    pub(crate) fn rename_collection(
        &mut self,
        db: &str,
        old: &str,
        new_db: &str,
        new: &str,
    ) -> Result<Arc<CollectionInfo>, Error> {
        let id = self.own_name(db, old)?;
        self.check_name(new_db, new)?;
        if db != new_db && self.aliases_of(id).next().is_some() {
            return Err(Error::Invalid(format!(
                "collection `{old}` has aliases; drop them before it moves to database `{new_db}`"
            )));
        }
        self.edit(id, |info, _| {
            info.db = new_db.to_owned();
            info.name = new.to_owned();
            Ok(())
        })
    }

    /// Changes a copy of a collection's entry and puts it in place.
    fn edit(
        &mut self,
        id: i64,
        change: impl FnOnce(&mut CollectionInfo, &mut Self) -> Result<(), Error>,
    ) -> Result<Arc<CollectionInfo>, Error> {
        let info = (self.collections.get(&id))
            .ok_or_else(|| Error::Internal(format!("collection {id} is not in the catalog")))?;
        let mut info = info.as_ref().clone();
        change(&mut info, self)?;
        let info = Arc::new(info);
        self.collections.insert(id, Arc::clone(&info));
        Ok(info)
    }

    pub(crate) fn alter_collection(
        &mut self,
        db: &str,
        name: &str,
        change: CollectionChange,
        ts: Ts,
    ) -> Result<Arc<CollectionInfo>, Error> {
        let id = self.require(db, name)?.id;
        self.edit(id, |info, _| {
            match change {
                CollectionChange::Properties { set, delete } => {
                    change_pairs(&mut info.properties, set, &delete);
                }
                CollectionChange::Consistency(level) => info.consistency = level,
                CollectionChange::Description(text) => {
                    Arc::make_mut(&mut info.schema).description = text;
                }
                CollectionChange::Load(names) => set_loaded(info, names.as_deref(), true)?,
                CollectionChange::Release(names) => set_loaded(info, names.as_deref(), false)?,
                CollectionChange::FieldParams { field, set, delete } => {
                    change_schema(info, ts, |schema| change_field(schema, &field, set, &delete))?;
                }
                CollectionChange::AddField(field) => {
                    change_schema(info, ts, |schema| add_field(schema, *field))?;
                }
                CollectionChange::Functions { of, now, pending } => {
                    if info.schema.version != of {
                        return Err(Error::SchemaChanged);
                    }
                    // What is pending is not seen, so nobody need read the schema again for it.
                    let seen = info.schema.functions != now;
                    let ts = if seen { ts } else { info.updated };
                    change_schema(info, ts, |schema| set_functions(schema, now, pending))?;
                }
            }
            Ok(())
        })
    }

    /// Lets the pending functions of a collection, and the columns that they filled, take their
    /// places.
    pub(crate) fn end_refill(&mut self, id: i64, ts: Ts) -> Result<Arc<CollectionInfo>, Error> {
        self.edit(id, |info, _| {
            change_schema(info, ts, |schema| {
                for Refill { function, fields } in std::mem::take(&mut schema.pending) {
                    for new in fields {
                        let old = schema.fields.iter_mut().find(|field| field.name == new.name);
                        if let Some(old) = old {
                            (old.id, old.column) = (new.id, new.column);
                        }
                    }
                    let old = schema.functions.iter_mut().find(|old| old.name == function.name);
                    if let Some(old) = old {
                        *old = FunctionDef { id: old.id, ..function };
                    }
                }
                Ok(())
            })
        })
    }

    pub(crate) fn create_partition(
        &mut self,
        db: &str,
        collection: &str,
        name: &str,
        ts: Ts,
    ) -> Result<(Arc<CollectionInfo>, PartitionInfo), Error> {
        let id = self.require(db, collection)?.id;
        let mut created = None;
        let info = self.edit(id, |info, catalog| {
            if name.is_empty() {
                return Err(Error::Invalid("a partition needs a name".into()));
            }
            if info.partition(name).is_some() {
                return Err(Error::PartitionExists(name.to_owned()));
            }
            let partition = PartitionInfo {
                id: catalog.new_id(),
                name: name.to_owned(),
                created: ts,
                loaded: info.loaded,
            };
            info.partitions.push(partition.clone());
            created = Some(partition);
            Ok(())
        })?;
        created
            .map(|partition| (info, partition))
            .ok_or_else(|| Error::Internal("a partition was not created".into()))
    }

    pub(crate) fn drop_partition(
        &mut self,
        db: &str,
        collection: &str,
        name: &str,
    ) -> Result<Arc<CollectionInfo>, Error> {
        let id = self.require(db, collection)?.id;
        self.edit(id, |info, _| {
            if info.partition(name).is_none() {
                return Err(Error::PartitionNotFound(name.to_owned()));
            }
            if name == DEFAULT_PARTITION {
                return Err(Error::Invalid(format!(
                    "partition `{DEFAULT_PARTITION}` cannot be dropped"
                )));
            }
            if info.num_partitions > 0 {
                return Err(Error::Invalid(
                    "the partitions of a partition key cannot be dropped".into(),
                ));
            }
            info.partitions.retain(|partition| partition.name != name);
            info.loaded = info.partitions.iter().any(|partition| partition.loaded);
            Ok(())
        })
    }

    pub(crate) fn create_alias(
        &mut self,
        db: &str,
        alias: &str,
        collection: &str,
    ) -> Result<(), Error> {
        let id = self.own_name(db, collection)?;
        if alias.is_empty() {
            return Err(Error::Invalid("an alias needs a name".into()));
        }
        if self.is_collection(db, alias) {
            return Err(Error::AliasNameConflict(alias.to_owned()));
        }
        if self.is_alias(db, alias) {
            return Err(Error::AliasExists(alias.to_owned()));
        }
        self.aliases.entry(db.to_owned()).or_default().insert(alias.to_owned(), id);
        Ok(())
    }

    pub(crate) fn drop_alias(&mut self, db: &str, alias: &str) -> Result<(), Error> {
        self.database_mut(db)?;
        let dropped = self.aliases.get_mut(db).and_then(|aliases| aliases.remove(alias));
        dropped.map(|_| ()).ok_or_else(|| Error::AliasNotFound(alias.to_owned()))
    }

    pub(crate) fn alter_alias(
        &mut self,
        db: &str,
        alias: &str,
        collection: &str,
    ) -> Result<(), Error> {
        let id = self.own_name(db, collection)?;
        match self.aliases.get_mut(db).and_then(|aliases| aliases.get_mut(alias)) {
            Some(target) => {
                *target = id;
                Ok(())
            }
            None => Err(Error::AliasNotFound(alias.to_owned())),
        }
    }

    pub(crate) fn create_index(
        &mut self,
        db: &str,
        collection: &str,
        new: NewIndex,
    ) -> Result<(Arc<CollectionInfo>, IndexDef), Error> {
        let NewIndex { name, field, params, graph, terms } = new;
        let name = if name.is_empty() { field.clone() } else { name };
        let info = Arc::clone(self.require(db, collection)?);
        let Some(indexed) = info.schema.field(&field) else {
            return Err(Error::Invalid(format!(
                "collection `{}` has no field `{field}` to index",
                info.name
            )));
        };
        if graph.is_some() && !indexed.data_type.is_dense_vector() {
            return Err(Error::Invalid(format!(
                "a graph needs dense vectors, field `{field}` is {}",
                indexed.data_type.name()
            )));
        }
        if terms.is_some() && indexed.data_type.is_vector() {
            return Err(Error::Invalid(format!(
                "sorted terms need scalars, field `{field}` is {}",
                indexed.data_type.name()
            )));
        }
        let covers = |index: &IndexDef| index.covers(&field, terms.as_ref());
        let taken = info.indexes.iter().find(|index| index.name == name || covers(index));
        if let Some(index) = taken {
            if index.name == name && covers(index) && same_pairs(&index.params, &params) {
                let index = index.clone();
                return Ok((info, index));
            }
            return Err(Error::IndexExists(format!(
                "index `{}` over field `{}` already exists with other parameters; drop it first",
                index.name, index.field
            )));
        }
        let index = IndexDef { id: self.new_id(), name, field, params, graph, terms };
        let info = self.edit(info.id, |info, _| {
            info.indexes.push(index.clone());
            Ok(())
        })?;
        Ok((info, index))
    }

    pub(crate) fn drop_index(
        &mut self,
        db: &str,
        collection: &str,
        name: &str,
    ) -> Result<Arc<CollectionInfo>, Error> {
        let id = self.require(db, collection)?.id;
        self.edit(id, |info, _| {
            if info.index(name).is_none() {
                return Err(Error::IndexNotFound(name.to_owned()));
            }
            info.indexes.retain(|index| index.name != name);
            Ok(())
        })
    }

    pub(crate) fn alter_index(
        &mut self,
        db: &str,
        collection: &str,
        name: &str,
        set: Vec<(String, String)>,
        delete: &[String],
    ) -> Result<Arc<CollectionInfo>, Error> {
        let id = self.require(db, collection)?.id;
        self.edit(id, |info, _| {
            let index = (info.indexes.iter_mut()).find(|index| index.name == name);
            let index = index.ok_or_else(|| Error::IndexNotFound(name.to_owned()))?;
            change_pairs(&mut index.params, set, delete);
            Ok(())
        })
    }
}

/// Sets and removes pairs, keeping the order of those that stay.
fn change_pairs(pairs: &mut Vec<(String, String)>, set: Vec<(String, String)>, delete: &[String]) {
    pairs.retain(|(key, _)| !delete.contains(key));
    for (key, value) in set {
        match pairs.iter_mut().find(|(existing, _)| *existing == key) {
            Some(pair) => pair.1 = value,
            None => pairs.push((key, value)),
        }
    }
}

fn same_pairs(a: &[(String, String)], b: &[(String, String)]) -> bool {
    let sorted = |pairs: &[(String, String)]| {
        let mut pairs = pairs.to_vec();
        pairs.sort_unstable();
        pairs
    };
    sorted(a) == sorted(b)
}

fn set_loaded(
    info: &mut CollectionInfo,
    names: Option<&[String]>,
    loaded: bool,
) -> Result<(), Error> {
    for name in names.unwrap_or_default() {
        if info.partition(name).is_none() {
            return Err(Error::PartitionNotFound(name.clone()));
        }
    }
    for partition in &mut info.partitions {
        if names.is_none_or(|names| names.contains(&partition.name)) {
            partition.loaded = loaded;
        }
    }
    info.loaded = info.partitions.iter().any(|partition| partition.loaded);
    Ok(())
}

/// Changes the schema, checks the result and advances its version and timestamp.
fn change_schema(
    info: &mut CollectionInfo,
    ts: Ts,
    change: impl FnOnce(&mut Schema) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut schema = info.schema.as_ref().clone();
    change(&mut schema)?;
    assign_ids(&mut schema);
    schema.version += 1;
    schema.validate()?;
    info.schema = Arc::new(schema);
    info.updated = ts;
    Ok(())
}

fn change_field(
    schema: &mut Schema,
    name: &str,
    set: Vec<(String, String)>,
    delete: &[String],
) -> Result<(), Error> {
    let field = (schema.fields.iter_mut())
        .find(|field| field.name == name)
        .ok_or_else(|| Error::Invalid(format!("field `{name}` does not exist")))?;
    for (key, value) in &set {
        let limit = || {
            value.parse::<u32>().map_err(|_| {
                Error::Invalid(format!("field `{name}`: `{key}` is not a number: `{value}`"))
            })
        };
        match (key.as_str(), &mut field.data_type) {
            ("max_length", DataType::VarChar { max_length }) => *max_length = limit()?,
            ("max_length", DataType::Array { element, .. }) => {
                if let DataType::VarChar { max_length } = element.as_mut() {
                    *max_length = limit()?;
                }
            }
            ("max_capacity", DataType::Array { max_capacity, .. }) => *max_capacity = limit()?,
            _ => {}
        }
    }
    change_pairs(&mut field.type_params, set, delete);
    Ok(())
}

fn set_functions(
    schema: &mut Schema,
    now: Vec<FunctionDef>,
    pending: Vec<FunctionDef>,
) -> Result<(), Error> {
    for field in &mut schema.fields {
        field.function_output = now.iter().any(|f| f.outputs.contains(&field.name));
    }
    let before = std::mem::take(&mut schema.pending);
    for function in pending {
        let same =
            |old: &&FunctionDef| old.name == function.name && old.outputs == function.outputs;
        if now.iter().find(same).is_none() {
            return Err(Error::Invalid(format!(
                "function `{}` with these outputs does not exist, so it cannot be replaced",
                function.name
            )));
        }
        if let Some(refill) = before.iter().find(|refill| refill.function == function) {
            schema.pending.push(refill.clone());
            continue;
        }
        let outputs = schema.fields.iter().filter(|field| function.outputs.contains(&field.name));
        let fields = outputs.map(|field| Field { id: 0, column: None, ..field.clone() }).collect();
        schema.pending.push(Refill { function, fields });
    }
    schema.functions = now;
    Ok(())
}

fn add_field(schema: &mut Schema, field: Field) -> Result<(), Error> {
    if field.primary_key || field.partition_key || field.clustering_key {
        return Err(Error::Invalid(format!("field `{}`: a key cannot be added later", field.name)));
    }
    if field.dynamic {
        if schema.enable_dynamic_field {
            return Err(Error::Invalid("the dynamic field is already enabled".into()));
        }
        schema.enable_dynamic_field = true;
    } else if !field.nullable && field.default.is_none() && !field.function_output {
        return Err(Error::Invalid(format!(
            "field `{}` must be nullable or have a default, because rows exist that lack it",
            field.name
        )));
    }
    schema.fields.push(field);
    Ok(())
}

/// Gives fields and functions without an id the next ones. No field gets an id that another had:
/// columns and indexes on disk are known by it.
fn assign_ids(schema: &mut Schema) {
    let Schema { fields, pending, functions, next_field, .. } = schema;
    let pending = pending.iter_mut().flat_map(|refill| &mut refill.fields);
    let mut fields: Vec<&mut Field> = fields.iter_mut().chain(pending).collect();
    let next = fields.iter().map(|field| field.id + 1).max().unwrap_or(0).max(*next_field);
    let unset = fields.iter_mut().filter(|field| field.id == 0);
    *next_field = next.max(FIRST_FIELD_ID);
    for field in unset {
        field.id = *next_field;
        *next_field += 1;
    }
    let next = functions.iter().map(|function| function.id + 1).max().unwrap_or(0);
    let unset = functions.iter_mut().filter(|function| function.id == 0);
    (next.max(FIRST_FIELD_ID)..).zip(unset).for_each(|(next, function)| function.id = next);
    let refilled = schema.pending.iter_mut().flat_map(|refill| &mut refill.fields);
    for field in refilled {
        // No user's field has such a name.
        field.column = Some(format!("{}@{}", field.name, field.id));
    }
}
