//! Indexes over borrowed rows: of vectors, of sparse vectors and of scalars.
//!
//! Bytes come in (from the heap or from a mapped file, the index cannot tell), hits or bytes go
//! out. This crate does no file I/O, starts no threads and knows no async runtime: residency,
//! scheduling and publishing are the business of the storage crate. What is done in parallel
//! runs in the rayon pool that the caller is in.
//!
//! | module | is for |
//! |---|---|
//! | [`kernel`] | distances between rows of bytes, chosen once for the machine at hand |
//! | `vectors`, `mask`, `topk`, `fold`, `cancel`, `progress`, `sections` | what every index is made of |
//! | `flat` | exact search over dense and binary rows |
//! | `hnsw` | approximate search over dense rows |
//! | `sparse` | exact search over sparse rows, with and without an inverted index |
//! | `terms` | sorted values, each with its rows: what filters ask |
//!
//! Inside this crate and above it **a larger score is always better**: distances are negated
//! ([`Metric`]) and restored only where a response is written. Results are deterministic: best
//! first, equal scores by smaller row.
#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("rows and index files are little-endian and are read in place");

#[cfg(test)]
mod baseline;
mod cancel;
mod error;
mod flat;
mod fold;
mod hnsw;
pub mod kernel;
mod mask;
mod progress;
mod search;
mod sections;
mod sparse;
mod terms;
#[cfg(test)]
mod testing;
mod topk;
mod vectors;

pub use cancel::Cancel;
pub use error::Error;
pub use flat::{FlatCodes, FlatIndex};
pub use hnsw::{HnswIndex, HnswParams, Seed, Trail};
pub use mask::RowMask;
pub use progress::Progress;
pub use search::{Bounds, Hit, Metric, Query, Row, SearchParams, VectorIndex};
pub use sections::{InMemory, Sections};
pub use sparse::{SparseIndex, SparseRow, SparseScan, canonical_sparse};
pub use terms::{Term, TermIndex};
pub use topk::{TopK, merge_top_k};
pub use vectors::{Elem, MAX_DIM, Vectors};
