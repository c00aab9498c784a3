//! Chance that can be repeated.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// A number from the environment, or `default`: how long a test runs that can run longer.
pub fn from_env(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number")),
        Err(_) => default,
    }
}

/// A seeded generator.
pub struct Random(SmallRng);

impl Random {
    /// The generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
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
        self.0.random()
    }

    /// A number in `0..bound`; `bound` is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `count` different members of `items`, or all of them if there are fewer.
    pub fn pick<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        items.sample(&mut self.0, count).copied().collect()
    }
}
