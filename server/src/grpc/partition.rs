//! Partitions of a collection, and those that a partition key makes.

use elanus_proto::common::Status;
use elanus_proto::milvus::*;
use elanus_storage::CollectionInfo;

use super::collection::utc_ms;
use crate::convert::{key_value, names};
use crate::node::{Context, DEFAULT_PARTITION, Node, has_partition_key};
use crate::status::{Failure, success};

impl Node {
    pub(super) async fn create_partition(
        &self,
        ctx: &Context,
        request: CreatePartitionRequest,
    ) -> Result<Status, Failure> {
        let name = &request.partition_name;
        names::check(names::Kind::Partition, name, &self.limits)?;
        let info = self.describe(ctx, &request.collection_name)?;
        refuse_with_key(&info, "create")?;
        if info.partition(name).is_some() {
            return Ok(success());
        }
        if info.partitions.len() >= self.limits.partitions {
            return Err(Failure::invalid(format!(
                "partition number ({}) exceeds max configuration ({}), collection: {}",
                info.partitions.len(),
                self.limits.partitions,
                info.name
            )));
        }
        match self.engine.create_partition(&info.db, &info.name, name).await {
            Ok(_) | Err(elanus_storage::Error::PartitionExists(_)) => Ok(success()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn drop_partition(
        &self,
        ctx: &Context,
        request: DropPartitionRequest,
    ) -> Result<Status, Failure> {
        let name = &request.partition_name;
        let info = self.describe(ctx, &request.collection_name)?;
        refuse_with_key(&info, "drop")?;
        if name == DEFAULT_PARTITION {
            return Err(Failure::invalid("default partition cannot be deleted"));
        }
        let Some(partition) = info.partition(name) else {
            return Ok(success());
        };
        if partition.loaded {
            return Err(Failure::invalid(
                "partition cannot be dropped, partition is loaded, please release it first",
            ));
        }
        match self.engine.drop_partition(&info.db, &info.name, name).await {
            Ok(()) | Err(elanus_storage::Error::PartitionNotFound(_)) => Ok(success()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn has_partition(
        &self,
        ctx: &Context,
        request: HasPartitionRequest,
    ) -> Result<BoolResponse, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let value = info.partition(&request.partition_name).is_some();
        Ok(BoolResponse { value, ..Default::default() })
    }

    pub(super) async fn show_partitions(
        &self,
        ctx: &Context,
        request: ShowPartitionsRequest,
    ) -> Result<ShowPartitionsResponse, Failure> {
        let info = if request.collection_name.is_empty() && request.collection_id != 0 {
            self.describe_by_id(ctx, request.collection_id)?
        } else {
            self.describe(ctx, &request.collection_name)?
        };
        let loaded_only = request.r#type() == ShowType::InMemory;
        let wanted = &request.partition_names;
        if let Some(name) = wanted.iter().find(|name| info.partition(name).is_none()) {
            return Err(Failure::partition_not_found(name));
        }
        let mut response = ShowPartitionsResponse::default();
        for partition in &info.partitions {
            let named = wanted.is_empty() || wanted.contains(&partition.name);
            if !named || (loaded_only && !partition.loaded) {
                continue;
            }
            response.partition_names.push(partition.name.clone());
            response.partition_i_ds.push(partition.id);
            response.created_timestamps.push(partition.created.0);
            response.created_utc_timestamps.push(utc_ms(partition.created));
            response.in_memory_percentages.push(if partition.loaded { 100 } else { 0 });
        }
        Ok(response)
    }

    pub(super) async fn get_partition_statistics(
        &self,
        ctx: &Context,
        request: GetPartitionStatisticsRequest,
    ) -> Result<GetPartitionStatisticsResponse, Failure> {
        let (info, collection) = self.collection(ctx, &request.collection_name)?;
        let name = &request.partition_name;
        let partition = info.partition(name).ok_or_else(|| Failure::partition_not_found(name))?;
        let stats = collection.stats();
        let rows = stats.partitions.iter().find(|(id, _)| *id == partition.id);
        let rows = rows.map_or(0, |(_, rows)| *rows);
        Ok(GetPartitionStatisticsResponse {
            stats: vec![key_value("row_count", rows.to_string())],
            ..Default::default()
        })
    }
}

fn refuse_with_key(info: &CollectionInfo, verb: &str) -> Result<(), Failure> {
    if has_partition_key(info) {
        return Err(Failure::invalid(format!(
            "disable {verb} partition if partition key mode is used"
        )));
    }
    Ok(())
}
