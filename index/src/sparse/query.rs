//! What a sparse query asks for after its smallest entries were left out.

use crate::{Error, SparseRow};

/// The entries of a query that count, by ascending id.
#[derive(Debug)]
pub(super) struct Terms {
    entries: Vec<(u32, f32)>,
}

impl Terms {
    /// Leaves out the `⌊drop_ratio · n⌋` entries of smallest magnitude, of equal ones those
    /// with the larger id.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the ratio is not in [0, 1).
    pub(super) fn new(query: SparseRow<'_>, drop_ratio: f32) -> Result<Self, Error> {
        if !(0.0..1.0).contains(&drop_ratio) {
            return Err(Error::Unsupported(format!(
                "a drop ratio is at least 0 and below 1, got {drop_ratio}"
            )));
        }
        let mut entries: Vec<(u32, f32)> = query.iter().collect();
        let dropped = (f64::from(drop_ratio) * entries.len() as f64) as usize;
        if dropped > 0 {
            entries.sort_unstable_by(|(a_id, a), (b_id, b)| {
                b.abs().total_cmp(&a.abs()).then(a_id.cmp(b_id))
            });
            entries.truncate(entries.len() - dropped);
            entries.sort_unstable_by_key(|(id, _)| *id);
        }
        Ok(Self { entries })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.entries.iter().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparse::row::encode;

    fn kept(entries: &[(u32, f32)], ratio: f32) -> Vec<(u32, f32)> {
        let bytes = encode(entries);
        let row = SparseRow::parse(&bytes).expect("a row");
        Terms::new(row, ratio).expect("a ratio").iter().collect()
    }

    #[test]
    fn the_smallest_magnitudes_are_dropped_and_the_rest_stay_in_order() {
        let entries = [(1, 0.5), (2, -3.0), (4, 0.1), (9, 0.5)];
        assert_eq!(kept(&entries, 0.0), entries);
        assert_eq!(kept(&entries, 0.2), entries);
        assert_eq!(kept(&entries, 0.25), [(1, 0.5), (2, -3.0), (9, 0.5)]);
        assert_eq!(kept(&entries, 0.5), [(1, 0.5), (2, -3.0)]);
        assert_eq!(kept(&entries, 0.99), [(2, -3.0)]);
        assert_eq!(kept(&[], 0.5), []);
    }

    #[test]
    fn a_ratio_outside_zero_to_one_is_refused() {
        let row = SparseRow::trusted(&[]);
        for ratio in [-0.1, 1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(Terms::new(row, ratio), Err(Error::Unsupported(_))), "{ratio}");
        }
    }
}
