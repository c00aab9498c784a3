//! The requests that tests send, with everything left out that a test does not care about.

use anyhow::{Result, bail};
use elanus_proto::common::{
    ConsistencyLevel, DslType, KeyValuePair, PlaceholderGroup, PlaceholderType, PlaceholderValue,
    Status,
};
use elanus_proto::milvus::milvus_service_client::MilvusServiceClient;
use elanus_proto::milvus::search_request::SearchInput;
use elanus_proto::milvus::{
    CreateCollectionRequest, CreateIndexRequest, LoadCollectionRequest, QueryRequest, SearchRequest,
};
use elanus_proto::schema::field_data::Field;
use elanus_proto::schema::i_ds::IdField;
use elanus_proto::schema::scalar_field::Data as Scalars;
use elanus_proto::schema::vector_field::Data as Vectors;
use elanus_proto::schema::{
    CollectionSchema, DataType, FieldData, FieldSchema, FloatArray, IDs, LongArray, ScalarField,
    VectorField,
};
use prost::Message;
use tonic::transport::Channel;

/// A client of the node.
pub type Client = MilvusServiceClient<Channel>;

/// A key and its value.
pub fn pair(key: &str, value: &(impl ToString + ?Sized)) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_string() }
}

/// Turns an in-band failure into an error.
///
/// # Errors
/// When the status is there and not a success: its code, legacy code and reason.
pub fn check(status: Option<&Status>) -> Result<()> {
    match status {
        None => Ok(()),
        Some(status) if status.code == 0 && status.error_code == 0 => Ok(()),
        Some(status) => bail!("code {} ({}): {}", status.code, status.error_code, status.reason),
    }
}

/// A column of INT64 values.
pub fn longs(name: &str, values: Vec<i64>) -> FieldData {
    let data = Some(Scalars::LongData(LongArray { data: values }));
    FieldData {
        r#type: DataType::Int64.into(),
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField { data, valid_data: Vec::new() })),
        ..FieldData::default()
    }
}

/// A column of FLOAT_VECTOR values, row after row.
pub fn floats(name: &str, dim: usize, values: Vec<f32>) -> FieldData {
    let data = Some(Vectors::FloatVector(FloatArray { data: values }));
    FieldData {
        r#type: DataType::FloatVector.into(),
        field_name: name.to_owned(),
        field: Some(Field::Vectors(VectorField { dim: dim as i64, data, valid_data: Vec::new() })),
        ..FieldData::default()
    }
}

/// The INT64 values of the column `name`; empty if there is no such column.
pub fn longs_of(columns: &[FieldData], name: &str) -> Vec<i64> {
    columns
        .iter()
        .filter(|column| column.field_name == name)
        .find_map(|column| match &column.field {
            Some(Field::Scalars(ScalarField { data: Some(Scalars::LongData(values)), .. })) => {
                Some(values.data.clone())
            }
            _ => None,
        })
        .unwrap_or_default()
}

/// INT64 primary keys.
pub fn int_ids(ids: Option<&IDs>) -> Vec<i64> {
    match ids.and_then(|ids| ids.id_field.as_ref()) {
        Some(IdField::IntId(ids)) => ids.data.clone(),
        _ => Vec::new(),
    }
}

/// Placeholders for float query vectors.
pub fn placeholders(vectors: &[Vec<f32>]) -> Vec<u8> {
    let bytes =
        |vector: &Vec<f32>| vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into();
    let value = PlaceholderValue {
        tag: "$0".to_owned(),
        r#type: PlaceholderType::FloatVector.into(),
        values: vectors.iter().map(bytes).collect(),
        element_level: false,
    };
    PlaceholderGroup { placeholders: vec![value] }.encode_to_vec()
}

/// A search for the `limit` rows closest to `vector`, by L2.
pub fn search(collection: &str, field: &str, vector: &[f32], limit: usize) -> SearchRequest {
    SearchRequest {
        collection_name: collection.to_owned(),
        dsl_type: DslType::BoolExprV1.into(),
        nq: 1,
        search_input: Some(SearchInput::PlaceholderGroup(placeholders(&[vector.to_vec()]).into())),
        search_params: vec![
            pair("anns_field", field),
            pair("topk", &limit),
            pair("metric_type", "L2"),
            pair("params", "{}"),
        ],
        consistency_level: ConsistencyLevel::Strong.into(),
        ..SearchRequest::default()
    }
}

/// A query for `fields` of the rows that match `filter`.
pub fn query(collection: &str, filter: &str, fields: &[&str]) -> QueryRequest {
    QueryRequest {
        collection_name: collection.to_owned(),
        expr: filter.to_owned(),
        output_fields: fields.iter().map(ToString::to_string).collect(),
        consistency_level: ConsistencyLevel::Strong.into(),
        ..QueryRequest::default()
    }
}

/// A field, by name and type, with type parameters.
pub fn field(name: &str, data_type: DataType, params: &[(&str, &str)]) -> FieldSchema {
    FieldSchema {
        name: name.to_owned(),
        data_type: data_type.into(),
        type_params: params.iter().map(|(key, value)| pair(key, *value)).collect(),
        ..FieldSchema::default()
    }
}

/// The schema of the tests that count rows: key `id`, INT64 `others`, FLOAT_VECTOR `vector`.
pub fn counting_schema(name: &str, others: &[&str], dim: usize) -> CollectionSchema {
    let mut key = field("id", DataType::Int64, &[]);
    key.is_primary_key = true;
    let mut fields = vec![key];
    fields.extend(others.iter().map(|name| field(name, DataType::Int64, &[])));
    fields.push(field("vector", DataType::FloatVector, &[("dim", &dim.to_string())]));
    CollectionSchema { name: name.to_owned(), fields, ..CollectionSchema::default() }
}

/// Creates a collection with a FLAT index by L2 on `vector`, and loads it.
///
/// # Errors
/// When one of the steps fails.
pub async fn create_and_load(client: &mut Client, schema: &CollectionSchema) -> Result<()> {
    create_and_load_with(client, schema, &[("index_type", "FLAT")]).await
}

/// As [`create_and_load`], with an L2 index of the caller's choice.
pub async fn create_and_load_with(
    client: &mut Client,
    schema: &CollectionSchema,
    index: &[(&str, &str)],
) -> Result<()> {
    let create = CreateCollectionRequest {
        collection_name: schema.name.clone(),
        schema: schema.encode_to_vec().into(),
        shards_num: 1,
        consistency_level: ConsistencyLevel::Strong.into(),
        ..CreateCollectionRequest::default()
    };
    check(Some(client.create_collection(create).await?.get_ref()))?;
    let index = CreateIndexRequest {
        collection_name: schema.name.clone(),
        field_name: "vector".to_owned(),
        extra_params: (index.iter().map(|(key, value)| pair(key, value)))
            .chain([pair("metric_type", "L2")])
            .collect(),
        ..CreateIndexRequest::default()
    };
    check(Some(client.create_index(index).await?.get_ref()))?;
    let load = LoadCollectionRequest {
        collection_name: schema.name.clone(),
        replica_number: 1,
        ..LoadCollectionRequest::default()
    };
    check(Some(client.load_collection(load).await?.get_ref()))
}
