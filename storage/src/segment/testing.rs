//! Rows of every type for the tests of this crate.

use std::sync::Arc;

use arrow_array::builder::{
    FixedSizeBinaryBuilder, Int64Builder, LargeListBuilder, LargeStringBuilder,
};
use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, LargeBinaryArray, LargeStringArray, RecordBatch,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType as ArrowType, Field as ArrowField};

use super::seal::Work;
use crate::Error;
use crate::blobs::Blobs;
use crate::schema::{DataType, Field, META, Schema};

/// Work that is never called off and done in memory.
pub(crate) struct NoScratch;

impl Work for NoScratch {
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn scratch(&self, _: i64) -> Option<(&Blobs, String)> {
        None
    }
}

pub(crate) fn field(name: &str, data_type: DataType) -> Field {
    Field {
        id: 0,
        name: name.into(),
        description: String::new(),
        data_type,
        nullable: true,
        default: None,
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        function_output: false,
        type_params: vec![],
        column: None,
    }
}

pub(crate) fn schema(mut fields: Vec<Field>) -> Schema {
    for (id, field) in (100..).zip(&mut fields) {
        field.id = id;
    }
    Schema {
        description: String::new(),
        enable_dynamic_field: fields.iter().any(|field| field.dynamic),
        fields,
        functions: vec![],
        properties: vec![],
        version: 1,
        pending: vec![],
        next_field: 0,
    }
}

/// A schema with an INT64 key `id` and one nullable field of every type.
pub(crate) fn every_type() -> Schema {
    use DataType::*;
    let array = |element| Array { element: Box::new(element), max_capacity: 4 };
    let types = [
        Bool,
        Int8,
        Int16,
        Int32,
        Int64,
        Float,
        Double,
        VarChar { max_length: 64 },
        Json,
        array(Int64),
        array(VarChar { max_length: 8 }),
        FloatVector { dim: 4 },
        Float16Vector { dim: 4 },
        BFloat16Vector { dim: 4 },
        Int8Vector { dim: 4 },
        BinaryVector { dim: 16 },
        SparseFloatVector,
    ];
    let mut fields =
        vec![Field { primary_key: true, nullable: false, ..field("id", DataType::Int64) }];
    fields.extend((0..).zip(types).map(|(i, data_type)| field(&format!("f{i}"), data_type)));
    fields.push(Field { dynamic: true, nullable: false, ..field(META, DataType::Json) });
    schema(fields)
}

/// Rows with the keys `first..first + n`; every fifth value of a nullable field is null.
pub(crate) fn rows(schema: &Schema, n: usize, first: i64) -> RecordBatch {
    let columns = schema.fields.iter().map(|field| column(field, n, first)).collect();
    RecordBatch::try_new(schema.to_arrow(), columns).unwrap()
}

fn column(field: &Field, n: usize, first: i64) -> ArrayRef {
    use DataType::*;
    let is_null = |i: usize| field.nullable && (i + field.name.len()).is_multiple_of(5);
    let nulls = || NullBuffer::from_iter((0..n).map(|i| !is_null(i)));
    let some = |i: usize| (!is_null(i)).then_some(first + i as i64);
    let text = |i: i64| format!("{}-{i}", field.name);
    macro_rules! numbers {
        ($array:ident, $native:ty) => {
            Arc::new((0..n).map(|i| some(i).map(|v| v as $native)).collect::<$array>())
        };
    }
    match &field.data_type {
        Bool => Arc::new((0..n).map(|i| some(i).map(|v| v % 3 == 0)).collect::<BooleanArray>()),
        Int8 => numbers!(Int8Array, i8),
        Int16 => numbers!(Int16Array, i16),
        Int32 => numbers!(Int32Array, i32),
        Int64 => numbers!(Int64Array, i64),
        Float => numbers!(Float32Array, f32),
        Double => numbers!(Float64Array, f64),
        VarChar { .. } => Arc::new((0..n).map(|i| some(i).map(text)).collect::<LargeStringArray>()),
        Json => Arc::new(LargeBinaryArray::from_iter(
            (0..n).map(|i| some(i).map(|v| format!("{{\"a\":{v}}}").into_bytes())),
        )),
        Array { element, .. } if **element == Int64 => {
            let item = Arc::new(ArrowField::new("item", ArrowType::Int64, false));
            let mut builder = LargeListBuilder::new(Int64Builder::new()).with_field(item);
            for i in 0..n {
                builder.append_option(some(i).map(|v| (0..v % 4).map(Some)));
            }
            Arc::new(builder.finish())
        }
        Array { .. } => {
            let item = Arc::new(ArrowField::new("item", ArrowType::LargeUtf8, false));
            let mut builder = LargeListBuilder::new(LargeStringBuilder::new()).with_field(item);
            for i in 0..n {
                builder.append_option(some(i).map(|v| (0..v % 3).map(|j| Some(text(j)))));
            }
            Arc::new(builder.finish())
        }
        FloatVector { dim } => {
            let value = |j: usize| (first as f32) + j as f32;
            let width = *dim as usize;
            let values: Vec<f32> = (0..n * width).map(value).collect();
            Arc::new(FixedSizeListArray::new(
                Arc::new(ArrowField::new("item", ArrowType::Float32, false)),
                i32::try_from(*dim).unwrap(),
                Arc::new(Float32Array::from(values)),
                Some(nulls()),
            ))
        }
        Float16Vector { .. } | BFloat16Vector { .. } | Int8Vector { .. } | BinaryVector { .. } => {
            let width = field.data_type.bytes_per_row().unwrap();
            let mut builder =
                FixedSizeBinaryBuilder::with_capacity(n, i32::try_from(width).unwrap());
            for i in 0..n {
                match some(i) {
                    Some(v) => builder.append_value(vec![v as u8; width]).unwrap(),
                    None => builder.append_null(),
                }
            }
            Arc::new(builder.finish())
        }
        SparseFloatVector => Arc::new(LargeBinaryArray::from_iter((0..n).map(|i| {
            some(i).map(|v| {
                let mut bytes = Vec::new();
                for (id, weight) in [(v as u32 % 50, 1.0_f32), (v as u32 % 50 + 60, 0.5)] {
                    bytes.extend_from_slice(&id.to_le_bytes());
                    bytes.extend_from_slice(&weight.to_le_bytes());
                }
                bytes
            })
        }))),
    }
}
