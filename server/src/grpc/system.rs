//! The node itself: connecting, versions, health, segments, compaction.

use elanus_proto::codes::Code;
use elanus_proto::common::{
    CompactionState, SegmentLevel, SegmentState as WireState, ServerInfo, StateCode,
};
use elanus_proto::milvus::*;
use elanus_storage::{Compaction, Merge, SegmentState};

use crate::node::{Context, Node};
use crate::status::Failure;

/// The release of the protocol that is spoken. Clients compare it and open features by it, so
/// it is the version they are told; the node's own comes after the hyphen.
const SERVER_VERSION: &str = concat!("2.6.0-elanus.", env!("CARGO_PKG_VERSION"));

/// The one node there is.
pub(super) const NODE_ID: i64 = 1;

impl Node {
    pub(super) async fn connect(
        &self,
        ctx: &Context,
        request: ConnectRequest,
    ) -> Result<ConnectResponse, Failure> {
        let identifier = self.next_connection();
        let client = request.client_info.unwrap_or_default();
        tracing::debug!(
            identifier,
            sdk = client.sdk_type,
            sdk_version = client.sdk_version,
            host = client.host,
            db = ctx.db,
            "a client connected"
        );
        let server_info = ServerInfo {
            build_tags: SERVER_VERSION.to_owned(),
            deploy_mode: "STANDALONE".to_owned(),
            ..Default::default()
        };
        Ok(ConnectResponse { status: None, server_info: Some(server_info), identifier })
    }

    pub(super) async fn get_version(
        &self,
        _ctx: &Context,
        _request: GetVersionRequest,
    ) -> Result<GetVersionResponse, Failure> {
        Ok(GetVersionResponse { status: None, version: SERVER_VERSION.to_owned() })
    }

    pub(super) async fn check_health(
        &self,
        _ctx: &Context,
        _request: CheckHealthRequest,
    ) -> Result<CheckHealthResponse, Failure> {
        let health = self.engine.health();
        let damaged = health.damaged.iter().map(|(id, why)| format!("collection {id}: {why}"));
        let refusing = !health.writable || health.refusing_rows.is_some();
        let reasons = health.reason.iter().chain(&health.refusing_rows).cloned();
        Ok(CheckHealthResponse {
            status: None,
            is_healthy: !refusing && health.damaged.is_empty(),
            reasons: reasons.chain(damaged).collect(),
            quota_states: refusing.then_some(QuotaState::DenyToWrite.into()).into_iter().collect(),
        })
    }

    pub(super) async fn alloc_timestamp(
        &self,
        _ctx: &Context,
        _request: AllocTimestampRequest,
    ) -> Result<AllocTimestampResponse, Failure> {
        Ok(AllocTimestampResponse { status: None, timestamp: self.next_ts().0 })
    }

    pub(super) async fn get_component_states(
        &self,
        _ctx: &Context,
        _request: GetComponentStatesRequest,
    ) -> Result<ComponentStates, Failure> {
        let writable = self.engine.health().writable;
        let state = if writable { StateCode::Healthy } else { StateCode::Abnormal };
        let state = ComponentInfo {
            node_id: NODE_ID,
            role: "standalone".to_owned(),
            state_code: state.into(),
            extra_info: Vec::new(),
        };
        Ok(ComponentStates {
            state: Some(state.clone()),
            subcomponent_states: vec![state],
            status: None,
        })
    }

    pub(super) async fn get_metrics(
        &self,
        _ctx: &Context,
        _request: GetMetricsRequest,
    ) -> Result<GetMetricsResponse, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let name = format!("standalone{NODE_ID}");
        let response = serde_json::json!({
            "nodes_info": [{
                "identifier": NODE_ID,
                "name": name,
                "infos": {
                    "has_error": false,
                    "error_reason": "",
                    "name": name,
                    "hardware_infos": {
                        "ip": self.config.listen.to_string(),
                        "cpu_core_count": cores,
                    },
                    "system_info": {
                        "system_version": env!("CARGO_PKG_VERSION"),
                        "deploy_mode": "STANDALONE",
                    },
                    "type": "standalone",
                    "id": NODE_ID,
                },
                "connected": [],
            }],
        });
        Ok(GetMetricsResponse {
            status: None,
            response: response.to_string(),
            component_name: "standalone".to_owned(),
        })
    }

    pub(super) async fn get_persistent_segment_info(
        &self,
        ctx: &Context,
        request: GetPersistentSegmentInfoRequest,
    ) -> Result<GetPersistentSegmentInfoResponse, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        let stats = collection.stats();
        let infos = stats
            .segments
            .iter()
            .filter(|segment| segment.state == SegmentState::Sealed)
            .map(|segment| PersistentSegmentInfo {
                segment_id: segment.id,
                collection_id: info.id,
                partition_id: segment.partition,
                num_rows: count(segment.rows),
                state: WireState::Flushed.into(),
                level: SegmentLevel::L1.into(),
                is_sorted: true,
                ..Default::default()
            })
            .filter(|info| request.states.is_empty() || request.states.contains(&info.state))
            .collect();
        Ok(GetPersistentSegmentInfoResponse { status: None, infos })
    }

    pub(super) async fn get_query_segment_info(
        &self,
        ctx: &Context,
        request: GetQuerySegmentInfoRequest,
    ) -> Result<GetQuerySegmentInfoResponse, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        self.require_loaded(&info)?;
        let stats = collection.stats();
        let infos = stats
            .segments
            .iter()
            .filter(|segment| {
                info.partition_by_id(segment.partition).is_some_and(|partition| partition.loaded)
            })
            .map(|segment| {
                let sealed = segment.state == SegmentState::Sealed;
                let index = segment.indexed.first().and_then(|field| info.index_of_field(field));
                QuerySegmentInfo {
                    segment_id: segment.id,
                    collection_id: info.id,
                    partition_id: segment.partition,
                    mem_size: i64::try_from(segment.bytes).unwrap_or(i64::MAX),
                    num_rows: count(segment.rows),
                    index_name: index.map(|index| index.name.clone()).unwrap_or_default(),
                    index_id: index.map_or(0, |index| index.id),
                    node_id: NODE_ID,
                    state: if sealed { WireState::Sealed } else { WireState::Growing }.into(),
                    node_ids: vec![NODE_ID],
                    level: SegmentLevel::L1.into(),
                    is_sorted: sealed,
                    ..Default::default()
                }
            })
            .collect();
        Ok(GetQuerySegmentInfoResponse { status: None, infos })
    }

    /// Has the collection compacted in the background; the client asks for the state by the id.
    pub(super) async fn manual_compaction(
        &self,
        ctx: &Context,
        request: ManualCompactionRequest,
    ) -> Result<ManualCompactionResponse, Failure> {
        let info = if request.collection_name.is_empty() {
            self.describe_by_id(ctx, request.collection_id)?
        } else {
            self.describe(ctx, &request.collection_name)?
        };
        let compaction_id = self.engine.compact(info.id)?;
        Ok(ManualCompactionResponse { status: None, compaction_id, compaction_plan_count: 1 })
    }

    pub(super) async fn get_compaction_state(
        &self,
        _ctx: &Context,
        request: GetCompactionStateRequest,
    ) -> Result<GetCompactionStateResponse, Failure> {
        let found = self.compaction(request.compaction_id)?;
        let failed = i64::from(found.failure.is_some());
        Ok(GetCompactionStateResponse {
            status: None,
            state: compaction_state(&found).into(),
            executing_plan_no: i64::from(!found.done),
            timeout_plan_no: 0,
            completed_plan_no: i64::from(found.done) - failed,
            failed_plan_no: failed,
        })
    }

    pub(super) async fn get_compaction_state_with_plans(
        &self,
        _ctx: &Context,
        request: GetCompactionPlansRequest,
    ) -> Result<GetCompactionPlansResponse, Failure> {
        let found = self.compaction(request.compaction_id)?;
        let info = |merge: &Merge| CompactionMergeInfo {
            sources: merge.sources.clone(),
            target: merge.target.unwrap_or(0),
            targets: merge.target.into_iter().collect(),
            trigger_id: request.compaction_id,
            collection_id: found.collection,
            partition_id: merge.partition,
            ..Default::default()
        };
        Ok(GetCompactionPlansResponse {
            status: None,
            state: compaction_state(&found).into(),
            merge_infos: found.merges.iter().map(info).collect(),
        })
    }

    fn compaction(&self, id: i64) -> Result<Compaction, Failure> {
        self.engine.compaction(id).ok_or_else(|| {
            Failure::new(
                Code::ParameterInvalid,
                format!("no compaction has the id {id}: invalid parameter"),
            )
        })
    }
}

fn compaction_state(compaction: &Compaction) -> CompactionState {
    if compaction.done { CompactionState::Completed } else { CompactionState::Executing }
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
