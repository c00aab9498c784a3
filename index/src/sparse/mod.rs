//! Sparse rows and exact search over them by inner product.
//!
//! A sparse row is a set of (id, weight) pairs. A row that shares no id with the query is no
//! hit; one that does is a hit whatever its score. Products are added in the order of the ids,
//! so scanning and the inverted index give the same scores to the last bit.

mod build;
mod index;
mod query;
mod row;
mod scan;
mod sketch;
#[cfg(test)]
pub(crate) mod tests;
mod window;

pub use index::SparseIndex;
pub use row::{SparseRow, canonical_sparse};
pub use scan::SparseScan;
