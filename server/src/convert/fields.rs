//! Columns on the wire (`FieldData`) to Arrow and back.
//!
//! The wire's rule for nulls is not symmetric (Milvus's own): a request may leave null rows out
//! (*compact*) or send a placeholder for them (*dense*), a response is dense for scalars and
//! compact for vectors. Inside the node there is one form only, Arrow's: one slot per row, nulls
//! in the validity bitmap, zeros in the slots of null vectors.
//!
//! [`Columns::decode`] checks everything that a later reader relies on: lengths, ranges, UTF-8 and
//! JSON validity, finite numbers, vector widths. After it the rows are trusted.
//!
//! This module knows no collection, no storage and no function: who fills a generated key or a
//! vector made by a model does so through [`Columns::set`].

mod decode;
mod encode;
mod json;
#[cfg(test)]
pub(crate) mod tests;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, RecordBatch};
use elanus_proto::codes::Code;
use elanus_proto::schema;
use elanus_storage::Keys;
use elanus_storage::schema::{DataType, Field, META, Schema};

pub use encode::{encode, encode_ids};

use crate::limits::Limits;
use crate::status::Failure;

/// Bytes that one decoded batch may take. A request is bounded by the transport, but its rows can
/// grow when they become dense: a null vector costs one bit on the wire and `dim * 4` bytes here.
const MAX_BATCH_BYTES: u64 = 1 << 30;

/// What a client may send for a column that the server usually makes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Accept values for a key that is generated (`allow_insert_auto_id`, or an upsert).
    pub auto_key: bool,
    /// Leave columns that are missing alone instead of filling in nulls and defaults
    /// (partial update).
    pub partial: bool,
}

/// The rows of one request as Arrow columns, one slot per schema field; `None` = not there yet.
#[derive(Clone, Debug)]
pub struct Columns {
    rows: usize,
    slots: Vec<Option<ArrayRef>>,
}

impl Columns {
    /// Decodes and checks the columns of one insert or upsert.
    ///
    /// `rows` is the request's `num_rows`; each column must agree with it. Columns that are
    /// missing and nullable, or have a default, are filled (unless `accept.partial`); `$meta`
    /// becomes `{}`. Generated keys and function outputs stay `None`.
    ///
    /// # Errors
    /// Code 1100 for everything a client can get wrong, with Milvus's texts; code 1102 when the
    /// rows would take more than 1 GiB.
    pub fn decode(
        schema: &Schema,
        data: Vec<schema::FieldData>,
        rows: usize,
        accept: Accept,
        limits: &Limits,
    ) -> Result<Self, Failure> {
        if rows == 0 {
            return Err(Failure::invalid("num_rows should be greater than 0"));
        }
        if data.is_empty() {
            // Without a single column nothing bears out `num_rows`.
            return Err(Failure::invalid(format!(
                "num_rows is {rows}, but the request carries no column"
            )));
        }
        check_size(schema, rows)?;
        let mut columns = Self { rows, slots: vec![None; schema.fields.len()] };
        for column in data {
            columns.take(schema, column, accept, limits)?;
        }
        if !accept.partial {
            columns.fill(schema)?;
        }
        Ok(columns)
    }

    fn take(
        &mut self,
        schema: &Schema,
        data: schema::FieldData,
        accept: Accept,
        limits: &Limits,
    ) -> Result<(), Failure> {
        // Some clients mark the dynamic column by the flag alone and leave its name empty.
        let dynamic = data.is_dynamic || data.field_name == META;
        let name = if dynamic { META } else { data.field_name.as_str() };
        let Some(at) = schema.fields.iter().position(|field| field.name == name) else {
            return Err(Failure::invalid(if dynamic {
                "more fieldData has pass in: the collection has no dynamic field".to_owned()
            } else {
                format!("more fieldData has pass in: field {name} not exist")
            }));
        };
        let field = &schema.fields[at];
        if field.primary_key && field.auto_id && !accept.auto_key {
            return Err(Failure::invalid(format!(
                "can not assign primary field data when auto id enabled {name}"
            )));
        }
        if field.function_output {
            return Err(Failure::invalid(format!(
                "field {name} is the output of a function, its data is made by the server and cannot be given"
            )));
        }
        if self.slots[at].is_some() {
            return Err(Failure::invalid(if dynamic {
                "use more than one $meta: the dynamic field is passed in twice".to_owned()
            } else {
                format!("field {name} is passed in twice")
            }));
        }
        let array = decode::column(field, data, self.rows, limits.json_bytes)?;
        if field.dynamic {
            json::check_dynamic(schema, &array)?;
        }
        self.slots[at] = Some(array);
        Ok(())
    }

    /// Fills what may be missing: the default, null, or `{}` for `$meta`.
    ///
    /// # Errors
    /// Code 1100 when a column is missing that nothing can stand in for.
    pub fn fill(&mut self, schema: &Schema) -> Result<(), Failure> {
        for (field, slot) in schema.fields.iter().zip(&mut self.slots) {
            let made_later = field.function_output || (field.primary_key && field.auto_id);
            if slot.is_some() || made_later {
                continue;
            }
            if field.default.is_none() && !field.nullable && !field.dynamic {
                return Err(missing(field));
            }
            *slot = Some(field.absent(self.rows));
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The column of the field at `position` in the schema, if it is there.
    pub fn get(&self, position: usize) -> Option<&ArrayRef> {
        self.slots.get(position).and_then(Option::as_ref)
    }

    /// Puts a column made by the server in its place: a generated key, a function's output, the
    /// rest of a partial update.
    pub fn set(&mut self, position: usize, array: ArrayRef) {
        debug_assert_eq!(array.len(), self.rows, "a column has one slot per row");
        self.slots[position] = Some(array);
    }

    /// The finished batch, columns in the schema's order.
    ///
    /// # Errors
    /// Code 1100 when a column is still missing.
    pub fn into_batch(self, schema: &Schema) -> Result<RecordBatch, Failure> {
        let columns = schema
            .fields
            .iter()
            .zip(self.slots)
            .map(|(field, slot)| slot.ok_or_else(|| missing(field)))
            .collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(schema.to_arrow(), columns)
            .map_err(|error| Failure::internal(format!("row batch: {error}")))
    }
}

/// A column of primary keys as storage takes them.
///
/// # Errors
/// Code 5 for a column of another type than a key can have.
pub fn keys(column: &ArrayRef) -> Result<Keys, Failure> {
    if let Some(keys) = column.as_primitive_opt::<Int64Type>() {
        return Ok(Keys::Int(keys.values().to_vec()));
    }
    let keys = column
        .as_string_opt::<i64>()
        .ok_or_else(|| Failure::internal(format!("{} is no key type", column.data_type())))?;
    Ok(Keys::Str(keys.iter().flatten().map(str::to_owned).collect()))
}

fn missing(field: &Field) -> Failure {
    Failure::invalid(format!("fieldSchema({}) has no corresponding fieldData pass in", field.name))
}

/// Refuses row counts whose dense form would not fit, before anything is allocated for them.
fn check_size(schema: &Schema, rows: usize) -> Result<(), Failure> {
    let row_bytes: u64 = schema.fields.iter().map(|field| fixed_bytes(&field.data_type)).sum();
    let bytes = row_bytes.saturating_mul(rows as u64);
    if bytes > MAX_BATCH_BYTES {
        return Err(Failure::new(
            Code::ParameterTooLarge,
            format!(
                "{rows} rows of {row_bytes} bytes are {bytes} bytes, one request may have {MAX_BATCH_BYTES}; send smaller batches"
            ),
        ));
    }
    Ok(())
}

/// Bytes per row that a column takes whatever its values are.
fn fixed_bytes(data_type: &DataType) -> u64 {
    match data_type {
        DataType::Bool | DataType::Int8 => 1,
        DataType::Int16 => 2,
        DataType::Int32 | DataType::Float => 4,
        // Offsets of the variable-length columns are 64-bit.
        DataType::Int64
        | DataType::Double
        | DataType::VarChar { .. }
        | DataType::Json
        | DataType::Array { .. }
        | DataType::SparseFloatVector => 8,
        DataType::FloatVector { dim } => u64::from(*dim) * 4,
        DataType::Float16Vector { dim } | DataType::BFloat16Vector { dim } => u64::from(*dim) * 2,
        DataType::Int8Vector { dim } => u64::from(*dim),
        DataType::BinaryVector { dim } => u64::from(*dim) / 8,
    }
}
