//! The wire and the node's own types, both ways: schemas, columns, query vectors, results.
//!
//! What comes in is checked here, once; behind this border a field exists and a value fits.

pub mod fields;
pub mod function;
pub mod index;
pub mod names;
pub mod placeholder;
pub mod results;
pub mod schema;

use elanus_proto::common::KeyValuePair;

/// Key-value pairs as the node keeps them: in the order received.
pub fn pairs(wire: Vec<KeyValuePair>) -> Vec<(String, String)> {
    wire.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

/// Key-value pairs as the wire carries them.
pub fn key_values(pairs: &[(String, String)]) -> Vec<KeyValuePair> {
    pairs.iter().map(|(key, value)| key_value(key, value)).collect()
}

/// One key-value pair as the wire carries it.
pub fn key_value(key: impl Into<String>, value: impl Into<String>) -> KeyValuePair {
    KeyValuePair { key: key.into(), value: value.into() }
}

/// The value of the first pair with that key.
pub fn lookup<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// A truth value as clients write it: `true`, `True`, `1` and their opposites.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// A number as clients write it: some dump it as JSON text, with quotes around it.
pub fn parse_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.trim().trim_matches('"').parse().ok()
}
