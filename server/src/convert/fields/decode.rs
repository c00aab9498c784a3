//! One column of a request: from the wire's arm to an Arrow array, checked.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array,
    LargeBinaryArray, LargeListArray, LargeStringArray, PrimitiveArray, new_empty_array,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};
use bytes::Bytes;
use elanus_proto::schema::{self, field_data, scalar_field, vector_field};
use elanus_storage::schema::{DataType, Field, Value};
use half::{bf16, f16};

use super::json;
use crate::status::Failure;

/// Decodes one column; the result has `rows` slots and the type that storage keeps it in.
pub(super) fn column(
    field: &Field,
    mut data: schema::FieldData,
    rows: usize,
    json_bytes: usize,
) -> Result<ArrayRef, Failure> {
    check_type(field, &data)?;
    let validity = Validity::read(field, &mut data, rows)?;
    let column = Column { field, validity, json_bytes };
    match data.field {
        // An empty compact column (every row null) may come without its arm.
        None => column.scalar_or_vector_of_nothing(),
        Some(field_data::Field::Scalars(scalars)) => column.scalars(scalars),
        Some(field_data::Field::Vectors(vectors)) => column.vectors(vectors),
        Some(field_data::Field::StructArrays(_)) => Err(column.wrong_type("ArrayOfStruct")),
    }
}

/// Which rows of a column carry a value.
struct Validity {
    rows: usize,
    /// `None` = all of them.
    valid: Option<BooleanBuffer>,
    present: usize,
}

impl Validity {
    /// Reads `valid_data`, wherever the client put it: on the column, or in the newer places on
    /// its scalar or vector part.
    fn read(field: &Field, data: &mut schema::FieldData, rows: usize) -> Result<Self, Failure> {
        let mut flags = std::mem::take(&mut data.valid_data);
        if flags.is_empty() {
            flags = match &mut data.field {
                Some(field_data::Field::Scalars(part)) => std::mem::take(&mut part.valid_data),
                Some(field_data::Field::Vectors(part)) => std::mem::take(&mut part.valid_data),
                Some(field_data::Field::StructArrays(_)) | None => Vec::new(),
            };
        }
        if flags.is_empty() {
            return Ok(Self { rows, valid: None, present: rows });
        }
        if flags.len() != rows {
            return Err(Failure::invalid(format!(
                "the num_rows ({}) of valid_data of field ({}) is not equal to passed num_rows ({rows})",
                flags.len(),
                field.name
            )));
        }
        let present = flags.iter().filter(|valid| **valid).count();
        if present == rows {
            return Ok(Self { rows, valid: None, present });
        }
        Ok(Self { rows, valid: Some(BooleanBuffer::from(flags)), present })
    }
}

struct Column<'a> {
    field: &'a Field,
    validity: Validity,
    /// Bytes that one JSON text may have.
    json_bytes: usize,
}

impl Column<'_> {
    /// An empty arm of the field's own kind, for columns without a single value.
    fn scalar_or_vector_of_nothing(self) -> Result<ArrayRef, Failure> {
        match self.field.data_type.is_vector() {
            true => self.vectors(schema::VectorField::default()),
            false => self.scalars(schema::ScalarField::default()),
        }
    }

    fn scalars(self, scalars: schema::ScalarField) -> Result<ArrayRef, Failure> {
        use scalar_field::Data;
        let sent = scalars.data;
        match (&self.field.data_type, sent) {
            (DataType::Bool, Some(Data::BoolData(data))) => self.bools(data.data),
            (DataType::Bool, None) => self.bools(Vec::new()),
            (DataType::Int8, Some(Data::IntData(data))) => self.small::<Int8Type>(&data.data),
            (DataType::Int8, None) => self.small::<Int8Type>(&[]),
            (DataType::Int16, Some(Data::IntData(data))) => self.small::<Int16Type>(&data.data),
            (DataType::Int16, None) => self.small::<Int16Type>(&[]),
            (DataType::Int32, Some(Data::IntData(data))) => self.small::<Int32Type>(&data.data),
            (DataType::Int32, None) => self.small::<Int32Type>(&[]),
            (DataType::Int64, Some(Data::LongData(data))) => self.numbers::<Int64Type>(data.data),
            (DataType::Int64, None) => self.numbers::<Int64Type>(Vec::new()),
            (DataType::Float, Some(Data::FloatData(data))) => {
                self.check_finite(data.data.iter().map(|v| f64::from(*v)))?;
                self.numbers::<Float32Type>(data.data)
            }
            (DataType::Float, None) => self.numbers::<Float32Type>(Vec::new()),
            (DataType::Double, Some(Data::DoubleData(data))) => {
                self.check_finite(data.data.iter().copied())?;
                self.numbers::<Float64Type>(data.data)
            }
            (DataType::Double, None) => self.numbers::<Float64Type>(Vec::new()),
            (DataType::VarChar { max_length }, Some(Data::StringData(data))) => {
                self.check_lengths(&data.data, *max_length)?;
                self.texts(&data.data)
            }
            (DataType::VarChar { .. }, None) => self.texts(&[]),
            (DataType::Json, Some(Data::JsonData(data))) => self.jsons(&data.data),
            (DataType::Json, None) => self.jsons(&[]),
            (DataType::Array { element, max_capacity }, Some(Data::ArrayData(data))) => {
                self.arrays(element, *max_capacity, data.data)
            }
            (DataType::Array { element, max_capacity }, None) => {
                self.arrays(element, *max_capacity, Vec::new())
            }
            (_, data) => Err(self.wrong_type(arm_name(data.as_ref()))),
        }
    }

    fn vectors(self, vectors: schema::VectorField) -> Result<ArrayRef, Failure> {
        use vector_field::Data;
        let sent_dim = vectors.dim;
        match (&self.field.data_type, vectors.data) {
            (DataType::FloatVector { dim }, Some(Data::FloatVector(data))) => {
                self.check_dim(sent_dim, *dim)?;
                self.check_finite(data.data.iter().map(|v| f64::from(*v)))?;
                self.float_vectors(*dim as usize, data.data)
            }
            (DataType::FloatVector { dim }, None) => self.float_vectors(*dim as usize, Vec::new()),
            (DataType::Float16Vector { dim }, Some(Data::Float16Vector(data))) => {
                self.check_dim(sent_dim, *dim)?;
                self.check_finite(pairs(&data).map(|bits| f64::from(f16::from_le_bytes(bits))))?;
                self.byte_vectors(*dim as usize * 2, &data)
            }
            (DataType::BFloat16Vector { dim }, Some(Data::Bfloat16Vector(data))) => {
                self.check_dim(sent_dim, *dim)?;
                self.check_finite(pairs(&data).map(|bits| f64::from(bf16::from_le_bytes(bits))))?;
                self.byte_vectors(*dim as usize * 2, &data)
            }
            (DataType::Int8Vector { dim }, Some(Data::Int8Vector(data))) => {
                self.check_dim(sent_dim, *dim)?;
                self.byte_vectors(*dim as usize, &data)
            }
            (DataType::BinaryVector { dim }, Some(Data::BinaryVector(data))) => {
                self.check_dim(sent_dim, *dim)?;
                self.byte_vectors(*dim as usize / 8, &data)
            }
            (DataType::Float16Vector { dim } | DataType::BFloat16Vector { dim }, None) => {
                self.byte_vectors(*dim as usize * 2, &[])
            }
            (DataType::Int8Vector { dim }, None) => self.byte_vectors(*dim as usize, &[]),
            (DataType::BinaryVector { dim }, None) => self.byte_vectors(*dim as usize / 8, &[]),
            (DataType::SparseFloatVector, Some(Data::SparseFloatVector(data))) => {
                self.sparse(&data.contents)
            }
            (DataType::SparseFloatVector, None) => self.sparse(&[]),
            (_, data) => Err(self.wrong_type(vector_arm_name(data.as_ref()))),
        }
    }

    fn bools(self, data: Vec<bool>) -> Result<ArrayRef, Failure> {
        let fill = matches!(self.field.default, Some(Value::Bool(true)));
        let data = self.spread(data, fill)?;
        Ok(Arc::new(BooleanArray::new(BooleanBuffer::from(data), self.nulls()?)))
    }

    /// INT8, INT16 and INT32, which all travel as 32-bit integers.
    fn small<T>(self, data: &[i32]) -> Result<ArrayRef, Failure>
    where
        T: ArrowPrimitiveType,
        T::Native: TryFrom<i32> + TryFrom<i64>,
    {
        let narrow = data
            .iter()
            .enumerate()
            .map(|(at, value)| {
                T::Native::try_from(*value).map_err(|_| self.out_of_range(at, *value))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let fill = match self.field.default {
            Some(Value::Int(value)) => T::Native::try_from(value).unwrap_or_default(),
            _ => T::Native::default(),
        };
        self.primitive::<T>(narrow, fill)
    }

    /// INT64, FLOAT and DOUBLE, which travel as they are.
    fn numbers<T>(self, data: Vec<T::Native>) -> Result<ArrayRef, Failure>
    where
        T: ArrowPrimitiveType,
        T::Native: FromDefault,
    {
        let fill = self.field.default.as_ref().map(T::Native::from_default).unwrap_or_default();
        self.primitive::<T>(data, fill)
    }

    fn primitive<T: ArrowPrimitiveType>(
        self,
        data: Vec<T::Native>,
        fill: T::Native,
    ) -> Result<ArrayRef, Failure> {
        let data = self.spread(data, fill)?;
        Ok(Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(data), self.nulls()?)))
    }

    fn texts(self, data: &[String]) -> Result<ArrayRef, Failure> {
        let fill = match &self.field.default {
            Some(Value::String(text)) => text.as_str(),
            _ => "",
        };
        let (offsets, values) = self.spread_bytes(data, fill.as_bytes())?;
        let array = LargeStringArray::try_new(offsets, values, self.nulls()?);
        Ok(Arc::new(array.map_err(|error| self.refused(&error))?))
    }

    fn jsons(self, data: &[Bytes]) -> Result<ArrayRef, Failure> {
        let dense = self.form(data.len())? == Form::Dense;
        let compact = data
            .iter()
            .enumerate()
            .map(|(at, text)| match &self.validity.valid {
                // The placeholder of a null row need not be JSON.
                Some(valid) if dense && !valid.value(at) => Ok(Cow::Borrowed(&text[..])),
                _ => json::compact(&self.field.name, at, text, self.json_bytes),
            })
            .collect::<Result<Vec<_>, _>>()?;
        // A null slot of a JSON column keeps no text; the dynamic column has no nulls, only `{}`.
        let fill: &[u8] = if self.field.dynamic { b"{}" } else { b"" };
        let (offsets, values) = self.spread_bytes(&compact, fill)?;
        Ok(Arc::new(LargeBinaryArray::new(offsets, values, self.nulls()?)))
    }

    fn arrays(
        self,
        element: &DataType,
        max_capacity: u32,
        rows: Vec<schema::ScalarField>,
    ) -> Result<ArrayRef, Failure> {
        let rows = self.spread_with(rows, schema::ScalarField::default)?;
        let mut lengths = Vec::with_capacity(rows.len());
        let mut elements: Vec<ArrayRef> = Vec::new();
        let as_field = element_field(self.field, element);
        for (at, row) in rows.into_iter().enumerate() {
            let length = scalar_len(row.data.as_ref());
            if length > max_capacity as usize {
                return Err(Failure::invalid(format!(
                    "the length ({length}) of {at}th array of field ({}) exceeds max capacity ({max_capacity})",
                    self.field.name
                )));
            }
            lengths.push(length);
            if length > 0 {
                let part = Column {
                    field: &as_field,
                    validity: Validity { rows: length, valid: None, present: length },
                    json_bytes: self.json_bytes,
                };
                elements.push(part.scalars(row)?);
            }
        }
        let item = element.to_arrow();
        let values = if elements.is_empty() {
            new_empty_array(&item)
        } else {
            let parts: Vec<&dyn Array> = elements.iter().map(AsRef::as_ref).collect();
            arrow_select::concat::concat(&parts).map_err(|error| self.refused(&error))?
        };
        let list = LargeListArray::try_new(
            Arc::new(ArrowField::new("item", item, false)),
            OffsetBuffer::from_lengths(lengths),
            values,
            self.nulls()?,
        );
        Ok(Arc::new(list.map_err(|error| self.refused(&error))?))
    }

    fn float_vectors(self, dim: usize, data: Vec<f32>) -> Result<ArrayRef, Failure> {
        let data = self.spread_rows(dim, &data, 0.0)?.unwrap_or(data);
        let list = FixedSizeListArray::try_new(
            Arc::new(ArrowField::new("item", ArrowType::Float32, false)),
            // Schemas hold widths of at most 32,768.
            i32::try_from(dim).unwrap_or(i32::MAX),
            Arc::new(Float32Array::new(ScalarBuffer::from(data), None)),
            self.nulls()?,
        );
        Ok(Arc::new(list.map_err(|error| self.refused(&error))?))
    }

    /// Vectors that travel as bytes; `width` is bytes per row.
    ///
    /// Copied on purpose: a slice would keep the whole request in memory for as long as the rows
    /// grow.
    fn byte_vectors(self, width: usize, data: &[u8]) -> Result<ArrayRef, Failure> {
        let data = self.spread_rows(width, data, 0)?.unwrap_or_else(|| data.to_vec());
        let array = FixedSizeBinaryArray::try_new(
            i32::try_from(width).unwrap_or(i32::MAX),
            Buffer::from_vec(data),
            self.nulls()?,
        );
        Ok(Arc::new(array.map_err(|error| self.refused(&error))?))
    }

    fn sparse(self, rows: &[Bytes]) -> Result<ArrayRef, Failure> {
        let canonical = rows
            .iter()
            .enumerate()
            .map(|(at, row)| {
                elanus_index::canonical_sparse(row).map_err(|error| {
                    Failure::invalid(format!(
                        "sparse float vector of field {} in row {at}: {error}",
                        self.field.name
                    ))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (offsets, values) = self.spread_bytes(&canonical, b"")?;
        Ok(Arc::new(LargeBinaryArray::new(offsets, values, self.nulls()?)))
    }

    /// Puts the values sent in their rows: `data` has one value per row, or one per row that is
    /// valid. Rows without a value get `fill`.
    fn spread<T: Copy>(&self, data: Vec<T>, fill: T) -> Result<Vec<T>, Failure> {
        self.spread_with(data, || fill)
    }

    fn spread_with<T>(&self, data: Vec<T>, fill: impl Fn() -> T) -> Result<Vec<T>, Failure> {
        let form = self.form(data.len())?;
        let Some(valid) = &self.validity.valid else { return Ok(data) };
        let mut sent = data.into_iter();
        let spread = valid
            .iter()
            .map(|valid| {
                let value = if valid || form == Form::Dense { sent.next() } else { None };
                if valid { value.unwrap_or_else(&fill) } else { fill() }
            })
            .collect();
        Ok(spread)
    }

    /// As [`Self::spread`] for values of `width` elements; `None` when they already lie right.
    fn spread_rows<T: Copy>(
        &self,
        width: usize,
        data: &[T],
        fill: T,
    ) -> Result<Option<Vec<T>>, Failure> {
        if !data.len().is_multiple_of(width) {
            return Err(Failure::invalid(format!(
                "the dim of field data({}) is not equal to schema dim: {} elements are not a multiple of {width}",
                self.field.name,
                data.len()
            )));
        }
        let form = self.form(data.len() / width)?;
        let Some(valid) = &self.validity.valid else { return Ok(None) };
        let mut spread = vec![fill; self.validity.rows * width];
        let mut sent = data.chunks_exact(width);
        for (slot, valid) in spread.chunks_exact_mut(width).zip(valid) {
            let value = if valid || form == Form::Dense { sent.next() } else { None };
            if let (true, Some(value)) = (valid, value) {
                slot.copy_from_slice(value);
            }
        }
        Ok(Some(spread))
    }

    /// As [`Self::spread`] for values of varying length.
    fn spread_bytes(
        &self,
        data: &[impl AsRef<[u8]>],
        fill: &[u8],
    ) -> Result<(OffsetBuffer<i64>, Buffer), Failure> {
        let form = self.form(data.len())?;
        let bytes: usize = data.iter().map(|value| value.as_ref().len()).sum();
        let empty = self.validity.rows - self.validity.present;
        let mut values = Vec::with_capacity(bytes + empty.saturating_mul(fill.len()));
        let mut lengths = Vec::with_capacity(self.validity.rows);
        let mut sent = data.iter();
        for row in 0..self.validity.rows {
            let valid = self.validity.valid.as_ref().is_none_or(|valid| valid.value(row));
            let value = if valid || form == Form::Dense { sent.next() } else { None };
            let value = match value {
                Some(value) if valid => value.as_ref(),
                _ => fill,
            };
            values.extend_from_slice(value);
            lengths.push(value.len());
        }
        Ok((OffsetBuffer::from_lengths(lengths), Buffer::from_vec(values)))
    }

    /// Tells a dense from a compact column by the number of values it carries.
    fn form(&self, values: usize) -> Result<Form, Failure> {
        if values == self.validity.rows {
            Ok(Form::Dense)
        } else if self.validity.valid.is_some() && values == self.validity.present {
            Ok(Form::Compact)
        } else {
            Err(Failure::invalid(format!(
                "the num_rows ({values}) of field ({}) is not equal to passed num_rows ({})",
                self.field.name, self.validity.rows
            )))
        }
    }

    /// The validity bitmap of the finished column. A default stands in for every row without a
    /// value, so such a column has no nulls even where the field admits them.
    fn nulls(&self) -> Result<Option<NullBuffer>, Failure> {
        let Some(valid) = &self.validity.valid else { return Ok(None) };
        if self.field.default.is_some() || self.field.dynamic {
            return Ok(None);
        }
        if !self.field.nullable {
            let row = valid.iter().position(|valid| !valid).unwrap_or_default();
            return Err(Failure::invalid(format!(
                "field ({}) is not nullable and has no default value, but row {row} is null",
                self.field.name
            )));
        }
        Ok(Some(NullBuffer::new(valid.clone())))
    }

    fn check_dim(&self, sent: i64, expected: u32) -> Result<(), Failure> {
        // Some clients leave the dimension out; the element count is checked in any case.
        if sent == 0 || sent == i64::from(expected) {
            return Ok(());
        }
        Err(Failure::invalid(format!(
            "the dim ({sent}) of field data({}) is not equal to schema dim ({expected})",
            self.field.name
        )))
    }

    fn check_finite(&self, values: impl Iterator<Item = f64>) -> Result<(), Failure> {
        let mut values = values;
        match values.find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(Failure::invalid(format!(
                "value '{value}' is not a number or infinity, field {}",
                self.field.name
            ))),
        }
    }

    fn check_lengths(&self, values: &[String], max_length: u32) -> Result<(), Failure> {
        match values.iter().enumerate().find(|(_, value)| value.len() > max_length as usize) {
            None => Ok(()),
            Some((row, value)) => Err(Failure::invalid(format!(
                "length of varchar field {} exceeds max length, row number: {row}, length: {}, max length: {max_length}",
                self.field.name,
                value.len()
            ))),
        }
    }

    fn out_of_range(&self, at: usize, value: i32) -> Failure {
        let (low, high) = if self.field.data_type == DataType::Int8 {
            (i64::from(i8::MIN), i64::from(i8::MAX))
        } else {
            (i64::from(i16::MIN), i64::from(i16::MAX))
        };
        Failure::invalid(format!(
            "the {at}th element ({value}) of field {} out of range: [{low}, {high}]",
            self.field.name
        ))
    }

    fn wrong_type(&self, sent: &str) -> Failure {
        wrong_type(self.field, sent)
    }

    fn refused(&self, error: &arrow_schema::ArrowError) -> Failure {
        Failure::invalid(format!("field {}: {error}", self.field.name))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Dense,
    Compact,
}

/// A default value as the native type of a 64-bit or floating column.
trait FromDefault: Sized {
    fn from_default(value: &Value) -> Self;
}

impl FromDefault for i64 {
    fn from_default(value: &Value) -> Self {
        match value {
            Value::Int(value) => *value,
            Value::Bool(_) | Value::Float(_) | Value::String(_) => 0,
        }
    }
}

impl FromDefault for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "the schema checked that it is a float")]
    fn from_default(value: &Value) -> Self {
        f64::from_default(value) as Self
    }
}

impl FromDefault for f64 {
    #[expect(clippy::cast_precision_loss, reason = "a whole number given as a float's default")]
    fn from_default(value: &Value) -> Self {
        match value {
            Value::Float(value) => *value,
            Value::Int(value) => *value as Self,
            Value::Bool(_) | Value::String(_) => 0.0,
        }
    }
}

/// The elements of one array row, seen as a column of their own.
fn element_field(field: &Field, element: &DataType) -> Field {
    Field { data_type: element.clone(), nullable: false, default: None, ..field.clone() }
}

fn pairs(data: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    data.chunks_exact(2).map(|pair| [pair[0], pair[1]])
}

fn scalar_len(data: Option<&scalar_field::Data>) -> usize {
    use scalar_field::Data;
    match data {
        Some(Data::BoolData(data)) => data.data.len(),
        Some(Data::IntData(data)) => data.data.len(),
        Some(Data::LongData(data)) => data.data.len(),
        Some(Data::FloatData(data)) => data.data.len(),
        Some(Data::DoubleData(data)) => data.data.len(),
        Some(Data::StringData(data)) => data.data.len(),
        // No other arm is an array element; one entry makes the type check see it.
        Some(_) => 1,
        None => 0,
    }
}

fn check_type(field: &Field, data: &schema::FieldData) -> Result<(), Failure> {
    let sent = schema::DataType::try_from(data.r#type).unwrap_or(schema::DataType::None);
    let expected = wire_type(&field.data_type);
    let text = matches!(field.data_type, DataType::VarChar { .. })
        && matches!(sent, schema::DataType::String | schema::DataType::Text);
    // Clients that fill in no type are judged by the arm alone.
    if data.r#type == 0 || sent == expected || text {
        return Ok(());
    }
    Err(wrong_type(field, sent.as_str_name()))
}

fn wrong_type(field: &Field, sent: &str) -> Failure {
    Failure::invalid(format!(
        "field {}'s data type is {}, but got {sent}",
        field.name,
        field.data_type.name()
    ))
}

/// The wire's number for a field type.
pub(super) fn wire_type(data_type: &DataType) -> schema::DataType {
    match data_type {
        DataType::Bool => schema::DataType::Bool,
        DataType::Int8 => schema::DataType::Int8,
        DataType::Int16 => schema::DataType::Int16,
        DataType::Int32 => schema::DataType::Int32,
        DataType::Int64 => schema::DataType::Int64,
        DataType::Float => schema::DataType::Float,
        DataType::Double => schema::DataType::Double,
        DataType::VarChar { .. } => schema::DataType::VarChar,
        DataType::Json => schema::DataType::Json,
        DataType::Array { .. } => schema::DataType::Array,
        DataType::FloatVector { .. } => schema::DataType::FloatVector,
        DataType::Float16Vector { .. } => schema::DataType::Float16Vector,
        DataType::BFloat16Vector { .. } => schema::DataType::BFloat16Vector,
        DataType::Int8Vector { .. } => schema::DataType::Int8Vector,
        DataType::BinaryVector { .. } => schema::DataType::BinaryVector,
        DataType::SparseFloatVector => schema::DataType::SparseFloatVector,
    }
}

fn arm_name(data: Option<&scalar_field::Data>) -> &'static str {
    use scalar_field::Data;
    match data {
        Some(Data::BoolData(_)) => "Bool",
        Some(Data::IntData(_)) => "Int32",
        Some(Data::LongData(_)) => "Int64",
        Some(Data::FloatData(_)) => "Float",
        Some(Data::DoubleData(_)) => "Double",
        Some(Data::StringData(_)) => "VarChar",
        Some(Data::ArrayData(_)) => "Array",
        Some(Data::JsonData(_)) => "JSON",
        Some(_) => "another type",
        None => "no data",
    }
}

fn vector_arm_name(data: Option<&vector_field::Data>) -> &'static str {
    use vector_field::Data;
    match data {
        Some(Data::FloatVector(_)) => "FloatVector",
        Some(Data::BinaryVector(_)) => "BinaryVector",
        Some(Data::Float16Vector(_)) => "Float16Vector",
        Some(Data::Bfloat16Vector(_)) => "BFloat16Vector",
        Some(Data::SparseFloatVector(_)) => "SparseFloatVector",
        Some(Data::Int8Vector(_)) => "Int8Vector",
        Some(Data::VectorArray(_)) => "ArrayOfVector",
        None => "no data",
    }
}
