//! Several queries against several rows at once: which of them may be close enough.
//!
//! Rows are read where they lie; only the queries are packed, once for all rows. The inner
//! products of a tile, six rows with up to 64 queries, are summed in registers, each compared
//! with its [`Limit`] there, and forgotten: what passes is few, and is scored again by the
//! [`Kernel`](super::Kernel) that scores a row alone. Machines without AVX2 have a general matrix
//! product in their place.

use faer::{Accum, MatMut, MatRef, Par};

use super::Level;

/// Queries of a panel.
const PANEL: usize = 16;
/// Rows of a tile.
pub const TILE_ROWS: usize = 6;
/// Queries of a tile at most: a bit each in a word.
pub const TILE_QUERIES: usize = 64;
/// Squared lengths below this may have lost digits to numbers too small for single precision.
pub const LEAST_SQUARE: f32 = 1e-30;

/// A number of each query of a panel: a cache line, so that no load straddles two.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Numbers(pub(super) [f32; PANEL]);

impl Numbers {
    const ZERO: Self = Self([0.0; PANEL]);
}

/// What the inner product `p` of a query with a row of length `x` must not be at or below to
/// matter: `constant + linear · x + square · x²`, where `square` is that of all queries of a
/// [`Tiles`]. A limit that is not a number lets every row through.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// What no length changes.
    pub constant: f32,
    /// How much a row's length counts.
    pub linear: f32,
}

/// The limits of one panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) constant: Numbers,
    pub(super) linear: Numbers,
}

/// Up to [`TILE_QUERIES`] float32 queries, packed, and their limits.
#[derive(Debug)]
pub struct Tiles {
    tile: Tile,
    panels: Panels,
    queries: usize,
}

/// What a [`Tile`] reads of the queries.
#[derive(Debug)]
pub(super) struct Panels {
    /// Panel by panel; within one, dimension by dimension.
    pub(super) numbers: Vec<Vec<Numbers>>,
    /// Of each panel.
    pub(super) limits: Vec<Limits>,
    /// Of all queries; see [`Limit`].
    pub(super) square: f32,
}

/// Bit `i` of the word of a row is set where its product with query `i` passes that limit, and
/// may be set for queries that are not there. Meanwhile the rows `next` are asked for.
pub(super) type Tile =
    fn(&Panels, [&[u8]; TILE_ROWS], next: [&[u8]; TILE_ROWS]) -> [u64; TILE_ROWS];

impl Tiles {
    /// Packs `queries` for `level`; all of them let every row through.
    ///
    /// # Panics
    /// If there are more than [`TILE_QUERIES`], of different widths, not of whole numbers, or
    /// the machine lacks the level's instructions.
    #[must_use]
    pub fn new(level: Level, queries: &[&[u8]], square: f32) -> Self {
        assert!(queries.len() <= TILE_QUERIES, "a bit in a word for each query");
        assert!(level.is_available(), "{level:?} instructions");
        let dim = queries.first().map_or(0, |query| query.len() / size_of::<f32>());
        let pack = |queries: &[&[u8]]| {
            let mut numbers = vec![Numbers::ZERO; dim];
            for (at, query) in queries.iter().enumerate() {
                let (query, rest) = query.as_chunks();
                assert!(query.len() == dim && rest.is_empty(), "queries of equal width");
                for (numbers, number) in numbers.iter_mut().zip(query) {
                    numbers.0[at] = f32::from_le_bytes(*number);
                }
            }
            numbers
        };
        let numbers: Vec<_> = queries.chunks(PANEL).map(pack).collect();
        let open = Limits { constant: Numbers([f32::NAN; PANEL]), linear: Numbers::ZERO };
        let limits = vec![open; numbers.len()];
        let panels = Panels { numbers, limits, square };
        Self { tile: tile(level), panels, queries: queries.len() }
    }

    /// Changes the limit of one query.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn set_limit(&mut self, query: usize, limit: Limit) {
        assert!(query < self.queries, "query {query} of {}", self.queries);
        let limits = &mut self.panels.limits[query / PANEL];
        limits.constant.0[query % PANEL] = limit.constant;
        limits.linear.0[query % PANEL] = limit.linear;
    }

    /// For each row a bit for each query whose limit it passes. Meanwhile the rows `next` are
    /// asked for.
    ///
    /// # Panics
    /// If a row is not as wide as the queries.
    #[must_use]
    pub fn pass(&self, rows: [&[u8]; TILE_ROWS], next: [&[u8]; TILE_ROWS]) -> [u64; TILE_ROWS] {
        let mut words = (self.tile)(&self.panels, rows, next);
        if self.queries < TILE_QUERIES {
            words.iter_mut().for_each(|word| *word &= (1 << self.queries) - 1);
        }
        words
    }
}

fn tile(level: Level) -> Tile {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::avx2_tile,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::avx512_tile,
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => product_tile,
        Level::Scalar | Level::Neon => product_tile,
    }
}

/// A row's length, of which nothing is known where its square is too small or too large.
#[inline]
pub(super) fn length(square: f32) -> f32 {
    if (LEAST_SQUARE..f32::INFINITY).contains(&square) { square.sqrt() } else { f32::NAN }
}

/// A general matrix product, for machines that no tile is written for.
fn product_tile(
    panels: &Panels,
    rows: [&[u8]; TILE_ROWS],
    _next: [&[u8]; TILE_ROWS],
) -> [u64; TILE_ROWS] {
    let dim = panels.numbers.first().map_or(0, Vec::len);
    let numbers = |row: &[u8]| -> Vec<f32> {
        let (row, _) = row.as_chunks();
        row.iter().map(|number| f32::from_le_bytes(*number)).collect()
    };
    let rows = rows.map(numbers);
    assert!(rows.iter().all(|row| row.len() == dim), "rows as wide as the queries");
    let squares = rows.each_ref().map(|row| row.iter().map(|number| number * number).sum::<f32>());
    let rows = rows.concat();
    let mut words = [0; TILE_ROWS];
    for (at, (panel, limits)) in panels.numbers.iter().zip(&panels.limits).enumerate() {
        let queries: &[f32] = bytemuck::cast_slice(panel);
        let mut products = [[0.0; PANEL]; TILE_ROWS];
        faer::linalg::matmul::matmul(
            MatMut::from_row_major_slice_mut(products.as_flattened_mut(), TILE_ROWS, PANEL),
            Accum::Replace,
            MatRef::from_row_major_slice(&rows, TILE_ROWS, dim),
            MatRef::from_row_major_slice(queries, dim, PANEL),
            1.0,
            Par::Seq,
        );
        for ((word, products), square) in words.iter_mut().zip(products).zip(squares) {
            let (length, square) = (length(square), square * panels.square);
            let limits = limits.constant.0.iter().zip(limits.linear.0);
            for (query, (product, (constant, linear))) in products.iter().zip(limits).enumerate() {
                let at_most = *product <= constant + linear * length + square;
                *word |= u64::from(!at_most) << (at * PANEL + query);
            }
        }
    }
    words
}

/// Defines `tile`: the products of a tile, `$panels` panels at a time. Beside what
/// [`dense_metrics`](super::lanes) asks for there must be `splat`, which fills a lane, and
/// `not_at_most`, a bit for each number that is not at or below another.
macro_rules! tiles {
    ($features:literal, $panels:literal) => {
        use super::super::tiles::length;

        /// Lanes of a panel.
        const PARTS: usize = 64 / STEP;

        /// The words of `PANELS` panels from `first` on.
        #[target_feature(enable = $features)]
        #[inline]
        fn strip<const PANELS: usize>(
            panels: &Panels,
            first: usize,
            rows: [&[[u8; 4]]; TILE_ROWS],
            next: [&[u8]; TILE_ROWS],
            squares: [f32; TILE_ROWS],
        ) -> [u64; TILE_ROWS] {
            let dim = rows[0].len();
            let mut queries: [&[_]; PANELS] = [&[]; PANELS];
            for panel in 0..PANELS {
                queries[panel] = &panels.numbers[first + panel][..dim];
            }
            let mut sums = [[[zero(); PARTS]; PANELS]; TILE_ROWS];
            // One loop: with another around it, sums are moved between registers and memory.
            for at in 0..dim {
                if first == 0 && at % 16 == 0 {
                    // A line of each of the next rows for a line of these.
                    for row in next {
                        prefetch_beyond(row, at * 4);
                    }
                }
                let mut lanes = [[zero(); PARTS]; PANELS];
                for panel in 0..PANELS {
                    let bytes = bytemuck::bytes_of(&queries[panel][at].0).as_chunks::<STEP>().0;
                    for part in 0..PARTS {
                        lanes[panel][part] = load(&bytes[part]);
                    }
                }
                for row in 0..TILE_ROWS {
                    let number = splat(f32::from_le_bytes(rows[row][at]));
                    for panel in 0..PANELS {
                        for part in 0..PARTS {
                            let sum = &mut sums[row][panel][part];
                            *sum = multiply_add(number, lanes[panel][part], *sum);
                        }
                    }
                }
            }
            let mut words = [0; TILE_ROWS];
            for row in 0..TILE_ROWS {
                let length = splat(length(squares[row]));
                let square = splat(squares[row] * panels.square);
                for panel in 0..PANELS {
                    let limits = &panels.limits[first + panel];
                    let constant = bytemuck::bytes_of(&limits.constant.0).as_chunks::<STEP>().0;
                    let linear = bytemuck::bytes_of(&limits.linear.0).as_chunks::<STEP>().0;
                    for part in 0..PARTS {
                        let constant = add(load(&constant[part]), square);
                        let limit = multiply_add(load(&linear[part]), length, constant);
                        let passes = u64::from(not_at_most(sums[row][panel][part], limit));
                        words[row] |= passes << ((first + panel) * 16 + part * (STEP / 4));
                    }
                }
            }
            words
        }

        #[target_feature(enable = $features)]
        pub(super) fn tile(
            panels: &Panels,
            rows: [&[u8]; TILE_ROWS],
            next: [&[u8]; TILE_ROWS],
        ) -> [u64; TILE_ROWS] {
            let squares = fold::<TILE_ROWS, 1, false>(rows[0], rows, |_, row, [sum]| {
                *sum = multiply_add(row, row, *sum);
            });
            let mut numbers: [&[[u8; 4]]; TILE_ROWS] = [&[]; TILE_ROWS];
            let mut lengths = [0.0; TILE_ROWS];
            let dim = rows[0].len() / 4;
            for row in 0..TILE_ROWS {
                numbers[row] = &rows[row].as_chunks().0[..dim];
                lengths[row] = squares[row][0];
            }
            let count = panels.numbers.len();
            let mut words = [0; TILE_ROWS];
            let mut first = 0;
            while first < count {
                let together = (count - first).min($panels);
                let more = match together {
                    1 => strip::<1>(panels, first, numbers, next, lengths),
                    2 => strip::<2>(panels, first, numbers, next, lengths),
                    3 => strip::<3>(panels, first, numbers, next, lengths),
                    _ => strip::<4>(panels, first, numbers, next, lengths),
                };
                for row in 0..TILE_ROWS {
                    words[row] |= more[row];
                }
                first += together;
            }
            words
        }
    };
}
