//! Arrow columns to the wire's columns.
//!
//! Responses are dense for scalars (a placeholder at nulls) and compact for vectors (null rows
//! left out); a client shifts rows silently when this is done otherwise. Every arm is set, also
//! for no rows at all: clients fail on a column without one.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, GenericListArray};
use bytes::Bytes;
use elanus_index::SparseRow;
use elanus_proto::schema::{self, field_data, i_ds, scalar_field, vector_field};
use elanus_storage::schema::{DataType, Field};

use super::decode::wire_type;

/// One column of a response. `array` has the type that storage keeps `field` in.
pub fn encode(field: &Field, array: &ArrayRef) -> schema::FieldData {
    let content = if field.data_type.is_vector() {
        field_data::Field::Vectors(vectors(&field.data_type, array))
    } else {
        field_data::Field::Scalars(schema::ScalarField {
            data: Some(scalars(&field.data_type, array)),
            ..Default::default()
        })
    };
    schema::FieldData {
        r#type: wire_type(&field.data_type).into(),
        field_name: field.name.clone(),
        field_id: field.id,
        is_dynamic: field.dynamic,
        valid_data: valid_data(field, array),
        field: Some(content),
    }
}

/// A column of primary keys as the `IDs` of a response.
pub fn encode_ids(keys: &ArrayRef) -> schema::IDs {
    let ids = match keys.as_primitive_opt::<Int64Type>() {
        Some(keys) => i_ds::IdField::IntId(schema::LongArray { data: keys.values().to_vec() }),
        None => i_ds::IdField::StrId(schema::StringArray { data: texts(keys) }),
    };
    schema::IDs { id_field: Some(ids) }
}

fn valid_data(field: &Field, array: &ArrayRef) -> Vec<bool> {
    match array.nulls() {
        Some(nulls) => nulls.iter().collect(),
        None if field.nullable => vec![true; array.len()],
        None => Vec::new(),
    }
}

fn scalars(data_type: &DataType, array: &ArrayRef) -> scalar_field::Data {
    use scalar_field::Data;
    match data_type {
        DataType::Bool => {
            Data::BoolData(schema::BoolArray { data: array.as_boolean().values().iter().collect() })
        }
        DataType::Int8 => Data::IntData(schema::IntArray {
            data: array.as_primitive::<Int8Type>().values().iter().map(|v| i32::from(*v)).collect(),
        }),
        DataType::Int16 => Data::IntData(schema::IntArray {
            data: array
                .as_primitive::<Int16Type>()
                .values()
                .iter()
                .map(|v| i32::from(*v))
                .collect(),
        }),
        DataType::Int32 => Data::IntData(schema::IntArray {
            data: array.as_primitive::<Int32Type>().values().to_vec(),
        }),
        DataType::Int64 => Data::LongData(schema::LongArray {
            data: array.as_primitive::<Int64Type>().values().to_vec(),
        }),
        DataType::Float => Data::FloatData(schema::FloatArray {
            data: array.as_primitive::<Float32Type>().values().to_vec(),
        }),
        DataType::Double => Data::DoubleData(schema::DoubleArray {
            data: array.as_primitive::<Float64Type>().values().to_vec(),
        }),
        DataType::VarChar { .. } => Data::StringData(schema::StringArray { data: texts(array) }),
        DataType::Array { element, .. } => Data::ArrayData(arrays(element, array.as_list())),
        DataType::Json
        | DataType::FloatVector { .. }
        | DataType::Float16Vector { .. }
        | DataType::BFloat16Vector { .. }
        | DataType::Int8Vector { .. }
        | DataType::BinaryVector { .. }
        | DataType::SparseFloatVector => Data::JsonData(schema::JsonArray {
            data: array
                .as_binary::<i64>()
                .iter()
                .map(|text| Bytes::copy_from_slice(text.unwrap_or(b"null")))
                .collect(),
        }),
    }
}

fn texts(array: &ArrayRef) -> Vec<String> {
    array.as_string::<i64>().iter().map(|text| text.unwrap_or_default().to_owned()).collect()
}

fn arrays(element: &DataType, list: &GenericListArray<i64>) -> schema::ArrayArray {
    let data = (0..list.len())
        .map(|row| {
            let length = if list.is_null(row) { 0 } else { list.value_length(row) };
            let start = list.value_offsets()[row];
            // Offsets of an array in memory fit a usize.
            let slice = list.values().slice(start as usize, length as usize);
            schema::ScalarField { data: Some(scalars(element, &slice)), ..Default::default() }
        })
        .collect();
    schema::ArrayArray { data, element_type: wire_type(element).into() }
}

fn vectors(data_type: &DataType, array: &ArrayRef) -> schema::VectorField {
    use vector_field::Data;
    let (dim, data) = match data_type {
        DataType::FloatVector { dim } => {
            (i64::from(*dim), Data::FloatVector(schema::FloatArray { data: floats(*dim, array) }))
        }
        DataType::Float16Vector { dim } => (i64::from(*dim), Data::Float16Vector(rows(array))),
        DataType::BFloat16Vector { dim } => (i64::from(*dim), Data::Bfloat16Vector(rows(array))),
        DataType::Int8Vector { dim } => (i64::from(*dim), Data::Int8Vector(rows(array))),
        DataType::BinaryVector { dim } => (i64::from(*dim), Data::BinaryVector(rows(array))),
        DataType::Bool
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float
        | DataType::Double
        | DataType::VarChar { .. }
        | DataType::Json
        | DataType::Array { .. }
        | DataType::SparseFloatVector => {
            let sparse = sparse(array);
            (sparse.dim, Data::SparseFloatVector(sparse))
        }
    };
    schema::VectorField { dim, data: Some(data), ..Default::default() }
}

fn floats(dim: u32, array: &ArrayRef) -> Vec<f32> {
    let list = array.as_fixed_size_list();
    let values = list.values().as_primitive::<Float32Type>().values();
    let dim = dim as usize;
    match list.nulls() {
        None => values.to_vec(),
        Some(nulls) => nulls
            .valid_indices()
            .flat_map(|row| &values[row * dim..(row + 1) * dim])
            .copied()
            .collect(),
    }
}

fn rows(array: &ArrayRef) -> Bytes {
    let array = array.as_fixed_size_binary();
    match array.nulls() {
        None => Bytes::copy_from_slice(&array.value_data()[..array.len() * array.value_size()]),
        Some(nulls) => nulls
            .valid_indices()
            .fold(Vec::new(), |mut bytes, row| {
                bytes.extend_from_slice(array.value(row));
                bytes
            })
            .into(),
    }
}

fn sparse(array: &ArrayRef) -> schema::SparseFloatArray {
    let array = array.as_binary::<i64>();
    let contents: Vec<Bytes> = array.iter().flatten().map(Bytes::copy_from_slice).collect();
    // Rows are in ascending order of their indices: the last one is the largest. An empty batch
    // still says 1, since clients divide by the dimension.
    let dim = contents
        .iter()
        .filter_map(|row| SparseRow::trusted(row).iter().last())
        .map(|(index, _)| i64::from(index) + 1)
        .max()
        .unwrap_or(1);
    schema::SparseFloatArray { contents, dim }
}
