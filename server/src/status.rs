//! The one place that turns an error into a Milvus code.
//!
//! A mistake of the caller or a failure of the node travels *inside* a response, as a `Status`
//! with both the code and the legacy code set, under gRPC status OK: clients retry most gRPC
//! errors for minutes, and some look at one of the two codes only. Handlers speak [`Failure`];
//! nothing else in the crate writes a code into a message.

use std::fmt;

use elanus_proto::codes::Code;
use elanus_proto::common;

/// A request that did not succeed: the code a client sees and the text a person reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: Code,
    reason: String,
}

impl Failure {
    /// A failure with a code and the text shown to the caller.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// The caller sent something that can never succeed: code 1100. The text gets the suffix
    /// `: invalid parameter` that Milvus's own messages carry, unless it already says so.
    pub fn invalid(reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        if !reason.contains("invalid parameter") {
            reason.push_str(": invalid parameter");
        }
        Self::new(Code::ParameterInvalid, reason)
    }

    /// A parameter that is not one of the accepted values, in Milvus's shape
    /// `<what>: invalid parameter[expected=..][actual=..]`.
    pub fn expected(what: &str, expected: impl fmt::Display, actual: impl fmt::Display) -> Self {
        Self::new(
            Code::ParameterInvalid,
            format!("{what}: invalid parameter[expected={expected}][actual={actual}]"),
        )
    }

    /// Something the contract knows and this node does not do: code 10.
    pub fn unimplemented(reason: impl Into<String>) -> Self {
        Self::new(Code::ServiceUnimplemented, reason)
    }

    /// A defect of the node: code 5.
    pub fn internal(reason: impl Into<String>) -> Self {
        Self::new(Code::ServiceInternal, reason)
    }

    /// No such collection or alias: code 100.
    pub fn collection_not_found(db: &str, name: impl fmt::Display) -> Self {
        Self::new(
            Code::CollectionNotFound,
            format!("collection not found[database={db}][collection={name}]"),
        )
    }

    /// No such database: code 800.
    pub fn database_not_found(db: &str) -> Self {
        Self::new(Code::DatabaseNotFound, format!("database not found[database={db}]"))
    }

    /// No such partition: code 200.
    pub fn partition_not_found(name: &str) -> Self {
        Self::new(Code::PartitionNotFound, format!("partition not found[partition={name}]"))
    }

    /// The collection is not loaded: code 101.
    pub fn collection_not_loaded(name: &str) -> Self {
        Self::new(Code::CollectionNotLoaded, format!("collection not loaded[collection={name}]"))
    }

    /// No such index: code 700.
    pub fn index_not_found(what: impl fmt::Display) -> Self {
        Self::new(Code::IndexNotFound, format!("index not found[{what}]"))
    }

    /// Puts what was being done in front of the reason: `<context>: <reason>`.
    #[must_use]
    pub fn context(mut self, context: &str) -> Self {
        self.reason = format!("{context}: {}", self.reason);
        self
    }

    /// The Milvus code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text shown to the caller.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the same request may succeed later: by its code, or because somebody or something
    /// is about to make room.
    pub fn is_retriable(&self) -> bool {
        let short_of_room =
            [Code::ServiceMemoryLimitExceeded, Code::ServiceDiskLimitExceeded].contains(&self.code);
        self.code.retriable() || short_of_room
    }

    /// Whether the request, and not the node, is to blame.
    pub fn is_input_error(&self) -> bool {
        matches!(
            self.code,
            Code::CollectionNotFound
                | Code::CollectionNotLoaded
                | Code::CollectionIllegalSchema
                | Code::CollectionSchemaMismatch
                | Code::PartitionNotFound
                | Code::PartitionNotLoaded
                | Code::ResourceGroupNotFound
                | Code::IndexNotFound
                | Code::IndexNotSupported
                | Code::IndexDuplicate
                | Code::DatabaseNotFound
                | Code::DatabaseInvalidName
                | Code::ParameterInvalid
                | Code::ParameterMissing
                | Code::ParameterTooLarge
                | Code::MetricNotFound
                | Code::AliasNotFound
                | Code::AliasCollectionNameConflict
                | Code::AliasAlreadyExist
                | Code::FieldNotFound
                | Code::FieldInvalidName
                | Code::QueryPlan
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.reason, self.code.number())
    }
}

impl std::error::Error for Failure {}

/// The status of a request that succeeded: all fields at their zero, `extra_info` above all
/// (clients parse a number out of any `extra_info` on a success).
pub fn success() -> common::Status {
    common::Status::default()
}

impl From<&Failure> for common::Status {
    fn from(failure: &Failure) -> Self {
        let mut status = common::Status {
            code: failure.code.number(),
            // Some clients look at the legacy code only.
            error_code: failure.code.legacy().into(),
            reason: failure.reason.clone(),
            retriable: failure.is_retriable(),
            detail: failure.reason.clone(),
            ..Default::default()
        };
        if failure.is_input_error() {
            status.extra_info.insert("is_input_error".to_owned(), "true".to_owned());
        }
        status
    }
}

impl From<elanus_index::Error> for Failure {
    fn from(error: elanus_index::Error) -> Self {
        use elanus_index::Error;
        let text = error.to_string();
        match error {
            Error::Dimension { .. } => Self::invalid(format!("vector dimension mismatch, {text}")),
            Error::Malformed(_) | Error::Unsupported(_) => Self::invalid(text),
            Error::Corrupt(_) | Error::Format { .. } | Error::TooLarge { .. } => {
                Self::internal(text)
            }
            Error::Cancelled => Self::new(Code::Canceled, text),
        }
    }
}

impl From<elanus_embed::Error> for Failure {
    fn from(error: elanus_embed::Error) -> Self {
        use elanus_embed::Error;
        let text = error.to_string();
        match error {
            Error::Overloaded { .. } => Self::new(Code::ServiceTooManyRequests, text),
            Error::Closed | Error::Pending { .. } => Self::new(Code::ServiceUnavailable, text),
            Error::InvalidName { .. } | Error::Invalid(_) | Error::Unsupported(_) => {
                Self::invalid(text)
            }
            Error::ModelNotFound { .. }
            | Error::Load { .. }
            | Error::Tokenize { .. }
            | Error::DeviceMemory(_)
            | Error::Inference(_) => {
                Self::new(Code::FunctionFailed, format!("{}: {text}", Code::FunctionFailed))
            }
        }
    }
}

impl From<elanus_remote::Error> for Failure {
    fn from(error: elanus_remote::Error) -> Self {
        use elanus_remote::Error;
        let text = error.to_string();
        match error {
            Error::Invalid(_) => Self::invalid(text),
            Error::Unreachable { .. }
            | Error::Refused { .. }
            | Error::Garbage { .. }
            | Error::File { .. } => {
                Self::new(Code::FunctionFailed, format!("{}: {text}", Code::FunctionFailed))
            }
        }
    }
}

impl From<elanus_storage::filter::FilterError> for Failure {
    fn from(error: elanus_storage::filter::FilterError) -> Self {
        Self::invalid(format!("{}: {error}", Code::QueryPlan))
    }
}

impl From<elanus_storage::Error> for Failure {
    fn from(error: elanus_storage::Error) -> Self {
        use elanus_storage::Error;
        let text = error.to_string();
        match error {
            Error::DatabaseNotFound(db) => Self::database_not_found(&db),
            Error::DatabaseExists(db) => Self::invalid(format!("database already exist: {db}")),
            Error::DatabaseNotEmpty(db) => Self::invalid(format!(
                "database:{db} not empty, must drop all collections before drop database"
            )),
            Error::CollectionNotFound { db, name } => Self::collection_not_found(&db, name),
            Error::CollectionExists { name, .. } => Self::invalid(format!(
                "create duplicate collection with different parameters, collection: {name}"
            )),
            Error::PartitionNotFound(name) => Self::partition_not_found(&name),
            Error::PartitionExists(name) => {
                Self::invalid(format!("partition already exist: {name}"))
            }
            Error::AliasNotFound(alias) => {
                Self::new(Code::AliasNotFound, format!("{}[alias={alias}]", Code::AliasNotFound))
            }
            Error::AliasExists(alias) => Self::new(
                Code::AliasAlreadyExist,
                format!("{}[alias={alias}]", Code::AliasAlreadyExist),
            ),
            Error::AliasNameConflict(name) => Self::new(
                Code::AliasCollectionNameConflict,
                format!("collection name [{name}] conflicts with an existing alias or collection"),
            ),
            Error::IndexNotFound(name) => Self::index_not_found(format_args!("index={name}")),
            Error::SchemaChanged => Self::new(
                Code::CollectionSchemaMismatch,
                format!("{}: {text}", Code::CollectionSchemaMismatch),
            ),
            Error::IndexExists(_) | Error::Invalid(_) => Self::invalid(text),
            Error::Filter(error) => error.into(),
            Error::Search(error) => error.into(),
            Error::LogPoisoned(_) => Self::new(Code::ServiceUnavailable, text),
            Error::DiskFull(_) => Self::new(
                Code::ServiceDiskLimitExceeded,
                format!("{}: {text}", Code::ServiceDiskLimitExceeded),
            ),
            Error::MemoryLimit(_) => Self::new(Code::ServiceMemoryLimitExceeded, text),
            Error::Io { .. } => Self::new(Code::IoFailed, format!("{}: {text}", Code::IoFailed)),
            Error::Closed => Self::new(Code::ServiceUnavailable, text),
            Error::Corrupt { .. } | Error::Locked { .. } | Error::Internal(_) => {
                Self::internal(format!("{}: {text}", Code::ServiceInternal))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_all_zeros() {
        let status = success();
        assert_eq!((status.code, status.error_code), (0, 0));
        assert!(status.reason.is_empty() && status.extra_info.is_empty() && !status.retriable);
    }

    #[test]
    fn a_failure_sets_both_codes_and_marks_the_callers_mistakes() {
        let status = common::Status::from(&Failure::collection_not_found("default", "books"));
        assert_eq!((status.code, status.error_code), (100, 4));
        assert_eq!(status.reason, "collection not found[database=default][collection=books]");
        assert_eq!(status.extra_info.get("is_input_error").map(String::as_str), Some("true"));
        let status = common::Status::from(&Failure::internal("service internal error: x"));
        assert_eq!((status.code, status.error_code), (5, 1));
        assert!(status.extra_info.is_empty());
    }

    #[test]
    fn a_context_is_put_in_front_of_the_reason() {
        let failure = Failure::collection_not_loaded("demo").context("failed to search");
        assert_eq!(failure.reason(), "failed to search: collection not loaded[collection=demo]");
        assert_eq!(failure.code(), Code::CollectionNotLoaded);
    }

    #[test]
    fn an_invalid_parameter_says_so_once() {
        assert_eq!(Failure::invalid("x is 3").reason(), "x is 3: invalid parameter");
        assert_eq!(Failure::invalid("x: invalid parameter").reason(), "x: invalid parameter");
        assert_eq!(
            Failure::expected("metric type not match", "COSINE", "L2").reason(),
            "metric type not match: invalid parameter[expected=COSINE][actual=L2]"
        );
    }

    #[test]
    fn errors_of_storage_keep_the_codes_and_texts_clients_match_on() {
        use elanus_storage::Error;
        let missing = Error::CollectionNotFound { db: "default".to_owned(), name: "x".to_owned() };
        for (error, code, text) in [
            (missing, 100, "collection not found"),
            (Error::DatabaseNotFound("x".to_owned()), 800, "database not found[database=x]"),
            (Error::PartitionNotFound("x".to_owned()), 200, "partition not found[partition=x]"),
            (Error::IndexNotFound("x".to_owned()), 700, "index not found"),
            (Error::AliasNotFound("x".to_owned()), 1600, "alias not found"),
            (Error::Invalid("x".to_owned()), 1100, "x: invalid parameter"),
            (Error::DiskFull("x".to_owned()), 7, "disk limit exceeded"),
            (Error::MemoryLimit("x".to_owned()), 3, "memory limit"),
            (Error::LogPoisoned("x".to_owned()), 2, "writes are refused"),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.is_retriable(), [2, 3, 7].contains(&code), "{failure}");
            assert_eq!(failure.code().number(), code, "{failure}");
            assert!(failure.reason().contains(text), "{failure}");
        }
    }

    #[test]
    fn a_missing_model_is_a_failed_function() {
        let error = elanus_embed::Error::Closed;
        assert_eq!(Failure::from(error).code(), Code::ServiceUnavailable);
        let error = elanus_embed::Error::Inference("nan".to_owned());
        let failure = Failure::from(error);
        assert_eq!(failure.code(), Code::FunctionFailed);
        assert!(failure.reason().starts_with("function failed"), "{failure}");
    }
}
