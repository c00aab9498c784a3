//! Rows of random numbers, for the benches that need them.

use crate::random::Random;

impl Random {
    /// `count` numbers, each the bytes that `encode` makes of one in [-1, 1).
    pub(crate) fn numbers<const WIDTH: usize>(
        &mut self,
        count: usize,
        encode: fn(f32) -> [u8; WIDTH],
    ) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * WIDTH);
        for _ in 0..count {
            bytes.extend(encode(self.unit() * 2.0 - 1.0));
        }
        bytes
    }
}
