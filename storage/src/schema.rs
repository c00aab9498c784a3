//! What a collection's rows look like: fields, types, functions, and their Arrow form.
//!
//! A [`Schema`] is plain data that the catalog stores as JSON. It fixes how every field lies in
//! memory and on disk ([`DataType::to_arrow`]), so that a batch has one layout from the border to
//! the sealed file. [`Schema::validate`] checks the rules that storage itself relies on.
//!
//! This module does not know Milvus's wording or limits on names and counts; the server checks
//! those, with Milvus's texts, before a schema comes here.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeBinaryBuilder, LargeStringBuilder};
use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, LargeStringArray, new_null_array,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema as ArrowSchema, SchemaRef};
use serde::{Deserialize, Serialize};

/// Name of the hidden JSON column that holds the dynamic keys of a row.
pub const META: &str = "$meta";

/// Name of the timestamp column that storage adds to sealed files; never part of a user's batch.
pub const TS: &str = "_ts";

/// Widest dense vector, in dimensions (Milvus's limit).
const MAX_DIM: u32 = 32_768;

/// Widest binary vector, in bits (Milvus's limit).
const MAX_BINARY_DIM: u32 = 262_144;

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// True or false.
    Bool,
    /// 8-bit signed integer.
    Int8,
    /// 16-bit signed integer.
    Int16,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// IEEE 754 single precision.
    Float,
    /// IEEE 754 double precision.
    Double,
    /// UTF-8 text.
    VarChar {
        /// Longest value, in bytes.
        max_length: u32,
    },
    /// Any JSON value, as compact UTF-8 text.
    Json,
    /// A list of scalars without nulls.
    Array {
        /// Type of one element: a scalar, not JSON and not another array.
        element: Box<DataType>,
        /// Most elements in one row.
        max_capacity: u32,
    },
    /// Dense vector of `f32`.
    FloatVector {
        /// Number of elements.
        dim: u32,
    },
    /// Dense vector of IEEE 754 half precision.
    Float16Vector {
        /// Number of elements.
        dim: u32,
    },
    /// Dense vector of bfloat16 (the upper half of an `f32`).
    BFloat16Vector {
        /// Number of elements.
        dim: u32,
    },
    /// Dense vector of `i8`.
    Int8Vector {
        /// Number of elements.
        dim: u32,
    },
    /// Vector of bits, packed eight to a byte.
    BinaryVector {
        /// Number of bits, a multiple of eight.
        dim: u32,
    },
    /// Sparse vector: pairs of `u32` index and `f32` value.
    SparseFloatVector,
}

impl DataType {
    /// The Arrow type of a column of this type, the same in the log, in growing and in sealed
    /// segments.
    pub fn to_arrow(&self) -> ArrowType {
        match self {
            Self::Bool => ArrowType::Boolean,
            Self::Int8 => ArrowType::Int8,
            Self::Int16 => ArrowType::Int16,
            Self::Int32 => ArrowType::Int32,
            Self::Int64 => ArrowType::Int64,
            Self::Float => ArrowType::Float32,
            Self::Double => ArrowType::Float64,
            Self::VarChar { .. } => ArrowType::LargeUtf8,
            Self::Json | Self::SparseFloatVector => ArrowType::LargeBinary,
            Self::Array { element, .. } => ArrowType::LargeList(item(element.to_arrow())),
            Self::FloatVector { dim } => {
                ArrowType::FixedSizeList(item(ArrowType::Float32), arrow_width(*dim))
            }
            Self::Float16Vector { .. }
            | Self::BFloat16Vector { .. }
            | Self::Int8Vector { .. }
            | Self::BinaryVector { .. } => ArrowType::FixedSizeBinary(
                i32::try_from(self.bytes_per_row().unwrap_or(0)).unwrap_or(i32::MAX),
            ),
        }
    }

    /// Whether this is one of the vector types, dense, binary or sparse.
    pub fn is_vector(&self) -> bool {
        self.dim().is_some() || matches!(self, Self::SparseFloatVector)
    }

    /// Whether this is a vector of numbers, one for each dimension.
    pub fn is_dense_vector(&self) -> bool {
        self.dim().is_some() && !matches!(self, Self::BinaryVector { .. })
    }

    /// Whether this is one of the four integer types.
    pub fn is_integer(&self) -> bool {
        matches!(self, Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64)
    }

    /// Dimension of a fixed-width vector (bits for binary vectors); `None` for the rest.
    pub fn dim(&self) -> Option<u32> {
        match self {
            Self::FloatVector { dim }
            | Self::Float16Vector { dim }
            | Self::BFloat16Vector { dim }
            | Self::Int8Vector { dim }
            | Self::BinaryVector { dim } => Some(*dim),
            Self::Bool
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Float
            | Self::Double
            | Self::VarChar { .. }
            | Self::Json
            | Self::Array { .. }
            | Self::SparseFloatVector => None,
        }
    }

    /// Bytes of one row of a fixed-width vector; `None` for the rest.
    pub fn bytes_per_row(&self) -> Option<usize> {
        let dim = self.dim()? as usize;
        let bits = match self {
            Self::FloatVector { .. } => 32,
            Self::Float16Vector { .. } | Self::BFloat16Vector { .. } => 16,
            Self::Int8Vector { .. } => 8,
            Self::BinaryVector { .. } => 1,
            Self::Bool
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Float
            | Self::Double
            | Self::VarChar { .. }
            | Self::Json
            | Self::Array { .. }
            | Self::SparseFloatVector => return None,
        };
        Some(dim * bits / 8)
    }

    /// The name users know the type by, as Milvus's messages write it: `Int64`, `VarChar`, ….
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bool => "Bool",
            Self::Int8 => "Int8",
            Self::Int16 => "Int16",
            Self::Int32 => "Int32",
            Self::Int64 => "Int64",
            Self::Float => "Float",
            Self::Double => "Double",
            Self::VarChar { .. } => "VarChar",
            Self::Json => "JSON",
            Self::Array { .. } => "Array",
            Self::FloatVector { .. } => "FloatVector",
            Self::Float16Vector { .. } => "Float16Vector",
            Self::BFloat16Vector { .. } => "BFloat16Vector",
            Self::Int8Vector { .. } => "Int8Vector",
            Self::BinaryVector { .. } => "BinaryVector",
            Self::SparseFloatVector => "SparseFloatVector",
        }
    }

    /// Checks the type's own parameters.
    fn validate(&self, field: &str) -> Result<(), SchemaError> {
        match self {
            Self::FloatVector { dim }
            | Self::Float16Vector { dim }
            | Self::BFloat16Vector { dim }
            | Self::Int8Vector { dim }
                if !(1..=MAX_DIM).contains(dim) =>
            {
                fail(format!("field `{field}`: dimension {dim} is not in 1..={MAX_DIM}"))
            }
            Self::BinaryVector { dim }
                if !(8..=MAX_BINARY_DIM).contains(dim) || !dim.is_multiple_of(8) =>
            {
                fail(format!(
                    "field `{field}`: binary dimension {dim} is not a multiple of 8 in \
                     8..={MAX_BINARY_DIM}"
                ))
            }
            Self::Array { element, .. }
                if element.is_vector() || matches!(**element, Self::Json | Self::Array { .. }) =>
            {
                fail(format!(
                    "field `{field}`: an array cannot hold elements of type {}",
                    element.name()
                ))
            }
            Self::Bool
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Float
            | Self::Double
            | Self::VarChar { .. }
            | Self::Json
            | Self::Array { .. }
            | Self::FloatVector { .. }
            | Self::Float16Vector { .. }
            | Self::BFloat16Vector { .. }
            | Self::Int8Vector { .. }
            | Self::BinaryVector { .. }
            | Self::SparseFloatVector => Ok(()),
        }
    }
}

/// A default value, as the user gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// For BOOL.
    Bool(bool),
    /// For the integer types.
    Int(i64),
    /// For FLOAT and DOUBLE.
    Float(f64),
    /// For VARCHAR.
    String(String),
}

/// One column of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// Given by the engine, from 100; 0 before that.
    pub id: i64,
    /// The user's name for it; also the Arrow column's name.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// What it holds.
    pub data_type: DataType,
    /// Whether rows may leave it out.
    #[serde(default)]
    pub nullable: bool,
    /// Value of rows that leave it out; wins over null.
    #[serde(default)]
    pub default: Option<Value>,
    /// The one key field.
    #[serde(default)]
    pub primary_key: bool,
    /// The server makes the keys.
    #[serde(default)]
    pub auto_id: bool,
    /// Rows are spread over partitions by this field.
    #[serde(default)]
    pub partition_key: bool,
    /// A hint of the user; stored and echoed.
    #[serde(default)]
    pub clustering_key: bool,
    /// The hidden [`META`] column.
    #[serde(default)]
    pub dynamic: bool,
    /// Filled by a function, not by the user.
    #[serde(default)]
    pub function_output: bool,
    /// Type parameters as received, for clients that compare them.
    #[serde(default)]
    pub type_params: Vec<(String, String)>,
    /// What its column is called in memory and on disk where that is not its name: the column was
    /// made anew under the same name ([`Refill`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
}

impl Field {
    /// The Arrow field. All columns but the primary key are nullable in Arrow terms: a batch from
    /// before a field was added has no values for it.
    pub fn to_arrow(&self) -> ArrowField {
        ArrowField::new(self.column(), self.data_type.to_arrow(), !self.primary_key)
    }

    /// What its column is called in the log, in memory and on disk.
    pub fn column(&self) -> &str {
        self.column.as_deref().unwrap_or(&self.name)
    }

    /// `rows` times what a row without this field reads as: the default, else null. The hidden
    /// [`META`] column reads as `{}`.
    pub fn absent(&self, rows: usize) -> ArrayRef {
        if self.dynamic {
            return Arc::new(arrow_array::LargeBinaryArray::from_iter_values(std::iter::repeat_n(
                b"{}", rows,
            )));
        }
        match &self.default {
            Some(value) => default_array(&self.data_type, value, rows)
                .unwrap_or_else(|| null_array(&self.data_type, rows)),
            None => null_array(&self.data_type, rows),
        }
    }

    fn validate(&self) -> Result<(), SchemaError> {
        let name = &self.name;
        if name.is_empty() {
            return fail("a field has an empty name");
        }
        if name == TS {
            return fail(format!("field name `{TS}` is reserved for storage"));
        }
        self.data_type.validate(name)?;
        if self.primary_key {
            if !matches!(self.data_type, DataType::Int64 | DataType::VarChar { .. }) {
                return fail(format!(
                    "primary key `{name}` must be Int64 or VarChar, not {}",
                    self.data_type.name()
                ));
            }
            if self.nullable || self.default.is_some() {
                return fail(format!("primary key `{name}` can be neither nullable nor defaulted"));
            }
        } else if self.auto_id {
            return fail(format!("field `{name}` is auto_id but not the primary key"));
        }
        if self.partition_key
            && (self.primary_key
                || !matches!(self.data_type, DataType::Int64 | DataType::VarChar { .. }))
        {
            return fail(format!(
                "partition key `{name}` must be an Int64 or VarChar field other than the primary key"
            ));
        }
        if self.dynamic != (name == META) {
            return fail(format!("the dynamic field is named `{META}`, and no other field is"));
        }
        if self.dynamic && self.data_type != DataType::Json {
            return fail(format!("`{META}` must be JSON, not {}", self.data_type.name()));
        }
        if let Some(value) = &self.default
            && default_array(&self.data_type, value, 1).is_none()
        {
            return fail(format!(
                "field `{name}`: default {value:?} does not fit type {}",
                self.data_type.name()
            ));
        }
        Ok(())
    }
}

/// A function that fills fields from others; storage keeps it for the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDef {
    /// Given by the engine, from 100; 0 before that.
    pub id: i64,
    /// The user's name for it.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// The wire's number for what it does; opaque to storage.
    pub kind: i32,
    /// Names of the fields it reads.
    pub inputs: Vec<String>,
    /// Names of the fields it fills.
    pub outputs: Vec<String>,
    /// Parameters as received.
    #[serde(default)]
    pub params: Vec<(String, String)>,
}

/// The fields and functions of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schema {
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// In the user's order; the hidden [`META`] field, if any, is the last of those the
    /// collection was created with.
    pub fields: Vec<Field>,
    /// Whether rows may carry keys that are not fields.
    #[serde(default)]
    pub enable_dynamic_field: bool,
    /// In the user's order.
    #[serde(default)]
    pub functions: Vec<FunctionDef>,
    /// Properties of the schema, as received.
    #[serde(default)]
    pub properties: Vec<(String, String)>,
    /// Rises with every change.
    #[serde(default)]
    pub version: u32,
    /// What functions will be when the vectors of all rows are made anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Refill>,
    /// Ids of fields below are taken, also by those that are gone.
    #[serde(default)]
    pub next_field: i64,
}

/// A function that is to make other vectors than those that are stored. Until every row has the
/// new ones, in columns that nobody sees, the function and the vectors are as before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refill {
    /// What the function will be; one of that name is there.
    pub function: FunctionDef,
    /// What its outputs will be: fields of the same name and type, with ids and columns of their
    /// own.
    pub fields: Vec<Field>,
}

impl Schema {
    /// The field of that name; the hidden one answers to [`META`].
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The field with that id.
    pub fn field_by_id(&self, id: i64) -> Option<&Field> {
        self.fields.iter().find(|field| field.id == id)
    }

    /// The primary key.
    ///
    /// # Panics
    /// If there is none; [`Schema::validate`] makes sure that a stored schema has one.
    pub fn primary(&self) -> &Field {
        self.fields
            .iter()
            .find(|field| field.primary_key)
            .expect("a validated schema has a primary key")
    }

    /// All fields that have a column: those of the schema, and those that will take the place of
    /// one.
    pub fn stored_fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().chain(self.pending_fields())
    }

    /// The field with that id, among those that have a column.
    pub fn stored_field(&self, id: i64) -> Option<&Field> {
        self.stored_fields().find(|field| field.id == id)
    }

    /// The fields that will take the place of one of the same name.
    pub fn pending_fields(&self) -> impl Iterator<Item = &Field> {
        self.pending.iter().flat_map(|refill| &refill.fields)
    }

    /// What rows are written by: pending functions and fields beside the others, the fields called
    /// as their columns are.
    pub fn written(self: &Arc<Self>) -> Arc<Self> {
        if self.pending.is_empty() {
            return Arc::clone(self);
        }
        let mut written = self.as_ref().clone();
        for Refill { mut function, fields } in std::mem::take(&mut written.pending) {
            for field in fields {
                let column = field.column().to_owned();
                function.outputs.iter_mut().filter(|name| **name == field.name).for_each(|name| {
                    name.clone_from(&column);
                });
                written.fields.push(Field { name: column, ..field });
            }
            written.functions.push(function);
        }
        Arc::new(written)
    }

    /// The hidden field of dynamic keys.
    pub fn dynamic(&self) -> Option<&Field> {
        self.fields.iter().find(|field| field.dynamic)
    }

    /// The Arrow schema of a batch with all fields, in this schema's order.
    pub fn to_arrow(&self) -> SchemaRef {
        Arc::new(ArrowSchema::new(self.fields.iter().map(Field::to_arrow).collect::<Vec<_>>()))
    }

    /// Checks what storage relies on: one usable primary key, unique names and ids, sound type
    /// parameters, fitting defaults, functions over known fields.
    ///
    /// Ids of 0 (not assigned yet) may repeat.
    ///
    /// # Errors
    /// [`SchemaError`] naming the first field or function that breaks a rule.
    pub fn validate(&self) -> Result<(), SchemaError> {
        let mut names = HashSet::new();
        let mut ids = HashSet::new();
        for field in &self.fields {
            field.validate()?;
            if !names.insert(field.name.as_str()) {
                return fail(format!("field `{}` occurs twice", field.name));
            }
            if field.id != 0 && !ids.insert(field.id) {
                return fail(format!("field id {} occurs twice", field.id));
            }
        }
        for field in self.pending_fields() {
            if self.field(&field.name).is_none_or(|old| old.data_type != field.data_type) {
                return fail(format!("field `{}` cannot be made anew as it is", field.name));
            }
            if !ids.insert(field.id) {
                return fail(format!("field id {} occurs twice", field.id));
            }
        }
        let count = |wanted: fn(&Field) -> bool| self.fields.iter().filter(|f| wanted(f)).count();
        match count(|field| field.primary_key) {
            1 => {}
            n => return fail(format!("a schema has exactly one primary key, this one has {n}")),
        }
        if count(|field| field.partition_key) > 1 || count(|field| field.clustering_key) > 1 {
            return fail("a schema has at most one partition key and one clustering key");
        }
        if self.enable_dynamic_field != self.dynamic().is_some() {
            return fail(format!(
                "the field `{META}` is present exactly when the dynamic field is enabled"
            ));
        }
        for function in &self.functions {
            for name in function.inputs.iter().chain(&function.outputs) {
                if !names.contains(name.as_str()) {
                    return fail(format!(
                        "function `{}` names field `{name}`, which does not exist",
                        function.name
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A schema that storage cannot keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchemaError(pub String);

fn fail<T>(message: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError(message.into()))
}

/// The non-null child field of lists and vectors.
fn item(data_type: ArrowType) -> Arc<ArrowField> {
    Arc::new(ArrowField::new("item", data_type, false))
}

fn arrow_width(dim: u32) -> i32 {
    i32::try_from(dim).unwrap_or(i32::MAX)
}

/// `rows` nulls; null vectors hold zeros.
fn null_array(data_type: &DataType, rows: usize) -> ArrayRef {
    let nulls = || NullBuffer::new_null(rows);
    match data_type {
        // Arrow's own null arrays put nulls into the child too, which our type forbids.
        DataType::FloatVector { dim } => Arc::new(FixedSizeListArray::new(
            item(ArrowType::Float32),
            arrow_width(*dim),
            Arc::new(Float32Array::from(vec![0.0; rows * *dim as usize])),
            Some(nulls()),
        )),
        DataType::Float16Vector { .. }
        | DataType::BFloat16Vector { .. }
        | DataType::Int8Vector { .. }
        | DataType::BinaryVector { .. } => {
            let width = data_type.bytes_per_row().unwrap_or(0);
            let mut builder = FixedSizeBinaryBuilder::with_capacity(
                rows,
                i32::try_from(width).unwrap_or(i32::MAX),
            );
            (0..rows).for_each(|_| builder.append_null());
            Arc::new(builder.finish())
        }
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
        | DataType::SparseFloatVector => new_null_array(&data_type.to_arrow(), rows),
    }
}

/// `rows` times `value`, or `None` when the value does not fit the type.
fn default_array(data_type: &DataType, value: &Value, rows: usize) -> Option<ArrayRef> {
    Some(match (data_type, value) {
        (DataType::Bool, Value::Bool(v)) => Arc::new(BooleanArray::from(vec![*v; rows])),
        (DataType::Int8, Value::Int(v)) => {
            Arc::new(Int8Array::from_value(i8::try_from(*v).ok()?, rows))
        }
        (DataType::Int16, Value::Int(v)) => {
            Arc::new(Int16Array::from_value(i16::try_from(*v).ok()?, rows))
        }
        (DataType::Int32, Value::Int(v)) => {
            Arc::new(Int32Array::from_value(i32::try_from(*v).ok()?, rows))
        }
        (DataType::Int64, Value::Int(v)) => Arc::new(Int64Array::from_value(*v, rows)),
        (DataType::Float, Value::Float(v)) =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "FLOAT is single precision")]
            Arc::new(Float32Array::from_value(*v as f32, rows))
        }
        (DataType::Double, Value::Float(v)) => Arc::new(Float64Array::from_value(*v, rows)),
        (DataType::VarChar { max_length }, Value::String(v)) => {
            if v.len() > *max_length as usize {
                return None;
            }
            let mut builder = LargeStringBuilder::with_capacity(rows, rows * v.len());
            (0..rows).for_each(|_| builder.append_value(v));
            Arc::new(builder.finish()) as Arc<LargeStringArray>
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
