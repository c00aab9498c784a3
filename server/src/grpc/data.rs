//! Rows in and out: insert, upsert, delete, flush.
//!
//! A write is converted and checked on the search pool, its functions are run, and it reaches
//! storage as one atomic batch. What a write answers is durable and visible.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Int64Array, LargeStringArray, RecordBatch};
use elanus_index::Cancel;
use elanus_proto::codes::Code;
use elanus_proto::milvus::{
    DeleteRequest, FlushAllRequest, FlushAllResponse, FlushAllResult, FlushAllState,
    FlushCollectionResult, FlushRequest, FlushResponse, GetFlushAllStateRequest,
    GetFlushAllStateResponse, GetFlushStateRequest, GetFlushStateResponse, InsertRequest,
    MutationResult, UpsertRequest,
};
use elanus_proto::schema::LongArray;
use elanus_storage::schema::{DataType, Schema};
use elanus_storage::{
    Collection, CollectionInfo, Engine, Keys, ReadView, Scope, SegmentState, SegmentStats, Ts,
};

use crate::convert::fields::{self, Accept, Columns};
use crate::convert::parse_bool;
use crate::node::{Context, DEFAULT_PARTITION, Node, refuse_manual_partitions};
use crate::plan::filter::Filter;
use crate::plan::function::Fill;
use crate::plan::partial;
use crate::plan::route::ByKey;
use crate::status::Failure;

/// The collection property that lets a client give keys which the node would generate.
const ALLOW_INSERT_AUTO_ID: &str = "allow_insert_auto_id";

/// A write that storage has acknowledged.
struct Stored {
    keys: ArrayRef,
    ts: Ts,
}

impl Node {
    /// Inserts rows; a row whose key exists replaces the one that is there.
    pub(super) async fn insert(
        &self,
        ctx: &Context,
        request: InsertRequest,
    ) -> Result<MutationResult, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        self.check_room()?;
        check_schema_timestamp(&info, request.schema_timestamp)?;
        let target = Target::of(&info, &request.partition_name)?;
        let auto_key = info.property(ALLOW_INSERT_AUTO_ID).and_then(parse_bool).unwrap_or(false);
        let accept = Accept { auto_key, partial: false };
        let rows = Rows::new(self, &info, target);
        let limits = self.limits.clone();
        let (data, num_rows) = (request.fields_data, request.num_rows as usize);
        let prepare = move || {
            let columns = Columns::decode(&rows.schema, data, num_rows, accept, &limits)?;
            rows.prepare(columns)
        };
        let prepared = self.engine.pools().search(None, prepare).await??;
        let stored = self.store(&collection, prepared, None).await?;
        Ok(MutationResult { insert_cnt: count(request.num_rows), ..written(&stored) })
    }

    /// Replaces rows by key, whole or in part.
    pub(super) async fn upsert(
        &self,
        ctx: &Context,
        request: UpsertRequest,
    ) -> Result<MutationResult, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        self.check_room()?;
        check_schema_timestamp(&info, request.schema_timestamp)?;
        let target = Target::of(&info, &request.partition_name)?;
        let partial = request.partial_update;
        if !partial && !request.field_ops.is_empty() {
            return Err(Failure::invalid(
                "field_ops are for partial updates only, set partial_update",
            ));
        }
        let primary = info.schema.primary();
        if !request.fields_data.iter().any(|column| column.field_name == primary.name) {
            return Err(Failure::invalid(format!(
                "must assign pk when upsert, primary field: {}",
                primary.name
            )));
        }
        if partial {
            self.require_loaded(&info)?;
        }
        // A partial update reads what it writes; two of them on one row must not interleave.
        let _reading = match partial {
            true => Some(self.plan.partial_updates.lock(info.id).await),
            false => None,
        };
        // Of what was written last: rows and the schema that they are read and written by.
        let (info, view) = collection.read();
        let ops = partial::Ops::parse(&request.field_ops, &info.schema)?;
        let moved = info.schema.primary().auto_id;
        let rows = Rows::new(self, &info, target);
        let limits = self.limits.clone();
        let (data, num_rows) = (request.fields_data, request.num_rows as usize);
        let prepare = move || {
            let accept = Accept { auto_key: true, partial };
            let mut columns = Columns::decode(&rows.schema, data, num_rows, accept, &limits)?;
            if partial {
                columns = partial::complete(&view, &rows.schema, columns, &ops)?;
            }
            let replaced = if moved { Some(rows.renew_keys(&mut columns)?) } else { None };
            Ok::<_, Failure>((rows.prepare(columns)?, replaced))
        };
        let (prepared, replaced) = self.engine.pools().search(None, prepare).await??;
        // Generated keys are never reused: the row moves to a new one.
        let stored = self.store(&collection, prepared, replaced).await?;
        let rows = count(request.num_rows);
        Ok(MutationResult {
            insert_cnt: rows,
            delete_cnt: rows,
            upsert_cnt: rows,
            ..written(&stored)
        })
    }

    /// Deletes rows by key, or those that match an expression.
    pub(super) async fn delete(
        &self,
        ctx: &Context,
        request: DeleteRequest,
    ) -> Result<MutationResult, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        let partitions = match request.partition_name.as_str() {
            "" => None,
            name => {
                refuse_manual_partitions(&info)?;
                Some(vec![partition_id(&info, name)?])
            }
        };
        let filter = Filter { text: request.expr, values: request.expr_template_values };
        let schema = Arc::clone(&info.schema);
        let view = collection.view();
        let loaded = self.require_loaded(&info);
        let scope = partitions.clone();
        let keys = self
            .engine
            .pools()
            .search(None, move || doomed_keys(&view, &schema, &filter, scope.as_deref(), loaded))
            .await??;
        let deleted = count(keys.len());
        let ts = match keys.is_empty() {
            true => self.next_ts(),
            false => collection.delete(partitions, keys).await?.ts,
        };
        // No ids: clients would hand them to the caller instead of the count.
        Ok(MutationResult { delete_cnt: deleted, timestamp: ts.0, ..Default::default() })
    }

    /// Seals what is in memory into files.
    pub(super) async fn flush(
        &self,
        ctx: &Context,
        request: FlushRequest,
    ) -> Result<FlushResponse, Failure> {
        if request.collection_names.is_empty() {
            return Err(Failure::invalid("collection name should not be empty"));
        }
        let mut response = FlushResponse { db_name: ctx.db.clone(), ..Default::default() };
        for name in request.collection_names {
            let info = self.describe(ctx, &name)?;
            // Read before the cut, which everything written until now comes before.
            let ts = self.engine.clock().now();
            let segments = LongArray { data: self.engine.flush(info.id).await? };
            response.coll_seg_i_ds.insert(name.clone(), LongArray::default());
            response.flush_coll_seg_i_ds.insert(name.clone(), segments);
            response.coll_seal_times.insert(name.clone(), seconds(ts));
            response.coll_flush_ts.insert(name, ts.0);
        }
        Ok(response)
    }

    /// Seals what is in memory, in the collections named or in all.
    pub(super) async fn flush_all(
        &self,
        ctx: &Context,
        request: FlushAllRequest,
    ) -> Result<FlushAllResponse, Failure> {
        let mut targets: HashMap<String, Vec<Arc<CollectionInfo>>> = HashMap::new();
        let catalog = self.catalog();
        if request.flush_targets.is_empty() {
            let databases = match request.db_name.as_str() {
                "" => catalog.databases().map(|database| database.name.clone()).collect(),
                _ => vec![ctx.db.clone()],
            };
            for database in databases {
                let collections = catalog.collections(&database).cloned().collect();
                targets.insert(database, collections);
            }
        }
        for target in request.flush_targets {
            let database = if target.db_name.is_empty() { ctx.db.clone() } else { target.db_name };
            self.require_database(&catalog, &database)?;
            let wanted = targets.entry(database.clone()).or_default();
            if target.collection_names.is_empty() {
                wanted.extend(catalog.collections(&database).cloned());
            }
            for name in target.collection_names {
                let info = catalog.resolve(&database, &name).cloned();
                wanted.push(info.ok_or_else(|| Failure::collection_not_found(&database, &name))?);
            }
        }
        let mut results = Vec::with_capacity(targets.len());
        for (db_name, collections) in targets {
            let mut collection_results = Vec::with_capacity(collections.len());
            for info in collections {
                let ts = self.engine.clock().now();
                let segments = match self.engine.flush(info.id).await {
                    Ok(segments) => segments,
                    // Dropped meanwhile: nothing is left to flush.
                    Err(elanus_storage::Error::CollectionNotFound { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                collection_results.push(FlushCollectionResult {
                    collection_name: info.name.clone(),
                    segment_ids: Some(LongArray::default()),
                    flush_segment_ids: Some(LongArray { data: segments }),
                    seal_time: seconds(ts),
                    flush_ts: ts.0,
                    ..Default::default()
                });
            }
            results.push(FlushAllResult { db_name, collection_results });
        }
        Ok(FlushAllResponse {
            flush_all_ts: self.engine.clock().now().0,
            flush_results: results,
            ..Default::default()
        })
    }

    /// A flush has done its work when it answers, so its state is always "flushed".
    pub(super) async fn get_flush_state(
        &self,
        ctx: &Context,
        request: GetFlushStateRequest,
    ) -> Result<GetFlushStateResponse, Failure> {
        // A flush is over when it is answered, so what it named is sealed, and growing rows are
        // newer. Without a collection there is nothing that could grow.
        let mut flushed = true;
        if !request.collection_name.is_empty() {
            let (_, collection) = self.collection(ctx, &request.collection_name)?;
            let growing = |segment: &SegmentStats| {
                segment.state == SegmentState::Growing && request.segment_i_ds.contains(&segment.id)
            };
            flushed = !collection.stats().segments.iter().any(growing)
                && collection.is_sealed_until(Ts(request.flush_ts));
        }
        Ok(GetFlushStateResponse { status: None, flushed })
    }

    /// As [`Self::get_flush_state`], for all.
    pub(super) async fn get_flush_all_state(
        &self,
        ctx: &Context,
        request: GetFlushAllStateRequest,
    ) -> Result<GetFlushAllStateResponse, Failure> {
        let state = |target: elanus_proto::milvus::FlushAllTarget| FlushAllState {
            db_name: if target.db_name.is_empty() { ctx.db.clone() } else { target.db_name },
            collection_flush_states: target
                .collection_names
                .into_iter()
                .map(|name| (name, true))
                .collect(),
        };
        Ok(GetFlushAllStateResponse {
            flushed: true,
            flush_states: request.flush_targets.into_iter().map(state).collect(),
            ..Default::default()
        })
    }

    /// Runs the functions that are left to run and writes the rows, in the place of those with the
    /// keys `replaced`, if there are any.
    async fn store(
        &self,
        collection: &Collection,
        prepared: Prepared,
        replaced: Option<Keys>,
    ) -> Result<Stored, Failure> {
        let ready = match prepared {
            Prepared::Ready(ready) => ready,
            Prepared::Waiting { fill, rows, mut columns } => {
                let filled = fill.run(self.engines()).await?;
                let finish = move || {
                    filled.apply(&rows.schema, &mut columns)?;
                    rows.finish(columns)
                };
                self.engine.pools().search(None, finish).await??
            }
        };
        let written = match replaced {
            Some(keys) => collection.replace(keys, ready.parts).await?,
            None => collection.insert_all(ready.parts).await?,
        };
        Ok(Stored { keys: ready.keys, ts: written.ts })
    }
}

/// What the rows of one request need on their way to storage.
struct Rows {
    /// With the fields and functions that are pending.
    schema: Arc<Schema>,
    engine: Engine,
    target: Target,
}

/// Rows that may go to storage.
struct Ready {
    keys: ArrayRef,
    parts: Vec<(i64, RecordBatch)>,
}

/// Rows that are decoded.
enum Prepared {
    Ready(Ready),
    /// Functions have to be run first.
    Waiting {
        fill: Fill,
        rows: Rows,
        columns: Columns,
    },
}

impl Rows {
    fn new(node: &Node, info: &CollectionInfo, target: Target) -> Self {
        Self { schema: info.schema.written(), engine: node.engine.clone(), target }
    }

    /// Adds generated keys and works out which functions to run.
    fn prepare(self, mut columns: Columns) -> Result<Prepared, Failure> {
        let key = key_position(&self.schema);
        if columns.get(key).is_none() {
            columns.set(key, self.generate_keys(columns.rows())?);
        }
        let fill = Fill::plan(&self.schema, &columns)?;
        if fill.is_empty() {
            return self.finish(columns).map(Prepared::Ready);
        }
        Ok(Prepared::Waiting { fill, rows: self, columns })
    }

    /// Makes the batches of the partitions.
    fn finish(self, columns: Columns) -> Result<Ready, Failure> {
        let batch = columns.into_batch(&self.schema)?;
        let keys = Arc::clone(batch.column(key_position(&self.schema)));
        Ok(Ready { keys, parts: self.target.split(batch)? })
    }

    /// Gives rows new keys and returns those they had.
    fn renew_keys(&self, columns: &mut Columns) -> Result<Keys, Failure> {
        let key = key_position(&self.schema);
        let old = columns.get(key).ok_or_else(|| Failure::internal("an upsert without keys"))?;
        let old = fields::keys(old)?;
        columns.set(key, self.generate_keys(columns.rows())?);
        Ok(old)
    }

    /// New keys for `rows` rows: consecutive timestamps of the node's clock, unique for ever; a
    /// VARCHAR key is the decimal text of one.
    fn generate_keys(&self, rows: usize) -> Result<ArrayRef, Failure> {
        let first = self.engine.clock().next_block(rows as u64).0;
        let first = i64::try_from(first)
            .map_err(|_| Failure::internal("the clock has run past the keys it can make"))?;
        let keys = (0..).map(|n: i64| first + n).take(rows);
        Ok(if self.schema.primary().data_type == DataType::Int64 {
            Arc::new(Int64Array::from_iter_values(keys))
        } else {
            Arc::new(LargeStringArray::from_iter_values(keys.map(|key| key.to_string())))
        })
    }
}

/// Which partition rows go to.
enum Target {
    One(i64),
    ByKey(ByKey),
}

impl Target {
    fn of(info: &CollectionInfo, name: &str) -> Result<Self, Failure> {
        if let Some(route) = ByKey::of(info) {
            if !name.is_empty() {
                refuse_manual_partitions(info)?;
            }
            return Ok(Self::ByKey(route));
        }
        let name = if name.is_empty() { DEFAULT_PARTITION } else { name };
        Ok(Self::One(partition_id(info, name)?))
    }

    /// The rows of each partition.
    fn split(self, batch: RecordBatch) -> Result<Vec<(i64, RecordBatch)>, Failure> {
        match self {
            Self::One(partition) => Ok(vec![(partition, batch)]),
            Self::ByKey(route) => route.split(&batch),
        }
    }
}

/// The keys that a delete expression names or matches.
fn doomed_keys(
    view: &ReadView,
    schema: &Schema,
    filter: &Filter,
    partitions: Option<&[i64]>,
    loaded: Result<(), Failure>,
) -> Result<Keys, Failure> {
    let predicate =
        filter.compile(schema).map_err(|failure| failure.context("failed to delete"))?;
    let Some(predicate) = predicate.filter(|predicate| !predicate.is_always_true()) else {
        return Err(Failure::invalid(format!(
            "invalid expression: {}: delete plan can't be empty or always true",
            filter.text
        )));
    };
    // Keys that are named need no search, so the collection need not be loaded; and they are
    // counted as asked for, found or not.
    if let Some(keys) = predicate.key_set() {
        return Ok(keys);
    }
    loaded.map_err(|failure| failure.context("failed to delete"))?;
    let cancel = Cancel::never();
    let scope = Scope { partitions, filter: Some(&predicate), ignore_growing: false };
    let selection = view.select(&scope, &cancel)?;
    let rows = view.rows_by_key(&selection, 0, None)?;
    let primary = schema.primary().name.as_str();
    let batch = view.take(&rows, &[primary])?;
    fields::keys(batch.column(0))
}

fn key_position(schema: &Schema) -> usize {
    schema.fields.iter().position(|field| field.primary_key).unwrap_or_default()
}

fn partition_id(info: &CollectionInfo, name: &str) -> Result<i64, Failure> {
    let partition = info.partition(name).ok_or_else(|| Failure::partition_not_found(name))?;
    Ok(partition.id)
}

/// Refuses rows that a client encoded by an older schema; it reads the schema again and retries.
fn check_schema_timestamp(info: &CollectionInfo, sent: u64) -> Result<(), Failure> {
    if sent == 0 || sent == info.updated.0 {
        return Ok(());
    }
    Err(Failure::new(
        Code::CollectionSchemaMismatch,
        format!("collection schema mismatch[collection={}]", info.name),
    ))
}

fn written(stored: &Stored) -> MutationResult {
    MutationResult {
        i_ds: Some(fields::encode_ids(&stored.keys)),
        succ_index: (0..).take(stored.keys.len()).collect(),
        timestamp: stored.ts.0,
        ..Default::default()
    }
}

fn count(rows: impl TryInto<i64>) -> i64 {
    rows.try_into().unwrap_or(i64::MAX)
}

fn seconds(ts: Ts) -> i64 {
    count(ts.millis() / 1_000)
}
