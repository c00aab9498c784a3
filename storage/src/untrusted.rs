//! Reading bytes that nobody vouches for with code that may panic on them.
//!
//! A checksum tells damage from data, but not data from what somebody made to look like it, and
//! the body of a column is decoded before its checksum can be computed. Arrow's reader checks
//! what it is given, and panics at some of the mistakes it finds: here those are errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::pools::panicked;

/// What `read` makes of its bytes; a panic is an error like any other.
pub(crate) fn decoded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(panicked(&*panic).to_string()))
}
