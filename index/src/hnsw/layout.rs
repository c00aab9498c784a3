//! The sections of a graph.
//!
//! | section | holds |
//! |---|---|
//! | [`META`] | `[format, rows, dim, metric, m, entry, layers]` as `u64` |
//! | [`OFFSETS`], [`STEPS`] | the limits of each dimension, `f32` |
//! | [`CENTRE`] | the rows' centre, `f32`; empty if they were not moved there |
//! | [`CODES`] | rows of codes, padded to 64 bytes; where moved, an `f32` in the last four. This and the three before are empty where codes would be too coarse |
//! | [`COARSE`] | rows of half bytes, padded to 64 bytes; where moved, an `f32` in the last four. Empty where they would lose neighbours |
//! | [`BASE`] | `2m` links of each row on the lowest layer, `u32`, [`NONE`] behind the last |
//! | [`UPPER_ENDS`] | end of each upper layer's rows in the next, lowest first, `u32` |
//! | [`UPPER_ROWS`] | rows of each upper layer, ascending, `u32` |
//! | [`UPPER_LINKS`] | their `m` links, `u32`, [`NONE`] behind the last |

use crate::{Metric, Row};

/// Raised whenever the sections change their meaning.
pub(super) const FORMAT: u64 = 2;
/// No row: fills up lists of links.
pub(super) const NONE: Row = Row::MAX;

pub(super) const META: &str = "hnsw.meta";
pub(super) const OFFSETS: &str = "hnsw.offsets";
pub(super) const STEPS: &str = "hnsw.steps";
pub(super) const CENTRE: &str = "hnsw.centre";
pub(super) const CODES: &str = "hnsw.codes";
pub(super) const COARSE: &str = "hnsw.coarse";
pub(super) const BASE: &str = "hnsw.base";
pub(super) const UPPER_ENDS: &str = "hnsw.upper_ends";
pub(super) const UPPER_ROWS: &str = "hnsw.upper_rows";
pub(super) const UPPER_LINKS: &str = "hnsw.upper_links";

/// The number of a metric in [`META`].
pub(super) fn metric_number(metric: Metric) -> u64 {
    match metric {
        Metric::L2 => 0,
        Metric::Ip => 1,
        Metric::Cosine => 2,
        Metric::Hamming => 3,
        Metric::Jaccard => 4,
    }
}
