//! Which rows a bound filter is true of, a column at a time.
//!
//! Rows are taken in chunks so that what is in between stays in the cache and cancelling is
//! prompt. A part of the filter is only asked about the rows that the parts before it left open:
//! cheap tests run over whole columns without branches, dear ones only over open rows. A row's
//! JSON is parsed at most once, whatever the number of paths and tests. What an index answers is
//! looked up before (`lookup`), and columns that nothing else reads are not touched.

use std::borrow::Cow;
use std::cell::RefCell;
use std::cmp::Ordering;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array,
    Int64Array, LargeBinaryArray, LargeStringArray,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::DataType as ArrowType;
use elanus_index::{Cancel, RowMask};
use serde_json::Value;

use super::Columns;
use super::ast::{Cmp, Step as PathStep};
use super::json::{Found, Paths};
use super::lookup::{Lookups, Step};
use super::plan::{ArrayCheck, Bundle, Check, Members, Operand, Plan, Source, Test};
use super::value::{Const, Num};
use crate::Error;

/// Rows at a time: a column of `i64` is 128 KiB then, within the second-level cache. A multiple of
/// 64, so that the chunks' words follow each other.
const CHUNK_ROWS: usize = 16_384;

/// Entries of the table of JSON values, at about 32 bytes each, before chunks get shorter.
const TABLE_ENTRIES: usize = 8 * CHUNK_ROWS;

/// A value of one row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'v> {
    Bool(bool),
    Num(Num),
    Text(&'v str),
    /// A JSON array or object.
    Tree(&'v Value),
}

/// The rows among `candidates` of which the filter is true.
///
/// # Errors
/// Those of the columns; [`Error::Internal`] if a column is not of its field's type or lengths
/// differ; [`Error::Search`] when cancelled.
pub(super) fn eval(
    bundle: &Bundle,
    columns: &dyn Columns,
    candidates: &RowMask,
    cancel: &Cancel,
) -> Result<RowMask, Error> {
    let rows = columns.rows();
    if candidates.len() != rows {
        return Err(Error::Internal(format!(
            "a filter over {rows} rows was given {} candidates",
            candidates.len()
        )));
    }
    if let Plan::Const(value) = bundle.plan {
        return Ok(if value { candidates.clone() } else { RowMask::none(rows) });
    }
    let step = Lookups::new(bundle, columns, cancel).resolve(candidates.count())?;
    let mut candidates = Cow::Borrowed(candidates);
    if let Some(bounds) = step.bounds() {
        candidates.to_mut().and_with(bounds);
    }
    if let Step::Known(_) = step {
        return Ok(candidates.into_owned());
    }
    let mut read = vec![false; bundle.fields.len()];
    step.mark(&mut read);
    let mut arrays = Vec::with_capacity(bundle.fields.len());
    for (field, read) in bundle.fields.iter().zip(read) {
        if !read {
            arrays.push(None);
            continue;
        }
        let array = columns.column(field)?;
        if array.len() != rows || array.data_type() != &field.data_type.to_arrow() {
            return Err(Error::Internal(format!(
                "column `{}` has {} rows of {}, expected {rows} of {}",
                field.name,
                array.len(),
                array.data_type(),
                field.data_type.to_arrow()
            )));
        }
        arrays.push(Some(array));
    }
    let slots: usize = bundle.paths.iter().map(|(_, slots)| slots.len()).sum();
    let chunk_rows = (TABLE_ENTRIES / slots.max(1) / 64 * 64).clamp(64, CHUNK_ROWS);
    let mut words = Vec::with_capacity(rows.div_ceil(64));
    for start in (0..rows).step_by(chunk_rows) {
        cancel.check()?;
        let len = chunk_rows.min(rows - start);
        let wanted = candidates.words()[start / 64..(start + len).div_ceil(64)].to_vec();
        if is_none(&wanted) {
            words.extend(wanted);
            continue;
        }
        let column = |array: &Option<ArrayRef>| match array {
            Some(array) => Column::new(&array.slice(start, len)),
            None => Column::Unread,
        };
        let columns: Vec<Column> = arrays.iter().map(column).collect();
        let chunk = Chunk {
            columns: &columns,
            paths: &bundle.paths,
            tables: columns.iter().map(|_| RefCell::default()).collect(),
        };
        words.extend(chunk.step(&step, start / 64, wanted));
    }
    Ok(RowMask::from_boolean_buffer(&BooleanBuffer::new(Buffer::from_vec(words), 0, rows)))
}

/// A column of a chunk, its type known.
enum Column {
    Bool(BooleanArray),
    Int8(Int8Array),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    Single(Float32Array),
    Double(Float64Array),
    Text(LargeStringArray),
    Bytes(LargeBinaryArray),
    List {
        offsets: OffsetBuffer<i64>,
        nulls: Option<NullBuffer>,
        child: Box<Column>,
    },
    /// Only asked whether it is null.
    Other(ArrayRef),
    /// No test reads it.
    Unread,
}

impl Column {
    fn new(array: &ArrayRef) -> Self {
        match array.data_type() {
            ArrowType::Boolean => Self::Bool(array.as_boolean().clone()),
            ArrowType::Int8 => Self::Int8(array.as_primitive::<Int8Type>().clone()),
            ArrowType::Int16 => Self::Int16(array.as_primitive::<Int16Type>().clone()),
            ArrowType::Int32 => Self::Int32(array.as_primitive::<Int32Type>().clone()),
            ArrowType::Int64 => Self::Int64(array.as_primitive::<Int64Type>().clone()),
            ArrowType::Float32 => Self::Single(array.as_primitive::<Float32Type>().clone()),
            ArrowType::Float64 => Self::Double(array.as_primitive::<Float64Type>().clone()),
            ArrowType::LargeUtf8 => Self::Text(array.as_string::<i64>().clone()),
            ArrowType::LargeBinary => Self::Bytes(array.as_binary::<i64>().clone()),
            ArrowType::LargeList(_) => {
                let list = array.as_list::<i64>();
                Self::List {
                    offsets: list.offsets().clone(),
                    nulls: list.nulls().cloned(),
                    child: Box::new(Self::new(list.values())),
                }
            }
            _ => Self::Other(array.clone()),
        }
    }

    fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Bool(array) => array.nulls(),
            Self::Int8(array) => array.nulls(),
            Self::Int16(array) => array.nulls(),
            Self::Int32(array) => array.nulls(),
            Self::Int64(array) => array.nulls(),
            Self::Single(array) => array.nulls(),
            Self::Double(array) => array.nulls(),
            Self::Text(array) => array.nulls(),
            Self::Bytes(array) => array.nulls(),
            Self::List { nulls, .. } => nulls.as_ref(),
            Self::Other(array) => array.nulls(),
            Self::Unread => None,
        }
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls().is_some_and(|nulls| nulls.is_null(row))
    }

    fn scalar(&self, row: usize) -> Option<Scalar<'_>> {
        if self.is_null(row) {
            return None;
        }
        let int = |value: i64| Some(Scalar::Num(Num::Int(value.into())));
        match self {
            Self::Bool(array) => Some(Scalar::Bool(array.value(row))),
            Self::Int8(array) => int(array.value(row).into()),
            Self::Int16(array) => int(array.value(row).into()),
            Self::Int32(array) => int(array.value(row).into()),
            Self::Int64(array) => int(array.value(row)),
            Self::Single(array) => Some(Scalar::Num(Num::Float(array.value(row).into()))),
            Self::Double(array) => Some(Scalar::Num(Num::Float(array.value(row)))),
            Self::Text(array) => Some(Scalar::Text(array.value(row))),
            Self::Bytes(_) | Self::List { .. } | Self::Other(_) | Self::Unread => None,
        }
    }

    /// The elements of a row's array, as positions in the child; `None` if the row is null.
    fn elements(&self, row: usize) -> Option<(&Column, std::ops::Range<usize>)> {
        match self {
            Self::List { offsets, child, .. } if !self.is_null(row) => {
                // Offsets of a valid array are not negative.
                Some((child, offsets[row] as usize..offsets[row + 1] as usize))
            }
            _ => None,
        }
    }
}

/// One run of rows under evaluation.
struct Chunk<'a> {
    columns: &'a [Column],
    paths: &'a [(Paths, Vec<Vec<PathStep>>)],
    tables: Vec<RefCell<Table<'a>>>,
}

/// JSON values of one column: rows × paths, filled as rows are asked for.
#[derive(Default)]
struct Table<'a> {
    done: Vec<u64>,
    found: Vec<Found<'a>>,
}

impl<'a> Chunk<'a> {
    /// The rows among `wanted` that a step chooses; the chunk begins at `word` of a known mask.
    fn step(&self, step: &Step<'_>, word: usize, mut wanted: Vec<u64>) -> Vec<u64> {
        match step {
            Step::Known(mask) => {
                let len = wanted.len();
                and(wanted, &mask.words()[word..word + len])
            }
            Step::All(parts) => {
                for part in parts {
                    if is_none(&wanted) {
                        break;
                    }
                    wanted = self.step(part, word, wanted);
                }
                wanted
            }
            Step::Any(parts) => {
                let mut chosen = vec![0; wanted.len()];
                for part in parts {
                    let open: Vec<u64> = wanted.iter().zip(&chosen).map(|(w, c)| w & !c).collect();
                    if is_none(&open) {
                        break;
                    }
                    or_into(&mut chosen, &self.step(part, word, open));
                }
                chosen
            }
            Step::Test(test) => self.test(test, wanted),
        }
    }

    fn test(&self, test: &Test, wanted: Vec<u64>) -> Vec<u64> {
        match test {
            Test::Int { field, op, value } => {
                // The value is within the column's range, or there would be no such test.
                let column = &self.columns[*field];
                let bits = match column {
                    Column::Int8(array) => compare(array.values(), *op, *value as i8),
                    Column::Int16(array) => compare(array.values(), *op, *value as i16),
                    Column::Int32(array) => compare(array.values(), *op, *value as i32),
                    Column::Int64(array) => compare(array.values(), *op, *value),
                    _ => return none(&wanted),
                };
                valid(column, and(wanted, &bits))
            }
            Test::Single { field, op, value } => match &self.columns[*field] {
                column @ Column::Single(array) => {
                    valid(column, and(wanted, &compare(array.values(), *op, *value)))
                }
                _ => none(&wanted),
            },
            Test::Double { field, op, value } => match &self.columns[*field] {
                column @ Column::Double(array) => {
                    valid(column, and(wanted, &compare(array.values(), *op, *value)))
                }
                _ => none(&wanted),
            },
            Test::Bool { field, value } => match &self.columns[*field] {
                column @ Column::Bool(array) => {
                    let mut bits: Vec<u64> =
                        array.values().bit_chunks().iter_padded().take(wanted.len()).collect();
                    if !value {
                        bits.iter_mut().for_each(|word| *word = !*word);
                    }
                    valid(column, and(wanted, &bits))
                }
                _ => none(&wanted),
            },
            Test::Text { field, op, value } => match &self.columns[*field] {
                Column::Text(array) => each(&wanted, |row| {
                    array.is_valid(row) && op.holds(array.value(row).cmp(value.as_str()))
                }),
                _ => none(&wanted),
            },
            Test::In { field, set, negated, .. } => {
                let column = &self.columns[*field];
                each(&wanted, |row| match (column.scalar(row), set) {
                    (Some(Scalar::Num(Num::Int(int))), Members::Ints(ints)) => {
                        i64::try_from(int).is_ok_and(|int| ints.contains(int)) != *negated
                    }
                    (Some(Scalar::Text(text)), Members::Texts(texts)) => {
                        texts.contains(text) != *negated
                    }
                    _ => false,
                })
            }
            Test::Like { field, pattern, negated } => match &self.columns[*field] {
                Column::Text(array) => each(&wanted, |row| {
                    array.is_valid(row) && pattern.matches(array.value(row)) != *negated
                }),
                _ => none(&wanted),
            },
            Test::Null { source, negated } => self.null(source, *negated, &wanted),
            Test::Columns { left, op, right } => {
                let (left, right) = (&self.columns[*left], &self.columns[*right]);
                each(&wanted, |row| {
                    let order = match (left.scalar(row), right.scalar(row)) {
                        (Some(Scalar::Num(a)), Some(Scalar::Num(b))) => a.compare(b),
                        (Some(Scalar::Text(a)), Some(Scalar::Text(b))) => Some(a.cmp(b)),
                        (Some(Scalar::Bool(a)), Some(Scalar::Bool(b))) => Some(a.cmp(&b)),
                        _ => None,
                    };
                    order.is_some_and(|order| op.holds(order))
                })
            }
            Test::Value { operand, check, negated } => self.each_value(operand, &wanted, |value| {
                check.test(&value).is_some_and(|holds| holds != *negated)
            }),
            Test::Array { field, check, negated } => {
                let column = &self.columns[*field];
                each(&wanted, |row| {
                    column
                        .elements(row)
                        .is_some_and(|(child, range)| check.test(child, range) != *negated)
                })
            }
        }
    }

    /// Rows where there is no value, or, `negated`, where there is one.
    fn null(&self, source: &Source, negated: bool, wanted: &[u64]) -> Vec<u64> {
        let present = match source {
            Source::Column(field) | Source::Length(field) => {
                valid(&self.columns[*field], wanted.to_vec())
            }
            // A whole document needs no parsing to tell.
            Source::Json { field, root: true, .. } => match &self.columns[*field] {
                column @ Column::Bytes(array) => {
                    valid(column, each(wanted, |row| array.value(row).trim_ascii() != b"null"))
                }
                _ => none(wanted),
            },
            Source::Json { field, slot, .. } => {
                let table = self.table(*field, wanted);
                let slots = self.paths[*field].1.len();
                each(wanted, |row| !matches!(table.found[row * slots + slot], Found::Missing))
            }
            Source::Element { .. } | Source::JsonLength { .. } => {
                let operand = Operand { source: source.clone(), arithmetic: Vec::new() };
                self.each_value(&operand, wanted, |_| true)
            }
        };
        if negated {
            present
        } else {
            wanted.iter().zip(&present).map(|(wanted, present)| wanted & !present).collect()
        }
    }

    /// Rows among `wanted` that have a value which the test accepts.
    fn each_value(
        &self,
        operand: &Operand,
        wanted: &[u64],
        test: impl Fn(Scalar<'_>) -> bool,
    ) -> Vec<u64> {
        let accepts = |value: Option<Scalar<'_>>| {
            operand
                .arithmetic
                .iter()
                .try_fold(value?, |value, (op, constant)| match value {
                    Scalar::Num(number) => number.apply(*op, *constant).map(Scalar::Num),
                    Scalar::Bool(_) | Scalar::Text(_) | Scalar::Tree(_) => None,
                })
                .map(&test)
        };
        let accepts = |value| accepts(value).unwrap_or(false);
        match &operand.source {
            Source::Column(field) => {
                let column = &self.columns[*field];
                each(wanted, |row| accepts(column.scalar(row)))
            }
            Source::Element { field, index } => {
                let column = &self.columns[*field];
                each(wanted, |row| {
                    accepts(column.elements(row).and_then(|(child, range)| {
                        (*index < range.len()).then(|| child.scalar(range.start + index))?
                    }))
                })
            }
            Source::Length(field) => {
                let column = &self.columns[*field];
                each(wanted, |row| {
                    accepts(column.elements(row).map(|(_, range)| length(range.len())))
                })
            }
            Source::Json { field, slot, .. } => {
                let table = self.table(*field, wanted);
                let slots = self.paths[*field].1.len();
                each(wanted, |row| accepts(table.found[row * slots + slot].scalar()))
            }
            Source::JsonLength { field, slot } => {
                let table = self.table(*field, wanted);
                let slots = self.paths[*field].1.len();
                each(wanted, |row| {
                    accepts(match &table.found[row * slots + slot] {
                        Found::Array(len) => Some(length(*len)),
                        Found::Tree(Value::Array(items)) => Some(length(items.len())),
                        _ => None,
                    })
                })
            }
        }
    }

    /// The values of a JSON column, of the wanted rows at least.
    fn table(&self, field: usize, wanted: &[u64]) -> std::cell::Ref<'_, Table<'a>> {
        let (paths, slots) = &self.paths[field];
        let slots = slots.len();
        {
            let mut table = self.tables[field].borrow_mut();
            let Table { done, found } = &mut *table;
            if let Column::Bytes(array) = &self.columns[field] {
                if done.is_empty() {
                    *done = vec![0; wanted.len()];
                    found.resize_with(array.len() * slots, Found::default);
                }
                for row in rows(wanted) {
                    let bit = 1 << (row % 64);
                    if done[row / 64] & bit == 0 {
                        done[row / 64] |= bit;
                        if array.is_valid(row) {
                            paths.extract(
                                array.value(row),
                                &mut found[row * slots..(row + 1) * slots],
                            );
                        }
                    }
                }
            }
        }
        self.tables[field].borrow()
    }
}

fn length<'v>(len: usize) -> Scalar<'v> {
    Scalar::Num(Num::Int(len as i128))
}

impl Found<'_> {
    pub(super) fn scalar(&self) -> Option<Scalar<'_>> {
        Some(match self {
            Self::Missing | Self::Array(_) | Self::Object => return None,
            Self::Bool(value) => Scalar::Bool(*value),
            Self::Int(value) => Scalar::Num(Num::Int((*value).into())),
            Self::Large(value) => Scalar::Num(Num::Int((*value).into())),
            Self::Float(value) => Scalar::Num(Num::Float(*value)),
            Self::Text(text) => Scalar::Text(text),
            Self::Tree(tree) => Scalar::Tree(tree),
        })
    }
}

/// A JSON value as a scalar; null is none.
pub(super) fn json_scalar(value: &Value) -> Option<Scalar<'_>> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some(Scalar::Bool(*value)),
        Value::Number(number) => super::json::num(number).map(Scalar::Num),
        Value::String(text) => Some(Scalar::Text(text)),
        Value::Array(_) | Value::Object(_) => Some(Scalar::Tree(value)),
    }
}

impl Check {
    /// Whether the check holds of a value; `None` if the value is of another type.
    fn test(&self, value: &Scalar<'_>) -> Option<bool> {
        match (self, value) {
            (Self::Number(op, constant), Scalar::Num(number)) => {
                number.compare(*constant).map(|order| op.holds(order))
            }
            (Self::Text(op, constant), Scalar::Text(text)) => {
                Some(op.holds((*text).cmp(constant.as_str())))
            }
            (Self::Bool(constant), Scalar::Bool(value)) => Some(value == constant),
            (Self::Tree(constant), Scalar::Tree(tree)) => {
                (constant.is_array() == tree.is_array()).then(|| super::json::equal(constant, tree))
            }
            (Self::In(set), value) => set.contains(value),
            (Self::Like(pattern), Scalar::Text(text)) => Some(pattern.matches(text)),
            (Self::Regex(regex), Scalar::Text(text)) => Some(regex.is_match(text)),
            (Self::Contains { all, members }, Scalar::Tree(Value::Array(items))) => {
                let values = items.iter().filter_map(json_scalar);
                Some(if *all { members.within(items.len(), values) } else { members.meets(values) })
            }
            _ => None,
        }
    }
}

impl ArrayCheck {
    fn test(&self, child: &Column, range: std::ops::Range<usize>) -> bool {
        let len = range.len();
        let mut values = range.filter_map(|at| child.scalar(at));
        match self {
            Self::Contains { all: true, members } => members.within(len, values),
            Self::Contains { all: false, members } => members.meets(values),
            Self::Equals(items) => {
                len == items.len()
                    && items.iter().all(|item| match (item, values.next()) {
                        (Const::Bool(a), Some(Scalar::Bool(b))) => *a == b,
                        (Const::Text(a), Some(Scalar::Text(b))) => a == b,
                        (_, Some(Scalar::Num(b))) => {
                            item.num().and_then(|a| a.compare(b)).is_some_and(Ordering::is_eq)
                        }
                        _ => false,
                    })
            }
        }
    }
}

/// One bit per value: whether `value op constant`. Not a number is comparable with nothing.
fn compare<T: Copy + PartialOrd>(values: &[T], op: Cmp, constant: T) -> Vec<u64> {
    match op {
        Cmp::Equal => pack(values, |value| value == constant),
        // Not `!=`, which holds of what is not a number.
        Cmp::NotEqual => pack(values, |value| (value < constant) | (value > constant)),
        Cmp::Less => pack(values, |value| value < constant),
        Cmp::LessEqual => pack(values, |value| value <= constant),
        Cmp::Greater => pack(values, |value| value > constant),
        Cmp::GreaterEqual => pack(values, |value| value >= constant),
    }
}

fn pack<T: Copy>(values: &[T], test: impl Fn(T) -> bool) -> Vec<u64> {
    values
        .chunks(64)
        .map(|chunk| {
            chunk.iter().enumerate().fold(0, |word, (i, value)| word | u64::from(test(*value)) << i)
        })
        .collect()
}

/// Positions of the set bits.
fn rows(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().enumerate().flat_map(|(i, &word)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(i * 64 + bit)
        })
    })
}

/// The wanted rows that pass a test.
fn each(wanted: &[u64], mut test: impl FnMut(usize) -> bool) -> Vec<u64> {
    let mut chosen = vec![0; wanted.len()];
    for row in rows(wanted) {
        chosen[row / 64] |= u64::from(test(row)) << (row % 64);
    }
    chosen
}

/// Leaves only rows that are not null.
fn valid(column: &Column, bits: Vec<u64>) -> Vec<u64> {
    match column.nulls() {
        Some(nulls) if nulls.null_count() > 0 => {
            let words: Vec<u64> =
                nulls.inner().bit_chunks().iter_padded().take(bits.len()).collect();
            and(bits, &words)
        }
        _ => bits,
    }
}

fn and(mut a: Vec<u64>, b: &[u64]) -> Vec<u64> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a &= b);
    a
}

fn or_into(a: &mut [u64], b: &[u64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a |= b);
}

fn none(words: &[u64]) -> Vec<u64> {
    vec![0; words.len()]
}

fn is_none(words: &[u64]) -> bool {
    words.iter().all(|word| *word == 0)
}
