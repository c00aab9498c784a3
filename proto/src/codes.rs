//! Error codes: the number, the legacy number, and whether to try again.
//!
//! A failed answer carries two numbers. `Status.code` is a [`Code`]; `Status.error_code` is the
//! older, coarser [`ErrorCode`], and some clients judge by it alone. [`Code::legacy`] is the one
//! place that relates them.
//!
//! Codes that only a cluster can answer with (message queues, compaction tasks, replication) are
//! left out; so are those of the REST layer.

use std::fmt;

use crate::common::ErrorCode;

macro_rules! codes {
    ($($name:ident = $number:literal, $kind:ident, $message:literal;)*) => {
        /// Why a call failed: `Status.code`, never zero.
        ///
        /// [`Display`](fmt::Display) writes the base message ("collection not loaded"), which
        /// clients match on by substring.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i32)]
        pub enum Code {
            $(#[doc = concat!("`", $number, "`: ", $message, ".")] $name = $number,)*
        }

        impl Code {
            /// Every code, in ascending order.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// The code with this number, if there is one.
            pub const fn from_number(number: i32) -> Option<Code> {
                match number {
                    $($number => Some(Code::$name),)*
                    _ => None,
                }
            }

            /// The name, as Milvus spells it ("CollectionNotLoaded").
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$name => stringify!($name),)*
                }
            }

            /// The text a reason is built on: `<context>: <message>[key=value]: <cause>`.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Code::$name => $message,)*
                }
            }

            /// Whether the same call may succeed when it is sent again: `Status.retriable`.
            pub const fn retriable(self) -> bool {
                match self {
                    $(Code::$name => codes!(@$kind),)*
                }
            }
        }
    };
    (@retriable) => { true };
    (@final) => { false };
}

codes! {
    ServiceNotReady = 1, retriable, "service not ready";
    ServiceUnavailable = 2, retriable, "service unavailable";
    ServiceMemoryLimitExceeded = 3, final, "memory limit exceeded";
    ServiceTooManyRequests = 4, retriable, "too many concurrent requests, queue is full";
    ServiceInternal = 5, final, "service internal error";
    ServiceCrossClusterRouting = 6, final, "cross cluster routing";
    ServiceDiskLimitExceeded = 7, final, "disk limit exceeded";
    ServiceRateLimit = 8, retriable, "rate limit exceeded";
    ServiceQuotaExceeded = 9, final, "quota exceeded";
    ServiceUnimplemented = 10, final, "service unimplemented";
    ServiceTimeTickLongDelay = 11, final, "time tick long delay";
    ServiceResourceInsufficient = 12, retriable, "service resource insufficient";
    CollectionNotFound = 100, final, "collection not found";
    CollectionNotLoaded = 101, final, "collection not loaded";
    CollectionNumLimitExceeded = 102, final, "exceeded the limit number of collections";
    CollectionNotFullyLoaded = 103, retriable, "collection not fully loaded";
    CollectionLoaded = 104, final, "collection already loaded";
    CollectionIllegalSchema = 105, final, "illegal collection schema";
    CollectionOnRecovering = 106, retriable, "collection on recovering";
    CollectionVectorClusteringKeyNotAllowed = 107, final, "vector clustering key not allowed";
    CollectionReplicateMode = 108, final, "can't operate on the collection under standby mode";
    CollectionSchemaMismatch = 109, final, "collection schema mismatch";
    CollectionSchemaVersionNotReady = 110, retriable, "schema version not ready";
    PartitionNotFound = 200, final, "partition not found";
    PartitionNotLoaded = 201, final, "partition not loaded";
    PartitionNotFullyLoaded = 202, retriable, "partition not fully loaded";
    GeneralCapacityExceeded = 250, final, "general capacity exceeded";
    ResourceGroupNotFound = 300, final, "resource group not found";
    ResourceGroupAlreadyExist = 301, final, "resource group already exist";
    ResourceGroupIllegalConfig = 303, final, "resource group illegal config";
    ResourceGroupNodeNotEnough = 304, final, "resource group node not enough";
    ResourceGroupServiceAvailable = 305, final, "resource group service available";
    ReplicaNotFound = 400, final, "replica not found";
    ReplicaNotAvailable = 401, final, "replica not available";
    ChannelNotFound = 500, final, "channel not found";
    ChannelLack = 501, final, "channel lacks";
    ChannelNotAvailable = 503, final, "channel not available";
    SegmentNotFound = 600, final, "segment not found";
    SegmentNotLoaded = 601, final, "segment not loaded";
    IndexNotFound = 700, final, "index not found";
    IndexNotSupported = 701, final, "index type not supported";
    IndexDuplicate = 702, final, "index duplicates";
    TaskDuplicate = 703, final, "task duplicates";
    DatabaseNotFound = 800, final, "database not found";
    DatabaseNumLimitExceeded = 801, final, "exceeded the limit number of database";
    DatabaseInvalidName = 802, final, "invalid database name";
    NodeNotFound = 901, final, "node not found";
    NodeOffline = 902, final, "node offline";
    NodeNotMatch = 904, final, "node not match";
    NodeNotAvailable = 905, final, "node not available";
    IoKeyNotFound = 1000, final, "key not found";
    IoFailed = 1001, final, "IO failed";
    ParameterInvalid = 1100, final, "invalid parameter";
    ParameterMissing = 1101, final, "missing parameter";
    ParameterTooLarge = 1102, final, "parameter too large";
    MetricNotFound = 1200, final, "metric not found";
    PrivilegeNotAuthenticated = 1400, final, "not authenticated";
    PrivilegeNotPermitted = 1401, final, "privilege not permitted";
    PrivilegeGroupInvalidName = 1402, final, "invalid privilege group name";
    AliasNotFound = 1600, final, "alias not found";
    AliasCollectionNameConflict = 1601, final, "alias and collection name conflict";
    AliasAlreadyExist = 1602, final, "alias already exist";
    CollectionIdOfAliasNotFound = 1603, final, "collection id of alias not found";
    FieldNotFound = 1700, final, "field not found";
    FieldInvalidName = 1701, final, "field name invalid";
    ExecutionEngine = 2000, final, "segcore error";
    ImportFailed = 2100, final, "importing data failed";
    ImportLimitReached = 2101, final, "importing data reached limit";
    InconsistentRequery = 2200, retriable, "inconsistent requery result";
    QueryPlan = 2201, final, "failed to create query plan";
    FunctionFailed = 2400, final, "function failed";
    OperationNotSupported = 3000, final, "unsupported operation";
    Canceled = 10000, final, "context canceled";
    Timeout = 10001, final, "context deadline exceeded";
    Unexpected = 65535, final, "unexpected error";
}

impl Code {
    /// The number that travels in `Status.code`.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// What travels in `Status.error_code` next to this code.
    pub const fn legacy(self) -> ErrorCode {
        #[expect(clippy::wildcard_enum_match_arm, reason = "Milvus maps all others to one number")]
        match self {
            Code::ServiceNotReady => ErrorCode::NotReadyServe,
            Code::ServiceMemoryLimitExceeded => ErrorCode::InsufficientMemoryToLoad,
            Code::ServiceDiskLimitExceeded => ErrorCode::DiskQuotaExhausted,
            Code::ServiceRateLimit => ErrorCode::RateLimit,
            Code::ServiceQuotaExceeded => ErrorCode::ForceDeny,
            Code::ServiceTimeTickLongDelay => ErrorCode::TimeTickLongDelay,
            Code::CollectionNotFound => ErrorCode::CollectionNotExists,
            Code::CollectionSchemaMismatch => ErrorCode::SchemaMismatch,
            Code::PartitionNotFound | Code::ReplicaNotFound | Code::ChannelLack => {
                ErrorCode::MetaFailed
            }
            Code::ReplicaNotAvailable | Code::ChannelNotAvailable | Code::NodeNotAvailable => {
                ErrorCode::NoReplicaAvailable
            }
            Code::SegmentNotFound => ErrorCode::SegmentNotFound,
            Code::IndexNotFound => ErrorCode::IndexNotExist,
            Code::NodeNotMatch => ErrorCode::NodeIdNotMatch,
            Code::ParameterInvalid => ErrorCode::IllegalArgument,
            _ => ErrorCode::UnexpectedError,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_code_and_no_other() {
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(code));
        }
        assert_eq!(Code::from_number(0), None, "zero is success, not a code");
        assert_eq!(Code::from_number(-1), None);
        assert!(Code::ALL.is_sorted_by(|a, b| a.number() < b.number()));
    }

    #[test]
    fn no_failure_looks_like_success_to_a_client_that_reads_only_the_legacy_code() {
        for code in Code::ALL {
            assert_ne!(code.legacy(), ErrorCode::Success, "{code:?}");
        }
    }

    #[test]
    fn clients_find_the_legacy_numbers_they_branch_on() {
        let expected = [
            (Code::CollectionNotFound, 4),
            (Code::ParameterInvalid, 5),
            (Code::PartitionNotFound, 15),
            (Code::IndexNotFound, 25),
            (Code::ServiceRateLimit, 49),
            (Code::CollectionSchemaMismatch, 62),
            (Code::CollectionNotLoaded, 1),
            (Code::DatabaseNotFound, 1),
        ];
        for (code, number) in expected {
            assert_eq!(code.legacy() as i32, number, "{code:?}");
        }
    }

    #[test]
    fn exactly_the_passing_conditions_are_retriable() {
        let retriable: Vec<i32> =
            Code::ALL.iter().filter(|code| code.retriable()).map(|code| code.number()).collect();
        assert_eq!(retriable, [1, 2, 4, 8, 12, 103, 106, 110, 202, 2200]);
    }

    #[test]
    fn texts_that_applications_match_on_are_kept() {
        let expected = [
            (Code::CollectionNotFound, "collection not found"),
            (Code::CollectionNotLoaded, "collection not loaded"),
            (Code::IndexNotFound, "index not found"),
            (Code::DatabaseNotFound, "database not found"),
            (Code::PartitionNotFound, "partition not found"),
            (Code::PartitionNotLoaded, "partition not loaded"),
        ];
        for (code, text) in expected {
            assert_eq!(code.to_string(), text);
        }
        assert_eq!(Code::CollectionNotLoaded.name(), "CollectionNotLoaded");
    }
}
