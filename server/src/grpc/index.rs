//! Index definitions: what is asked for is stored and told back, and how far it is built. Every
//! search is answered whether or not an index is finished yet.

use elanus_proto::codes::Code;
use elanus_proto::common::{IndexState, Status};
use elanus_proto::milvus::*;
use elanus_storage::{CollectionInfo, IndexDef, IndexProgress, NewIndex};

use crate::convert::index::{IndexSpec, flatten};
use crate::convert::{key_values, names, pairs, parse_bool};
use crate::node::{Context, Node};
use crate::status::{Failure, success};

/// Index parameters that may change later.
const ALTERABLE: [&str; 2] = ["mmap.enabled", "warmup"];

impl Node {
    pub(super) async fn create_index(
        &self,
        ctx: &Context,
        request: CreateIndexRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let asked = &request.field_name;
        let params = flatten(&pairs(request.extra_params))?;
        // What is no field may be a dynamic key: a path into the hidden field, of some type.
        let typed = params.contains_key("json_cast_type");
        let dynamic = info.schema.dynamic().filter(|_| typed);
        let field = info.schema.field(asked).or(dynamic).ok_or_else(|| {
            Failure::invalid(format!("cannot create index on non-exist field: {asked}"))
        })?;
        let field_name = &field.name;
        let mut spec = IndexSpec::of_flat(params, field)?;
        if asked != field_name {
            spec.build.entry("json_path".to_owned()).or_insert_with(|| asked.clone());
        }
        let terms = spec.terms(field, &info.schema)?;
        let of_path = terms.as_ref().is_some_and(|terms| terms.path.is_some());
        let path = spec.build.get("json_path").filter(|_| of_path);
        let name = match (request.index_name.as_str(), path) {
            ("", Some(path)) => path,
            ("", None) => asked,
            _ => &request.index_name,
        };
        if !request.index_name.is_empty() {
            names::check(names::Kind::Index, name, &self.limits)?;
        }
        let covers = |index: &&IndexDef| index.covers(field_name, terms.as_ref());
        if let Some(existing) = info.indexes.iter().find(covers) {
            let same = (request.index_name.is_empty() || existing.name == *name)
                && IndexSpec::of(existing, field)? == spec;
            if same {
                return Ok(success());
            }
            return Err(Failure::invalid(format!(
                "CreateIndex failed: at most one distinct index is allowed per field, field \
                 {field_name} has index {}",
                existing.name
            )));
        }
        if let Some(other) = info.index(name) {
            return Err(Failure::invalid(format!(
                "CreateIndex failed: index name {name} already exist on field {}",
                other.field
            )));
        }
        let new = NewIndex {
            name: name.clone(),
            field: field_name.clone(),
            params: spec.params(),
            graph: spec.graph(field)?,
            terms,
        };
        self.engine.create_index(&info.db, &info.name, new).await?;
        Ok(success())
    }

    pub(super) async fn alter_index(
        &self,
        ctx: &Context,
        request: AlterIndexRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let name = &request.index_name;
        if info.index(name).is_none() {
            return Err(Failure::index_not_found(format_args!("index={name}")));
        }
        let set = pairs(request.extra_params);
        if !set.is_empty() && !request.delete_keys.is_empty() {
            return Err(Failure::invalid(
                "can not provide properties and deletekeys at the same time",
            ));
        }
        if set.is_empty() && request.delete_keys.is_empty() {
            return Err(Failure::invalid("The index properties and deletekeys are both empty"));
        }
        let keys = set.iter().map(|(key, _)| key).chain(&request.delete_keys);
        if let Some(key) = keys.into_iter().find(|key| !ALTERABLE.contains(&key.as_str())) {
            return Err(Failure::invalid(format!("{key} is not a configable index property")));
        }
        for (key, value) in set.iter().filter(|(key, _)| key == "mmap.enabled") {
            if parse_bool(value).is_none() {
                return Err(Failure::invalid(format!("invalid {key} value: {value}")));
            }
        }
        self.engine.alter_index(&info.db, &info.name, name, set, request.delete_keys).await?;
        Ok(success())
    }

    pub(super) async fn drop_index(
        &self,
        ctx: &Context,
        request: DropIndexRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let wanted = matching(&info, &request.index_name, &request.field_name);
        for index in wanted {
            let vector = info.schema.field(&index.field).is_some_and(|f| f.data_type.is_vector());
            if vector && info.loaded {
                return Err(Failure::invalid(format!(
                    "index cannot be dropped, collection is loaded, please release it first: {}",
                    info.name
                )));
            }
            match self.engine.drop_index(&info.db, &info.name, &index.name).await {
                Ok(()) | Err(elanus_storage::Error::IndexNotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(success())
    }

    pub(super) async fn describe_index(
        &self,
        ctx: &Context,
        request: DescribeIndexRequest,
    ) -> Result<DescribeIndexResponse, Failure> {
        let index_descriptions = self.descriptions(
            ctx,
            &request.collection_name,
            &request.index_name,
            &request.field_name,
        )?;
        Ok(DescribeIndexResponse { status: None, index_descriptions })
    }

    pub(super) async fn get_index_statistics(
        &self,
        ctx: &Context,
        request: GetIndexStatisticsRequest,
    ) -> Result<GetIndexStatisticsResponse, Failure> {
        let index_descriptions =
            self.descriptions(ctx, &request.collection_name, &request.index_name, "")?;
        Ok(GetIndexStatisticsResponse { status: None, index_descriptions })
    }

    pub(super) async fn get_index_state(
        &self,
        ctx: &Context,
        request: GetIndexStateRequest,
    ) -> Result<GetIndexStateResponse, Failure> {
        let found = self.descriptions(
            ctx,
            &request.collection_name,
            &request.index_name,
            &request.field_name,
        )?;
        // Of several, the one that is least far.
        let rank = |index: &&IndexDescription| match index.state() {
            IndexState::Failed => 0,
            IndexState::Finished => 2,
            IndexState::None
            | IndexState::Unissued
            | IndexState::InProgress
            | IndexState::Retry => 1,
        };
        let Some(worst) = found.iter().min_by_key(rank) else {
            return Err(Failure::internal("an index was described by nothing"));
        };
        Ok(GetIndexStateResponse {
            status: None,
            state: worst.state,
            fail_reason: worst.index_state_fail_reason.clone(),
        })
    }

    pub(super) async fn get_index_build_progress(
        &self,
        ctx: &Context,
        request: GetIndexBuildProgressRequest,
    ) -> Result<GetIndexBuildProgressResponse, Failure> {
        let found = self.descriptions(
            ctx,
            &request.collection_name,
            &request.index_name,
            &request.field_name,
        )?;
        // Of several, the one that is least far.
        let least = found.iter().min_by_key(|index| index.indexed_rows);
        let (indexed_rows, total_rows) =
            least.map_or((0, 0), |index| (index.indexed_rows, index.total_rows));
        Ok(GetIndexBuildProgressResponse { status: None, indexed_rows, total_rows })
    }

    /// The indexes of a collection, all or those of that name or field; never none.
    fn descriptions(
        &self,
        ctx: &Context,
        collection: &str,
        index_name: &str,
        field_name: &str,
    ) -> Result<Vec<IndexDescription>, Failure> {
        let (info, collection) = self.collection(ctx, collection)?;
        let found = matching(&info, index_name, field_name);
        if found.is_empty() {
            let what = if index_name.is_empty() { field_name } else { index_name };
            return Err(Failure::new(
                Code::IndexNotFound,
                if what.is_empty() {
                    format!("{}[collection={}]", Code::IndexNotFound, info.name)
                } else {
                    format!("{}[index={what}][collection={}]", Code::IndexNotFound, info.name)
                },
            ));
        }
        let describe = |index| described(index, collection.index_progress(index));
        Ok(found.into_iter().map(describe).collect())
    }
}

/// The indexes a request speaks of: those of that name and on that field or path, where it gives
/// them.
fn matching<'a>(info: &'a CollectionInfo, index_name: &str, field_name: &str) -> Vec<&'a IndexDef> {
    info.indexes
        .iter()
        .filter(|index| index_name.is_empty() || index.name == index_name)
        .filter(|index| {
            let path = || index.params.iter().find(|(key, _)| key == "json_path");
            field_name.is_empty()
                || index.field == field_name
                || path().is_some_and(|(_, path)| path == field_name)
        })
        .collect()
}

fn described(index: &IndexDef, progress: IndexProgress) -> IndexDescription {
    let count = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
    let state = match (progress.pending, &progress.failure) {
        (0, _) => IndexState::Finished,
        (_, None) => IndexState::InProgress,
        (_, Some(_)) => IndexState::Failed,
    };
    IndexDescription {
        index_name: index.name.clone(),
        index_id: index.id,
        params: key_values(&index.params),
        field_name: index.field.clone(),
        indexed_rows: count(progress.rows - progress.pending.min(progress.rows)),
        total_rows: count(progress.rows),
        state: state.into(),
        index_state_fail_reason: progress.failure.unwrap_or_default(),
        pending_index_rows: count(progress.pending),
        ..Default::default()
    }
}
