//! Which names collections, partitions, fields and the rest may have (contract §4.1).

use elanus_proto::codes::Code;

use crate::limits::Limits;
use crate::status::Failure;

/// What a name names; decides the rule and the words of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A collection.
    Collection,
    /// Another name of a collection.
    Alias,
    /// A field of a schema.
    Field,
    /// An index.
    Index,
    /// A function of a schema.
    Function,
    /// A database.
    Database,
    /// A partition: may begin with a digit and hold `-`.
    Partition,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Collection => "collection",
            Self::Alias => "collection alias",
            Self::Field => "field",
            Self::Index => "index",
            Self::Function => "function",
            Self::Database => "database",
            Self::Partition => "partition",
        }
    }

    fn may_begin_with(self, c: char) -> bool {
        c == '_' || c.is_ascii_alphabetic() || (self == Self::Partition && c.is_ascii_digit())
    }

    fn may_contain(self, c: char) -> bool {
        c == '_' || c.is_ascii_alphanumeric() || (self == Self::Partition && c == '-')
    }
}

/// Checks a name that is about to be given to something.
///
/// # Errors
/// Code 1100 (802 for databases) with the rule that is broken.
pub fn check(kind: Kind, name: &str, limits: &Limits) -> Result<(), Failure> {
    let word = kind.word();
    let problem = if name.is_empty() {
        return refuse(kind, format!("{word} name should not be empty"));
    } else if name.len() > limits.name_bytes {
        format!("the length of a {word} name must be not greater than limit {}", limits.name_bytes)
    } else if !name.starts_with(|c| kind.may_begin_with(c)) {
        let first = if kind == Kind::Partition {
            "an underscore, letter or number"
        } else {
            "an underscore or letter"
        };
        format!("the first character of a {word} name must be {first}")
    } else if !name.chars().all(|c| kind.may_contain(c)) {
        let more = if kind == Kind::Partition { ", hyphens" } else { "" };
        format!("{word} name can only contain numbers, letters{more} and underscores")
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(80).collect();
    refuse(kind, format!("Invalid {word} name: {shown}. {problem}"))
}

fn refuse(kind: Kind, reason: String) -> Result<(), Failure> {
    Err(if kind == Kind::Database {
        Failure::new(Code::DatabaseInvalidName, format!("{reason}: {}", Code::DatabaseInvalidName))
    } else {
        Failure::invalid(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_begins_with_a_letter_or_underscore_and_goes_on_with_digits() {
        let limits = Limits::default();
        for name in ["a", "_a1", "A_9", &"x".repeat(255)] {
            check(Kind::Collection, name, &limits).unwrap();
        }
        for name in ["", "1a", "a-b", "a b", "a.b", "é", "$meta", &"x".repeat(256)] {
            let failure = check(Kind::Collection, name, &limits).unwrap_err();
            assert_eq!(failure.code(), Code::ParameterInvalid);
        }
    }

    #[test]
    fn a_refusal_is_worded_as_clients_expect() {
        let text = check(Kind::Collection, "1a", &Limits::default()).unwrap_err();
        assert_eq!(
            text.reason(),
            "Invalid collection name: 1a. the first character of a collection name must be an \
             underscore or letter: invalid parameter"
        );
        let text = check(Kind::Collection, "", &Limits::default()).unwrap_err();
        assert!(text.reason().starts_with("collection name should not be empty"));
    }

    #[test]
    fn a_partition_may_begin_with_a_digit_and_hold_hyphens() {
        check(Kind::Partition, "2024-01", &Limits::default()).unwrap();
        assert!(check(Kind::Partition, "-1", &Limits::default()).is_err());
    }

    #[test]
    fn a_bad_database_name_has_its_own_code() {
        let failure = check(Kind::Database, "a b", &Limits::default()).unwrap_err();
        assert_eq!(failure.code(), Code::DatabaseInvalidName);
    }
}
