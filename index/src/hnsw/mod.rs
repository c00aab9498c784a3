//! A navigable graph for approximate search (HNSW, Malkov & Yashunin 2016).
//!
//! The graph is walked on rows of one byte per dimension (`codes`), which lie in their own
//! aligned array: the bytes read per row decide how fast a walk is. Where a trial says that codes
//! would confuse neighbours, the rows themselves are walked on (`space`). The few best are scored
//! on the rows themselves, so scores are exact and only membership is approximate.

mod build;
mod codes;
mod graph;
mod layout;
mod params;
mod search;
mod space;
#[cfg(test)]
pub(crate) mod tests;
mod walk;

pub use params::HnswParams;
pub use search::HnswIndex;
