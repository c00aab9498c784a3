//! Attention of each text to itself in a packed batch.
//!
//! Texts lie one after the other without padding; a text sees only its own rows. Keys and values
//! of a text are packed into the panels of [`super::gemm`] once, then blocks of query rows run
//! against them: scores of a block, softmax, weighted values. The scores of a block are all that
//! is ever stored of the `tokens × tokens` matrix.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::{Lanes, Sink, multiply, pack, write};
use super::math::exp;

/// Query rows of a block: six full tiles, so that a panel is read once for 48 rows.
const BLOCK_ROWS: usize = 48;

/// Vectors of columns in a panel. Two make 32 columns with AVX-512, which is a whole head of the
/// small models and half a head of the large ones; three would be padding for a third.
const VECTORS: usize = 2;

/// The shape of multi-head attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Number of heads.
    pub(crate) count: usize,
    /// Width of one head.
    pub(crate) width: usize,
}

impl Heads {
    fn hidden(self) -> usize {
        self.count * self.width
    }
}

/// `softmax(q kᵀ / √width) v` per text and head.
///
/// `qkv` is `tokens × 3 hidden`: all queries, keys and values of a row side by side. `bounds`
/// are the ascending rows where texts begin, with the end of the last one; rows outside them
/// must not exist. The result is `tokens × hidden`.
pub(crate) fn attention(qkv: &[f32], heads: Heads, bounds: &[usize]) -> Vec<f32> {
    attention_on(Arch::new(), qkv, heads, bounds)
}

fn attention_on(arch: Arch, qkv: &[f32], heads: Heads, bounds: &[usize]) -> Vec<f32> {
    let hidden = heads.hidden();
    let mut out = vec![0.0; qkv.len() / 3];
    let mut rest = out.as_mut_slice();
    let mut texts = Vec::with_capacity(bounds.len());
    for bound in bounds.windows(2) {
        let (text, after) = rest.split_at_mut((bound[1] - bound[0]) * hidden);
        texts.push((&qkv[bound[0] * 3 * hidden..bound[1] * 3 * hidden], text));
        rest = after;
    }
    texts.into_par_iter().for_each(|(qkv, out)| attend(arch, qkv, heads, out));
    out
}

/// One text.
fn attend(arch: Arch, qkv: &[f32], heads: Heads, out: &mut [f32]) {
    /// Shorter texts are one task; their heads are not worth sharing.
    const SHARE_FROM_ROWS: usize = 4 * BLOCK_ROWS;
    let hidden = heads.hidden();
    let rows = out.len() / hidden;
    let layout = Layout::new(arch, rows, heads.width);
    let mut packed = vec![0.0; heads.count * layout.head_len()];
    let least = if rows < SHARE_FROM_ROWS { heads.count } else { 1 };
    packed.par_chunks_exact_mut(layout.head_len()).with_min_len(least).enumerate().for_each(
        |(head, packed)| {
            let keys = &qkv[hidden + head * heads.width..];
            let values = &qkv[2 * hidden + head * heads.width..];
            arch.dispatch(PackHead { keys, values, stride: 3 * hidden, layout, packed });
        },
    );
    let least = if rows < SHARE_FROM_ROWS { rows } else { 1 };
    out.par_chunks_mut(BLOCK_ROWS * hidden).with_min_len(least).enumerate().for_each_init(
        || vec![0.0; BLOCK_ROWS * layout.score_stride()],
        |scores, (block, out)| {
            let queries = &qkv[block * BLOCK_ROWS * 3 * hidden..];
            arch.dispatch(Block { queries, packed: &packed, heads, layout, scores, out });
        },
    );
}

/// How keys and values of one text and head are packed.
#[derive(Clone, Copy)]
struct Layout {
    /// Keys, that is rows of the text.
    rows: usize,
    width: usize,
    panel_width: usize,
}

impl Layout {
    fn new(arch: Arch, rows: usize, width: usize) -> Self {
        Self { rows, width, panel_width: VECTORS * arch.dispatch(Lanes) }
    }

    /// Panels of keys: `width` inner indices, one column per key.
    fn key_panels(self) -> usize {
        self.rows.div_ceil(self.panel_width)
    }

    fn key_len(self) -> usize {
        self.panel_width * self.width
    }

    /// Panels of values: one inner index per key, one column per element of the head.
    fn value_panels(self) -> usize {
        self.width.div_ceil(self.panel_width)
    }

    fn value_len(self) -> usize {
        self.panel_width * self.rows
    }

    fn head_len(self) -> usize {
        self.key_panels() * self.key_len() + self.value_panels() * self.value_len()
    }

    /// Columns of the scores, whole panels.
    fn score_stride(self) -> usize {
        self.key_panels() * self.panel_width
    }
}

struct PackHead<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    stride: usize,
    layout: Layout,
    packed: &'a mut [f32],
}

impl WithSimd for PackHead<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { keys, values, stride, layout, packed } = self;
        let Layout { rows, width, panel_width } = layout;
        let (to_keys, to_values) = packed.split_at_mut(layout.key_panels() * layout.key_len());
        for (panel, to) in to_keys.chunks_exact_mut(layout.key_len()).enumerate() {
            let first = panel * panel_width;
            let here = panel_width.min(rows - first);
            let key = |row: usize| &keys[(first + row) * stride..];
            pack(here, width, key, panel_width, to);
        }
        for (panel, to) in to_values.chunks_exact_mut(layout.value_len()).enumerate() {
            let from = panel * panel_width;
            let here = panel_width.min(width - from);
            for (row, to) in to.chunks_exact_mut(panel_width).enumerate() {
                to[..here].copy_from_slice(&values[row * stride + from..][..here]);
            }
        }
    }
}

/// Up to [`BLOCK_ROWS`] query rows, all heads.
struct Block<'a> {
    queries: &'a [f32],
    packed: &'a [f32],
    heads: Heads,
    layout: Layout,
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { queries, packed, heads, layout, scores, out } = self;
        let hidden = heads.hidden();
        let rows = out.len() / hidden;
        let scale = 1.0 / (heads.width as f32).sqrt();
        let mut weights = [0.0; BLOCK_ROWS];
        for (head, packed) in packed.chunks_exact(layout.head_len()).enumerate() {
            let (keys, values) = packed.split_at(layout.key_panels() * layout.key_len());
            let stride = layout.score_stride();
            let queries = &queries[head * heads.width..];
            for (panel, keys) in keys.chunks_exact(layout.key_len()).enumerate() {
                let column = panel * layout.panel_width;
                let mut sink = Scores { out: &mut *scores, stride, column };
                multiply(simd, queries, 3 * hidden, heads.width, rows, keys, &mut sink);
            }
            for (row, weight) in scores.chunks_exact_mut(stride).zip(&mut weights).take(rows) {
                *weight = 1.0 / softmax(simd, row, layout.rows, scale);
            }
            for (panel, values) in values.chunks_exact(layout.value_len()).enumerate() {
                let column = panel * layout.panel_width;
                let mut sink = Context {
                    out: &mut *out,
                    stride: hidden,
                    column: head * heads.width + column,
                    columns: layout.panel_width.min(heads.width - column),
                    weights: &weights,
                };
                multiply(simd, scores, stride, layout.rows, rows, values, &mut sink);
            }
        }
    }
}

/// Replaces the first `len` values of `row` (whole vectors long) by `e^(scale (x - largest))` and
/// returns their sum; the padding behind them counts for nothing.
#[inline(always)]
fn softmax<S: Simd>(simd: S, row: &mut [f32], len: usize, scale: f32) -> f32 {
    row[len..].fill(f32::NEG_INFINITY);
    let row = S::as_mut_simd_f32s(row).0;
    let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
    for &mut x in row.iter_mut() {
        largest = simd.max_f32s(largest, x);
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(largest));
    let scale = simd.splat_f32s(scale);
    let mut sum = simd.splat_f32s(0.0);
    for x in row.iter_mut() {
        *x = exp(simd, simd.mul_f32s(simd.sub_f32s(*x, largest), scale));
        sum = simd.add_f32s(sum, *x);
    }
    simd.reduce_sum_f32s(sum)
}

struct Scores<'a> {
    out: &'a mut [f32],
    stride: usize,
    column: usize,
}

impl<S: Simd> Sink<S, VECTORS> for Scores<'_> {
    #[inline(always)]
    fn tile<const R: usize>(&mut self, _: S, row: usize, tile: &[[S::f32s; VECTORS]; R]) {
        for (r, values) in tile.iter().enumerate() {
            let at = (row + r) * self.stride + self.column;
            write(&mut self.out[at..at + VECTORS * S::F32_LANES], values);
        }
    }
}

struct Context<'a> {
    out: &'a mut [f32],
    stride: usize,
    column: usize,
    columns: usize,
    weights: &'a [f32; BLOCK_ROWS],
}

impl<S: Simd> Sink<S, VECTORS> for Context<'_> {
    #[inline(always)]
    fn tile<const R: usize>(&mut self, simd: S, row: usize, tile: &[[S::f32s; VECTORS]; R]) {
        for (r, values) in tile.iter().enumerate() {
            let weight = simd.splat_f32s(self.weights[row + r]);
            let values = values.map(|value| simd.mul_f32s(value, weight));
            let at = (row + r) * self.stride + self.column;
            write(&mut self.out[at..at + self.columns], &values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(qkv: &[f32], heads: Heads, bounds: &[usize]) -> Vec<f64> {
        let hidden = heads.hidden();
        let at = |row: usize, part: usize, head: usize, i: usize| {
            f64::from(qkv[row * 3 * hidden + part * hidden + head * heads.width + i])
        };
        let mut out = vec![0.0; qkv.len() / 3];
        for bound in bounds.windows(2) {
            for row in bound[0]..bound[1] {
                for head in 0..heads.count {
                    let scores: Vec<f64> = (bound[0]..bound[1])
                        .map(|key| {
                            let dot: f64 = (0..heads.width)
                                .map(|i| at(row, 0, head, i) * at(key, 1, head, i))
                                .sum();
                            dot / (heads.width as f64).sqrt()
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for i in 0..heads.width {
                        out[row * hidden + head * heads.width + i] = scores
                            .iter()
                            .enumerate()
                            .map(|(k, s)| (s - largest).exp() / sum * at(bound[0] + k, 2, head, i))
                            .sum();
                    }
                }
            }
        }
        out
    }

    #[test]
    fn attention_agrees_with_the_definition_and_never_looks_across_texts() {
        let mut arches = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
        let bounds = [0, 1, 3, 50, 99, 420];
        for (count, width) in [(2, 16), (3, 32), (1, 64), (2, 5)] {
            let heads = Heads { count, width };
            let len = 420 * 3 * heads.hidden();
            let qkv: Vec<f32> =
                (0..len).map(|i| ((i * 7919) % 997) as f32 / 400.0 - 1.25).collect();
            let expected = exact(&qkv, heads, &bounds);
            for &arch in &arches {
                let out = attention_on(arch, &qkv, heads, &bounds);
                for (got, expected) in out.iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 5e-6, "{got} not {expected}");
                }
            }
        }
    }
}
