//! Primary keys: one, many, and the column they come from.

use std::cmp::Ordering;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef};
use arrow_buffer::ScalarBuffer;
use serde::{Deserialize, Serialize};

use crate::Error;

/// One primary key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Key {
    /// Of an INT64 field.
    Int(i64),
    /// Of a VARCHAR field.
    Str(String),
}

impl Key {
    /// The key without its ownership.
    pub fn as_ref(&self) -> KeyRef<'_> {
        match self {
            Self::Int(key) => KeyRef::Int(*key),
            Self::Str(key) => KeyRef::Str(key),
        }
    }
}

/// One borrowed primary key. Integers sort below strings; a collection has only one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRef<'a> {
    /// Of an INT64 field.
    Int(i64),
    /// Of a VARCHAR field.
    Str(&'a str),
}

impl KeyRef<'_> {
    /// The key with its own memory.
    pub fn to_key(self) -> Key {
        match self {
            Self::Int(key) => Key::Int(key),
            Self::Str(key) => Key::Str(key.to_owned()),
        }
    }
}

/// Primary keys of one kind, in the caller's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// Of an INT64 field.
    Int(Vec<i64>),
    /// Of a VARCHAR field.
    Str(Vec<String>),
}

impl Keys {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Int(keys) => keys.len(),
            Self::Str(keys) => keys.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th key.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn get(&self, i: usize) -> KeyRef<'_> {
        match self {
            Self::Int(keys) => KeyRef::Int(keys[i]),
            Self::Str(keys) => KeyRef::Str(&keys[i]),
        }
    }

    /// All keys in order.
    pub fn iter(&self) -> impl Iterator<Item = KeyRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// A primary-key column of a batch or a segment: typed access without copies.
#[derive(Clone, Debug)]
pub(crate) enum KeyColumn {
    /// Of an INT64 field.
    Int(ScalarBuffer<i64>),
    /// Of a VARCHAR field.
    Str(arrow_array::LargeStringArray),
}

impl KeyColumn {
    /// Wraps the column.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it holds nulls or is neither Int64 nor LargeUtf8.
    pub(crate) fn new(column: &ArrayRef) -> Result<Self, Error> {
        if column.null_count() > 0 {
            return Err(Error::Invalid("the primary key column holds nulls".into()));
        }
        if let Some(values) = column.as_primitive_opt::<Int64Type>() {
            Ok(Self::Int(values.values().clone()))
        } else if let Some(values) = column.as_string_opt::<i64>() {
            Ok(Self::Str(values.clone()))
        } else {
            Err(Error::Invalid(format!(
                "a primary key column is Int64 or LargeUtf8, this one is {}",
                column.data_type()
            )))
        }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Int(values) => values.len(),
            Self::Str(values) => values.len(),
        }
    }

    /// The key of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn get(&self, row: usize) -> KeyRef<'_> {
        match self {
            Self::Int(values) => KeyRef::Int(values[row]),
            Self::Str(values) => KeyRef::Str(values.value(row)),
        }
    }

    /// All keys in row order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = KeyRef<'_>> {
        (0..self.len()).map(|row| self.get(row))
    }

    /// In a column that is sorted, the rows at or after `from` that hold `key`.
    pub(crate) fn equal_range(&self, key: KeyRef<'_>, from: usize) -> std::ops::Range<usize> {
        let start = self.partition_point(from, |candidate| candidate < key);
        // Versions of one key are few, so walking beats a second binary search.
        let mut end = start;
        while end < self.len() && self.get(end).cmp(&key) == Ordering::Equal {
            end += 1;
        }
        start..end
    }

    /// In a column that is sorted, the first row at or after `from` for which `before` is false.
    pub(crate) fn partition_point(
        &self,
        from: usize,
        before: impl Fn(KeyRef<'_>) -> bool,
    ) -> usize {
        let (mut low, mut high) = (from.min(self.len()), self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.get(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Int64Array, LargeStringArray};

    use super::*;

    #[test]
    fn equal_ranges_are_found_in_a_sorted_column() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 3, 3, 3, 8]));
        let keys = KeyColumn::new(&column).unwrap();
        assert_eq!(keys.equal_range(KeyRef::Int(3), 0), 1..4);
        assert_eq!(keys.equal_range(KeyRef::Int(3), 2), 2..4);
        assert_eq!(keys.equal_range(KeyRef::Int(4), 0), 4..4);
        assert_eq!(keys.equal_range(KeyRef::Int(9), 0), 5..5);
        let column: ArrayRef = Arc::new(LargeStringArray::from(vec!["a", "b", "b"]));
        let keys = KeyColumn::new(&column).unwrap();
        assert_eq!(keys.equal_range(KeyRef::Str("b"), 0), 1..3);
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn only_keys_are_keys() {
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
        assert!(KeyColumn::new(&flags).unwrap_err().to_string().contains("Boolean"));
        let holes: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        assert!(KeyColumn::new(&holes).unwrap_err().to_string().contains("nulls"));
    }
}
