//! Questions about a cluster, users and roles, answered by a single node without authorization:
//! one replica, one resource group, the user `root`, and the two built-in roles.

use elanus_proto::codes::Code;
use elanus_proto::common::NodeInfo;
use elanus_proto::milvus::*;

use super::system::NODE_ID;
use crate::node::{Context, Node};
use crate::status::Failure;

/// The one resource group.
const RESOURCE_GROUP: &str = "__default_resource_group";

/// The user that every caller is while nobody is asked.
const ROOT: &str = "root";

/// The roles every Milvus has.
const ROLES: [&str; 2] = ["admin", "public"];

impl Node {
    pub(super) async fn get_replicas(
        &self,
        ctx: &Context,
        request: GetReplicasRequest,
    ) -> Result<GetReplicasResponse, Failure> {
        let info = if request.collection_name.is_empty() {
            self.describe_by_id(ctx, request.collection_id)?
        } else {
            self.describe(ctx, &request.collection_name)?
        };
        if !info.loaded {
            return Ok(GetReplicasResponse::default());
        }
        let loaded = info.partitions.iter().filter(|partition| partition.loaded);
        let replica = ReplicaInfo {
            replica_id: info.id,
            collection_id: info.id,
            partition_ids: loaded.map(|partition| partition.id).collect(),
            shard_replicas: (0..info.shards)
                .map(|shard| ShardReplica {
                    leader_id: NODE_ID,
                    leader_addr: self.config.listen.to_string(),
                    dm_channel_name: format!("elanus-{shard}_{}v{shard}", info.id),
                    node_ids: vec![NODE_ID],
                })
                .collect(),
            node_ids: vec![NODE_ID],
            resource_group_name: RESOURCE_GROUP.to_owned(),
            ..Default::default()
        };
        Ok(GetReplicasResponse { status: None, replicas: vec![replica] })
    }

    pub(super) async fn list_resource_groups(
        &self,
        _ctx: &Context,
        _request: ListResourceGroupsRequest,
    ) -> Result<ListResourceGroupsResponse, Failure> {
        Ok(ListResourceGroupsResponse {
            status: None,
            resource_groups: vec![RESOURCE_GROUP.to_owned()],
        })
    }

    pub(super) async fn describe_resource_group(
        &self,
        _ctx: &Context,
        request: DescribeResourceGroupRequest,
    ) -> Result<DescribeResourceGroupResponse, Failure> {
        if request.resource_group != RESOURCE_GROUP {
            return Err(Failure::new(
                Code::ResourceGroupNotFound,
                format!("{}[rg={}]", Code::ResourceGroupNotFound, request.resource_group),
            ));
        }
        let catalog = self.catalog();
        let loaded = catalog.all_collections().filter(|info| info.loaded);
        let group = ResourceGroup {
            name: RESOURCE_GROUP.to_owned(),
            capacity: 1,
            num_available_node: 1,
            num_loaded_replica: loaded.map(|info| (info.name.clone(), 1)).collect(),
            nodes: vec![NodeInfo {
                node_id: NODE_ID,
                address: self.config.listen.to_string(),
                hostname: String::new(),
            }],
            ..Default::default()
        };
        Ok(DescribeResourceGroupResponse { status: None, resource_group: Some(group) })
    }

    pub(super) async fn list_cred_users(
        &self,
        _ctx: &Context,
        _request: ListCredUsersRequest,
    ) -> Result<ListCredUsersResponse, Failure> {
        Ok(ListCredUsersResponse { status: None, usernames: vec![ROOT.to_owned()] })
    }

    pub(super) async fn select_user(
        &self,
        _ctx: &Context,
        request: SelectUserRequest,
    ) -> Result<SelectUserResponse, Failure> {
        let wanted = request.user.map(|user| user.name).unwrap_or_default();
        let mut results = Vec::new();
        if wanted.is_empty() || wanted == ROOT {
            let roles = if request.include_role_info { vec![role("admin")] } else { Vec::new() };
            results.push(UserResult {
                user: Some(UserEntity { name: ROOT.to_owned() }),
                roles,
                ..Default::default()
            });
        }
        Ok(SelectUserResponse { status: None, results })
    }

    pub(super) async fn select_role(
        &self,
        _ctx: &Context,
        request: SelectRoleRequest,
    ) -> Result<SelectRoleResponse, Failure> {
        let wanted = request.role.map(|role| role.name).unwrap_or_default();
        let results = ROLES
            .into_iter()
            .filter(|name| wanted.is_empty() || wanted == *name)
            .map(|name| {
                let holds = request.include_user_info && name == "admin";
                let users =
                    if holds { vec![UserEntity { name: ROOT.to_owned() }] } else { Vec::new() };
                RoleResult { role: Some(role(name)), users }
            })
            .collect();
        Ok(SelectRoleResponse { status: None, results })
    }

    pub(super) async fn select_grant(
        &self,
        _ctx: &Context,
        _request: SelectGrantRequest,
    ) -> Result<SelectGrantResponse, Failure> {
        Ok(SelectGrantResponse::default())
    }

    pub(super) async fn list_privilege_groups(
        &self,
        _ctx: &Context,
        _request: ListPrivilegeGroupsRequest,
    ) -> Result<ListPrivilegeGroupsResponse, Failure> {
        Ok(ListPrivilegeGroupsResponse::default())
    }

    pub(super) async fn list_import_tasks(
        &self,
        _ctx: &Context,
        _request: ListImportTasksRequest,
    ) -> Result<ListImportTasksResponse, Failure> {
        Ok(ListImportTasksResponse::default())
    }

    pub(super) async fn list_file_resources(
        &self,
        _ctx: &Context,
        _request: ListFileResourcesRequest,
    ) -> Result<ListFileResourcesResponse, Failure> {
        Ok(ListFileResourcesResponse::default())
    }
}

fn role(name: &str) -> RoleEntity {
    RoleEntity { name: name.to_owned(), ..Default::default() }
}
