//! The wire and storage layout of one sparse row: `(u32, f32)*`, little-endian, ids strictly
//! ascending.

use std::borrow::Cow;

use crate::Error;

/// Bytes of one (id, weight) entry.
const ENTRY: usize = 8;

/// A sparse row in its own layout, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseRow<'a> {
    entries: &'a [[u8; ENTRY]],
}

impl<'a> SparseRow<'a> {
    /// Takes bytes from outside as a row.
    ///
    /// # Errors
    /// [`Error::Malformed`] unless the bytes are whole entries with strictly ascending ids below
    /// `u32::MAX` and finite weights.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let row = Self::whole(bytes)?;
        let mut last = None;
        for (id, weight) in row.iter() {
            check_entry(id, weight)?;
            match last {
                Some(last) if last == id => return Err(duplicate(id)),
                Some(last) if last > id => {
                    return Err(Error::Malformed(format!(
                        "sparse vector ids must ascend, {id} comes after {last}"
                    )));
                }
                Some(_) | None => last = Some(id),
            }
        }
        Ok(row)
    }

    /// Takes bytes that were checked when they were stored. Bytes past the last whole entry are
    /// ignored; should the ids not ascend after all, scores are wrong but nothing breaks.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> Self {
        Self { entries: bytes.as_chunks().0 }
    }

    fn whole(bytes: &'a [u8]) -> Result<Self, Error> {
        let (entries, rest) = bytes.as_chunks();
        if rest.is_empty() {
            return Ok(Self { entries });
        }
        Err(Error::Malformed(format!(
            "a sparse vector is a list of {ENTRY}-byte entries, got {} bytes",
            bytes.len()
        )))
    }

    /// The (id, weight) pairs, by ascending id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, f32)> + Clone + use<'a> {
        self.entries.iter().map(|entry| decode(*entry))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The row as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.entries.as_flattened()
    }
}

fn decode([a, b, c, d, e, f, g, h]: [u8; ENTRY]) -> (u32, f32) {
    (u32::from_le_bytes([a, b, c, d]), f32::from_le_bytes([e, f, g, h]))
}

fn check_entry(id: u32, weight: f32) -> Result<(), Error> {
    if id == u32::MAX {
        return Err(Error::Malformed(format!(
            "sparse vector ids must be below {}, got {id}",
            u32::MAX
        )));
    }
    if !weight.is_finite() {
        return Err(Error::Malformed(format!(
            "sparse vector weights must be finite, id {id} has {weight}"
        )));
    }
    Ok(())
}

fn duplicate(id: u32) -> Error {
    Error::Malformed(format!("sparse vector ids must be unique, {id} comes twice"))
}

/// Brings the entries of a sparse vector from outside into ascending order.
///
/// Borrows where they are already.
///
/// # Errors
/// [`Error::Malformed`] unless the bytes are whole entries with unique ids below `u32::MAX` and
/// finite weights.
pub fn canonical_sparse(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    let row = SparseRow::whole(bytes)?;
    if row.iter().is_sorted_by(|(a, _), (b, _)| a < b) {
        SparseRow::parse(bytes)?;
        return Ok(Cow::Borrowed(bytes));
    }
    let mut entries = row.entries.to_vec();
    entries.sort_unstable_by_key(|entry| decode(*entry).0);
    let sorted = entries.into_flattened();
    SparseRow::parse(&sorted)?;
    Ok(Cow::Owned(sorted))
}

/// The bytes of a row with these entries, as given.
#[cfg(test)]
pub(crate) fn encode(entries: &[(u32, f32)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(id, weight)| [id.to_le_bytes(), weight.to_le_bytes()].concat())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(entries: &[(u32, f32)]) -> bool {
        let bytes = encode(entries);
        let both = (SparseRow::parse(&bytes), canonical_sparse(&bytes));
        matches!(both, (Err(Error::Malformed(_)), Err(Error::Malformed(_))))
    }

    #[test]
    fn what_is_no_sparse_vector_is_refused() {
        assert!(refused(&[(3, 1.0), (3, 2.0)]));
        assert!(refused(&[(9, 0.0), (3, 1.0), (9, 2.0)]));
        assert!(refused(&[(u32::MAX, 1.0)]));
        assert!(refused(&[(1, f32::NAN)]));
        assert!(refused(&[(2, 1.0), (1, f32::INFINITY)]));
        assert!(matches!(SparseRow::parse(&[0; 12]), Err(Error::Malformed(_))));
        assert!(matches!(canonical_sparse(&[0; 7]), Err(Error::Malformed(_))));
    }

    #[test]
    fn descending_ids_are_sorted_by_one_door_and_refused_by_the_other() {
        let bytes = encode(&[(7, 1.0), (2, -3.0)]);
        assert!(matches!(SparseRow::parse(&bytes), Err(Error::Malformed(_))));
        let sorted = canonical_sparse(&bytes).expect("unique ids");
        assert_eq!(&*sorted, encode(&[(2, -3.0), (7, 1.0)]));
    }

    #[test]
    fn trusted_bytes_lose_a_broken_end_and_nothing_else() {
        let mut bytes = encode(&[(1, 1.0), (2, 2.0)]);
        bytes.pop();
        assert_eq!(SparseRow::trusted(&bytes).iter().collect::<Vec<_>>(), [(1, 1.0)]);
    }

    proptest! {
        #[test]
        fn canonical_rows_hold_the_same_entries_in_order(
            entries in proptest::collection::btree_map(0u32..1000, -5.0f32..5.0, 0..50),
            seed in any::<u64>(),
        ) {
            let sorted: Vec<(u32, f32)> = entries.into_iter().collect();
            let mut shuffled = sorted.clone();
            shuffled.sort_by_key(|(id, _)| u64::from(*id).wrapping_mul(seed | 1));
            let bytes = encode(&shuffled);
            let canonical = canonical_sparse(&bytes).expect("unique ids");
            let row = SparseRow::parse(&canonical).expect("canonical");
            prop_assert_eq!(row.iter().collect::<Vec<_>>(), sorted);
        }

        #[test]
        fn any_bytes_either_parse_or_are_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(canonical) = canonical_sparse(&bytes) {
                prop_assert!(SparseRow::parse(&canonical).is_ok());
            }
            prop_assert_eq!(SparseRow::trusted(&bytes).len(), bytes.len() / 8);
        }
    }
}
