//! Values out of JSON text by path, many paths in one pass.
//!
//! All paths that a filter asks of one column form a tree ([`Paths`]). A row is parsed once; what
//! no path leads to is skipped by the parser without being built. Strings without escapes are
//! borrowed from the text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::ast::Step;
use super::value::Num;

/// What a path leads to in one row. JSON's null counts as missing.
#[derive(Clone, Debug, Default)]
pub(super) enum Found<'t> {
    #[default]
    Missing,
    Bool(bool),
    Int(i64),
    /// Above `i64::MAX`.
    Large(u64),
    Float(f64),
    Text(Cow<'t, str>),
    /// Number of elements.
    Array(usize),
    Object,
    /// An array or object, where the path's user looks inside.
    Tree(Value),
}

/// The paths asked of one column, by their common beginnings.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    /// Where to put what is found here.
    slot: Option<usize>,
    /// Whether to keep arrays and objects whole.
    whole: bool,
    keys: BTreeMap<String, Paths>,
    indexes: BTreeMap<usize, Paths>,
}

impl Paths {
    /// Asks for a path; its value is put into `slot`. The same path may be asked for again with
    /// the same slot.
    pub(super) fn insert(&mut self, steps: &[Step], slot: usize, whole: bool) {
        match steps {
            [] => {
                self.slot = Some(slot);
                self.whole |= whole;
            }
            [Step::Key(key) | Step::Member(key), rest @ ..] => {
                self.keys.entry(key.clone()).or_default().insert(rest, slot, whole);
            }
            [Step::Index(index), rest @ ..] => {
                self.indexes.entry(*index).or_default().insert(rest, slot, whole);
            }
        }
    }

    /// Reads one row's JSON and fills the slots. Text that is not JSON has nothing in it.
    pub(super) fn extract<'t>(&self, text: &'t [u8], slots: &mut [Found<'t>]) {
        let mut parser = serde_json::Deserializer::from_slice(text);
        let seed = Extract { paths: self, slots: &mut *slots };
        if seed.deserialize(&mut parser).and_then(|()| parser.end()).is_err() {
            slots.fill_with(Found::default);
        }
    }

    fn has_children(&self) -> bool {
        !self.keys.is_empty() || !self.indexes.is_empty()
    }

    /// Forgets what an earlier occurrence of the same key brought: the last one counts.
    fn clear(&self, slots: &mut [Found<'_>]) {
        if let Some(slot) = self.slot {
            slots[slot] = Found::Missing;
        }
        for child in self.keys.values().chain(self.indexes.values()) {
            child.clear(slots);
        }
    }

    /// As [`Paths::extract`], from a value that was built.
    fn extract_tree(&self, value: Value, slots: &mut [Found<'_>]) {
        for (key, child) in &self.keys {
            if let Some(value) = value.get(key) {
                child.extract_tree(value.clone(), slots);
            }
        }
        for (index, child) in &self.indexes {
            if let Some(value) = value.get(*index) {
                child.extract_tree(value.clone(), slots);
            }
        }
        if let Some(slot) = self.slot {
            slots[slot] = match value {
                Value::Null => Found::Missing,
                Value::Bool(value) => Found::Bool(value),
                Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                    (Some(int), _) => Found::Int(int),
                    (None, Some(large)) => Found::Large(large),
                    (None, None) => number.as_f64().map_or(Found::Missing, Found::Float),
                },
                Value::String(text) => Found::Text(Cow::Owned(text)),
                Value::Array(_) | Value::Object(_) if self.whole => Found::Tree(value),
                Value::Array(items) => Found::Array(items.len()),
                Value::Object(_) => Found::Object,
            };
        }
    }
}

struct Extract<'p, 's, 't> {
    paths: &'p Paths,
    slots: &'s mut [Found<'t>],
}

impl<'t> Extract<'_, '_, 't> {
    fn put<E>(self, found: Found<'t>) -> Result<(), E> {
        if let Some(slot) = self.paths.slot {
            self.slots[slot] = found;
        }
        Ok(())
    }
}

impl<'t> DeserializeSeed<'t> for Extract<'_, '_, 't> {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, parser: D) -> Result<(), D::Error> {
        if self.paths.whole {
            self.paths.extract_tree(Value::deserialize(parser)?, self.slots);
            Ok(())
        } else {
            parser.deserialize_any(self)
        }
    }
}

impl<'t> Visitor<'t> for Extract<'_, '_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put(Found::Missing)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.put(Found::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put(Found::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put(i64::try_from(value).map_or(Found::Large(value), Found::Int))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.put(Found::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.put(Found::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_borrowed_str<E: Error>(self, value: &'t str) -> Result<(), E> {
        self.put(Found::Text(Cow::Borrowed(value)))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut items: A) -> Result<(), A::Error> {
        let mut len = 0;
        loop {
            let more = match self.paths.indexes.get(&len) {
                Some(paths) => {
                    items.next_element_seed(Extract { paths, slots: &mut *self.slots })?.is_some()
                }
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
            len += 1;
        }
        self.put(Found::Array(len))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut entries: A) -> Result<(), A::Error> {
        if !self.paths.has_children() {
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return self.put(Found::Object);
        }
        while let Some(child) = entries.next_key_seed(Child(&self.paths.keys))? {
            match child {
                Some(paths) => {
                    paths.clear(self.slots);
                    entries.next_value_seed(Extract { paths, slots: &mut *self.slots })?;
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.put(Found::Object)
    }
}

/// Looks a key up without building it.
struct Child<'p>(&'p BTreeMap<String, Paths>);

impl<'t, 'p> DeserializeSeed<'t> for Child<'p> {
    type Value = Option<&'p Paths>;

    fn deserialize<D: Deserializer<'t>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Child<'p> {
    type Value = Option<&'p Paths>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.get(key))
    }
}

/// The number's value.
pub(super) fn num(number: &serde_json::Number) -> Option<Num> {
    if let Some(int) = number.as_i64() {
        return Some(Num::Int(int.into()));
    }
    if let Some(large) = number.as_u64() {
        return Some(Num::Int(large.into()));
    }
    number.as_f64().map(Num::Float)
}

/// Equality of JSON values where numbers are equal by value: `1` equals `1.0`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (num(a), num(b)) {
            (Some(a), Some(b)) => a.compare(b).is_some_and(std::cmp::Ordering::is_eq),
            _ => false,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> Step {
        Step::Key(key.into())
    }

    fn extract<'t>(paths: &[(&[Step], bool)], text: &'t str) -> Vec<Found<'t>> {
        let mut tree = Paths::default();
        for (slot, (steps, whole)) in paths.iter().enumerate() {
            tree.insert(steps, slot, *whole);
        }
        let mut slots = vec![Found::Missing; paths.len()];
        tree.extract(text.as_bytes(), &mut slots);
        slots
    }

    #[test]
    fn one_pass_fills_all_paths() {
        let found = extract(
            &[
                (&[key("a")], false),
                (&[key("a"), key("b")], false),
                (&[key("c"), Step::Index(1)], false),
                (&[key("c")], true),
                (&[key("d")], false),
                (&[key("e")], false),
                (&[], false),
            ],
            r#"{"x":[{"a":1}],"a":{"b":"v\n"},"c":[1,18446744073709551615],"d":null}"#,
        );
        assert!(matches!(&found[0], Found::Object));
        assert!(matches!(&found[1], Found::Text(text) if text == "v\n"));
        assert!(matches!(&found[2], Found::Large(u64::MAX)));
        assert!(matches!(&found[3], Found::Tree(Value::Array(items)) if items.len() == 2));
        assert!(matches!(&found[4], Found::Missing));
        assert!(matches!(&found[5], Found::Missing));
        assert!(matches!(&found[6], Found::Object));
    }

    #[test]
    fn plain_strings_are_borrowed_and_floats_are_exact() {
        let found = extract(
            &[(&[key("s")], false), (&[key("f")], false)],
            r#"{"s":"plain","f":0.30000000000000004}"#,
        );
        assert!(matches!(&found[0], Found::Text(Cow::Borrowed("plain"))));
        assert!(matches!(&found[1], Found::Float(value) if *value == 0.1 + 0.2));
    }

    #[test]
    fn the_last_of_equal_keys_counts_and_broken_text_holds_nothing() {
        let steps: &[Step] = &[key("a"), key("b")];
        assert!(matches!(extract(&[(steps, false)], r#"{"a":{"b":1},"a":2}"#)[0], Found::Missing));
        assert!(matches!(extract(&[(steps, false)], r#"{"a":{"b":1},"#)[0], Found::Missing));
        assert!(matches!(extract(&[(steps, false)], r#"{"a":{"b":1}} x"#)[0], Found::Missing));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(extract(&[(&[], true)], &deep)[0], Found::Missing));
        assert!(matches!(extract(&[(&[], false)], &deep)[0], Found::Array(1)));
    }

    #[test]
    fn numbers_are_equal_by_value() {
        let parse = |text| serde_json::from_str::<Value>(text).unwrap();
        assert!(equal(&parse(r#"[1,{"a":2.0}]"#), &parse(r#"[1.0,{"a":2}]"#)));
        assert!(!equal(&parse("[1]"), &parse("[1,1]")));
        assert!(!equal(&parse(r#"{"a":1}"#), &parse(r#"{"b":1}"#)));
        assert!(!equal(&parse("9007199254740993"), &parse("9007199254740992.0")));
    }
}
