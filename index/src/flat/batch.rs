//! Up to 64 float32 queries in one pass over the rows.
//!
//! A row is scored exactly only for queries of which its inner product, as [`Tiles`] sums it,
//! could still enter the top `k`.

use crate::kernel::{LEAST_SQUARE, Level, Limit, TILE_ROWS, Tiles};
use crate::{Cancel, Error, Hit, Metric, Query, Row, RowMask, SearchParams, TopK};

use super::{ROWS_PER_CHECK, Scorer, offer};

/// Queries on their way through the rows.
pub(super) struct Batch<'a> {
    scorer: Scorer,
    queries: Vec<InBatch<'a>>,
    tiles: Tiles,
    slack: f32,
}

struct InBatch<'a> {
    bytes: &'a [u8],
    scale: f32,
    /// Squared length.
    square: f32,
    top: TopK,
}

impl<'a> Batch<'a> {
    /// `queries` are at most [`TILE_QUERIES`](crate::kernel::TILE_QUERIES) and as wide as the rows of `scorer`.
    pub(super) fn new(
        scorer: Scorer,
        queries: &[Query<'a>],
        params: &SearchParams,
    ) -> Result<Self, Error> {
        let queries = queries.iter().map(|query| {
            let bytes = query.dense()?;
            Ok(InBatch {
                bytes,
                scale: scorer.scale(bytes),
                square: (scorer.square)(bytes, bytes),
                top: TopK::new(params.k, params.bounds),
            })
        });
        let queries = queries.collect::<Result<Vec<_>, Error>>()?;
        let packed: Vec<&[u8]> = queries.iter().map(|query| query.bytes).collect();
        // Product and kernel each err by at most `dim · u · |q| · |x|` (`u` = 2⁻²⁴, Higham,
        // *Accuracy and Stability*, §3.1), and the squared lengths by `dim · u` of themselves;
        // the slack is twice the sum of what enters a limit.
        let slack = 2.0 * (scorer.vectors.dim() as f32 + 8.0) * f32::EPSILON;
        let square = if scorer.metric == Metric::L2 { (1.0 - slack) / 2.0 } else { 0.0 };
        let tiles = Tiles::new(Level::best(), &packed, square);
        Ok(Self { scorer, queries, tiles, slack })
    }

    /// The best of the allowed rows for each query.
    pub(super) fn search(
        mut self,
        allowed: &RowMask,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        (0..self.queries.len()).for_each(|query| self.set_limit(query));
        let mut rows = allowed.iter();
        let mut tile = take(&mut rows);
        let mut visited = 0;
        while let Some(of) = tile {
            if visited % ROWS_PER_CHECK < TILE_ROWS {
                cancel.check()?;
            }
            visited += TILE_ROWS;
            let next = take(&mut rows);
            self.visit(of, next.unwrap_or(of));
            tile = next;
        }
        Ok(self.queries.into_iter().map(|query| query.top.into_hits()).collect())
    }

    fn visit(&mut self, tile: [Row; TILE_ROWS], next: [Row; TILE_ROWS]) {
        let vectors = &self.scorer.vectors;
        let words =
            self.tiles.pass(tile.map(|row| vectors.row(row)), next.map(|row| vectors.row(row)));
        let mut changed = 0;
        for (at, (row, mut word)) in tile.into_iter().zip(words).enumerate() {
            // The last tile is filled up with its last row.
            if at > 0 && row == tile[at - 1] {
                break;
            }
            changed |= word;
            while word != 0 {
                let query = &mut self.queries[word.trailing_zeros() as usize];
                offer(&mut query.top, row, self.scorer.score(query.bytes, query.scale, row));
                word &= word - 1;
            }
        }
        while changed != 0 {
            self.set_limit(changed.trailing_zeros() as usize);
            changed &= changed - 1;
        }
    }

    /// Lets pass what may score above the query's floor.
    fn set_limit(&mut self, at: usize) {
        let query = &self.queries[at];
        let length = query.square.sqrt();
        let (slack, floor) = (self.slack, query.top.floor().unwrap_or(f32::NAN));
        let (constant, linear) = match self.scorer.metric {
            // product > floor - slack |q| |x|
            Metric::Ip | Metric::Hamming | Metric::Jaccard => (floor, -slack * length),
            // product / |x| * scale > floor - slack
            Metric::Cosine => (0.0, (floor - slack) / query.scale),
            // 2 product - |q|² - |x|² > floor - slack (|q| + |x|)²
            Metric::L2 => ((floor + (1.0 - slack) * query.square) / 2.0, -slack * length),
        };
        // What overflows, or is too small for its square to be exact, says nothing.
        let known = constant.is_finite() && linear.is_finite() && query.square > LEAST_SQUARE;
        let constant = if known { constant } else { f32::NAN };
        self.tiles.set_limit(at, Limit { constant, linear });
    }
}

/// The next rows, the last one again and again where there are no more.
fn take(rows: &mut impl Iterator<Item = Row>) -> Option<[Row; TILE_ROWS]> {
    let mut tile = [rows.next()?; TILE_ROWS];
    for at in 1..TILE_ROWS {
        tile[at] = rows.next().unwrap_or(tile[at - 1]);
    }
    Some(tile)
}
