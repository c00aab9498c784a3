//! Partial updates: the columns that a request leaves out are taken from the rows as they are.
//!
//! Keys without a row are new rows; for them the request must carry everything that has neither
//! null nor default. `$meta` is merged by key. ARRAY fields may ask for their elements to be
//! appended or removed instead of replaced. Function outputs are kept where their input is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, LargeBinaryArray, LargeListArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::Field as ArrowField;
use arrow_select::interleave::interleave;
use elanus_proto::schema::FieldPartialUpdateOp;
use elanus_proto::schema::field_partial_update_op::OpType;
use elanus_storage::schema::{DataType, Field, Schema};
use elanus_storage::{ReadView, RowAddr};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::group;
use crate::convert::fields::{self, Columns};
use crate::convert::function::ModelFunction;
use crate::status::Failure;

/// One lock for each of a number of collections, so that two partial updates of one row do not
/// interleave.
#[derive(Debug, Default)]
pub struct Locks([Mutex<()>; 16]);

impl Locks {
    /// Waits for the other partial updates of a collection.
    pub async fn lock(&self, collection: i64) -> MutexGuard<'_, ()> {
        // The remainder is between 0 and the number of locks.
        let place = collection.unsigned_abs() % self.0.len() as u64;
        self.0[place as usize].lock().await
    }
}

/// What to do with the elements given for ARRAY fields; fields not named here are replaced.
#[derive(Debug, Default)]
pub struct Ops(HashMap<String, ArrayOp>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ArrayOp {
    Append,
    Remove,
}

impl Ops {
    /// Reads the operations of a request.
    ///
    /// # Errors
    /// Code 1100 for an unknown field or operation, and for operations on elements of a field
    /// that is no ARRAY.
    pub fn parse(ops: &[FieldPartialUpdateOp], schema: &Schema) -> Result<Self, Failure> {
        let mut parsed = HashMap::new();
        for op in ops {
            let name = &op.field_name;
            let field = schema
                .field(name)
                .ok_or_else(|| Failure::invalid(format!("field_ops: field {name} not exist")))?;
            let kind = match OpType::try_from(op.op) {
                Ok(OpType::Replace) => continue,
                Ok(OpType::ArrayAppend) => ArrayOp::Append,
                Ok(OpType::ArrayRemove) => ArrayOp::Remove,
                Err(_) => {
                    return Err(Failure::invalid(format!(
                        "field_ops: unknown operation {} on field {name}",
                        op.op
                    )));
                }
            };
            if !matches!(field.data_type, DataType::Array { .. }) {
                return Err(Failure::invalid(format!(
                    "field_ops: field {name} is {}, elements can be appended to and removed from an Array only",
                    field.data_type.name()
                )));
            }
            parsed.insert(name.clone(), kind);
        }
        Ok(Self(parsed))
    }
}

/// Completes the rows of a partial update from the rows that `view` shows.
///
/// # Errors
/// Code 1100 when a key has no row and a required column is missing, or an array grows beyond
/// its capacity.
pub fn complete(
    view: &ReadView,
    schema: &Schema,
    mut columns: Columns,
    ops: &Ops,
) -> Result<Columns, Failure> {
    let rows = columns.rows();
    let key = schema.fields.iter().position(|field| field.primary_key).unwrap_or_default();
    let keys =
        columns.get(key).ok_or_else(|| Failure::internal("a partial update without keys"))?;
    let located = view.locate(&fields::keys(keys)?)?;
    let found: Vec<RowAddr> = located.iter().copied().flatten().collect();
    // Where each row of the request finds its old self: (0, n) among the old rows, (1, 0) nowhere.
    let mut next_old = 0..;
    let sources: Vec<(usize, usize)> = located
        .iter()
        .map(|row| row.and_then(|_| next_old.next()).map_or((1, 0), |old| (0, old)))
        .collect();
    let wanted = |at: usize, field: &Field| {
        // What a pending function makes is not to be had from the old rows; it is made again.
        let pending = field.column.as_ref() == Some(&field.name);
        at != key
            && !pending
            && (columns.get(at).is_none() || field.dynamic || ops.0.contains_key(&field.name))
    };
    let names: Vec<&str> = (schema.fields.iter().enumerate())
        .filter(|(at, field)| wanted(*at, field))
        .map(|(_, field)| field.name.as_str())
        .collect();
    let old = view.take(&found, &names)?;
    let changed: HashSet<&str> = (schema.fields.iter().enumerate())
        .filter(|(at, _)| columns.get(*at).is_some())
        .map(|(_, field)| field.name.as_str())
        .collect();
    let recomputed = stale_outputs(schema, &changed, found.len() < rows);
    for (at, field) in schema.fields.iter().enumerate() {
        if !names.contains(&field.name.as_str()) || recomputed.contains(field.name.as_str()) {
            continue;
        }
        let old = old.column_by_name(&field.name).ok_or_else(|| {
            Failure::internal(format!("storage returned no column {} for an update", field.name))
        })?;
        let nothing = field.absent(1);
        let old = interleave(&[old.as_ref(), nothing.as_ref()], &sources)
            .map_err(|error| Failure::internal(format!("field {}: {error}", field.name)))?;
        let column = match columns.get(at) {
            Some(given) if field.dynamic => merge(&old, given)?,
            Some(given) => match ops.0.get(&field.name) {
                Some(op) => elements(field, *op, &old, given)?,
                None => Arc::clone(given),
            },
            None => {
                require(field, found.len() < rows)?;
                old
            }
        };
        columns.set(at, column);
    }
    Ok(columns)
}

/// Function outputs that have to be made again: their input changed, or some rows are new.
fn stale_outputs(schema: &Schema, changed: &HashSet<&str>, new_rows: bool) -> HashSet<String> {
    let functions = ModelFunction::all(schema).into_iter();
    let stale = functions.filter(|f| new_rows || changed.contains(f.input.as_str()));
    stale.flat_map(|function| [function.dense, function.sparse]).flatten().collect()
}

fn require(field: &Field, new_rows: bool) -> Result<(), Failure> {
    if new_rows && !field.nullable && field.default.is_none() && !field.dynamic {
        return Err(Failure::invalid(format!(
            "fieldSchema({}) has no corresponding fieldData pass in: a key of the partial update does not exist, so its row is inserted and needs every required field",
            field.name
        )));
    }
    Ok(())
}

/// The dynamic keys of both; those given win.
fn merge(old: &ArrayRef, given: &ArrayRef) -> Result<ArrayRef, Failure> {
    let (old, given) = (old.as_binary::<i64>(), given.as_binary::<i64>());
    let object = |text: &[u8]| {
        serde_json::from_slice::<Map<String, Value>>(text).map_err(|error| {
            Failure::internal(format!("the dynamic field holds no object: {error}"))
        })
    };
    let merged = (0..old.len())
        .map(|row| {
            if given.value(row) == b"{}" {
                return Ok(old.value(row).to_vec());
            }
            let mut keys = object(old.value(row))?;
            if keys.is_empty() {
                return Ok(given.value(row).to_vec());
            }
            keys.extend(object(given.value(row))?);
            serde_json::to_vec(&keys).map_err(|error| Failure::internal(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(LargeBinaryArray::from_iter_values(merged)))
}

/// The old elements, with those given appended to them or removed from them.
fn elements(
    field: &Field,
    op: ArrayOp,
    old: &ArrayRef,
    given: &ArrayRef,
) -> Result<ArrayRef, Failure> {
    let (old, given) = (old.as_list::<i64>(), given.as_list::<i64>());
    let DataType::Array { max_capacity, .. } = field.data_type else {
        return Err(Failure::internal(format!("field {} is no Array", field.name)));
    };
    let capacity = max_capacity as usize;
    let (old_keys, given_keys) = (group::keys(old.values()), group::keys(given.values()));
    let (mut places, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..old.len() {
        let before = places.len();
        let (kept, sent) = (range(old, row), range(given, row));
        match op {
            ArrayOp::Append => {
                places.extend(kept.map(|at| (0, at)));
                places.extend(sent.map(|at| (1, at)));
            }
            ArrayOp::Remove => {
                let gone: HashSet<_> = given_keys[sent].iter().collect();
                places.extend(kept.filter(|at| !gone.contains(&old_keys[*at])).map(|at| (0, at)));
            }
        }
        let length = places.len() - before;
        if length > capacity {
            return Err(Failure::invalid(format!(
                "the length ({length}) of {row}th array of field ({}) exceeds max capacity ({capacity})",
                field.name
            )));
        }
        lengths.push(length);
        valid.push(old.is_valid(row) || length > 0);
    }
    let values = interleave(&[old.values().as_ref(), given.values().as_ref()], &places)
        .map_err(|error| Failure::internal(format!("field {}: {error}", field.name)))?;
    let item = Arc::new(ArrowField::new("item", old.values().data_type().clone(), false));
    let nulls = NullBuffer::from(valid);
    let nulls = (nulls.null_count() > 0).then_some(nulls);
    LargeListArray::try_new(item, OffsetBuffer::from_lengths(lengths), values, nulls)
        .map(|list| Arc::new(list) as ArrayRef)
        .map_err(|error| Failure::internal(format!("field {}: {error}", field.name)))
}

/// Where the elements of a row stand among the list's values.
fn range(list: &LargeListArray, row: usize) -> std::ops::Range<usize> {
    if list.is_null(row) {
        return 0..0;
    }
    // Offsets of an array in memory fit a usize.
    let offsets = list.value_offsets();
    offsets[row] as usize..offsets[row + 1] as usize
}

#[cfg(test)]
mod tests {
    use arrow_array::Int32Array;

    use super::*;

    fn lists(rows: &[Option<&[i32]>]) -> ArrayRef {
        let lengths = rows.iter().map(|row| row.map_or(0, <[i32]>::len));
        let values: Vec<i32> = rows.iter().copied().flatten().flatten().copied().collect();
        let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
        Arc::new(LargeListArray::new(
            Arc::new(ArrowField::new("item", arrow_schema::DataType::Int32, false)),
            OffsetBuffer::from_lengths(lengths),
            Arc::new(Int32Array::from(values)),
            (nulls.null_count() > 0).then_some(nulls),
        ))
    }

    fn field(capacity: u32) -> Field {
        Field {
            id: 100,
            name: "tags".into(),
            description: String::new(),
            data_type: DataType::Array {
                element: Box::new(DataType::Int32),
                max_capacity: capacity,
            },
            nullable: true,
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

    #[test]
    fn elements_are_appended_and_removed() {
        let old = lists(&[Some(&[1, 2, 1]), None, Some(&[5])]);
        let given = lists(&[Some(&[1]), Some(&[7]), None]);
        let appended = elements(&field(4), ArrayOp::Append, &old, &given).unwrap();
        assert_eq!(&appended, &lists(&[Some(&[1, 2, 1, 1]), Some(&[7]), Some(&[5])]));
        let removed = elements(&field(4), ArrayOp::Remove, &old, &given).unwrap();
        assert_eq!(&removed, &lists(&[Some(&[2]), None, Some(&[5])]));
        let failure = elements(&field(3), ArrayOp::Append, &old, &given).unwrap_err();
        assert!(failure.reason().contains("exceeds max capacity (3)"), "{failure}");
    }

    #[test]
    fn dynamic_keys_are_merged_and_those_given_win() {
        let text = |rows: &[&str]| -> ArrayRef {
            Arc::new(LargeBinaryArray::from_iter_values(rows.iter().map(|row| row.as_bytes())))
        };
        let old = text(&[r#"{"a":1,"b":2}"#, r#"{"a":1}"#, "{}"]);
        let given = text(&[r#"{"b":3,"c":[4]}"#, "{}", r#"{"z":1}"#]);
        let merged = merge(&old, &given).unwrap();
        assert_eq!(&merged, &text(&[r#"{"a":1,"b":3,"c":[4]}"#, r#"{"a":1}"#, r#"{"z":1}"#]));
    }
}
