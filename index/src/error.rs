//! What can go wrong in a search or on opening an index, by what the caller can do about it.

/// An error of this crate. The caller adds the field's or the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A vector has another width than the field it is searched in or stored for.
    #[error("expected a vector of {expected} dimensions, got {actual}")]
    Dimension {
        /// The field's width.
        expected: usize,
        /// The width that came.
        actual: usize,
    },
    /// Bytes from outside are not a vector: wrong length, duplicate ids, not finite, and so on.
    #[error("malformed vector: {0}")]
    Malformed(String),
    /// The index cannot answer this kind of query.
    #[error("{0}")]
    Unsupported(String),
    /// Bytes that an index was opened from contradict themselves; rebuild the index.
    #[error("corrupt index: {0}")]
    Corrupt(String),
    /// The index was written in another format, by an older or a newer version; rebuild it.
    #[error("an index of format {found}, this version reads {read}")]
    Format {
        /// The format it has.
        found: u64,
        /// The format that is read.
        read: u64,
    },
    /// Building the index would take more memory than it may; it was given up.
    #[error(
        "an index over the first {rows} of {of} rows takes {needed} bytes of memory while it is built, \
         and may take {allowed}"
    )]
    TooLarge {
        /// Bytes for the rows that were looked at.
        needed: usize,
        /// How many rows these are.
        rows: usize,
        /// How many there are in all.
        of: usize,
        /// Bytes that all of them may take.
        allowed: usize,
    },
    /// The caller gave up, or its deadline has passed.
    #[error("the search was cancelled or ran past its deadline")]
    Cancelled,
}
