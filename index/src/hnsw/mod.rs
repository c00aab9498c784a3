//! A navigable graph for approximate search (HNSW, Malkov & Yashunin 2016).
//!
//! The graph is walked on rows of one byte per dimension (`codes`), which lie in their own
//! aligned array: the bytes read per row decide how fast a walk is. A search walks on rows of half
//! as many bytes (`coarse`), and scores what it found on the codes. Where a trial says that the one
//! or the other would confuse neighbours, it is done without (`space`). The few best are scored on
//! the rows themselves, so scores are exact and only membership is approximate.

mod build;
mod coarse;
mod codes;
mod graph;
mod layout;
mod lines;
mod params;
mod search;
mod seed;
mod space;
#[cfg(test)]
pub(crate) mod tests;
mod trail;
mod walk;

pub use params::HnswParams;
pub use search::HnswIndex;
pub use seed::Seed;
pub use trail::Trail;
