//! Columns over the wire and back, for every type, with and without nulls.

use std::sync::Arc;

use arrow_array::types::Int16Type;
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array,
    Float64Array, Int8Array, Int32Array, Int64Array, LargeBinaryArray, LargeListArray,
    LargeStringArray,
};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use elanus_proto::schema::{self, field_data, scalar_field, vector_field};
use elanus_storage::schema::{DataType, Field, META, Schema, Value};
use proptest::prelude::*;

use super::*;

/// A plain field of a type.
pub(crate) fn field(name: &str, data_type: DataType) -> Field {
    Field {
        id: 100,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: false,
        default: None,
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        function_output: false,
        type_params: Vec::new(),
        column: None,
    }
}

fn key() -> Field {
    Field { primary_key: true, ..field("id", DataType::Int64) }
}

/// A schema of these fields.
pub(crate) fn schema_of(fields: Vec<Field>) -> Schema {
    Schema {
        description: String::new(),
        enable_dynamic_field: fields.iter().any(|field| field.dynamic),
        fields,
        functions: Vec::new(),
        properties: Vec::new(),
        version: 0,
        pending: Vec::new(),
        next_field: 0,
    }
}

fn scalar(name: &str, data: scalar_field::Data, valid: &[bool]) -> schema::FieldData {
    schema::FieldData {
        field_name: name.into(),
        valid_data: valid.to_vec(),
        field: Some(field_data::Field::Scalars(schema::ScalarField {
            data: Some(data),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn longs(name: &str, data: &[i64], valid: &[bool]) -> schema::FieldData {
    scalar(name, scalar_field::Data::LongData(schema::LongArray { data: data.to_vec() }), valid)
}

fn texts(name: &str, data: &[&str], valid: &[bool]) -> schema::FieldData {
    let data = data.iter().map(|text| (*text).into()).collect();
    scalar(name, scalar_field::Data::StringData(schema::StringArray { data }), valid)
}

fn jsons(name: &str, data: &[&str]) -> schema::FieldData {
    let data = data.iter().map(|text| text.as_bytes().to_vec().into()).collect();
    scalar(name, scalar_field::Data::JsonData(schema::JsonArray { data }), &[])
}

fn floats(name: &str, dim: i64, data: &[f32], valid: &[bool]) -> schema::FieldData {
    let data = vector_field::Data::FloatVector(schema::FloatArray { data: data.to_vec() });
    schema::FieldData {
        field_name: name.into(),
        valid_data: valid.to_vec(),
        field: Some(field_data::Field::Vectors(schema::VectorField {
            dim,
            data: Some(data),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn decode(schema: &Schema, data: Vec<schema::FieldData>, rows: usize) -> Result<Columns, Failure> {
    Columns::decode(schema, data, rows, Accept::default(), &Limits::default())
}

fn refusal(schema: &Schema, data: Vec<schema::FieldData>, rows: usize) -> String {
    decode(schema, data, rows).unwrap_err().reason().to_owned()
}

#[test]
fn nulls_may_come_compact_or_dense_and_defaults_win_over_them() {
    let nullable = Field { nullable: true, ..field("n", DataType::Int64) };
    let default = Some(Value::String("none".into()));
    let defaulted =
        Field { nullable: true, default, ..field("d", DataType::VarChar { max_length: 9 }) };
    let vector = Field { nullable: true, ..field("v", DataType::FloatVector { dim: 2 }) };
    let schema = schema_of(vec![key(), nullable, defaulted, vector]);
    let valid = [true, false, true];
    let compact = vec![
        longs("id", &[1, 2, 3], &[]),
        longs("n", &[10, 30], &valid),
        texts("d", &["a", "c"], &valid),
        floats("v", 2, &[1.0, 2.0, 5.0, 6.0], &valid),
    ];
    let dense = vec![
        longs("id", &[1, 2, 3], &[]),
        longs("n", &[10, 99, 30], &valid),
        texts("d", &["a", "b", "c"], &valid),
        floats("v", 2, &[1.0, 2.0, 9.0, 9.0, 5.0, 6.0], &valid),
    ];
    let batches =
        [compact, dense].map(|data| decode(&schema, data, 3).unwrap().into_batch(&schema).unwrap());
    assert_eq!(batches[0], batches[1]);
    let expected: ArrayRef = Arc::new(Int64Array::from(vec![Some(10), None, Some(30)]));
    assert_eq!(batches[0].column(1), &expected);
    let expected: ArrayRef = Arc::new(LargeStringArray::from(vec!["a", "none", "c"]));
    assert_eq!(batches[0].column(2), &expected);
    // The slot of a null vector holds zeros.
    let list = arrow_array::cast::as_fixed_size_list_array(batches[0].column(3));
    let values: &Float32Array = list.values().as_any().downcast_ref().unwrap();
    assert_eq!(values.values()[..], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
    assert!(list.is_null(1));
    // On the way back scalars are dense and vectors compact.
    let sent = encode(&schema.fields[1], batches[0].column(1));
    assert_eq!(sent.valid_data, valid);
    let Some(field_data::Field::Scalars(scalars)) = sent.field else { panic!("no scalars") };
    let Some(scalar_field::Data::LongData(data)) = scalars.data else { panic!("no longs") };
    assert_eq!(data.data, [10, 0, 30]);
    let sent = encode(&schema.fields[3], batches[0].column(3));
    let Some(field_data::Field::Vectors(vectors)) = sent.field else { panic!("no vectors") };
    assert_eq!(vectors.dim, 2);
    let Some(vector_field::Data::FloatVector(data)) = vectors.data else { panic!("no floats") };
    assert_eq!(data.data, [1.0, 2.0, 5.0, 6.0]);
}

#[test]
fn missing_columns_are_filled_or_named() {
    let nullable = Field { nullable: true, ..field("n", DataType::Int64) };
    let defaulted = Field { default: Some(Value::Int(7)), ..field("d", DataType::Int8) };
    let meta = Field { dynamic: true, ..field(META, DataType::Json) };
    let schema = schema_of(vec![key(), nullable, defaulted, meta]);
    let batch = decode(&schema, vec![longs("id", &[1, 2], &[])], 2).unwrap();
    let batch = batch.into_batch(&schema).unwrap();
    assert_eq!(batch.column(1).null_count(), 2);
    let expected: ArrayRef = Arc::new(Int8Array::from(vec![7, 7]));
    assert_eq!(batch.column(2), &expected);
    let expected: ArrayRef = Arc::new(LargeBinaryArray::from(vec![&b"{}"[..], b"{}"]));
    assert_eq!(batch.column(3), &expected);

    let schema = schema_of(vec![key(), field("f", DataType::Int64)]);
    let reason = refusal(&schema, vec![longs("id", &[1], &[])], 1);
    assert!(
        reason.starts_with("fieldSchema(f) has no corresponding fieldData pass in"),
        "{reason}"
    );
}

#[test]
fn rows_that_do_not_fit_are_refused_with_milvus_texts() {
    let schema = schema_of(vec![
        key(),
        field("s", DataType::VarChar { max_length: 3 }),
        field("v", DataType::FloatVector { dim: 2 }),
    ]);
    let good = || {
        vec![longs("id", &[1], &[]), texts("s", &["abc"], &[]), floats("v", 2, &[1.0, 2.0], &[])]
    };
    let with = |at: usize, column: schema::FieldData| {
        let mut data = good();
        data[at] = column;
        refusal(&schema, data, 1)
    };
    assert!(decode(&schema, good(), 1).is_ok());
    assert!(refusal(&schema, good(), 0).contains("num_rows should be greater than 0"));
    assert!(refusal(&schema, vec![], 4_000_000_000).contains("carries no column"));
    assert!(
        refusal(&schema, good(), 2)
            .contains("the num_rows (1) of field (id) is not equal to passed num_rows (2)")
    );
    let long = with(1, texts("s", &["äö"], &[]));
    assert!(
        long.contains(
            "length of varchar field s exceeds max length, row number: 0, length: 4, max length: 3"
        ),
        "{long}"
    );
    let dim = with(2, floats("v", 3, &[1.0, 2.0, 3.0], &[]));
    assert!(dim.contains("the dim (3) of field data(v) is not equal to schema dim (2)"), "{dim}");
    assert!(with(2, floats("v", 0, &[1.0, 2.0, 3.0], &[])).contains("not a multiple of 2"));
    assert!(
        with(2, floats("v", 2, &[1.0, f32::NAN], &[]))
            .contains("value 'NaN' is not a number or infinity")
    );
    assert!(
        with(2, floats("v", 2, &[1.0, f32::INFINITY], &[]))
            .contains("value 'inf' is not a number or infinity")
    );
    let wrong = with(1, longs("s", &[1], &[]));
    assert!(wrong.contains("field s's data type is VarChar, but got Int64"), "{wrong}");
    assert!(with(1, texts("s", &[], &[false])).contains("is not nullable"));
    assert!(with(1, texts("other", &["a"], &[])).contains("more fieldData has pass in"));
    let mut twice = good();
    twice.push(longs("id", &[1], &[]));
    assert!(refusal(&schema, twice, 1).contains("passed in twice"));
}

#[test]
fn generated_columns_cannot_be_given() {
    let auto = Field { auto_id: true, ..key() };
    let made = Field { function_output: true, ..field("v", DataType::FloatVector { dim: 2 }) };
    let schema = schema_of(vec![auto, made, field("n", DataType::Int64)]);
    let n = || longs("n", &[5], &[]);
    let columns = decode(&schema, vec![n()], 1).unwrap();
    assert!(columns.get(0).is_none() && columns.get(1).is_none());
    let reason = refusal(&schema, vec![n(), longs("id", &[1], &[])], 1);
    assert!(
        reason.contains("can not assign primary field data when auto id enabled id"),
        "{reason}"
    );
    assert!(
        refusal(&schema, vec![n(), floats("v", 2, &[0.0, 1.0], &[])], 1)
            .contains("output of a function")
    );
    let accept = Accept { auto_key: true, partial: false };
    let given = vec![n(), longs("id", &[1], &[])];
    assert!(Columns::decode(&schema, given, 1, accept, &Limits::default()).is_ok());
}

#[test]
fn integers_keep_their_range_and_arrays_their_capacity() {
    let element = Box::new(DataType::Int8);
    let schema = schema_of(vec![
        key(),
        field("i", DataType::Int16),
        field("a", DataType::Array { element, max_capacity: 2 }),
    ]);
    let data = |i: i32, array: &[i32]| {
        let ints =
            |data: &[i32]| scalar_field::Data::IntData(schema::IntArray { data: data.to_vec() });
        let row = schema::ScalarField { data: Some(ints(array)), ..Default::default() };
        let arrays = schema::ArrayArray { data: vec![row], element_type: 2 };
        vec![
            longs("id", &[1], &[]),
            scalar("i", ints(&[i]), &[]),
            scalar("a", scalar_field::Data::ArrayData(arrays), &[]),
        ]
    };
    assert!(decode(&schema, data(32_767, &[1, -128]), 1).is_ok());
    let reason = refusal(&schema, data(32_768, &[]), 1);
    assert!(
        reason.contains("the 0th element (32768) of field i out of range: [-32768, 32767]"),
        "{reason}"
    );
    assert!(refusal(&schema, data(1, &[128]), 1).contains("out of range: [-128, 127]"));
    let reason = refusal(&schema, data(1, &[1, 2, 3]), 1);
    assert!(
        reason.contains("the length (3) of 0th array of field (a) exceeds max capacity (2)"),
        "{reason}"
    );
}

#[test]
fn dynamic_keys_are_objects_that_name_no_field() {
    let meta = Field { dynamic: true, ..field(META, DataType::Json) };
    let schema = schema_of(vec![key(), meta]);
    let with = |text: &str| {
        let dynamic = schema::FieldData { is_dynamic: true, ..jsons("", &[text]) };
        decode(&schema, vec![longs("id", &[1], &[]), dynamic], 1)
    };
    assert!(with(r#"{"color": "red", "nested": {"id": 1}}"#).is_ok());
    let reason = |text: &str| with(text).unwrap_err().reason().to_owned();
    assert!(reason("[1]").contains("must be a json object"));
    assert!(reason(r#"{"id": 3}"#).contains("dynamic field cannot include the static field: id"));
    assert!(reason(r#"{"$meta": 3}"#).contains("use more than one $meta"));
    assert!(reason("{").contains("is invalid json"));
    let plain = schema_of(vec![key()]);
    let data = vec![longs("id", &[1], &[]), jsons(META, &["{}"])];
    assert!(refusal(&plain, data, 1).contains("more fieldData has pass in"));
}

#[test]
fn a_row_count_that_would_fill_the_memory_is_refused_before_it_does() {
    let wide = Field { nullable: true, ..field("v", DataType::FloatVector { dim: 32_768 }) };
    let schema = schema_of(vec![Field { auto_id: true, ..key() }, wide]);
    let failure = decode(&schema, vec![floats("v", 32_768, &[], &[])], 10_000_000).unwrap_err();
    assert_eq!(failure.code(), Code::ParameterTooLarge);
}

/// Rows of one field with nulls, as storage holds them.
fn column_of(data_type: &DataType, seeds: &[Option<u8>]) -> ArrayRef {
    let valid: Vec<bool> = seeds.iter().map(Option::is_some).collect();
    let nulls = NullBuffer::from(valid);
    let nulls = (nulls.null_count() > 0).then_some(nulls);
    let small = |seed: &Option<u8>| seed.map(|s| i8::try_from(s / 2).unwrap());
    let bytes = |width: usize| {
        let rows = seeds.iter().flat_map(|seed| vec![seed.unwrap_or(0) / 2; width]);
        let values = Buffer::from_vec(rows.collect::<Vec<u8>>());
        Arc::new(FixedSizeBinaryArray::new(width as i32, values, nulls.clone())) as ArrayRef
    };
    match data_type {
        DataType::Bool => Arc::new(BooleanArray::from_iter(seeds.iter().map(|s| s.map(|s| s > 9)))),
        DataType::Int8 => Arc::new(Int8Array::from_iter(seeds.iter().map(small))),
        DataType::Int16 => Arc::new(arrow_array::PrimitiveArray::<Int16Type>::from_iter(
            seeds.iter().map(|s| small(s).map(i16::from)),
        )),
        DataType::Int32 => Arc::new(Int32Array::from_iter(seeds.iter().map(|s| s.map(i32::from)))),
        DataType::Int64 => Arc::new(Int64Array::from_iter(seeds.iter().map(|s| s.map(i64::from)))),
        DataType::Float => {
            Arc::new(Float32Array::from_iter(seeds.iter().map(|s| s.map(f32::from))))
        }
        DataType::Double => {
            Arc::new(Float64Array::from_iter(seeds.iter().map(|s| s.map(f64::from))))
        }
        DataType::VarChar { .. } => Arc::new(LargeStringArray::from_iter(
            seeds.iter().map(|s| s.map(|s| "ä".repeat(usize::from(s % 4)))),
        )),
        DataType::Json => Arc::new(LargeBinaryArray::from_iter(
            seeds.iter().map(|s| s.map(|s| format!("{{\"n\":[{s},\" \"]}}"))),
        )),
        DataType::Array { .. } => {
            let lengths = seeds.iter().map(|s| usize::from(s.unwrap_or(0) % 3));
            let offsets = OffsetBuffer::<i64>::from_lengths(lengths);
            let count = offsets.last() as usize;
            let values = LargeStringArray::from_iter_values((0..count).map(|n| n.to_string()));
            let item = Arc::new(ArrowField::new("item", ArrowType::LargeUtf8, false));
            Arc::new(LargeListArray::new(item, offsets, Arc::new(values), nulls))
        }
        DataType::FloatVector { dim } => {
            let values = seeds.iter().flat_map(|s| vec![f32::from(s.unwrap_or(0)); *dim as usize]);
            let item = Arc::new(ArrowField::new("item", ArrowType::Float32, false));
            let values = Arc::new(Float32Array::from_iter_values(values));
            Arc::new(FixedSizeListArray::new(item, *dim as i32, values, nulls))
        }
        DataType::Float16Vector { dim } | DataType::BFloat16Vector { dim } => {
            bytes(*dim as usize * 2)
        }
        DataType::Int8Vector { dim } => bytes(*dim as usize),
        DataType::BinaryVector { dim } => bytes(*dim as usize / 8),
        DataType::SparseFloatVector => {
            Arc::new(LargeBinaryArray::from_iter(seeds.iter().map(|s| {
                let entry = |s: u8| [u32::from(s).to_le_bytes(), 1.5_f32.to_le_bytes()].concat();
                s.map(|s| if s % 3 == 0 { Vec::new() } else { entry(s) })
            })))
        }
    }
}

/// Turns a response column into what a client would insert: compact scalars.
fn compact(mut data: schema::FieldData) -> schema::FieldData {
    let valid = data.valid_data.clone();
    let Some(field_data::Field::Scalars(scalars)) = &mut data.field else { return data };
    fn keep<T>(values: &mut Vec<T>, valid: &[bool]) {
        let mut rows = valid.iter();
        values.retain(|_| *rows.next().unwrap());
    }
    if valid.is_empty() {
        return data;
    }
    use scalar_field::Data;
    match scalars.data.as_mut() {
        Some(Data::BoolData(d)) => keep(&mut d.data, &valid),
        Some(Data::IntData(d)) => keep(&mut d.data, &valid),
        Some(Data::LongData(d)) => keep(&mut d.data, &valid),
        Some(Data::FloatData(d)) => keep(&mut d.data, &valid),
        Some(Data::DoubleData(d)) => keep(&mut d.data, &valid),
        Some(Data::StringData(d)) => keep(&mut d.data, &valid),
        Some(Data::ArrayData(d)) => keep(&mut d.data, &valid),
        Some(Data::JsonData(d)) => keep(&mut d.data, &valid),
        other => panic!("a column was written as {other:?}"),
    }
    data
}

fn every_type() -> Vec<DataType> {
    let element = Box::new(DataType::VarChar { max_length: 20 });
    vec![
        DataType::Bool,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Float,
        DataType::Double,
        DataType::VarChar { max_length: 20 },
        DataType::Json,
        DataType::Array { element, max_capacity: 8 },
        DataType::FloatVector { dim: 3 },
        DataType::Float16Vector { dim: 3 },
        DataType::BFloat16Vector { dim: 3 },
        DataType::Int8Vector { dim: 3 },
        DataType::BinaryVector { dim: 16 },
        DataType::SparseFloatVector,
    ]
}

proptest! {
    #[test]
    fn every_type_survives_the_wire_in_both_forms(
        seeds in prop::collection::vec(prop::option::of(0_u8..120), 1..20),
    ) {
        for data_type in every_type() {
            let field = Field { nullable: true, ..field("f", data_type) };
            let stored = column_of(&field.data_type, &seeds);
            prop_assert_eq!(stored.data_type(), &field.data_type.to_arrow());
            let dense = encode(&field, &stored);
            let schema = schema_of(vec![Field { auto_id: true, ..key() }, field]);
            for sent in [compact(dense.clone()), dense] {
                let columns = decode(&schema, vec![sent], seeds.len()).unwrap();
                let read = columns.get(1).unwrap();
                prop_assert_eq!(read, &stored);
                read.to_data().validate_full().unwrap();
            }
        }
    }

    #[test]
    fn hostile_columns_are_errors_and_never_panics(
        values in prop::collection::vec(any::<i32>(), 0..6),
        valid in prop::collection::vec(any::<bool>(), 0..6),
        rows in 0_usize..6,
        dim in any::<i64>(),
    ) {
        use scalar_field::Data;
        for data_type in every_type() {
            let schema = schema_of(vec![
                Field { auto_id: true, ..key() },
                Field { nullable: true, ..field("f", data_type) },
            ]);
            let bytes: Vec<bytes::Bytes> = values.iter().map(|v| v.to_le_bytes().to_vec().into()).collect();
            let all: bytes::Bytes = bytes.concat().into();
            let arms = [
                scalar("f", Data::IntData(schema::IntArray { data: values.clone() }), &valid),
                scalar("f", Data::JsonData(schema::JsonArray { data: bytes.clone() }), &valid),
                scalar("f", Data::ArrayData(schema::ArrayArray {
                    data: values.iter().map(|_| schema::ScalarField::default()).collect(),
                    element_type: 0,
                }), &valid),
            ];
            let vectors = [
                vector_field::Data::Float16Vector(all.clone()),
                vector_field::Data::Bfloat16Vector(all.clone()),
                vector_field::Data::Int8Vector(all.clone()),
                vector_field::Data::BinaryVector(all),
                vector_field::Data::FloatVector(schema::FloatArray { data: vec![0.5; values.len()] }),
                vector_field::Data::SparseFloatVector(schema::SparseFloatArray { contents: bytes, dim }),
            ];
            let vectors = vectors.into_iter().map(|data| schema::FieldData {
                field_name: "f".into(),
                valid_data: valid.clone(),
                field: Some(field_data::Field::Vectors(schema::VectorField {
                    dim,
                    data: Some(data),
                    ..Default::default()
                })),
                ..Default::default()
            });
            for data in arms.into_iter().chain(vectors) {
                let _ = decode(&schema, vec![data], rows);
            }
        }
    }
}
