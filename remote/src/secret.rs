//! Keys and tokens, which no log line and no error ever shows.

use std::fmt;

use serde::Deserialize;

/// A key or token. Its `Debug` form is a placeholder; it has no `Display`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a key.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The key itself, for the header of a request.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without the key.
    pub(crate) fn scrub(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "[key]") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hf_abc");
        assert_eq!(format!("{secret:?}"), "[key]");
        assert_eq!(secret.scrub("bad key hf_abc!"), "bad key [key]!");
        assert_eq!(Secret::new("").scrub("x"), "x");
    }
}
