//! Positions that turn queries and keys (RoFormer: Su et al. 2021).
//!
//! A head's numbers are pairs `(i, i + width / 2)`, each a point that turns with the position, the
//! first pairs fast and the last ones slowly.

use rayon::prelude::*;

use super::attention::Heads;

/// Cosine and sine of every angle, by position.
pub(crate) struct Turns {
    /// `positions × pairs`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Turns {
    /// Angles for `positions` positions of heads with `speeds.len()` pairs: pair `i` turns by
    /// `speeds[i]` radians from a position to the next.
    pub(crate) fn new(positions: usize, speeds: &[f32]) -> Self {
        let angles = (0..positions).flat_map(|at| speeds.iter().map(move |s| at as f32 * s));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { cos, sin, pairs: speeds.len() }
    }

    /// Positions that it has.
    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.pairs.max(1)
    }

    /// Cosines and sines, each `positions × pairs`.
    #[cfg(feature = "cuda")]
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
}

/// Turns the queries and keys of `qkv` (`tokens × 3 hidden`); values stay as they are.
///
/// # Panics
/// If there is not one position that `turns` has for each row; callers check.
pub(crate) fn rotate(qkv: &[f32], heads: Heads, positions: &[u32], turns: &Turns) -> Vec<f32> {
    /// Rows of one task.
    const BLOCK: usize = 64;
    let (width, hidden, pairs) = (heads.width, heads.count * heads.width, turns.pairs);
    let mut out = qkv.to_vec();
    out.par_chunks_mut(BLOCK * 3 * hidden).zip(positions.par_chunks(BLOCK)).for_each(
        |(rows, positions)| {
            for (row, &position) in rows.chunks_exact_mut(3 * hidden).zip(positions) {
                let cos = &turns.cos[position as usize * pairs..][..pairs];
                let sin = &turns.sin[position as usize * pairs..][..pairs];
                for head in row[..2 * hidden].chunks_exact_mut(width) {
                    let (first, second) = head.split_at_mut(pairs);
                    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_keeps_lengths_and_depends_on_the_distance_only() {
        let heads = Heads { count: 2, width: 6 };
        let turns = Turns::new(40, &[1.0, 0.1, 0.01]);
        let row: Vec<f32> = (0..36).map(|i| (i as f32 * 0.7).sin()).collect();
        let at = |positions: &[u32]| {
            let rows: Vec<f32> = positions.iter().flat_map(|_| row.clone()).collect();
            rotate(&rows, heads, positions, &turns)
        };
        let dot = |q: &[f32], k: &[f32]| -> f32 {
            q[..6].iter().zip(&k[12..18]).map(|(a, b)| a * b).sum()
        };
        let out = at(&[0, 7, 12, 19]);
        let rows: Vec<&[f32]> = out.chunks_exact(36).collect();
        assert_eq!(rows[0], row, "the first position turns nothing");
        assert_eq!(rows[3][24..], row[24..], "values do not turn");
        assert!((dot(rows[0], rows[1]) - dot(rows[2], rows[3])).abs() < 1e-5);
        let length = |row: &[f32]| row[..6].iter().map(|x| x * x).sum::<f32>();
        assert!((length(rows[3]) - length(&row)).abs() < 1e-5);
    }
}
