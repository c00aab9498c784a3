//! From a request's words to what storage, index and models are asked, and from their hits to an
//! answer: functions, search, fusion, grouping, iteration.
//!
//! Inside, a larger score is always better; the sign that a client sees is restored in
//! [`crate::convert::results`] and nowhere else. The pure parts ([`rank`], [`group`], [`Params`])
//! know no engine and are tested against naive oracles.

pub mod filter;
pub mod function;
pub mod group;
pub mod hybrid;
pub mod iterate;
pub mod partial;
pub mod rank;
pub mod route;
pub mod score;
pub mod search;

use std::borrow::Cow;
use std::collections::HashMap;

use elanus_proto::common::KeyValuePair;
use serde_json::Value;

use crate::status::Failure;

/// What the planner remembers between requests; one per node.
#[derive(Debug, Default)]
pub struct State {
    /// Search iterators that clients are in the middle of.
    pub iterators: iterate::Iterators,
    /// Keeps partial updates of a collection, which read before they write, apart.
    pub partial_updates: partial::Locks,
}

/// The key-value parameters of a search or query.
///
/// All values are text. One of them, `params`, may be a JSON object that repeats others or holds
/// those of the index; its numbers may be numbers or text. Parameters that nobody asks for are
/// ignored, as Milvus does: clients send those of index types they do not use.
#[derive(Clone, Debug, Default)]
pub struct Params {
    flat: HashMap<String, String>,
    nested: serde_json::Map<String, Value>,
}

impl Params {
    /// Reads the pairs of a request.
    ///
    /// # Errors
    /// Code 1100 when `params` is there and is neither empty nor a JSON object.
    pub fn parse(pairs: &[KeyValuePair]) -> Result<Self, Failure> {
        let mut params = Self::default();
        for KeyValuePair { key, value } in pairs {
            if key == "params" && !value.trim().is_empty() {
                params.nested = serde_json::from_str(value).map_err(|error| {
                    Failure::invalid(format!("params must be a json object, got {value}: {error}"))
                })?;
            } else {
                params.flat.insert(key.clone(), value.clone());
            }
        }
        Ok(params)
    }

    /// The value of `key`; empty text counts as not given. The nested object goes before the
    /// flat pairs.
    pub fn text(&self, key: &str) -> Option<Cow<'_, str>> {
        let nested = self.nested.get(key).and_then(as_text);
        nested.or_else(|| self.flat(key))
    }

    fn flat(&self, key: &str) -> Option<Cow<'_, str>> {
        self.flat.get(key).filter(|text| !text.is_empty()).map(|text| Cow::Borrowed(text.as_str()))
    }

    /// A whole number.
    ///
    /// # Errors
    /// Code 1100 when there is a value and it is none.
    pub fn int(&self, key: &str) -> Result<Option<i64>, Failure> {
        self.text(key)
            .map(|text| {
                let text = text.trim();
                // `10.0` comes from clients that keep numbers as floats.
                text.parse().ok().or_else(|| whole(text)).ok_or_else(|| {
                    Failure::invalid(format!("{key} [{text}] is invalid, should be an integer"))
                })
            })
            .transpose()
    }

    /// A number.
    ///
    /// # Errors
    /// Code 1100 when there is a value and it is no finite number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, Failure> {
        self.text(key)
            .map(|text| match text.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => {
                    Err(Failure::invalid(format!("{key} [{text}] is invalid, should be a number")))
                }
            })
            .transpose()
    }

    /// A flag: `true`, `True`, `1`, `false`, … without regard to case; absent means false.
    ///
    /// # Errors
    /// Code 1100 for any other text.
    pub fn flag(&self, key: &str) -> Result<bool, Failure> {
        let Some(text) = self.text(key) else { return Ok(false) };
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => {
                Err(Failure::invalid(format!("{key} [{text}] is invalid, should be true or false")))
            }
        }
    }

    /// Whether `key` has a value.
    pub fn has(&self, key: &str) -> bool {
        self.text(key).is_some()
    }

    /// The value of `key` as JSON, be it nested as such or as text that holds JSON.
    pub fn json(&self, key: &str) -> Option<Value> {
        match self.nested.get(key) {
            Some(Value::String(text)) => serde_json::from_str(text).ok(),
            Some(value) => Some(value.clone()),
            None => self.flat.get(key).and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

fn as_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then_some(Cow::Borrowed(text.as_str())),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Some(Cow::Owned(value.to_string()))
        }
    }
}

fn whole(text: &str) -> Option<i64> {
    let number: f64 = text.parse().ok()?;
    // Beyond 2^53 a float no longer tells neighbouring whole numbers apart.
    let exact = number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53")]
    exact.then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| KeyValuePair { key: (*key).into(), value: (*value).into() })
            .collect();
        Params::parse(&pairs).unwrap()
    }

    #[test]
    fn numbers_come_as_text_nested_or_flat() {
        let params = params(&[
            ("topk", "10"),
            ("offset", "3.0"),
            ("radius", "0.1"),
            ("params", r#"{"radius": "0.5", "ef": 64, "range_filter": 0.75}"#),
        ]);
        assert_eq!(params.int("topk").unwrap(), Some(10));
        assert_eq!(params.int("offset").unwrap(), Some(3));
        assert_eq!(params.int("ef").unwrap(), Some(64));
        assert_eq!(params.float("radius").unwrap(), Some(0.5), "the nested one goes first");
        assert_eq!(params.float("range_filter").unwrap(), Some(0.75));
        assert_eq!(params.int("nprobe").unwrap(), None);
    }

    #[test]
    fn flags_are_read_without_regard_to_case() {
        for (text, expected) in [
            ("True", true),
            ("true", true),
            ("1", true),
            ("False", false),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(params(&[("iterator", text)]).flag("iterator").unwrap(), expected, "{text}");
        }
        assert!(params(&[("iterator", "yes")]).flag("iterator").is_err());
    }

    #[test]
    fn empty_params_are_an_empty_object_and_nonsense_is_refused() {
        assert!(!params(&[("params", "")]).has("ef"));
        let bad = KeyValuePair { key: "params".into(), value: "[1]".into() };
        assert!(Params::parse(&[bad]).is_err());
        assert!(params(&[("topk", "ten")]).int("topk").is_err());
        assert!(params(&[("radius", "NaN")]).float("radius").is_err());
    }

    #[test]
    fn lists_are_read_from_json_or_from_text_that_holds_it() {
        let expected = serde_json::json!([0.7, 0.3]);
        assert_eq!(
            params(&[("params", r#"{"weights":[0.7,0.3]}"#)]).json("weights"),
            Some(expected.clone())
        );
        assert_eq!(params(&[("weights", "[0.7, 0.3]")]).json("weights"), Some(expected));
    }
}
