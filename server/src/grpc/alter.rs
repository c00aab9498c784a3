//! Changes of a collection that exists: properties, type parameters, new fields.
//!
//! Only a change of the schema moves `update_timestamp`: clients compare it with the schema they
//! encoded a batch by.

use elanus_proto::common::{ConsistencyLevel, Status};
use elanus_proto::milvus::alter_collection_schema_request::action::Op;
use elanus_proto::milvus::alter_collection_schema_request::drop_request::Identifier;
use elanus_proto::milvus::*;
use elanus_storage::catalog::TTL;
use elanus_storage::schema::{DataType, Field};
use elanus_storage::{CollectionChange, CollectionInfo};

use crate::convert::{pairs, parse_bool, parse_number, schema};
use crate::node::{Context, Node};
use crate::status::{Failure, success};

/// Longest time to live, in seconds: a hundred years.
const MAX_TTL_SECONDS: i64 = 3_155_760_000;

/// Type parameters of a field that may change later.
const FIELD_PARAMS: [&str; 4] = ["max_length", "max_capacity", "mmap.enabled", "mmap_enabled"];

impl Node {
    pub(super) async fn alter_collection(
        &self,
        ctx: &Context,
        request: AlterCollectionRequest,
    ) -> Result<Status, Failure> {
        let info =
            self.collection_to_alter(ctx, &request.collection_name, request.collection_id)?;
        let mut set = pairs(request.properties);
        let delete = request.delete_keys;
        if !set.is_empty() && !delete.is_empty() {
            return Err(Failure::invalid(
                "can not provide properties and deletekeys at the same time",
            ));
        }
        if set.is_empty() && delete.is_empty() {
            return Err(Failure::invalid("The properties and deletekeys are both empty"));
        }
        for (key, value) in &set {
            check_property(key, value)?;
        }
        // These two are not properties, though they travel as such.
        let mut changes = Vec::new();
        if let Some((_, level)) = take(&mut set, "consistency_level") {
            changes.push(CollectionChange::Consistency(consistency(&level)?));
        }
        if let Some((_, text)) = take(&mut set, "collection.description") {
            changes.push(CollectionChange::Description(text));
        }
        if !set.is_empty() || !delete.is_empty() {
            changes.push(CollectionChange::Properties { set, delete });
        }
        for change in changes {
            self.engine.alter_collection(&info.db, &info.name, change).await?;
        }
        Ok(success())
    }

    pub(super) async fn alter_collection_field(
        &self,
        ctx: &Context,
        request: AlterCollectionFieldRequest,
    ) -> Result<Status, Failure> {
        let info = self.describe(ctx, &request.collection_name)?;
        let name = &request.field_name;
        let field = info.schema.field(name).filter(|field| !field.dynamic).ok_or_else(|| {
            Failure::invalid(format!("field {name} does not exist in collection {}", info.name))
        })?;
        let set = pairs(request.properties);
        let delete = request.delete_keys;
        if set.is_empty() && delete.is_empty() {
            return Err(Failure::invalid("The field properties and deletekeys are both empty"));
        }
        for (key, value) in &set {
            self.check_field_param(field, key, value)?;
        }
        if let Some(key) = delete.iter().find(|key| !key.starts_with("mmap")) {
            return Err(Failure::invalid(format!("{key} of field {name} cannot be removed")));
        }
        let change = CollectionChange::FieldParams { field: name.clone(), set, delete };
        self.engine.alter_collection(&info.db, &info.name, change).await?;
        Ok(success())
    }

    /// Texts and lists may only grow: rows that are stored must stay valid.
    fn check_field_param(&self, field: &Field, key: &str, value: &str) -> Result<(), Failure> {
        let name = &field.name;
        if !FIELD_PARAMS.contains(&key) {
            return Err(Failure::invalid(format!(
                "{key} does not allow update in collection field param; field {name} takes [{}]",
                FIELD_PARAMS.join(", ")
            )));
        }
        let element = if let DataType::Array { element, .. } = &field.data_type {
            element.as_ref()
        } else {
            &field.data_type
        };
        let (current, max) = match (key, element, &field.data_type) {
            ("max_length", DataType::VarChar { max_length }, _) => {
                (*max_length, self.limits.varchar_bytes)
            }
            ("max_capacity", _, DataType::Array { max_capacity, .. }) => {
                (*max_capacity, self.limits.array_elements)
            }
            ("max_length" | "max_capacity", _, _) => {
                return Err(Failure::invalid(format!(
                    "can not modify the {key} for field {name} of type {}",
                    field.data_type.name()
                )));
            }
            _ => {
                return parse_bool(value).map(|_| ()).ok_or_else(|| {
                    Failure::invalid(format!(
                        "{key} of field {name} should be a boolean, got {value}"
                    ))
                });
            }
        };
        match parse_number::<u32>(value) {
            Some(new) if (current..=max).contains(&new) => Ok(()),
            _ => Err(Failure::invalid(format!(
                "{key} of field {name} should be in [{current}, {max}] (it can grow, not shrink), \
                 but got {value}"
            ))),
        }
    }

    pub(super) async fn add_collection_field(
        &self,
        ctx: &Context,
        request: AddCollectionFieldRequest,
    ) -> Result<Status, Failure> {
        let info =
            self.collection_to_alter(ctx, &request.collection_name, request.collection_id)?;
        let field = schema::decode_field(&request.schema, &self.limits)?;
        self.add_field(&info, field).await?;
        Ok(success())
    }

    pub(super) async fn alter_collection_schema(
        &self,
        ctx: &Context,
        request: AlterCollectionSchemaRequest,
    ) -> Result<AlterCollectionSchemaResponse, Failure> {
        let info =
            self.collection_to_alter(ctx, &request.collection_name, request.collection_id)?;
        let add = match request.action.and_then(|action| action.op) {
            Some(Op::AddRequest(add)) => add,
            Some(Op::DropRequest(drop)) => {
                let Some(Identifier::FunctionName(name)) = drop.identifier else {
                    return Err(Failure::unimplemented("dropping fields is not supported yet"));
                };
                if drop.drop_function_output_fields {
                    return Err(Failure::unimplemented(format!(
                        "dropping fields is not supported yet: function {name} can be dropped, and \
                         its output fields stay"
                    )));
                }
                self.drop_function(ctx, &info.name, info.id, &name).await?;
                return Ok(AlterCollectionSchemaResponse::default());
            }
            None => return Err(Failure::invalid("the request names no action")),
        };
        if !add.func_schema.is_empty() {
            return Err(Failure::unimplemented(
                "adding a field together with its function is not supported yet: declare the field \
                 when the collection is created, and add the function to it with \
                 AddCollectionFunction",
            ));
        }
        let mut fields = Vec::with_capacity(add.field_infos.len());
        for info in add.field_infos {
            let wire = info
                .field_schema
                .ok_or_else(|| Failure::invalid("the request adds a field without a schema"))?;
            fields.push(schema::added_field(wire, &self.limits)?);
        }
        let [field] = <[Field; 1]>::try_from(fields).map_err(|fields| {
            Failure::invalid(format!(
                "one field can be added by a request, this one has {}",
                fields.len()
            ))
        })?;
        self.add_field(&info, field).await?;
        Ok(AlterCollectionSchemaResponse::default())
    }

    async fn add_field(&self, info: &CollectionInfo, field: Field) -> Result<(), Failure> {
        let fields = info.schema.fields.iter().filter(|field| !field.dynamic);
        if info.schema.field(&field.name).is_some() {
            return Err(Failure::invalid(format!("duplicated field name: {}", field.name)));
        }
        if fields.clone().count() >= self.limits.fields {
            return Err(Failure::invalid(format!(
                "The number of fields has reached the maximum value {}",
                self.limits.fields
            )));
        }
        let vectors = fields.filter(|field| field.data_type.is_vector()).count();
        if field.data_type.is_vector() && vectors >= self.limits.vector_fields {
            return Err(Failure::invalid(format!(
                "maximum vector field's number should be limited to {}",
                self.limits.vector_fields
            )));
        }
        let change = CollectionChange::AddField(Box::new(field));
        self.engine.alter_collection(&info.db, &info.name, change).await?;
        Ok(())
    }

    pub(super) fn collection_to_alter(
        &self,
        ctx: &Context,
        name: &str,
        id: i64,
    ) -> Result<std::sync::Arc<CollectionInfo>, Failure> {
        if name.is_empty() && id != 0 {
            self.describe_by_id(ctx, id)
        } else {
            self.describe(ctx, name)
        }
    }
}

/// Checks the properties that have a meaning; any other is stored and returned as text.
pub(super) fn check_property(key: &str, value: &str) -> Result<(), Failure> {
    match key {
        TTL => match parse_number::<i64>(value) {
            Some(-1..=MAX_TTL_SECONDS) => Ok(()),
            _ => Err(Failure::invalid(format!(
                "collection TTL is out of range, expect [-1, {MAX_TTL_SECONDS}], got {value}"
            ))),
        },
        "ttl_field" => {
            Err(Failure::unimplemented("rows that expire (ttl_field) are not supported yet"))
        }
        "dynamicfield.enabled" => Err(Failure::unimplemented(
            "the dynamic field can only be enabled when the collection is created, by its schema",
        )),
        _ => Ok(()),
    }
}

fn take(pairs: &mut Vec<(String, String)>, key: &str) -> Option<(String, String)> {
    let at = pairs.iter().position(|(name, _)| name == key)?;
    Some(pairs.remove(at))
}

/// A level by its number or its name.
fn consistency(text: &str) -> Result<i32, Failure> {
    let level = match parse_number::<i32>(text) {
        Some(number) => ConsistencyLevel::try_from(number).ok(),
        None => ConsistencyLevel::from_str_name(text),
    };
    level
        .map(i32::from)
        .ok_or_else(|| Failure::invalid(format!("unknown consistency level {text}")))
}
