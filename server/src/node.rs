//! The node: the engine, the models and the settings that every request handler shares, and the
//! few look-ups that nearly every handler begins with.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use elanus_embed::ModelStore;
use elanus_proto::codes::Code;
use elanus_remote::Providers;
use elanus_storage::{CatalogView, Collection, CollectionInfo, Engine, Ts};

use crate::config::Config;
use crate::engines::Engines;
use crate::limits::Limits;
use crate::pull::{self, Wanted};
use crate::reembed::{self, Reembedding};
use crate::status::Failure;
use crate::telemetry::Metrics;

/// The database of a request that names none.
pub const DEFAULT_DATABASE: &str = "default";

/// The partition every collection has.
pub const DEFAULT_PARTITION: &str = "_default";

/// What a request is answered under: the database it names and the caller's trace id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The request's `db_name`, else the metadata key `dbname`, else `default`.
    pub db: String,
    /// The caller's own id for the request, for the log.
    pub request_id: Option<String>,
}

impl Context {
    /// A request that named no database and no id.
    pub fn new(db: impl Into<String>) -> Self {
        Self { db: db.into(), request_id: None }
    }
}

/// Everything a request handler needs; one per process, shared by all requests.
///
/// The handlers themselves are `impl Node` blocks in [`crate::grpc`].
pub struct Node {
    /// The durable collections.
    pub engine: Engine,
    /// The models that turn text into vectors.
    pub models: ModelStore,
    /// Services on other machines that do.
    pub providers: Providers,
    /// The settings the node was started with.
    pub config: Config,
    /// Bounds on requests and collections.
    pub limits: Limits,
    /// Counters for the ops port.
    pub metrics: Metrics,
    /// What requests share while they are planned: iterator cursors, locks of partial updates.
    pub plan: crate::plan::State,
    /// Functions whose vectors are made anew.
    pub reembedding: Reembedding,
    connections: AtomicI64,
}

impl Node {
    /// Opens the data directory, recovers what is in it, prepares the model store, begins to fetch
    /// the models that are wanted and not there, and goes on with vectors that are made anew.
    ///
    /// # Errors
    /// Whatever keeps the engine from opening: a lock held by another process, a corrupt file; and
    /// the address of a hub that is none.
    pub async fn open(config: Config) -> anyhow::Result<Arc<Self>> {
        let engine = Engine::open(config.engine_options()).await?;
        let models = ModelStore::new(config.model_options());
        let providers = Providers::new(config.provider_options())?;
        if !config.models.download.is_empty() {
            let wanted = config.models.download.iter().map(|text| Wanted::parse(text)).collect();
            pull::in_background(&models, config.hub()?, wanted);
        }
        // A connection id must never be zero, nor repeat after a restart.
        let first_connection = i64::try_from(engine.clock().next().0).unwrap_or(1).max(1);
        let node = Arc::new(Self {
            engine,
            models,
            providers,
            limits: config.limits.clone(),
            metrics: Metrics::new(),
            plan: crate::plan::State::default(),
            reembedding: Reembedding::default(),
            connections: AtomicI64::new(first_connection),
            config,
        });
        reembed::in_background(&node);
        Ok(node)
    }

    /// Whoever makes vectors and scores of texts.
    pub fn engines(&self) -> Engines<'_> {
        Engines { models: &self.models, providers: &self.providers }
    }

    /// A number for a new connection: never zero, unique on this node.
    pub fn next_connection(&self) -> i64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// What exists right now; an immutable snapshot, taken without a lock.
    pub fn catalog(&self) -> Arc<CatalogView> {
        self.engine.catalog()
    }

    /// Finds a collection by its name or an alias of it, in the request's database.
    ///
    /// # Errors
    /// Code 800 when the database does not exist, 100 when the collection does not.
    pub fn describe(&self, ctx: &Context, name: &str) -> Result<Arc<CollectionInfo>, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        if name.is_empty() {
            return Err(Failure::invalid("collection name should not be empty"));
        }
        catalog
            .resolve(&ctx.db, name)
            .cloned()
            .ok_or_else(|| Failure::collection_not_found(&ctx.db, name))
    }

    /// Finds a collection by its name or an alias of it, with its rows and what they are written by.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub fn collection(
        &self,
        ctx: &Context,
        name: &str,
    ) -> Result<(Arc<CollectionInfo>, Arc<Collection>), Failure> {
        let info = self.describe(ctx, name)?;
        // The catalog may have moved on since the line above; a collection dropped in between
        // is simply not found.
        let collection = self
            .engine
            .collection(info.id)
            .ok_or_else(|| Failure::collection_not_found(&ctx.db, name))?;
        Ok((collection.info(), collection))
    }

    /// Finds a collection by its id alone.
    ///
    /// # Errors
    /// Code 100 when there is none.
    pub fn describe_by_id(&self, ctx: &Context, id: i64) -> Result<Arc<CollectionInfo>, Failure> {
        self.catalog().by_id(id).cloned().ok_or_else(|| Failure::collection_not_found(&ctx.db, id))
    }

    /// Refuses a search, query or count on a collection of which nothing is loaded: code 101.
    pub fn require_loaded(&self, info: &CollectionInfo) -> Result<(), Failure> {
        if info.loaded {
            return Ok(());
        }
        Err(Failure::collection_not_loaded(&info.name))
    }

    /// The partitions a search or query may read: `None` for all of them.
    ///
    /// `names` are the partitions the request names; none means every loaded one.
    ///
    /// # Errors
    /// Code 101 when nothing is loaded, 200 for an unknown name, 201 for a partition that is
    /// not loaded, 1100 for any name when a partition key decides.
    pub fn readable_partitions(
        &self,
        info: &CollectionInfo,
        names: &[String],
    ) -> Result<Option<Vec<i64>>, Failure> {
        self.require_loaded(info)?;
        if names.is_empty() {
            if info.partitions.iter().all(|partition| partition.loaded) {
                return Ok(None);
            }
            return Ok(Some(info.partitions.iter().filter(|p| p.loaded).map(|p| p.id).collect()));
        }
        refuse_manual_partitions(info)?;
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            let partition = info.partition(name).ok_or_else(|| partition_name_not_found(name))?;
            if !partition.loaded {
                return Err(Failure::new(
                    Code::PartitionNotLoaded,
                    format!("partition not loaded[partition={name}]"),
                ));
            }
            ids.push(partition.id);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(Some(ids))
    }

    /// Refuses rows, before anything is done for them, while there is no room on the disk or in
    /// memory: codes 7 and 3, both worth a retry.
    ///
    /// # Errors
    /// These, and code 2 when the log takes no writes any more.
    pub fn check_room(&self) -> Result<(), Failure> {
        let models = self.models.loaded().iter().map(|model| model.bytes).sum();
        self.engine.set_other_memory(models);
        Ok(self.engine.check_room()?)
    }

    /// Refuses a database that does not exist: code 800.
    pub fn require_database(&self, catalog: &CatalogView, db: &str) -> Result<(), Failure> {
        if catalog.database(db).is_some() { Ok(()) } else { Err(Failure::database_not_found(db)) }
    }

    /// The next timestamp, later than everything acknowledged so far.
    pub fn next_ts(&self) -> Ts {
        self.engine.clock().next()
    }
}

/// Whether a field decides which partition a row goes to.
pub fn has_partition_key(info: &CollectionInfo) -> bool {
    info.schema.fields.iter().any(|field| field.partition_key)
}

/// Refuses a request that names partitions where a partition key decides: code 1100.
pub fn refuse_manual_partitions(info: &CollectionInfo) -> Result<(), Failure> {
    if has_partition_key(info) {
        return Err(Failure::invalid(
            "not support manually specifying the partition names if partition key mode is used",
        ));
    }
    Ok(())
}

/// Code 200 with both texts that callers look for.
fn partition_name_not_found(name: &str) -> Failure {
    Failure::new(
        Code::PartitionNotFound,
        format!("partition name {name} not found: partition not found[partition={name}]"),
    )
}
