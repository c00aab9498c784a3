//! Chance that can be repeated.

/// A small seeded generator (SplitMix64; Steele, Lea & Flood, 2014).
pub struct Random(u64);

impl Random {
    /// The generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed in `ELANUS_SEED`, or `default`. Printed, so that a failing run tells it.
    pub fn seed_from_env(default: u64) -> u64 {
        let seed = match std::env::var("ELANUS_SEED") {
            Ok(text) => text.parse().expect("ELANUS_SEED is a whole number"),
            Err(_) => default,
        };
        eprintln!("seed {seed}: repeat this run with ELANUS_SEED={seed}");
        seed
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `count` different members of `items`, or all of them if there are fewer.
    pub fn pick<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut items = items.to_vec();
        let count = count.min(items.len());
        for i in 0..count {
            let j = i + self.below(items.len() - i);
            items.swap(i, j);
        }
        items.truncate(count);
        items
    }
}
