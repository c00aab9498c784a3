//! Sorted terms: the distinct values of the rows in order, and which rows have each.
//!
//! One structure for every question about scalars: one term answers an equality, a run of terms a
//! range or a prefix, the complement a negation. A row may have several terms, as an array does, or
//! none. What a value is as a term is the caller's choice.

mod build;
mod index;
#[cfg(test)]
mod tests;

pub use index::TermIndex;

/// A value in the order of its kind; all numbers come before all texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term<'a> {
    /// What 64 bits hold, by their value: see [`Term::int`] and [`Term::float`].
    Number(u64),
    /// Bytes, by their values.
    Text(&'a [u8]),
}

impl Term<'_> {
    /// What is not a number, after every number.
    pub const NAN: Self = Self::Number(u64::MAX);

    /// An integer.
    #[must_use]
    pub fn int(value: i64) -> Self {
        Self::Number(value.cast_unsigned() ^ 1 << 63)
    }

    /// A float: ascending as floats compare, both zeros the same, [`Self::NAN`] last.
    #[must_use]
    pub fn float(value: f64) -> Self {
        if value.is_nan() {
            return Self::NAN;
        }
        // Adding zero turns the negative one into the other.
        let bits = (value + 0.0).to_bits();
        let negative = bits >> 63 == 1;
        Self::Number(if negative { !bits } else { bits ^ 1 << 63 })
    }
}
