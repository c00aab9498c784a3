//! The commit log: what happened, in order, durable before it is acknowledged.
//!
//! One log serves all collections of a node, so that one `fdatasync` serves every writer of the
//! moment. [`record`] turns a change into a frame's body and back, [`files`] keeps the files,
//! [`writer`] is the one thread that appends, syncs, applies and acknowledges, [`reader`] replays
//! after a restart.
//!
//! The log does not know segments, manifests or the catalog: whoever opens it hands in an
//! [`writer::Apply`].

pub(crate) mod files;
pub(crate) mod frame;
pub(crate) mod reader;
pub(crate) mod record;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

/// Log sequence number: position of a frame; the first is 1 and none is left out.
pub(crate) type Lsn = u64;
