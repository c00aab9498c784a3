//! What a search looks for: the placeholder group of a request, or rows named by their keys.
//!
//! Query vectors stay slices of the request's own buffer; only a conversion to another element
//! type makes new ones. Texts are handed on: making vectors of them is the planner's business.

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef};
use bytes::Bytes;
use elanus_index::{Query, SparseRow};
use elanus_proto::common::{PlaceholderGroup, PlaceholderType};
use elanus_proto::schema::{IDs, i_ds};
use elanus_storage::schema::{DataType, Field};
use elanus_storage::{Keys, ReadView};
use half::{bf16, f16};
use prost::Message;

use crate::status::Failure;

/// Query vectors in the form that the field's index takes, one per query.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryRows {
    /// Raw rows in the field's element type, checked for their width.
    Dense(Vec<Bytes>),
    /// Rows in canonical wire layout.
    Sparse(Vec<Bytes>),
}

impl QueryRows {
    /// Number of queries.
    pub fn len(&self) -> usize {
        match self {
            Self::Dense(rows) | Self::Sparse(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The queries as an index takes them.
    pub fn queries(&self) -> Vec<Query<'_>> {
        match self {
            Self::Dense(rows) => rows.iter().map(|row| Query::Dense(row)).collect(),
            Self::Sparse(rows) => {
                rows.iter().map(|row| Query::Sparse(SparseRow::trusted(row))).collect()
            }
        }
    }
}

/// The content of a placeholder group.
#[derive(Clone, Debug, PartialEq)]
pub enum Placeholder {
    /// Vectors that fit the field.
    Rows(QueryRows),
    /// Texts that a function has to turn into vectors.
    Texts(Vec<String>),
}

/// Reads a serialized placeholder group for a search on `field`.
///
/// # Errors
/// Code 1100 for bytes that are no placeholder group, more than one placeholder, a type or a
/// width that does not fit the field, and values that are not finite.
pub fn parse(group: Bytes, field: &Field) -> Result<Placeholder, Failure> {
    let group = PlaceholderGroup::decode(group).map_err(|error| {
        Failure::invalid(format!("placeholder_group cannot be decoded: {error}"))
    })?;
    let mut placeholders = group.placeholders.into_iter();
    let (Some(placeholder), None) = (placeholders.next(), placeholders.next()) else {
        return Err(Failure::invalid(
            "a search needs exactly one placeholder with its query vectors or texts",
        ));
    };
    let sent = PlaceholderType::try_from(placeholder.r#type).unwrap_or(PlaceholderType::None);
    let values = placeholder.values;
    match (sent, &field.data_type) {
        (PlaceholderType::VarChar, _) => texts(&values, field).map(Placeholder::Texts),
        (PlaceholderType::SparseFloatVector, DataType::SparseFloatVector) => sparse(&values),
        (PlaceholderType::FloatVector, DataType::FloatVector { dim }) => {
            check_floats(&values, *dim)?;
            Ok(Placeholder::Rows(QueryRows::Dense(values)))
        }
        (PlaceholderType::Float16Vector, DataType::Float16Vector { .. })
        | (PlaceholderType::BFloat16Vector, DataType::BFloat16Vector { .. })
        | (PlaceholderType::Int8Vector, DataType::Int8Vector { .. })
        | (PlaceholderType::BinaryVector, DataType::BinaryVector { .. }) => {
            check_width(&values, field.data_type.bytes_per_row().unwrap_or_default())?;
            Ok(Placeholder::Rows(QueryRows::Dense(values)))
        }
        // A superset of Milvus: single precision queries on half precision fields.
        (PlaceholderType::FloatVector, DataType::Float16Vector { dim }) => {
            check_floats(&values, *dim)?;
            let halves = |value: f32| f16::from_f32(value).to_le_bytes();
            Ok(Placeholder::Rows(QueryRows::Dense(converted(&values, halves))))
        }
        (PlaceholderType::FloatVector, DataType::BFloat16Vector { dim }) => {
            check_floats(&values, *dim)?;
            let halves = |value: f32| bf16::from_f32(value).to_le_bytes();
            Ok(Placeholder::Rows(QueryRows::Dense(converted(&values, halves))))
        }
        _ => Err(Failure::invalid(format!(
            "vector type must be the same, field {} - type {}, search info type {}",
            field.name,
            field.data_type.name(),
            sent.as_str_name()
        ))),
    }
}

/// The vectors of the rows with these keys, in their order, as queries on `field`.
///
/// # Errors
/// Code 1100 when a key has no row or its row has no vector.
pub fn by_keys(view: &ReadView, field: &Field, keys: &Keys) -> Result<QueryRows, Failure> {
    let located = view.locate(keys)?;
    let missing: Vec<String> = located
        .iter()
        .zip(keys.iter())
        .filter(|(row, _)| row.is_none())
        .take(10)
        .map(|(_, key)| format!("{:?}", key.to_key()))
        .collect();
    if !missing.is_empty() {
        return Err(Failure::invalid(format!(
            "some of the provided primary key IDs do not exist: missing IDs = [{}]",
            missing.join(", ")
        )));
    }
    let rows: Vec<_> = located.into_iter().flatten().collect();
    let batch = view.take(&rows, &[field.name.as_str()])?;
    let column = batch.column_by_name(&field.name).ok_or_else(|| {
        Failure::internal(format!("storage returned no column {} for a search by keys", field.name))
    })?;
    if let Some(row) = (0..column.len()).find(|row| column.is_null(*row)) {
        return Err(Failure::invalid(format!(
            "the row with primary key {:?} has no vector in field {}",
            keys.get(row).to_key(),
            field.name
        )));
    }
    Ok(stored_rows(field, column))
}

/// The keys of a search by keys.
///
/// # Errors
/// Code 1100 when the keys are of another type than the primary key, or missing.
pub fn keys(ids: IDs, primary: &Field) -> Result<Keys, Failure> {
    match (ids.id_field, &primary.data_type) {
        (Some(i_ds::IdField::IntId(ids)), DataType::Int64) => Ok(Keys::Int(ids.data)),
        (Some(i_ds::IdField::StrId(ids)), DataType::VarChar { .. }) => Ok(Keys::Str(ids.data)),
        _ => Err(Failure::invalid(format!(
            "the ids of a search must be of the type of the primary key {} ({})",
            primary.name,
            primary.data_type.name()
        ))),
    }
}

fn stored_rows(field: &Field, column: &ArrayRef) -> QueryRows {
    if field.data_type == DataType::SparseFloatVector {
        let rows = column.as_binary::<i64>();
        let row = |row| Bytes::copy_from_slice(rows.value(row));
        QueryRows::Sparse((0..rows.len()).map(row).collect())
    } else if let Some(rows) = column.as_fixed_size_list_opt() {
        let row = |row| {
            let row = rows.value(row);
            let floats = row.as_primitive::<Float32Type>().values().iter();
            Bytes::from(floats.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        };
        QueryRows::Dense((0..rows.len()).map(row).collect())
    } else {
        let rows = column.as_fixed_size_binary();
        let row = |row| Bytes::copy_from_slice(rows.value(row));
        QueryRows::Dense((0..rows.len()).map(row).collect())
    }
}

fn texts(values: &[Bytes], field: &Field) -> Result<Vec<String>, Failure> {
    if !field.function_output {
        return Err(Failure::invalid(format!(
            "vector type must be the same, field {} - type {}, search info type VarChar: a text can only search a field that is the output of a function",
            field.name,
            field.data_type.name()
        )));
    }
    values
        .iter()
        .enumerate()
        .map(|(at, text)| {
            String::from_utf8(text.to_vec())
                .map_err(|error| Failure::invalid(format!("query text {at} is not UTF-8: {error}")))
        })
        .collect()
}

fn sparse(values: &[Bytes]) -> Result<Placeholder, Failure> {
    let rows = values
        .iter()
        .enumerate()
        .map(|(at, row)| match elanus_index::canonical_sparse(row) {
            Ok(std::borrow::Cow::Borrowed(_)) => Ok(row.clone()),
            Ok(std::borrow::Cow::Owned(sorted)) => Ok(Bytes::from(sorted)),
            Err(error) => Err(Failure::invalid(format!("sparse query vector {at}: {error}"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Placeholder::Rows(QueryRows::Sparse(rows)))
}

fn check_width(values: &[Bytes], width: usize) -> Result<(), Failure> {
    match values.iter().find(|value| value.len() != width) {
        None => Ok(()),
        Some(value) => Err(Failure::invalid(format!(
            "vector dimension mismatch, expected vector size(byte) {width}, actual {}",
            value.len()
        ))),
    }
}

fn check_floats(values: &[Bytes], dim: u32) -> Result<(), Failure> {
    check_width(values, dim as usize * 4)?;
    match values.iter().flat_map(|value| floats(value)).find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Failure::invalid(format!(
            "value '{value}' is not a number or infinity, in a query vector"
        ))),
    }
}

fn floats(row: &[u8]) -> impl Iterator<Item = f32> {
    row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn converted(values: &[Bytes], convert: impl Fn(f32) -> [u8; 2]) -> Vec<Bytes> {
    values.iter().map(|row| floats(row).flat_map(&convert).collect::<Vec<u8>>().into()).collect()
}

#[cfg(test)]
mod tests {
    use elanus_proto::common::PlaceholderValue;
    use elanus_proto::schema::LongArray;

    use super::*;
    use crate::convert::fields::tests::field;

    fn group(kind: PlaceholderType, values: &[&[u8]]) -> Bytes {
        let values = values.iter().map(|value| Bytes::copy_from_slice(value)).collect();
        let placeholder = PlaceholderValue {
            tag: "$0".into(),
            r#type: kind.into(),
            values,
            ..Default::default()
        };
        PlaceholderGroup { placeholders: vec![placeholder] }.encode_to_vec().into()
    }

    fn floats_of(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn reason(group: Bytes, data_type: DataType) -> String {
        parse(group, &field("v", data_type)).unwrap_err().reason().to_owned()
    }

    #[test]
    fn vectors_of_the_fields_own_type_stay_slices_of_the_request() {
        let row = floats_of(&[1.0, -2.0]);
        let request = group(PlaceholderType::FloatVector, &[&row, &row]);
        let parsed = parse(request.clone(), &field("v", DataType::FloatVector { dim: 2 })).unwrap();
        let Placeholder::Rows(QueryRows::Dense(rows)) = parsed else { panic!("{parsed:?}") };
        assert_eq!(rows, [row.clone(), row]);
        let buffer = request.as_ptr_range();
        assert!(rows.iter().all(|row| buffer.contains(&row.as_ptr())), "nothing was copied");
    }

    #[test]
    fn single_precision_queries_fit_fields_of_half_precision() {
        let row = floats_of(&[1.0, -2.5]);
        let request = || group(PlaceholderType::FloatVector, &[&row]);
        let half = parse(request(), &field("v", DataType::Float16Vector { dim: 2 })).unwrap();
        let expected: Vec<u8> =
            [1.0, -2.5].into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(half, Placeholder::Rows(QueryRows::Dense(vec![expected.into()])));
        let brain = parse(request(), &field("v", DataType::BFloat16Vector { dim: 2 })).unwrap();
        let expected: Vec<u8> =
            [1.0, -2.5].into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(brain, Placeholder::Rows(QueryRows::Dense(vec![expected.into()])));
    }

    #[test]
    fn sparse_queries_are_brought_in_order() {
        let entry = |index: u32, value: f32| [index.to_le_bytes(), value.to_le_bytes()].concat();
        let request = group(
            PlaceholderType::SparseFloatVector,
            &[&[entry(9, 1.0), entry(2, 0.5)].concat(), &[]],
        );
        let parsed = parse(request, &field("v", DataType::SparseFloatVector)).unwrap();
        let sorted = [entry(2, 0.5), entry(9, 1.0)].concat();
        assert_eq!(parsed, Placeholder::Rows(QueryRows::Sparse(vec![sorted.into(), Bytes::new()])));
        let twice = [entry(2, 0.5), entry(2, 1.0)].concat();
        assert!(
            reason(
                group(PlaceholderType::SparseFloatVector, &[&twice]),
                DataType::SparseFloatVector
            )
            .contains("sparse query vector 0")
        );
    }

    #[test]
    fn queries_that_do_not_fit_are_refused_with_milvus_texts() {
        let short = floats_of(&[1.0]);
        let width = reason(
            group(PlaceholderType::FloatVector, &[&short]),
            DataType::FloatVector { dim: 2 },
        );
        assert!(
            width.contains("vector dimension mismatch, expected vector size(byte) 8, actual 4"),
            "{width}"
        );
        let kind =
            reason(group(PlaceholderType::BinaryVector, &[&[1]]), DataType::FloatVector { dim: 2 });
        assert!(kind.contains("vector type must be the same, field v - type FloatVector, search info type BinaryVector"), "{kind}");
        let nan = floats_of(&[1.0, f32::NAN]);
        assert!(
            reason(group(PlaceholderType::FloatVector, &[&nan]), DataType::FloatVector { dim: 2 })
                .contains("is not a number")
        );
        assert!(
            reason(Bytes::from_static(b"\xff\xff"), DataType::SparseFloatVector)
                .contains("cannot be decoded")
        );
        assert!(
            reason(Bytes::new(), DataType::SparseFloatVector).contains("exactly one placeholder")
        );
    }

    #[test]
    fn texts_search_the_outputs_of_functions_only() {
        let request = || group(PlaceholderType::VarChar, &["kite".as_bytes(), b""]);
        assert!(
            reason(request(), DataType::FloatVector { dim: 2 })
                .contains("vector type must be the same, field v")
        );
        let made = Field { function_output: true, ..field("v", DataType::FloatVector { dim: 2 }) };
        assert_eq!(
            parse(request(), &made).unwrap(),
            Placeholder::Texts(vec!["kite".into(), String::new()])
        );
        let bytes = parse(group(PlaceholderType::VarChar, &[b"\xff"]), &made).unwrap_err();
        assert!(bytes.reason().contains("query text 0 is not UTF-8"), "{bytes}");
    }

    #[test]
    fn keys_are_of_the_primary_keys_type() {
        let ids = || IDs { id_field: Some(i_ds::IdField::IntId(LongArray { data: vec![3, 1] })) };
        assert_eq!(keys(ids(), &field("id", DataType::Int64)).unwrap(), Keys::Int(vec![3, 1]));
        assert!(keys(ids(), &field("id", DataType::VarChar { max_length: 5 })).is_err());
        assert!(keys(IDs::default(), &field("id", DataType::Int64)).is_err());
    }
}
