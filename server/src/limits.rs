//! The numbers a request is held against. Defaults are the contract's; each is a setting in the
//! `[limits]` table of the configuration.

use serde::Deserialize;

/// Upper bounds on what one request or one collection may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Hits a search may ask for per query; also the bound on `offset` and `offset + limit`.
    pub top_k: u64,
    /// Query vectors or texts in one search.
    pub queries: u64,
    /// Sub-searches in one hybrid search.
    pub sub_searches: u64,
    /// Hits per group in a grouping search.
    pub group_size: u64,
    /// Fields of a collection, the hidden dynamic field not counted.
    pub fields: usize,
    /// Vector fields of a collection.
    pub vector_fields: usize,
    /// Dimensions of a float, half, bfloat16 or int8 vector.
    pub dim: u32,
    /// Dimensions (bits) of a binary vector.
    pub binary_dim: u32,
    /// Bytes of a VARCHAR.
    pub varchar_bytes: u32,
    /// Elements of an ARRAY.
    pub array_elements: u32,
    /// Bytes of one JSON value, and of one row's dynamic fields.
    pub json_bytes: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Shards a collection may declare.
    pub shards: i32,
    /// Partitions of a collection.
    pub partitions: usize,
    /// Collections of the node.
    pub collections: usize,
    /// Databases of the node.
    pub databases: usize,
    /// Bytes of one query or search answer before encoding.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            top_k: 16_384,
            queries: 16_384,
            sub_searches: 1_024,
            group_size: 10,
            fields: 64,
            vector_fields: 10,
            dim: 32_768,
            binary_dim: 262_144,
            varchar_bytes: 65_535,
            array_elements: 4_096,
            json_bytes: 65_536,
            name_bytes: 255,
            shards: 16,
            partitions: 1_024,
            collections: 65_536,
            databases: 64,
            output_bytes: 104_857_600,
        }
    }
}
