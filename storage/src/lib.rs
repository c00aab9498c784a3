//! Durable collections of which one can take a consistent view.
//!
//! [`Engine`] opens a directory, recovers what it holds and hands out [`Collection`]s. Writes go
//! through one commit log per node and are durable when acknowledged; reads take a [`ReadView`],
//! which never changes and needs no lock. The [`filter`] language selects rows of a view.
//!
//! This crate never sees a wire message, a text to embed or a ranker.
#![deny(unsafe_code)]

mod apply;
mod blobs;
mod budget;
pub mod catalog;
mod checkpoint;
pub mod clock;
mod collection;
mod compact;
mod ddl;
mod disk;
mod document;
mod engine;
mod error;
#[cfg(test)]
mod faults;
pub mod filter;
#[cfg(test)]
mod formats;
#[doc(hidden)]
pub mod fuzzing;
mod huge_pages;
mod iterate;
mod jobs;
mod keys;
mod log;
mod manifest;
pub mod offline;
mod pools;
mod query;
mod recover;
mod refill;
pub mod schema;
mod search;
mod segment;
mod shared;
mod space;
mod untrusted;
mod upkeep;
mod view;

pub use budget::{Held, MemoryUse};
pub use catalog::{
    CatalogView, CollectionChange, CollectionInfo, DatabaseInfo, Grams, GraphDef, IndexDef,
    JsonCast, JsonPath, NewCollection, NewIndex, PartitionInfo, PathStep, TermsDef,
};
pub use clock::{HybridClock, Ts, Wall};
pub use collection::{Collection, IndexProgress, SegmentState, SegmentStats, Stats, Written};
pub use compact::{Compaction, Merge};
pub use engine::{Durability, Engine, Health, LogCounters, Options};
pub use error::Error;
pub use huge_pages::in_huge_pages;
pub use iterate::Iteration;
pub use keys::{Key, KeyRef, Keys};
pub use pools::{Kind, Pools, share_out, share_out_owned};
pub use refill::{RefillProgress, Unfilled};
pub use schema::Schema;
pub use search::{AnnQuery, Found, Scope, Selection};
pub use space::DiskSpace;
pub use view::{ReadView, RowAddr};
