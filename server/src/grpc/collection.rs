//! Collections: create, describe, list, rename, drop, empty.

use std::sync::Arc;

use elanus_proto::codes::Code;
use elanus_proto::common::{ConsistencyLevel, Status};
use elanus_proto::milvus::*;
use elanus_storage::schema::Schema;
use elanus_storage::{CatalogView, CollectionInfo, NewCollection, Stats, Ts};

use super::alter::check_property;
use crate::config::Durability;
use crate::convert::{function, key_value, key_values, names, pairs, schema};
use crate::node::{Context, Node, has_partition_key};
use crate::status::{Failure, success};

/// Partitions of a collection with a partition key, when the request does not say.
const DEFAULT_KEY_PARTITIONS: i64 = 16;

/// The property that tells that writes are acknowledged before they are synced.
const DURABILITY: &str = "elanus.durability";

/// The property that tells why a collection is quarantined.
const DAMAGE: &str = "elanus.damage";

/// The property that tells how far the stored texts are embedded anew, as a JSON object.
const REEMBEDDING: &str = "elanus.reembedding";

impl Node {
    pub(super) async fn create_collection(
        &self,
        ctx: &Context,
        request: CreateCollectionRequest,
    ) -> Result<Status, Failure> {
        let name = request.collection_name.clone();
        names::check(names::Kind::Collection, &name, &self.limits)?;
        let new = self.new_collection(request).await?;
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        match catalog.resolve(&ctx.db, &name) {
            None => {}
            Some(existing) if existing.name != name => {
                return Err(Failure::new(
                    Code::AliasCollectionNameConflict,
                    format!(
                        "collection name [{name}] conflicts with an existing alias, it is an alias \
                         of collection {}",
                        existing.name
                    ),
                ));
            }
            Some(existing) => return same_collection(existing, &new),
        }
        if catalog.all_collections().count() >= self.limits.collections {
            return Err(Failure::new(
                Code::CollectionNumLimitExceeded,
                format!("{}[limit={}]", Code::CollectionNumLimitExceeded, self.limits.collections),
            ));
        }
        let wanted = new.clone();
        match self.engine.create_collection(&ctx.db, new).await {
            Ok(_) => Ok(success()),
            // Somebody else was quicker since we looked.
            Err(elanus_storage::Error::CollectionExists { .. }) => {
                match self.catalog().resolve(&ctx.db, &name) {
                    Some(existing) => same_collection(existing, &wanted),
                    None => Err(Failure::collection_not_found(&ctx.db, name)),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Checks everything about a new collection that does not depend on what exists.
    async fn new_collection(
        &self,
        request: CreateCollectionRequest,
    ) -> Result<NewCollection, Failure> {
        let schema = schema::decode(&request.schema, &self.limits)?;
        function::check(&schema, self.engines()).await?;
        let shards = match request.shards_num {
            0 => 1,
            n if (1..=self.limits.shards).contains(&n) => n,
            n => {
                return Err(Failure::invalid(format!(
                    "maximum shards's number should be limited to {}, got {n}",
                    self.limits.shards
                )));
            }
        };
        if ConsistencyLevel::try_from(request.consistency_level).is_err() {
            return Err(Failure::invalid(format!(
                "unknown consistency level {}",
                request.consistency_level
            )));
        }
        let num_partitions = self.key_partitions(&schema, request.num_partitions)?;
        let properties = pairs(request.properties);
        for (key, value) in &properties {
            check_property(key, value)?;
        }
        Ok(NewCollection {
            name: request.collection_name,
            schema,
            shards,
            consistency: request.consistency_level,
            properties,
            partitions: (0..num_partitions).map(|n| format!("_default_{n}")).collect(),
            num_partitions,
        })
    }

    /// How many partitions a partition key is spread over; 0 without one.
    fn key_partitions(&self, schema: &Schema, asked: i64) -> Result<i64, Failure> {
        let max = i64::try_from(self.limits.partitions).unwrap_or(i64::MAX);
        if !schema.fields.iter().any(|field| field.partition_key) {
            // Some clients send 1 for a collection without a key, which is what it has.
            if asked > 1 {
                return Err(Failure::invalid(
                    "num_partitions should only be specified with partition key field enabled",
                ));
            }
            return Ok(0);
        }
        match asked {
            0 => Ok(DEFAULT_KEY_PARTITIONS.min(max)),
            n if (1..=max).contains(&n) => Ok(n),
            n => Err(Failure::invalid(format!(
                "partition number ({n}) exceeds max configuration ({max})"
            ))),
        }
    }

    pub(super) async fn drop_collection(
        &self,
        ctx: &Context,
        request: DropCollectionRequest,
    ) -> Result<Status, Failure> {
        let name = &request.collection_name;
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let Some(info) = catalog.resolve(&ctx.db, name) else {
            return Ok(success());
        };
        if info.name != *name {
            return Err(Failure::invalid(format!(
                "cannot drop the collection via alias = {name}; drop the alias, or the collection \
                 {}",
                info.name
            )));
        }
        let aliases: Vec<&str> = catalog.aliases_of(info.id).collect();
        if !aliases.is_empty() {
            return Err(Failure::invalid(format!(
                "unable to drop the collection [{name}] because it has associated aliases [{}], \
                 please remove all aliases before dropping the collection",
                aliases.join(", ")
            )));
        }
        match self.engine.drop_collection(&ctx.db, name).await {
            Ok(()) | Err(elanus_storage::Error::CollectionNotFound { .. }) => Ok(success()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn has_collection(
        &self,
        ctx: &Context,
        request: HasCollectionRequest,
    ) -> Result<BoolResponse, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let value = catalog.resolve(&ctx.db, &request.collection_name).is_some();
        Ok(BoolResponse { value, ..Default::default() })
    }

    pub(super) async fn describe_collection(
        &self,
        ctx: &Context,
        request: DescribeCollectionRequest,
    ) -> Result<DescribeCollectionResponse, Failure> {
        let catalog = self.catalog();
        let info = find(self, &catalog, ctx, &request.collection_name, request.collection_id)?;
        Ok(self.described(&catalog, info))
    }

    pub(super) async fn batch_describe_collection(
        &self,
        ctx: &Context,
        request: BatchDescribeCollectionRequest,
    ) -> Result<BatchDescribeCollectionResponse, Failure> {
        let catalog = self.catalog();
        let names = request.collection_name.iter().map(|name| (name.as_str(), 0));
        let ids = request.collection_id.iter().map(|&id| ("", id));
        let responses = names
            .chain(ids)
            .map(|(name, id)| match find(self, &catalog, ctx, name, id) {
                Ok(info) => {
                    let mut response = self.described(&catalog, info);
                    response.status = Some(success());
                    response
                }
                Err(failure) => DescribeCollectionResponse {
                    status: Some((&failure).into()),
                    ..Default::default()
                },
            })
            .collect();
        Ok(BatchDescribeCollectionResponse { responses, ..Default::default() })
    }

    pub(super) async fn show_collections(
        &self,
        ctx: &Context,
        request: ShowCollectionsRequest,
    ) -> Result<ShowCollectionsResponse, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let loaded_only = request.r#type() == ShowType::InMemory;
        let wanted = &request.collection_names;
        let mut response = ShowCollectionsResponse::default();
        for info in catalog.collections(&ctx.db) {
            let named = wanted.is_empty() || wanted.contains(&info.name);
            if !named || (loaded_only && !info.loaded) {
                continue;
            }
            response.collection_names.push(info.name.clone());
            response.collection_ids.push(info.id);
            response.created_timestamps.push(info.created.0);
            response.created_utc_timestamps.push(utc_ms(info.created));
            response.in_memory_percentages.push(if info.loaded { 100 } else { 0 });
            response.query_service_available.push(info.loaded);
            response.shards_num.push(info.shards);
        }
        if loaded_only
            && let Some(missing) =
                wanted.iter().find(|name| !response.collection_names.contains(name))
        {
            self.describe(ctx, missing)?;
            return Err(Failure::collection_not_loaded(missing));
        }
        Ok(response)
    }

    pub(super) async fn rename_collection(
        &self,
        ctx: &Context,
        request: RenameCollectionRequest,
    ) -> Result<Status, Failure> {
        let (old, new) = (&request.old_name, &request.new_name);
        names::check(names::Kind::Collection, new, &self.limits)?;
        let new_db = if request.new_db_name.is_empty() { &ctx.db } else { &request.new_db_name };
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        self.require_database(&catalog, new_db)?;
        let info = self.describe(ctx, old)?;
        if info.name != *old {
            return Err(Failure::invalid(format!(
                "unsupported use an alias to rename collection, alias: {old}"
            )));
        }
        if catalog.resolve(new_db, new).is_some() {
            return Err(Failure::invalid(format!(
                "duplicated new collection name {new} in database {new_db} with other collection \
                 name or alias"
            )));
        }
        self.engine.rename_collection(&ctx.db, old, new_db, new).await?;
        Ok(success())
    }

    pub(super) async fn get_collection_statistics(
        &self,
        ctx: &Context,
        request: GetCollectionStatisticsRequest,
    ) -> Result<GetCollectionStatisticsResponse, Failure> {
        let (_, collection) = self.collection(ctx, &request.collection_name)?;
        let rows = collection.stats().rows;
        Ok(GetCollectionStatisticsResponse {
            stats: vec![key_value("row_count", rows.to_string())],
            ..Default::default()
        })
    }

    pub(super) async fn truncate_collection(
        &self,
        ctx: &Context,
        request: TruncateCollectionRequest,
    ) -> Result<TruncateCollectionResponse, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        self.engine.truncate(info.id).await?;
        Ok(TruncateCollectionResponse::default())
    }

    /// Counts of every collection that is open.
    pub fn all_stats(&self) -> Vec<Stats> {
        let catalog = self.catalog();
        catalog
            .all_collections()
            .filter_map(|info| self.engine.collection(info.id))
            .map(|collection| collection.stats())
            .collect()
    }
}

/// Creating what exists already is a success when nothing differs.
fn same_collection(existing: &CollectionInfo, new: &NewCollection) -> Result<Status, Failure> {
    let bare = |schema: &Schema| {
        let mut schema = schema.clone();
        (schema.version, schema.next_field) = (0, 0);
        schema.pending.clear();
        for field in &mut schema.fields {
            (field.id, field.column) = (0, None);
        }
        for function in &mut schema.functions {
            function.id = 0;
        }
        schema
    };
    let same = bare(&existing.schema) == bare(&new.schema)
        && existing.shards == new.shards
        && existing.num_partitions == new.num_partitions
        && existing.consistency == new.consistency
        && existing.properties == new.properties;
    if same {
        return Ok(success());
    }
    Err(Failure::invalid(format!(
        "create duplicate collection with different parameters, collection: {}",
        new.name
    )))
}

/// By name or alias, else by id; the text of a miss is the one that clients look for here.
fn find<'a>(
    node: &Node,
    catalog: &'a CatalogView,
    ctx: &Context,
    name: &str,
    id: i64,
) -> Result<&'a Arc<CollectionInfo>, Failure> {
    if name.is_empty() && id == 0 {
        return Err(Failure::invalid("collection name should not be empty"));
    }
    node.require_database(catalog, &ctx.db)?;
    let found = if name.is_empty() { catalog.by_id(id) } else { catalog.resolve(&ctx.db, name) };
    found.ok_or_else(|| {
        let shown = if name.is_empty() { id.to_string() } else { name.to_owned() };
        Failure::new(
            Code::CollectionNotFound,
            format!(
                "can't find collection[database={}][collection={shown}]: {}",
                ctx.db,
                Code::CollectionNotFound
            ),
        )
    })
}

impl Node {
    fn described(
        &self,
        catalog: &CatalogView,
        info: &CollectionInfo,
    ) -> DescribeCollectionResponse {
        // Clients want a channel for each shard; the names mean nothing here.
        let channels: Vec<String> =
            (0..info.shards).map(|shard| format!("elanus-{shard}_{}v{shard}", info.id)).collect();
        let num_partitions = if has_partition_key(info) {
            info.num_partitions
        } else {
            i64::try_from(info.partitions.len()).unwrap_or(i64::MAX)
        };
        DescribeCollectionResponse {
            status: None,
            schema: Some(schema::encode(&info.name, &info.db, &info.schema)),
            collection_id: info.id,
            physical_channel_names: (0..info.shards)
                .map(|shard| format!("elanus-{shard}"))
                .collect(),
            virtual_channel_names: channels,
            created_timestamp: info.created.0,
            created_utc_timestamp: utc_ms(info.created),
            shards_num: info.shards,
            aliases: catalog.aliases_of(info.id).map(str::to_owned).collect(),
            start_positions: Vec::new(),
            consistency_level: info.consistency,
            collection_name: info.name.clone(),
            properties: key_values(&self.properties(info)),
            db_name: info.db.clone(),
            num_partitions,
            db_id: catalog.database(&info.db).map_or(0, |database| database.id),
            request_time: 0,
            update_timestamp: info.updated.0,
            update_timestamp_str: info.updated.0.to_string(),
        }
    }

    /// A collection's properties, and what a client should know of the state of its rows.
    fn properties(&self, info: &CollectionInfo) -> Vec<(String, String)> {
        let mut properties = info.properties.clone();
        let mut tell = |key: &str, value: String| properties.push((key.to_owned(), value));
        if self.config.durability == Durability::Async {
            tell(DURABILITY, "async".to_owned());
        }
        if let Some(damage) = self.engine.collection(info.id).and_then(|open| open.damage()) {
            tell(DAMAGE, damage.to_string());
        }
        if let Some(state) = self.reembedding_state(info) {
            tell(REEMBEDDING, state.to_string());
        }
        properties
    }
}

/// Milliseconds since 1970 of a timestamp.
pub(super) fn utc_ms(ts: Ts) -> u64 {
    ts.0 >> 18
}
