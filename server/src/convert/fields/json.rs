//! JSON texts as a client may send them, and the keys of the dynamic field.
//!
//! Texts are kept as they came, less the white space between tokens: numbers keep their digits
//! and keys their order. What passes here can be parsed by every later reader.

use std::borrow::Cow;
use std::fmt;

use arrow_array::ArrayRef;
use arrow_array::cast::AsArray;
use elanus_storage::schema::{META, Schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::status::Failure;

/// Levels of nesting. Parsers of the filter stop at 128.
const MAX_DEPTH: usize = 100;

/// Checks one JSON text and removes white space between its tokens.
pub(super) fn compact<'a>(
    field: &str,
    row: usize,
    text: &'a [u8],
    max_bytes: usize,
) -> Result<Cow<'a, [u8]>, Failure> {
    if text.len() > max_bytes {
        return Err(Failure::invalid(format!(
            "the length ({}) of json field ({field}) exceeds max length ({max_bytes}), row number: {row}",
            text.len()
        )));
    }
    let invalid = |why: &dyn fmt::Display| {
        Failure::invalid(format!("field {field} is invalid json, row number: {row}: {why}"))
    };
    let utf8 = std::str::from_utf8(text).map_err(|error| invalid(&error))?;
    serde_json::from_str::<IgnoredAny>(utf8).map_err(|error| invalid(&error))?;
    let shape = Shape::of(text);
    if shape.depth > MAX_DEPTH {
        return Err(invalid(&format_args!("nested deeper than {MAX_DEPTH} levels")));
    }
    if shape.large_number {
        // The scan above skips numbers without computing them; these may not fit a double.
        serde_json::from_str::<serde_json::Value>(utf8).map_err(|error| invalid(&error))?;
    }
    if shape.blanks == 0 {
        return Ok(Cow::Borrowed(text));
    }
    let mut compact = Vec::with_capacity(text.len() - shape.blanks);
    let mut strings = Strings::default();
    compact.extend(text.iter().filter(|byte| strings.step(**byte) || !is_blank(**byte)));
    Ok(Cow::Owned(compact))
}

/// Checks that each row of `$meta` is an object without keys that belong to a field.
pub(super) fn check_dynamic(schema: &Schema, array: &ArrayRef) -> Result<(), Failure> {
    for (row, text) in array.as_binary::<i64>().iter().enumerate() {
        let Keys(keys) = serde_json::from_slice(text.unwrap_or(b"{}")).map_err(|error| {
            Failure::invalid(format!(
                "the dynamic field $meta must be a json object, row number: {row}: {error}"
            ))
        })?;
        if let Some(key) = keys.iter().find(|key| *key == META || schema.field(key).is_some()) {
            return Err(Failure::invalid(if key == META {
                format!(
                    "use more than one $meta: $meta cannot be a key of the dynamic field, row number: {row}"
                )
            } else {
                format!("dynamic field cannot include the static field: {key}, row number: {row}")
            }));
        }
    }
    Ok(())
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Follows a valid JSON text and knows whether a byte lies in a string.
#[derive(Default)]
struct Strings {
    inside: bool,
    escaped: bool,
}

impl Strings {
    /// Takes the next byte; true when it belongs to a string (its quotes included).
    fn step(&mut self, byte: u8) -> bool {
        if !self.inside {
            self.inside = byte == b'"';
            return self.inside;
        }
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.inside = false;
        }
        true
    }
}

/// What one pass over a valid text finds.
#[derive(Default)]
struct Shape {
    blanks: usize,
    depth: usize,
    /// A number with an exponent or hundreds of digits: it may exceed a double.
    large_number: bool,
}

impl Shape {
    fn of(text: &[u8]) -> Self {
        let mut shape = Self::default();
        let mut strings = Strings::default();
        let (mut depth, mut digits) = (0_usize, 0_usize);
        for &byte in text {
            if strings.step(byte) {
                continue;
            }
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    shape.depth = shape.depth.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'e' | b'E' if digits > 0 => shape.large_number = true,
                _ if is_blank(byte) => shape.blanks += 1,
                _ => {}
            }
            digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
            shape.large_number |= digits > 300;
        }
        shape
    }
}

/// The keys of an object; anything else is an error.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Keys;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a json object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: usize = 1 << 16;

    fn text(source: &str) -> String {
        String::from_utf8(compact("j", 0, source.as_bytes(), MAX_BYTES).unwrap().into_owned())
            .unwrap()
    }

    #[test]
    fn white_space_between_tokens_goes_and_the_rest_stays_as_it_came() {
        assert_eq!(
            text(r#" { "b" : [ 1 , 2.50 ] , "a" : " x \" y " } "#),
            r#"{"b":[1,2.50],"a":" x \" y "}"#
        );
        assert!(matches!(compact("j", 0, br#"{"a":1}"#, MAX_BYTES).unwrap(), Cow::Borrowed(_)));
        assert_eq!(text("12345678901234567890123"), "12345678901234567890123");
    }

    #[test]
    fn texts_that_a_later_reader_could_not_parse_are_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let long = format!("\"{}\"", "x".repeat(MAX_BYTES));
        let huge = "9".repeat(400);
        for bad in ["", "{", "NaN", "{'a':1}", "1e999", huge.as_str(), deep.as_str(), long.as_str()]
        {
            assert!(compact("j", 3, bad.as_bytes(), MAX_BYTES).is_err(), "{bad}");
        }
        assert!(compact("j", 0, b"\"\xff\"", MAX_BYTES).is_err());
        assert!(compact("j", 0, b"1e30", MAX_BYTES).is_ok());
    }
}
