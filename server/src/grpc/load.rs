//! Load and release. Segments are mapped files, open as long as the collection exists: loading
//! is the permission to search, kept across restarts, and takes effect at once.

use elanus_proto::codes::Code;
use elanus_proto::common::{LoadState, Status};
use elanus_proto::milvus::*;
use elanus_storage::{CollectionChange, CollectionInfo};

use crate::node::{Context, Node, refuse_manual_partitions};
use crate::status::{Failure, success};

impl Node {
    pub(super) async fn load_collection(
        &self,
        ctx: &Context,
        request: LoadCollectionRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        check_replicas(request.replica_number)?;
        if request.refresh {
            self.require_loaded(&info)?;
            return Ok(success());
        }
        check_load_fields(&info, &request.load_fields)?;
        require_vector_indexes(&info)?;
        if !fully_loaded(&info) {
            let change = CollectionChange::Load(None);
            self.engine.alter_collection(&info.db, &info.name, change).await?;
        }
        Ok(success())
    }

    pub(super) async fn release_collection(
        &self,
        ctx: &Context,
        request: ReleaseCollectionRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        if info.loaded {
            let change = CollectionChange::Release(None);
            self.engine.alter_collection(&info.db, &info.name, change).await?;
        }
        Ok(success())
    }

    pub(super) async fn load_partitions(
        &self,
        ctx: &Context,
        request: LoadPartitionsRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let names = partitions(&info, request.partition_names)?;
        check_replicas(request.replica_number)?;
        if request.refresh {
            self.readable_partitions(&info, &names)?;
            return Ok(success());
        }
        check_load_fields(&info, &request.load_fields)?;
        require_vector_indexes(&info)?;
        let change = CollectionChange::Load(Some(names));
        self.engine.alter_collection(&info.db, &info.name, change).await?;
        Ok(success())
    }

    pub(super) async fn release_partitions(
        &self,
        ctx: &Context,
        request: ReleasePartitionsRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let names = partitions(&info, request.partition_names)?;
        if info.loaded {
            let change = CollectionChange::Release(Some(names));
            self.engine.alter_collection(&info.db, &info.name, change).await?;
        }
        Ok(success())
    }

    pub(super) async fn get_loading_progress(
        &self,
        ctx: &Context,
        request: GetLoadingProgressRequest,
    ) -> Result<GetLoadingProgressResponse, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let names = &request.partition_names;
        if names.is_empty() {
            self.require_loaded(&info)?;
        } else if let Some(name) = not_loaded(&info, names)? {
            return Err(Failure::new(
                Code::PartitionNotLoaded,
                format!("{}[partition={name}]", Code::PartitionNotLoaded),
            ));
        }
        Ok(GetLoadingProgressResponse {
            progress: 100,
            refresh_progress: 100,
            ..Default::default()
        })
    }

    pub(super) async fn get_load_state(
        &self,
        ctx: &Context,
        request: GetLoadStateRequest,
    ) -> Result<GetLoadStateResponse, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let state = match catalog.resolve(&ctx.db, &request.collection_name) {
            None => LoadState::NotExist,
            Some(info) if request.partition_names.is_empty() => {
                if info.loaded {
                    LoadState::Loaded
                } else {
                    LoadState::NotLoad
                }
            }
            Some(info) => match not_loaded(info, &request.partition_names)? {
                None => LoadState::Loaded,
                Some(_) => LoadState::NotLoad,
            },
        };
        Ok(GetLoadStateResponse { state: state.into(), ..Default::default() })
    }
}

/// Whether every partition may be searched.
pub(super) fn fully_loaded(info: &CollectionInfo) -> bool {
    info.partitions.iter().all(|partition| partition.loaded)
}

/// The partitions a request names, each of which must exist.
fn partitions(info: &CollectionInfo, names: Vec<String>) -> Result<Vec<String>, Failure> {
    if names.is_empty() {
        return Err(Failure::invalid("due to no partition specified, partition_names is empty"));
    }
    refuse_manual_partitions(info)?;
    not_loaded(info, &names)?;
    Ok(names)
}

/// The first of these partitions that is not loaded.
fn not_loaded<'a>(info: &CollectionInfo, names: &'a [String]) -> Result<Option<&'a str>, Failure> {
    let mut missing = None;
    for name in names {
        let partition = info.partition(name).ok_or_else(|| Failure::partition_not_found(name))?;
        if !partition.loaded {
            missing = missing.or(Some(name.as_str()));
        }
    }
    Ok(missing)
}

fn check_replicas(number: i32) -> Result<(), Failure> {
    // 0 stands for the default.
    if (0..=1).contains(&number) {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "this is a single node: 1 replica can be loaded, the request asks for {number}"
    )))
}

/// Everything is loaded whatever a request names, but what it names must exist.
fn check_load_fields(info: &CollectionInfo, names: &[String]) -> Result<(), Failure> {
    if let Some(name) = names.iter().find(|name| info.schema.field(name).is_none()) {
        return Err(Failure::invalid(format!("load field {name} does not exist")));
    }
    if !names.is_empty() && !names.contains(&info.schema.primary().name) {
        return Err(Failure::invalid(format!(
            "load field list {names:?} does not contain primary key field {}",
            info.schema.primary().name
        )));
    }
    Ok(())
}

/// Every vector field needs an index definition before a search: it names the metric.
fn require_vector_indexes(info: &CollectionInfo) -> Result<(), Failure> {
    let bare: Vec<&str> = info
        .schema
        .fields
        .iter()
        .filter(|field| field.data_type.is_vector() && info.index_of_field(&field.name).is_none())
        .map(|field| field.name.as_str())
        .collect();
    if bare.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::IndexNotFound,
        format!(
            "there is no vector index on field: [{}], please create index firstly: {}[collection={}]",
            bare.join(" "),
            Code::IndexNotFound,
            info.name
        ),
    ))
}
