//! What the tests of several modules share.

use half::{bf16, f16};

use crate::{Elem, Metric};

/// SplitMix64 (Steele, Lea, Flood 2014): repeatable numbers from a seed that a failing test
/// prints.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ bits >> 31
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In [-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub(crate) const DENSE: [Elem; 4] = [Elem::F32, Elem::F16, Elem::Bf16, Elem::I8];

/// Every metric with every element type it applies to.
pub(crate) fn combinations() -> impl Iterator<Item = (Metric, Elem)> {
    let dense = [Metric::L2, Metric::Ip, Metric::Cosine];
    let binary = [Metric::Hamming, Metric::Jaccard];
    let dense = DENSE.into_iter().flat_map(move |elem| dense.map(|metric| (metric, elem)));
    dense.chain(binary.map(|metric| (metric, Elem::Bit)))
}

/// Numbers as bytes of a dense element type, rounded as the type asks.
pub(crate) fn encode(elem: Elem, numbers: &[f32]) -> Vec<u8> {
    let bytes = |number: &f32| match elem {
        Elem::F32 => number.to_le_bytes().to_vec(),
        Elem::F16 => f16::from_f32(*number).to_le_bytes().to_vec(),
        Elem::Bf16 => bf16::from_f32(*number).to_le_bytes().to_vec(),
        Elem::I8 | Elem::Bit => (*number as i8).to_le_bytes().to_vec(),
    };
    numbers.iter().flat_map(bytes).collect()
}

/// The numbers of a row; bits as zeros and ones.
pub(crate) fn decode(elem: Elem, bytes: &[u8]) -> Vec<f64> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match elem {
        Elem::F32 => {
            bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        }
        Elem::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        Elem::Bf16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
        Elem::I8 => bytes.iter().map(|b| f64::from(b.cast_signed())).collect(),
        Elem::Bit => bytes
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| f64::from(byte >> bit & 1)))
            .collect(),
    }
}
