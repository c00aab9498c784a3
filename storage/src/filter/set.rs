//! Sets of constants for `in` and the `contains` functions.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::eval::Scalar;
use super::json;
use super::value::{Const, Num};

/// Hashes one 64-bit integer by a folded multiplication with two secrets, an order of magnitude
/// cheaper than the standard hasher and as hard to aim at for somebody who chooses the keys.
#[derive(Clone, Debug)]
struct Secrets(u64, u64);

impl Default for Secrets {
    fn default() -> Self {
        let random = RandomState::new();
        Self(random.hash_one(0), random.hash_one(1) | 1)
    }
}

struct Folded {
    secrets: Secrets,
    hash: u64,
}

impl BuildHasher for Secrets {
    type Hasher = Folded;
    fn build_hasher(&self) -> Folded {
        Folded { secrets: self.clone(), hash: 0 }
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value ^ self.hash ^ self.secrets.0) * u128::from(self.secrets.1);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }

    fn write_i64(&mut self, value: i64) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// A set of 64-bit integers.
#[derive(Clone, Debug, Default)]
pub(super) struct IntSet {
    members: HashSet<i64, Secrets>,
    /// Smallest and largest member, for a quick no.
    range: Option<(i64, i64)>,
}

impl IntSet {
    pub(super) fn contains(&self, value: i64) -> bool {
        self.range.is_some_and(|(min, max)| min <= value && value <= max)
            && self.members.contains(&value)
    }

    fn insert(&mut self, value: i64) {
        self.members.insert(value);
        let (min, max) = self.range.unwrap_or((value, value));
        self.range = Some((min.min(value), max.max(value)));
    }
}

impl FromIterator<i64> for IntSet {
    fn from_iter<I: IntoIterator<Item = i64>>(values: I) -> Self {
        let mut set = Self::default();
        values.into_iter().for_each(|value| set.insert(value));
        set
    }
}

/// A set of constants of any kind; numbers are equal by value.
#[derive(Clone, Debug, Default)]
pub(super) struct ValueSet {
    ints: IntSet,
    /// Bits of the floats that are no 64-bit integers.
    floats: HashSet<u64>,
    texts: HashSet<String>,
    /// Whether false and true are in the set.
    bools: [bool; 2],
    /// Lists and objects.
    trees: Vec<serde_json::Value>,
}

impl ValueSet {
    /// Adds a constant; bytes cannot be members and are left out.
    pub(super) fn insert(&mut self, value: &Const) {
        if let Some(number) = value.num() {
            match number.canonical() {
                // Canonical integers come from 64-bit ones.
                Num::Int(int) => self.ints.insert(int as i64),
                Num::Float(float) => {
                    self.floats.insert(float.to_bits());
                }
            }
            return;
        }
        match value {
            Const::Bool(value) => self.bools[usize::from(*value)] = true,
            Const::Text(text) => {
                self.texts.insert(text.clone());
            }
            Const::List(_) | Const::Object(_) => self.trees.extend(value.to_json()),
            Const::Int(_) | Const::Float(_) | Const::Bytes(_) => {}
        }
    }

    /// How many different members there are.
    pub(super) fn len(&self) -> usize {
        self.ints.members.len()
            + self.floats.len()
            + self.texts.len()
            + self.bools.iter().filter(|member| **member).count()
            + self.trees.len()
    }

    /// The members; `None` if some are lists or objects.
    pub(super) fn scalars(&self) -> Option<impl Iterator<Item = Scalar<'_>>> {
        let ints = self.ints.members.iter().map(|int| Scalar::Num(Num::Int((*int).into())));
        let floats = self.floats.iter().map(|bits| Scalar::Num(Num::Float(f64::from_bits(*bits))));
        let texts = self.texts.iter().map(|text| Scalar::Text(text));
        let bools = [false, true].into_iter().filter(|value| self.bools[usize::from(*value)]);
        let scalars = ints.chain(floats).chain(texts).chain(bools.map(Scalar::Bool));
        self.trees.is_empty().then_some(scalars)
    }

    /// Whether the value is a member; `None` when the set has members, but none of that type.
    pub(super) fn contains(&self, value: &Scalar<'_>) -> Option<bool> {
        let (found, comparable) = match value {
            Scalar::Num(number) => {
                let found = match number.canonical() {
                    Num::Int(int) => i64::try_from(int).is_ok_and(|int| self.ints.contains(int)),
                    Num::Float(float) => self.floats.contains(&float.to_bits()),
                };
                (found, self.ints.range.is_some() || !self.floats.is_empty())
            }
            Scalar::Text(text) => (self.texts.contains(*text), !self.texts.is_empty()),
            Scalar::Bool(value) => (self.bools[usize::from(*value)], self.bools.contains(&true)),
            Scalar::Tree(tree) => {
                (self.trees.iter().any(|member| json::equal(member, tree)), !self.trees.is_empty())
            }
        };
        (comparable || self.len() == 0).then_some(found)
    }

    /// Whether at least one of the values is a member.
    pub(super) fn meets<'v>(&self, mut values: impl Iterator<Item = Scalar<'v>>) -> bool {
        values.any(|value| self.contains(&value) == Some(true))
    }

    /// Whether every member is among the values, of which there are `len`.
    pub(super) fn within<'v>(&self, len: usize, values: impl Iterator<Item = Scalar<'v>>) -> bool {
        if len < self.len() {
            return false;
        }
        // Count the different members met. Values are few (an array has a capacity), so what was
        // met is kept in a set of its own.
        let mut met = Self::default();
        for value in values {
            if self.contains(&value) == Some(true) {
                match value {
                    Scalar::Num(number) => match number.canonical() {
                        Num::Int(int) => met.ints.insert(int as i64),
                        Num::Float(float) => {
                            met.floats.insert(float.to_bits());
                        }
                    },
                    Scalar::Text(text) => {
                        if !met.texts.contains(text) {
                            met.texts.insert(text.to_owned());
                        }
                    }
                    Scalar::Bool(value) => met.bools[usize::from(value)] = true,
                    Scalar::Tree(tree) => {
                        // Equal members may be listed twice; all of them are met at once.
                        let equal = |member: &&serde_json::Value| json::equal(member, tree);
                        if !met.trees.iter().any(|seen| json::equal(seen, tree)) {
                            met.trees.extend(self.trees.iter().filter(equal).cloned());
                        }
                    }
                }
            }
        }
        met.len() == self.len()
    }
}
