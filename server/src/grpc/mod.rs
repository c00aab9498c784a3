//! The Milvus service: one line per rpc, one file per family of rpcs.
//!
//! The table at the end of this file binds each rpc to a method of [`Node`]. Around every method
//! the same things happen, once, here: the database is taken from the request or the metadata; a
//! panic becomes code 5 for that call only (a closed stream would be retried for minutes); a
//! [`Failure`] becomes an in-band status; the call is counted, timed and logged. Rpcs that are
//! not in the table answer gRPC `UNIMPLEMENTED`, which clients neither retry nor take for a
//! success.

mod admin;
mod alias;
mod alter;
mod collection;
mod data;
mod database;
mod functions;
mod index;
mod load;
mod partition;
mod search;
mod system;

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use elanus_proto::codes::Code;
use elanus_proto::common::Status;
use elanus_proto::milvus::milvus_service_server::MilvusService;
use elanus_proto::milvus::*;
use futures::FutureExt;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response};
use tracing::Instrument;

use crate::node::{Context, DEFAULT_DATABASE, Node};
use crate::status::{Failure, success};

/// The service behind the gRPC port.
#[derive(Clone)]
pub struct Service {
    node: Arc<Node>,
}

impl Service {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

/// A response that carries its status inside.
trait InBand: Default {
    fn status_mut(&mut self) -> &mut Option<Status>;
}

/// Sets the status of a response; `Status` itself is a response of many rpcs.
trait Answer: Sized {
    fn succeeded(self) -> Self;
    fn failed(failure: &Failure) -> Self;
}

impl Answer for Status {
    fn succeeded(self) -> Self {
        self
    }

    fn failed(failure: &Failure) -> Self {
        failure.into()
    }
}

impl<T: InBand> Answer for T {
    fn succeeded(mut self) -> Self {
        self.status_mut().get_or_insert_with(success);
        self
    }

    fn failed(failure: &Failure) -> Self {
        let mut response = Self::default();
        *response.status_mut() = Some(failure.into());
        response
    }
}

macro_rules! in_band {
    ($($response:ty),* $(,)?) => {$(
        impl InBand for $response {
            fn status_mut(&mut self) -> &mut Option<Status> {
                &mut self.status
            }
        }
    )*};
}

in_band!(
    AllocTimestampResponse,
    BackupRbacMetaResponse,
    BatchDescribeCollectionResponse,
    BoolResponse,
    CalcDistanceResults,
    CheckHealthResponse,
    ComponentStates,
    ComputePhraseMatchSlopResponse,
    ConnectResponse,
    DescribeAliasResponse,
    DescribeCollectionResponse,
    DescribeDatabaseResponse,
    DescribeIndexResponse,
    DescribeResourceGroupResponse,
    FlushAllResponse,
    FlushResponse,
    GetCollectionStatisticsResponse,
    GetCompactionPlansResponse,
    GetCompactionStateResponse,
    GetFlushAllStateResponse,
    GetFlushStateResponse,
    GetImportStateResponse,
    GetIndexBuildProgressResponse,
    GetIndexStateResponse,
    GetIndexStatisticsResponse,
    GetLoadStateResponse,
    GetLoadingProgressResponse,
    GetMetricsResponse,
    GetPartitionStatisticsResponse,
    GetPersistentSegmentInfoResponse,
    GetQuerySegmentInfoResponse,
    GetReplicasResponse,
    GetVersionResponse,
    ImportResponse,
    ListAliasesResponse,
    ListCredUsersResponse,
    ListDatabasesResponse,
    ListFileResourcesResponse,
    ListImportTasksResponse,
    ListPrivilegeGroupsResponse,
    ListResourceGroupsResponse,
    ListRowPoliciesResponse,
    ListSnapshotsResponse,
    ManualCompactionResponse,
    MutationResult,
    QueryResults,
    RunAnalyzerResponse,
    SearchResults,
    SelectGrantResponse,
    SelectRoleResponse,
    SelectUserResponse,
    ShowCollectionsResponse,
    ShowPartitionsResponse,
    TruncateCollectionResponse,
);

impl InBand for AlterCollectionSchemaResponse {
    fn status_mut(&mut self) -> &mut Option<Status> {
        &mut self.alter_status
    }
}

/// How a call reacts to a caller that goes away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    /// It runs to its end: half a change must not be left behind.
    Detached,
    /// It stops at its next await point, and with it the search it waits for.
    WithCaller,
}

/// One call under way: what is logged and counted when it ends.
struct Call {
    rpc: &'static str,
    began: Instant,
    node: Arc<Node>,
}

impl Call {
    /// Runs the work of a call, and turns its outcome into the response.
    async fn answer<R, F>(self, run: Run, ctx: &Context, work: F) -> Response<R>
    where
        R: Answer + Send + 'static,
        F: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let request = ctx.request_id.as_deref().unwrap_or_default();
        let span = tracing::info_span!("rpc", rpc = self.rpc, db = ctx.db, request);
        let work = AssertUnwindSafe(work.instrument(span.clone())).catch_unwind();
        let outcome = match run {
            Run::WithCaller => work.await,
            Run::Detached => match tokio::spawn(work).await {
                Ok(outcome) => outcome,
                Err(error) => Ok(Err(Failure::internal(format!("the node is stopping: {error}")))),
            },
        };
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            tracing::error!(parent: &span, panic = text, "a request handler panicked");
            Err(Failure::internal(format!("service internal error: {} panicked: {text}", self.rpc)))
        });
        let seconds = self.began.elapsed().as_secs_f64();
        let code = outcome.as_ref().err().map_or(0, |failure| failure.code().number());
        self.node.metrics.rpc_ended(self.rpc, code, seconds);
        match outcome {
            Ok(response) => {
                tracing::debug!(parent: &span, ms = seconds * 1e3, "done");
                Response::new(response.succeeded())
            }
            Err(failure) => {
                if failure.is_input_error() || failure.code() == Code::ServiceUnimplemented {
                    tracing::debug!(parent: &span, code, reason = failure.reason(), "refused");
                } else {
                    tracing::warn!(parent: &span, code, reason = failure.reason(), "failed");
                }
                Response::new(R::failed(&failure))
            }
        }
    }
}

/// The message of a panic, when it is a text.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The context of a request: its own database name wins over the metadata's.
fn context(metadata: &MetadataMap, db_name: &str) -> Context {
    let text = |key: &str| {
        metadata.get(key).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
    };
    let db = if db_name.is_empty() { text("dbname").unwrap_or(DEFAULT_DATABASE) } else { db_name };
    Context {
        db: db.to_owned(),
        // A foreign text on its way into the log: bounded, and header values hold no newlines.
        request_id: text("client-request-id").map(|id| id.chars().take(128).collect()),
    }
}

/// Writes the methods of the service. A line is
/// `rpc: Request => Response, <where the database is named>, <Run>;`, and calls `Node::rpc`.
macro_rules! service {
    (
        calls { $($rpc:ident: $request:ty => $response:ty, $db:ident, $run:ident;)* }
        absent { $($absent:ident: $absent_request:ty => $absent_response:ty, $why:literal;)* }
    ) => {
        #[tonic::async_trait]
        impl MilvusService for Service {
            $(
                async fn $rpc(
                    &self,
                    request: Request<$request>,
                ) -> Result<Response<$response>, tonic::Status> {
                    let call = self.call(stringify!($rpc));
                    let (metadata, _, request) = request.into_parts();
                    let ctx = context(&metadata, service!(@db $db request));
                    let node = self.node.clone();
                    let caller = ctx.clone();
                    let work = async move { node.$rpc(&caller, request).await };
                    Ok(call.answer(Run::$run, &ctx, work).await)
                }
            )*
            $(
                async fn $absent(
                    &self,
                    request: Request<$absent_request>,
                ) -> Result<Response<$absent_response>, tonic::Status> {
                    let call = self.call(stringify!($absent));
                    let ctx = context(request.metadata(), "");
                    let work = async { Err(Failure::unimplemented($why)) };
                    Ok(call.answer(Run::WithCaller, &ctx, work).await)
                }
            )*
        }
    };
    (@db request_db $request:ident) => { $request.db_name.as_str() };
    (@db metadata_db $request:ident) => { "" };
}

impl Service {
    fn call(&self, rpc: &'static str) -> Call {
        Call { rpc, began: Instant::now(), node: self.node.clone() }
    }
}

service! {
    calls {
        // connection and node: system.rs
        connect: ConnectRequest => ConnectResponse, metadata_db, WithCaller;
        get_version: GetVersionRequest => GetVersionResponse, metadata_db, WithCaller;
        check_health: CheckHealthRequest => CheckHealthResponse, metadata_db, WithCaller;
        alloc_timestamp: AllocTimestampRequest => AllocTimestampResponse, metadata_db, WithCaller;
        get_component_states: GetComponentStatesRequest => ComponentStates, metadata_db, WithCaller;
        get_metrics: GetMetricsRequest => GetMetricsResponse, metadata_db, WithCaller;
        get_persistent_segment_info: GetPersistentSegmentInfoRequest => GetPersistentSegmentInfoResponse, request_db, WithCaller;
        get_query_segment_info: GetQuerySegmentInfoRequest => GetQuerySegmentInfoResponse, request_db, WithCaller;
        manual_compaction: ManualCompactionRequest => ManualCompactionResponse, request_db, Detached;
        get_compaction_state: GetCompactionStateRequest => GetCompactionStateResponse, metadata_db, WithCaller;
        get_compaction_state_with_plans: GetCompactionPlansRequest => GetCompactionPlansResponse, request_db, WithCaller;

        // one node's answers to questions about a cluster, users and roles: admin.rs
        get_replicas: GetReplicasRequest => GetReplicasResponse, request_db, WithCaller;
        list_resource_groups: ListResourceGroupsRequest => ListResourceGroupsResponse, metadata_db, WithCaller;
        describe_resource_group: DescribeResourceGroupRequest => DescribeResourceGroupResponse, metadata_db, WithCaller;
        list_cred_users: ListCredUsersRequest => ListCredUsersResponse, metadata_db, WithCaller;
        select_role: SelectRoleRequest => SelectRoleResponse, metadata_db, WithCaller;
        select_user: SelectUserRequest => SelectUserResponse, metadata_db, WithCaller;
        select_grant: SelectGrantRequest => SelectGrantResponse, metadata_db, WithCaller;
        list_privilege_groups: ListPrivilegeGroupsRequest => ListPrivilegeGroupsResponse, metadata_db, WithCaller;
        list_import_tasks: ListImportTasksRequest => ListImportTasksResponse, request_db, WithCaller;
        list_file_resources: ListFileResourcesRequest => ListFileResourcesResponse, metadata_db, WithCaller;

        // database.rs; here the request's db_name is the database spoken of
        create_database: CreateDatabaseRequest => Status, metadata_db, Detached;
        drop_database: DropDatabaseRequest => Status, metadata_db, Detached;
        alter_database: AlterDatabaseRequest => Status, metadata_db, Detached;
        list_databases: ListDatabasesRequest => ListDatabasesResponse, metadata_db, WithCaller;
        describe_database: DescribeDatabaseRequest => DescribeDatabaseResponse, metadata_db, WithCaller;

        // collection.rs
        create_collection: CreateCollectionRequest => Status, request_db, Detached;
        drop_collection: DropCollectionRequest => Status, request_db, Detached;
        has_collection: HasCollectionRequest => BoolResponse, request_db, WithCaller;
        describe_collection: DescribeCollectionRequest => DescribeCollectionResponse, request_db, WithCaller;
        batch_describe_collection: BatchDescribeCollectionRequest => BatchDescribeCollectionResponse, request_db, WithCaller;
        show_collections: ShowCollectionsRequest => ShowCollectionsResponse, request_db, WithCaller;
        rename_collection: RenameCollectionRequest => Status, request_db, Detached;
        get_collection_statistics: GetCollectionStatisticsRequest => GetCollectionStatisticsResponse, request_db, WithCaller;
        truncate_collection: TruncateCollectionRequest => TruncateCollectionResponse, request_db, Detached;

        // alter.rs
        alter_collection: AlterCollectionRequest => Status, request_db, Detached;
        alter_collection_field: AlterCollectionFieldRequest => Status, request_db, Detached;
        alter_collection_schema: AlterCollectionSchemaRequest => AlterCollectionSchemaResponse, request_db, Detached;
        add_collection_field: AddCollectionFieldRequest => Status, request_db, Detached;

        // functions.rs
        add_collection_function: AddCollectionFunctionRequest => Status, request_db, Detached;
        alter_collection_function: AlterCollectionFunctionRequest => Status, request_db, Detached;
        drop_collection_function: DropCollectionFunctionRequest => Status, request_db, Detached;

        // load.rs
        load_collection: LoadCollectionRequest => Status, request_db, Detached;
        release_collection: ReleaseCollectionRequest => Status, request_db, Detached;
        load_partitions: LoadPartitionsRequest => Status, request_db, Detached;
        release_partitions: ReleasePartitionsRequest => Status, request_db, Detached;
        get_loading_progress: GetLoadingProgressRequest => GetLoadingProgressResponse, request_db, WithCaller;
        get_load_state: GetLoadStateRequest => GetLoadStateResponse, request_db, WithCaller;

        // partition.rs
        create_partition: CreatePartitionRequest => Status, request_db, Detached;
        drop_partition: DropPartitionRequest => Status, request_db, Detached;
        has_partition: HasPartitionRequest => BoolResponse, request_db, WithCaller;
        show_partitions: ShowPartitionsRequest => ShowPartitionsResponse, request_db, WithCaller;
        get_partition_statistics: GetPartitionStatisticsRequest => GetPartitionStatisticsResponse, request_db, WithCaller;

        // alias.rs
        create_alias: CreateAliasRequest => Status, request_db, Detached;
        drop_alias: DropAliasRequest => Status, request_db, Detached;
        alter_alias: AlterAliasRequest => Status, request_db, Detached;
        describe_alias: DescribeAliasRequest => DescribeAliasResponse, request_db, WithCaller;
        list_aliases: ListAliasesRequest => ListAliasesResponse, request_db, WithCaller;

        // index.rs
        create_index: CreateIndexRequest => Status, request_db, Detached;
        alter_index: AlterIndexRequest => Status, request_db, Detached;
        drop_index: DropIndexRequest => Status, request_db, Detached;
        describe_index: DescribeIndexRequest => DescribeIndexResponse, request_db, WithCaller;
        get_index_statistics: GetIndexStatisticsRequest => GetIndexStatisticsResponse, request_db, WithCaller;
        get_index_state: GetIndexStateRequest => GetIndexStateResponse, request_db, WithCaller;
        get_index_build_progress: GetIndexBuildProgressRequest => GetIndexBuildProgressResponse, request_db, WithCaller;

        // data.rs
        insert: InsertRequest => MutationResult, request_db, Detached;
        upsert: UpsertRequest => MutationResult, request_db, Detached;
        delete: DeleteRequest => MutationResult, request_db, Detached;
        flush: FlushRequest => FlushResponse, request_db, Detached;
        flush_all: FlushAllRequest => FlushAllResponse, request_db, Detached;
        get_flush_state: GetFlushStateRequest => GetFlushStateResponse, request_db, WithCaller;
        get_flush_all_state: GetFlushAllStateRequest => GetFlushAllStateResponse, request_db, WithCaller;

        // search.rs
        search: SearchRequest => SearchResults, request_db, WithCaller;
        hybrid_search: HybridSearchRequest => SearchResults, request_db, WithCaller;
        query: QueryRequest => QueryResults, request_db, WithCaller;
    }
    absent {
        add_collection_struct_field: AddCollectionStructFieldRequest => Status, "struct array fields are not supported";
        run_analyzer: RunAnalyzerRequest => RunAnalyzerResponse, "text analysers are not supported yet";
        compute_phrase_match_slop: ComputePhraseMatchSlopRequest => ComputePhraseMatchSlopResponse, "text analysers are not supported yet";
        add_file_resource: AddFileResourceRequest => Status, "file resources are not supported";
        remove_file_resource: RemoveFileResourceRequest => Status, "file resources are not supported";
        calc_distance: CalcDistanceRequest => CalcDistanceResults, "CalcDistance was removed from the protocol; compute distances in the client";
        import: ImportRequest => ImportResponse, "bulk import is not supported yet; insert the rows instead";
        get_import_state: GetImportStateRequest => GetImportStateResponse, "bulk import is not supported yet; insert the rows instead";
        load_balance: LoadBalanceRequest => Status, "this is a single node: there is nothing to balance";
        transfer_node: TransferNodeRequest => Status, "this is a single node: it cannot be moved between resource groups";
        transfer_replica: TransferReplicaRequest => Status, "this is a single node: replicas cannot be moved";
        create_resource_group: CreateResourceGroupRequest => Status, "this is a single node: it has the default resource group only";
        drop_resource_group: DropResourceGroupRequest => Status, "this is a single node: it has the default resource group only";
        update_resource_groups: UpdateResourceGroupsRequest => Status, "this is a single node: it has the default resource group only";
        create_credential: CreateCredentialRequest => Status, "users are not supported yet: this node runs with authorization off";
        update_credential: UpdateCredentialRequest => Status, "users are not supported yet: this node runs with authorization off";
        delete_credential: DeleteCredentialRequest => Status, "users are not supported yet: this node runs with authorization off";
        create_role: CreateRoleRequest => Status, "roles are not supported yet: this node runs with authorization off";
        alter_role: AlterRoleRequest => Status, "roles are not supported yet: this node runs with authorization off";
        drop_role: DropRoleRequest => Status, "roles are not supported yet: this node runs with authorization off";
        operate_user_role: OperateUserRoleRequest => Status, "roles are not supported yet: this node runs with authorization off";
        operate_privilege: OperatePrivilegeRequest => Status, "privileges are not supported yet: this node runs with authorization off";
        operate_privilege_v2: OperatePrivilegeV2Request => Status, "privileges are not supported yet: this node runs with authorization off";
        create_privilege_group: CreatePrivilegeGroupRequest => Status, "privilege groups are not supported yet: this node runs with authorization off";
        drop_privilege_group: DropPrivilegeGroupRequest => Status, "privilege groups are not supported yet: this node runs with authorization off";
        operate_privilege_group: OperatePrivilegeGroupRequest => Status, "privilege groups are not supported yet: this node runs with authorization off";
        backup_rbac: BackupRbacMetaRequest => BackupRbacMetaResponse, "users and roles are not supported yet: this node runs with authorization off";
        restore_rbac: RestoreRbacMetaRequest => Status, "users and roles are not supported yet: this node runs with authorization off";
        list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse, "snapshots are not supported";
        list_row_policies: ListRowPoliciesRequest => ListRowPoliciesResponse, "row policies are not supported";
    }
}

#[cfg(test)]
mod tests;
