//! The filter language.

use std::ops::Range;

/// A filter that cannot be used, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// Byte range in the filter's text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
}
