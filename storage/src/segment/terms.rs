//! What the values of a column are as terms of an index.
//!
//! A field's own values are terms in the order in which filters compare them. Of a JSON path they
//! are bytes, made by [`filter::json`](crate::filter) from what a filter finds there, so that
//! index and filter cannot disagree.

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType as ArrowType;
use elanus_index::{Cancel, Progress, Term, TermIndex};

use crate::Error;
use crate::catalog::{Grams, TermsDef};
use crate::filter::{each_gram, project};

/// The sections of an index over a column, if they can be made in `most_bytes` of memory beside it.
///
/// # Errors
/// [`Error::Search`] if they cannot, and once `cancel` is set; [`Error::Internal`] if there are no
/// terms of such a column.
pub(crate) fn sections(
    def: &TermsDef,
    column: &ArrayRef,
    most_bytes: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let (mut column, mut most_bytes) = (Cow::Borrowed(column), most_bytes);
    if let Some(path) = &def.path {
        let values = project(&column, path, most_bytes, cancel)?;
        most_bytes = most_bytes.saturating_sub(value_bytes(&values));
        column = Cow::Owned(values);
    }
    let (elements, values) = match column.as_list_opt::<i64>() {
        Some(list) => (Some(list.value_offsets()), list.values()),
        None => (None, &*column),
    };
    let term = terms_of(values, def.grams)?;
    let sections = TermIndex::build(
        column.len(),
        |row, add| {
            if column.is_null(row) {
                return false;
            }
            let range = match elements {
                // Offsets of a valid array are not negative.
                Some(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
                None => row..row + 1,
            };
            term(range, add);
            true
        },
        most_bytes,
        progress,
        cancel,
    )?;
    Ok(sections)
}

/// About how much memory a build takes beside the column, where each value is a term of its own:
/// pieces of texts are not, but there are many of them.
pub(super) fn build_bytes(def: &TermsDef, column: &ArrayRef) -> usize {
    let (values, bytes) = match column.as_list_opt::<i64>() {
        Some(list) => (list.values().len(), value_bytes(list.values())),
        None => (column.len(), value_bytes(column)),
    };
    let values = match &def.path {
        // An array in a document is short, or its elements are.
        Some(path) if path.array => values.max(bytes / 8),
        _ => values,
    };
    let postings = match def.grams {
        Some(grams) => bytes.saturating_mul(grams.max - grams.min + 1),
        None => values,
    };
    TermIndex::build_bytes(values, postings)
}

/// What the values of a column take, wherever they lie.
pub(super) fn value_bytes(column: &ArrayRef) -> usize {
    // Fails for types only that no column has.
    column.to_data().get_slice_memory_size().unwrap_or(0)
}

/// What hands over the terms of a run of values.
type Terms<'a> = Box<dyn Fn(Range<usize>, &mut dyn FnMut(Term<'a>)) + 'a>;

fn terms_of<'a>(values: &'a ArrayRef, grams: Option<Grams>) -> Result<Terms<'a>, Error> {
    macro_rules! numbers {
        ($type:ty, $term:expr) => {{
            let values = values.as_primitive::<$type>().values();
            Box::new(move |range, add| {
                values[range].iter().for_each(|&value| add($term(value.into())));
            })
        }};
    }
    Ok(match (values.data_type(), grams) {
        (ArrowType::Boolean, None) => {
            let values = values.as_boolean();
            Box::new(move |range, add| {
                range.for_each(|at| add(Term::Number(values.value(at).into())));
            })
        }
        (ArrowType::Int8, None) => numbers!(Int8Type, Term::int),
        (ArrowType::Int16, None) => numbers!(Int16Type, Term::int),
        (ArrowType::Int32, None) => numbers!(Int32Type, Term::int),
        (ArrowType::Int64, None) => numbers!(Int64Type, Term::int),
        (ArrowType::Float32, None) => numbers!(Float32Type, Term::float),
        (ArrowType::Float64, None) => numbers!(Float64Type, Term::float),
        (ArrowType::LargeUtf8, None) => {
            let values = values.as_string::<i64>();
            Box::new(move |range, add| {
                range.for_each(|at| add(Term::Text(values.value(at).as_bytes())));
            })
        }
        (ArrowType::LargeBinary, None) => {
            let values = values.as_binary::<i64>();
            Box::new(move |range, add| range.for_each(|at| add(Term::Text(values.value(at)))))
        }
        (ArrowType::LargeUtf8, Some(grams)) => {
            let values = values.as_string::<i64>();
            Box::new(move |range, add| {
                range.for_each(|at| each_gram(values.value(at), grams, add));
            })
        }
        (ArrowType::LargeBinary, Some(grams)) => {
            let values = values.as_binary::<i64>();
            Box::new(move |range, add| {
                for at in range {
                    if let Ok(text) = std::str::from_utf8(values.value(at)) {
                        each_gram(text, grams, add);
                    }
                }
            })
        }
        (other, _) => {
            return Err(Error::Internal(format!("a column of {other} has no terms")));
        }
    })
}
