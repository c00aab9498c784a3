//! What a sparse query asks for.

use crate::{Error, SparseRow};

/// The entries of a query, by ascending id.
#[derive(Debug)]
pub(super) struct Terms {
    entries: Vec<(u32, f32)>,
    drop_ratio: f32,
}

impl Terms {
    /// # Errors
    /// [`Error::Unsupported`] if the ratio is not in [0, 1).
    pub(super) fn new(query: SparseRow<'_>, drop_ratio: f32) -> Result<Self, Error> {
        if !(0.0..1.0).contains(&drop_ratio) {
            return Err(Error::Unsupported(format!(
                "a drop ratio is at least 0 and below 1, got {drop_ratio}"
            )));
        }
        Ok(Self { entries: query.iter().collect(), drop_ratio })
    }

    /// All entries but the `⌊drop_ratio · n⌋` of smallest magnitude, of equal ones those with
    /// the larger id; the largest first.
    pub(super) fn heaviest(&self) -> Vec<(u32, f32)> {
        let mut entries = self.entries.clone();
        let dropped = (f64::from(self.drop_ratio) * entries.len() as f64) as usize;
        entries.sort_unstable_by(|(a_id, a), (b_id, b)| {
            b.abs().total_cmp(&a.abs()).then(a_id.cmp(b_id))
        });
        entries.truncate(entries.len() - dropped);
        entries
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

    #[test]
    fn the_smallest_magnitudes_are_dropped() {
        let heaviest = |entries: &[(u32, f32)], ratio: f32| {
            let bytes = encode(entries);
            let terms = Terms::new(SparseRow::trusted(&bytes), ratio).expect("a ratio");
            assert_eq!(terms.iter().collect::<Vec<_>>(), entries);
            terms.heaviest()
        };
        let entries = [(1, 0.5), (2, -3.0), (4, 0.1), (9, 0.5)];
        let by_weight = [(2, -3.0), (1, 0.5), (9, 0.5), (4, 0.1)];
        assert_eq!(heaviest(&entries, 0.0), by_weight);
        assert_eq!(heaviest(&entries, 0.2), by_weight);
        assert_eq!(heaviest(&entries, 0.25), by_weight[..3]);
        assert_eq!(heaviest(&entries, 0.5), by_weight[..2]);
        assert_eq!(heaviest(&entries, 0.99), by_weight[..1]);
        assert_eq!(heaviest(&[], 0.5), []);
    }

    #[test]
    fn a_ratio_outside_zero_to_one_is_refused() {
        let row = SparseRow::trusted(&[]);
        for ratio in [-0.1, 1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(Terms::new(row, ratio), Err(Error::Unsupported(_))), "{ratio}");
        }
    }
}
