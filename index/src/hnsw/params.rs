//! What a graph is built with.

use crate::Error;

/// Parameters of a build, with the meaning and limits they have in Milvus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HnswParams {
    /// Links of a row on each upper layer; twice as many on the lowest. 2 to 2,048.
    pub m: usize,
    /// Beam width while building: wider is slower and finds better links. At least 1.
    pub ef_construction: usize,
    /// Decides which rows are on which layer. The same rows, parameters and seed give the same
    /// bytes.
    pub seed: u64,
}

impl Default for HnswParams {
    fn default() -> Self {
        Self { m: 16, ef_construction: 200, seed: 42 }
    }
}

impl HnswParams {
    /// 2,048, as in Milvus.
    pub const MAX_M: usize = 2048;

    pub(super) fn check(&self) -> Result<(), Error> {
        if !(2..=Self::MAX_M).contains(&self.m) {
            return Err(Error::Unsupported(format!(
                "HNSW: M is 2 to {}, got {}",
                Self::MAX_M,
                self.m
            )));
        }
        if self.ef_construction == 0 {
            return Err(Error::Unsupported("HNSW: efConstruction is at least 1, got 0".into()));
        }
        Ok(())
    }

    /// Links of a row on the lowest layer.
    pub(super) fn base_links(&self) -> usize {
        self.m * 2
    }

    /// The highest layer that `row` is on: each layer has one `m`-th of the rows of the one
    /// below (Malkov & Yashunin 2016, section 4.1).
    pub(super) fn level(&self, row: u32) -> u8 {
        // SplitMix64 (Steele, Lea, Flood 2014) of seed and row.
        let mut bits = self.seed ^ u64::from(row).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        // In (0, 1], so that the logarithm is finite.
        let uniform = ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64;
        // At most 53, of a logarithm to base 2.
        (-uniform.ln() / (self.m as f64).ln()) as u8
    }
}
