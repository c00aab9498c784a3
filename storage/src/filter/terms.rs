//! Values as terms of an index: those of rows when it is built, those of a filter when it is asked.
//!
//! A number in JSON is ten bytes: the greatest double that is not above it, in the order of
//! doubles, and how far it lies above that. So integers of 64 bits keep their exact order among
//! floats. A gram is the hash of its characters (FNV-1a): grams choose candidates only.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, LargeBinaryBuilder, LargeListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use elanus_index::{Cancel, Term, TermIndex};
use serde_json::Value;

use super::ast::Step;
use super::eval::{Scalar, json_scalar};
use super::json::{Found, Paths};
use super::value::Num;
use crate::Error;
use crate::catalog::{Grams, JsonCast, JsonPath, PathStep, TermsDef};
use crate::schema::{DataType, Field};

/// Rows between two looks at whether to go on: a document may have 64 KiB.
const ROWS_PER_CHECK: usize = 256;

/// The sorted terms of a field in one run of rows.
#[derive(Clone, Debug)]
pub struct Terms {
    pub(crate) def: TermsDef,
    pub(crate) index: Arc<TermIndex>,
}

/// What stands for a constant in an index.
#[derive(Clone, Debug)]
pub(super) enum Key<'v> {
    Number(Term<'static>),
    Bytes(Cow<'v, [u8]>),
}

impl Key<'_> {
    pub(super) fn term(&self) -> Term<'_> {
        match self {
            Self::Number(term) => *term,
            Self::Bytes(bytes) => Term::Text(bytes),
        }
    }
}

/// How values became terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flag,
    Int,
    /// Of single or double precision; what is no number comes last.
    Float,
    Text,
    Json(JsonCast),
}

impl Kind {
    /// Of an index over a field, and whether a row may have any number of terms.
    pub(super) fn of(def: &TermsDef, field: &Field) -> Option<(Self, bool)> {
        if let Some(path) = &def.path {
            return Some((Self::Json(path.cast), path.array));
        }
        let (values, many) = match &field.data_type {
            DataType::Array { element, .. } => (&**element, true),
            other => (other, false),
        };
        let kind = match values {
            DataType::Bool => Self::Flag,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Self::Int,
            DataType::Float | DataType::Double => Self::Float,
            DataType::VarChar { .. } => Self::Text,
            _ => return None,
        };
        Some((kind, many))
    }

    /// What stands for a value: `Some(None)` if no row's value equals it, `None` if values of its
    /// type are not in the index, whatever rows have.
    pub(super) fn key<'v>(self, value: &Scalar<'v>) -> Option<Option<Key<'v>>> {
        Some(match (self, value) {
            (Self::Flag, Scalar::Bool(value)) => Some(Key::Number(Term::Number(u64::from(*value)))),
            (Self::Int, Scalar::Num(number)) => match number.canonical() {
                Num::Int(int) => i64::try_from(int).ok().map(|int| Key::Number(Term::int(int))),
                Num::Float(_) => None,
            },
            (Self::Float, Scalar::Num(number)) => {
                let float = match *number {
                    Num::Float(float) if float.is_nan() => return None,
                    Num::Float(float) => float,
                    Num::Int(int) => int as f64,
                };
                let exact = number.compare(Num::Float(float)) == Some(Ordering::Equal);
                exact.then(|| Key::Number(Term::float(float)))
            }
            (Self::Text, Scalar::Text(text)) => Some(Key::Bytes(Cow::Borrowed(text.as_bytes()))),
            (Self::Json(cast), value) => Some(Key::Bytes(json_term(cast, value)?)),
            _ => return None,
        })
    }
}

/// The term of a JSON value; `None` if it is of another type.
fn json_term<'v>(cast: JsonCast, value: &Scalar<'v>) -> Option<Cow<'v, [u8]>> {
    match (cast, value) {
        (JsonCast::Bool, Scalar::Bool(value)) => Some(Cow::Owned(vec![u8::from(*value)])),
        (JsonCast::Double, Scalar::Num(number)) => number_bytes(*number).map(Cow::Owned),
        (JsonCast::VarChar, Scalar::Text(text)) => Some(Cow::Borrowed(text.as_bytes())),
        _ => None,
    }
}

/// Bytes in the order of numbers; `None` for what is not a number.
fn number_bytes(number: Num) -> Option<Vec<u8>> {
    let (floor, above) = match number {
        Num::Float(float) => (float, 0),
        Num::Int(int) => {
            let near = int as f64;
            let below = match number.compare(Num::Float(near)) {
                Some(Ordering::Less) => near.next_down(),
                _ => near,
            };
            // Doubles lie no more than 2¹¹ apart where 64-bit integers are.
            (below, u16::try_from(int - below as i128).unwrap_or(u16::MAX))
        }
    };
    let Term::Number(order) = Term::float(floor) else { return None };
    (!floor.is_nan()).then(|| [order.to_be_bytes().as_slice(), &above.to_be_bytes()].concat())
}

/// Hands over every gram of a text.
pub(crate) fn each_gram<'t>(text: &str, grams: Grams, add: &mut dyn FnMut(Term<'t>)) {
    for (start, _) in text.char_indices() {
        let (mut hash, mut from) = (EMPTY_GRAM, start);
        let chars = text[start..].chars().take(grams.max);
        for (before, char) in chars.enumerate() {
            let end = from + char.len_utf8();
            hash = longer_gram(hash, &text[from..end]);
            from = end;
            if before + 1 >= grams.min {
                add(Term::Number(hash));
            }
        }
    }
}

/// Grams that a text must have to contain `part`; none if it is too short to tell.
pub(super) fn grams_of(part: &str, grams: Grams) -> Vec<Term<'static>> {
    let ends: Vec<usize> = part.char_indices().map(|(at, _)| at).chain([part.len()]).collect();
    let chars = grams.max.min(ends.len() - 1);
    if chars < grams.min {
        return Vec::new();
    }
    // Side by side, and the last one overlapping the one before.
    let last = ends.len() - 1 - chars;
    let starts = (0..last).step_by(chars).chain([last]);
    starts.map(|start| gram_term(&part[ends[start]..ends[start + chars]])).collect()
}

fn gram_term(gram: &str) -> Term<'static> {
    Term::Number(longer_gram(EMPTY_GRAM, gram))
}

const EMPTY_GRAM: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of a gram that goes on with these characters.
fn longer_gram(hash: u64, more: &str) -> u64 {
    more.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The values at a path of JSON documents, as bytes that are their terms: binary, or lists of it.
/// Null where the document has no value of the type there.
///
/// # Errors
/// [`Error::Search`] if they take more than `most_bytes`, and once `cancel` is set;
/// [`Error::Internal`] if the column holds no documents.
pub(crate) fn project(
    column: &ArrayRef,
    path: &JsonPath,
    most_bytes: usize,
    cancel: &Cancel,
) -> Result<ArrayRef, Error> {
    let documents = column
        .as_binary_opt::<i64>()
        .ok_or_else(|| Error::Internal("a JSON column is LargeBinary".into()))?;
    let mut paths = Paths::default();
    paths.insert(&steps(path), 0, path.array);
    let mut values = LargeBinaryBuilder::new();
    let mut lists = LargeListBuilder::new(LargeBinaryBuilder::new());
    let rows = documents.len();
    for row in 0..rows {
        if row % ROWS_PER_CHECK == 0 {
            cancel.check()?;
        }
        let mut found = [Found::default()];
        if documents.is_valid(row) {
            paths.extract(documents.value(row), &mut found);
        }
        if path.array {
            let items = match &found[0] {
                Found::Tree(Value::Array(items)) => Some(items),
                _ => None,
            };
            for term in items.into_iter().flatten().filter_map(json_scalar) {
                if let Some(term) = json_term(path.cast, &term) {
                    lists.values().append_value(term);
                }
            }
            lists.append(items.is_some());
        } else {
            values.append_option(found[0].scalar().and_then(|value| json_term(path.cast, &value)));
        }
        let all = if path.array { lists.values() } else { &mut values };
        let needed = all.values_slice().len() + (all.len() + rows) * size_of::<i64>();
        if needed > most_bytes {
            let (rows, of) = (row + 1, rows);
            let error = elanus_index::Error::TooLarge { needed, rows, of, allowed: most_bytes };
            return Err(error.into());
        }
    }
    Ok(if path.array { Arc::new(lists.finish()) } else { Arc::new(values.finish()) })
}

/// The path as the language has it.
pub(super) fn steps(path: &JsonPath) -> Vec<Step> {
    let step = |step: &PathStep| match step {
        PathStep::Key(key) => Step::Key(key.clone()),
        PathStep::Index(index) => Step::Index(*index),
    };
    path.steps.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = Num> {
        let edge = prop_oneof![Just(0_i64), Just(1 << 53), Just(i64::MAX), Just(i64::MIN)];
        let near = (edge, -3_i64..4).prop_map(|(edge, by)| edge.saturating_add(by));
        prop_oneof![
            near.clone().prop_map(|value| Num::Int(value.into())),
            near.prop_map(|value| Num::Float(value as f64)),
            (u64::MAX - 5..=u64::MAX).prop_map(|value| Num::Int(value.into())),
            any::<f64>().prop_filter("a number", |f| !f.is_nan()).prop_map(Num::Float),
        ]
    }

    /// Whoever changes what is pinned here raises the format of sorted terms.
    #[test]
    fn terms_are_what_other_versions_wrote() {
        let number = |number| number_bytes(number).unwrap();
        assert_eq!(number(Num::Int(0)), [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(number(Num::Float(-0.0)), [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(number(Num::Int(2)), [0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(number(Num::Float(2.5)), [0xc0, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        let below = [0x40, 0x07, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(number(Num::Float(-1.5)), below);
        // 2⁵³ + 1, and 1 above 2⁶⁴ - 2,048.
        assert_eq!(number(Num::Int((1 << 53) + 1)), [0xc3, 0x40, 0, 0, 0, 0, 0, 0, 0, 1]);
        let large = [0xc3, 0xef, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 1];
        assert_eq!(number(Num::Int((1 << 64) - 2_047)), large);
        assert_eq!(number_bytes(Num::Float(f64::NAN)), None);

        // FNV-1a of 64 bits, as its authors' tests have it.
        assert_eq!(gram_term("a"), Term::Number(0xaf63_dc4c_8601_ec8c));
        assert_eq!(gram_term("foobar"), Term::Number(0x8594_4171_f739_67e8));

        let term = |cast, value| json_term(cast, &value).map(Cow::into_owned);
        assert_eq!(term(JsonCast::Bool, Scalar::Bool(true)), Some(vec![1]));
        assert_eq!(term(JsonCast::VarChar, Scalar::Text("é")), Some(vec![0xc3, 0xa9]));
        assert_eq!(term(JsonCast::Double, Scalar::Bool(true)), None);
        let key = |kind: Kind, value: Scalar<'_>| format!("{:?}", kind.key(&value).unwrap());
        assert_eq!(key(Kind::Flag, Scalar::Bool(true)), "Some(Number(Number(1)))");
        let int = key(Kind::Int, Scalar::Num(Num::Float(-1.0)));
        assert_eq!(int, format!("Some(Number(Number({})))", i64::MAX));
    }

    #[test]
    fn values_at_a_path_are_not_kept_beyond_what_they_may_take() {
        let documents = vec![r#"{"a":[1,1,1,1,1,1,1,1]}"#; 1_000];
        let column: ArrayRef = Arc::new(arrow_array::LargeBinaryArray::from_iter_values(documents));
        let steps = vec![PathStep::Key("a".into())];
        let path = JsonPath { steps, cast: JsonCast::Double, array: true };
        // 18 for an element, and 8 for a row.
        let values = project(&column, &path, 152_000, &Cancel::never()).unwrap();
        assert_eq!(values.as_list::<i64>().values().len(), 8_000);
        let error = project(&column, &path, 80_000, &Cancel::never()).unwrap_err();
        assert!(error.to_string().contains("first 501 of 1000 rows"), "{error}");
    }

    proptest! {
        #[test]
        fn numbers_in_json_sort_by_their_exact_values(a in number(), b in number()) {
            prop_assert_eq!(
                number_bytes(a).unwrap().cmp(&number_bytes(b).unwrap()),
                a.compare(b).unwrap(),
                "{:?} and {:?}", a, b
            );
        }

        #[test]
        fn a_text_has_the_grams_of_each_of_its_parts(
            text in "[abé]{0,12}", from in 0_usize..12, len in 0_usize..12, min in 1_usize..4, more in 0_usize..3
        ) {
            let grams = Grams { min, max: min + more };
            let part: String = text.chars().skip(from).take(len).collect();
            let mut all = Vec::new();
            each_gram(&text, grams, &mut |gram| all.push(gram));
            let asked = grams_of(&part, grams);
            let chars: Vec<char> = text.chars().collect();
            let lens = (grams.min..=grams.max).filter(|len| *len <= chars.len());
            let pieces = lens.flat_map(|len| chars.windows(len));
            let mut expected: Vec<_> =
                pieces.map(|piece| gram_term(&piece.iter().collect::<String>())).collect();
            expected.sort();
            all.sort();
            prop_assert_eq!(&all, &expected);
            prop_assert_eq!(asked.is_empty(), part.chars().count() < min);
            prop_assert!(asked.iter().all(|gram| all.contains(gram)));
        }
    }
}
