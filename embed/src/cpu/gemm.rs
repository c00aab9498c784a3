//! Matrix products with a weight matrix that was packed once.
//!
//! A [`Matrix`] stores `n × k` weights as panels of three vectors of columns: a panel holds, for
//! each inner index, the weights of its outputs side by side. A tile of up to eight input rows
//! times one panel stays in registers for the whole inner loop, the panel streams from memory or a
//! cache, asked for ahead of its use, and nothing is packed at run time. So a query of ten tokens
//! costs no set-up, and each output element is one chain of fused multiply-adds in the order of `k`,
//! whatever the number of rows: results do not depend on the batch.

use std::io;

use memmap2::{Mmap, MmapMut};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::{gelu, tanh};
use super::prefetch::prefetch;
use super::share::{Columns, product};

/// What is done to an output element after the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Gelu,
    Tanh,
}

/// A weight matrix in panels, with its bias.
pub(crate) struct Matrix {
    arch: Arch,
    /// Panels one after the other, each `inputs × panel_width` floats; anonymous memory in huge
    /// pages, because a question of ten tokens does little but read them.
    panels: Mmap,
    /// Padded with zeros to whole panels.
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
    panel_width: usize,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} -> {})", self.inputs, self.outputs)
    }
}

impl Matrix {
    /// Packs weights (`outputs × inputs`, row-major, as PyTorch stores a linear layer), which may lie
    /// in several `parts`, one below the other. Does it in the rayon pool of the caller.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// If the lengths do not fit together; callers check shapes when they read files.
    pub(crate) fn new(parts: &[&[f32]], bias: Option<&[f32]>, inputs: usize) -> io::Result<Self> {
        Self::for_arch(Arch::new(), parts, bias, inputs)
    }

    fn for_arch(
        arch: Arch,
        parts: &[&[f32]],
        bias: Option<&[f32]>,
        inputs: usize,
    ) -> io::Result<Self> {
        let whole = parts.iter().all(|part| part.len().is_multiple_of(inputs));
        assert!(whole, "weights are whole rows");
        let rows: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(inputs)).collect();
        let outputs = rows.len();
        let panel_width = VECTORS * arch.dispatch(Lanes);
        let count = outputs.div_ceil(panel_width);
        let bytes = count * panel_width * inputs * size_of::<f32>();
        // A map of nothing is an error.
        let mut panels = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        // It is as right without, only slower: a kernel may know no huge pages.
        let _ = panels.advise(memmap2::Advice::HugePage);
        bytemuck::cast_slice_mut::<u8, f32>(&mut panels[..bytes])
            .par_chunks_exact_mut(panel_width * inputs)
            .zip(rows.par_chunks(panel_width))
            .for_each(|(to, rows)| pack(rows.len(), inputs, |row| rows[row], panel_width, to));
        let mut padded = vec![0.0; count * panel_width];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), outputs, "one bias per output");
            padded[..outputs].copy_from_slice(bias);
        }
        let panels = panels.make_read_only()?;
        Ok(Self { arch, panels, bias: padded, inputs, outputs, panel_width })
    }

    /// Width of an input row.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of an output row.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.panels.len() + self.bias.len() * size_of::<f32>()
    }

    fn panel(&self, index: usize) -> &[f32] {
        let len = self.panel_width * self.inputs * size_of::<f32>();
        bytemuck::cast_slice(&self.panels[index * len..][..len])
    }

    fn columns(&self) -> Columns {
        Columns { outputs: self.outputs, panel_width: self.panel_width }
    }
}

/// Vectors of columns in a panel of weights. Three by eight rows fill 24 registers and need the
/// fewest loads per product.
const VECTORS: usize = 3;

/// Floats in a vector of an instruction set.
pub(super) struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Transposes `count` rows, `inputs` wide at least, into the first columns of a panel of `width`
/// columns; the other columns stay as they are.
#[inline(always)]
pub(super) fn pack<'a>(
    count: usize,
    inputs: usize,
    row: impl Fn(usize) -> &'a [f32],
    width: usize,
    to: &mut [f32],
) {
    /// Inner indices of a step: a cache line of each row, which is not needed again.
    const STEP: usize = 16;
    for (step, to) in to.chunks_mut(STEP * width).enumerate() {
        let first = step * STEP;
        let end = inputs.min(first + STEP);
        for column in 0..count {
            for (x, to) in row(column)[first..end].iter().zip(to.chunks_exact_mut(width)) {
                to[column] = *x;
            }
        }
    }
}

/// `activation(x × weightsᵀ + bias)`: `rows × inputs` in, `rows × outputs` out, row-major.
pub(crate) fn matmul(x: &[f32], matrix: &Matrix, activation: Activation) -> Vec<f32> {
    let rows = x.len() / matrix.inputs;
    product(rows, matrix.columns(), |rows, panels, out| {
        let x = &x[rows.start * matrix.inputs..];
        let rows = rows.len();
        matrix.arch.dispatch(Product { x, rows, matrix, panels, activation, out });
    })
}

/// For each group of rows the largest output per column: what SPLADE makes of the logits of a
/// vocabulary, without ever storing `rows × vocabulary` of them.
///
/// `bounds` are the ascending row numbers where groups begin, with the end of the last one; no
/// group is empty. The result is `groups × outputs`, bias included.
pub(crate) fn matmul_row_max(x: &[f32], matrix: &Matrix, bounds: &[usize]) -> Vec<f32> {
    /// Panels of one task: some hundred columns, so that one query still feeds many cores.
    const PANELS: usize = 64;
    let groups = bounds.len().saturating_sub(1);
    let mut out = vec![f32::NEG_INFINITY; groups * matrix.outputs];
    let tasks: Vec<(usize, usize, &mut [f32])> = out
        .chunks_mut(matrix.outputs)
        .enumerate()
        .flat_map(|(group, row)| {
            row.chunks_mut(PANELS * matrix.panel_width)
                .enumerate()
                .map(move |(part, columns)| (group, part * PANELS, columns))
        })
        .collect();
    tasks.into_par_iter().for_each(|(group, first, out)| {
        let x = &x[bounds[group] * matrix.inputs..bounds[group + 1] * matrix.inputs];
        matrix.arch.dispatch(RowMax { x, matrix, first, out });
    });
    out
}

struct Product<'a> {
    x: &'a [f32],
    rows: usize,
    matrix: &'a Matrix,
    panels: std::ops::Range<usize>,
    activation: Activation,
    /// `rows` rows of the columns of `panels`.
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, rows, matrix, panels, activation, out } = self;
        let first = panels.start * matrix.panel_width;
        let width = (panels.end * matrix.panel_width).min(matrix.outputs) - first;
        for panel in panels {
            let column = panel * matrix.panel_width;
            let bias = S::as_simd_f32s(&matrix.bias[column..][..matrix.panel_width]).0;
            let mut sink = Store {
                out,
                stride: width,
                column: column - first,
                columns: matrix.panel_width.min(matrix.outputs - column),
                bias: std::array::from_fn(|vector| bias[vector]),
                activation,
            };
            multiply(simd, x, matrix.inputs, matrix.inputs, rows, matrix.panel(panel), &mut sink);
        }
    }
}

struct RowMax<'a> {
    x: &'a [f32],
    matrix: &'a Matrix,
    /// First panel.
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for RowMax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, matrix, first, out } = self;
        let rows = x.len() / matrix.inputs;
        for (offset, out) in out.chunks_mut(matrix.panel_width).enumerate() {
            let panel = first + offset;
            let mut sink = Largest::<S> { best: [simd.splat_f32s(f32::NEG_INFINITY); VECTORS] };
            multiply(simd, x, matrix.inputs, matrix.inputs, rows, matrix.panel(panel), &mut sink);
            let bias = &matrix.bias[panel * matrix.panel_width..];
            let best: &[f32] = bytemuck::cast_slice(&sink.best);
            for ((out, best), bias) in out.iter_mut().zip(best).zip(bias) {
                *out = best + bias;
            }
        }
    }
}

/// Takes the finished tiles of a product.
pub(super) trait Sink<S: Simd, const V: usize> {
    /// `tile[r]` is row `row + r` of the product with the current panel.
    fn tile<const R: usize>(&mut self, simd: S, row: usize, tile: &[[S::f32s; V]; R]);
}

/// Adds the bias, applies the activation and writes.
struct Store<'a, S: Simd> {
    out: &'a mut [f32],
    stride: usize,
    column: usize,
    columns: usize,
    bias: [S::f32s; VECTORS],
    activation: Activation,
}

impl<S: Simd> Sink<S, VECTORS> for Store<'_, S> {
    #[inline(always)]
    fn tile<const R: usize>(&mut self, simd: S, row: usize, tile: &[[S::f32s; VECTORS]; R]) {
        for (r, sums) in tile.iter().enumerate() {
            let mut values = *sums;
            for (value, bias) in values.iter_mut().zip(self.bias) {
                let sum = simd.add_f32s(*value, bias);
                *value = match self.activation {
                    Activation::None => sum,
                    Activation::Gelu => gelu(simd, sum),
                    Activation::Tanh => tanh(simd, sum),
                };
            }
            let to = &mut self.out[(row + r) * self.stride + self.column..][..self.columns];
            write(to, &values);
        }
    }
}

/// Writes whole vectors, or as many of their lanes as `to` has room for.
#[inline(always)]
pub(super) fn write<T: bytemuck::Pod>(to: &mut [f32], values: &[T]) {
    let values: &[f32] = bytemuck::cast_slice(values);
    // The first branch has a length known at compile time: two stores, not a call.
    if to.len() == values.len() {
        to.copy_from_slice(values);
    } else {
        to.copy_from_slice(&values[..to.len()]);
    }
}

struct Largest<S: Simd> {
    best: [S::f32s; VECTORS],
}

impl<S: Simd> Sink<S, VECTORS> for Largest<S> {
    #[inline(always)]
    fn tile<const R: usize>(&mut self, simd: S, _: usize, tile: &[[S::f32s; VECTORS]; R]) {
        for sums in tile {
            for (best, sum) in self.best.iter_mut().zip(sums) {
                *best = simd.max_f32s(*best, *sum);
            }
        }
    }
}

/// The product of `rows` rows (`inner` wide, `stride` apart) with one panel of `V` vectors of
/// columns, tile by tile.
#[inline(always)]
pub(super) fn multiply<S: Simd, const V: usize>(
    simd: S,
    x: &[f32],
    stride: usize,
    inner: usize,
    rows: usize,
    panel: &[f32],
    sink: &mut impl Sink<S, V>,
) {
    let panel = S::as_simd_f32s(panel).0.as_chunks::<V>().0;
    let mut row = 0;
    // With 32 registers 24 hold a tile of the widest panel; with 16, 12 do.
    if const { S::REGISTER_COUNT >= 32 } {
        while rows - row >= 8 {
            sink.tile(simd, row, &tile::<S, 8, V>(simd, &x[row * stride..], stride, inner, panel));
            row += 8;
        }
    }
    while rows - row >= 4 {
        sink.tile(simd, row, &tile::<S, 4, V>(simd, &x[row * stride..], stride, inner, panel));
        row += 4;
    }
    while rows - row >= 2 {
        sink.tile(simd, row, &tile::<S, 2, V>(simd, &x[row * stride..], stride, inner, panel));
        row += 2;
    }
    if rows > row {
        sink.tile(simd, row, &tile::<S, 1, V>(simd, &x[row * stride..], stride, inner, panel));
    }
}

/// `R` rows times one panel, all sums in registers.
///
/// The inner loop is unrolled by a constant so that the row pointers are checked and loaded once
/// for several steps: there are more of them than a loop can keep in registers beside its sums.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: &[f32],
    stride: usize,
    inner: usize,
    panel: &[[S::f32s; V]],
) -> [[S::f32s; V]; R] {
    const UNROLL: usize = 4;
    /// Turns of the loop between asking for weights and using them: 32 inner indices, some 400
    /// cycles with eight rows, which is about as long as memory takes.
    const AHEAD: usize = 8;
    let rows: [(&[[f32; UNROLL]], &[f32]); R] =
        std::array::from_fn(|r| x[r * stride..r * stride + inner].as_chunks());
    let (body, tail) = panel[..inner].as_chunks::<UNROLL>();
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (i, weights) in body.iter().enumerate() {
        let x: [&[f32; UNROLL]; R] = std::array::from_fn(|r| &rows[r].0[i]);
        // Behind the last weights of a panel lies the next one.
        prefetch(panel.as_ptr().wrapping_add((i + AHEAD) * UNROLL).cast(), size_of_val(weights));
        for (step, weights) in weights.iter().enumerate() {
            for (sums, x) in sums.iter_mut().zip(&x) {
                add_product(simd, sums, x[step], weights);
            }
        }
    }
    for (i, weights) in tail.iter().enumerate() {
        for (sums, (_, x)) in sums.iter_mut().zip(&rows) {
            add_product(simd, sums, x[i], weights);
        }
    }
    sums
}

#[inline(always)]
fn add_product<S: Simd, const V: usize>(
    simd: S,
    sums: &mut [S::f32s; V],
    x: f32,
    weights: &[S::f32s; V],
) {
    let x = simd.splat_f32s(x);
    for (sum, weights) in sums.iter_mut().zip(weights) {
        *sum = simd.mul_add_e_f32s(x, *weights, *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set of this machine.
    fn arches() -> Vec<Arch> {
        let mut arches = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
        arches
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    fn exact(x: &[f32], weights: &[f32], bias: &[f32], k: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for row in x.chunks_exact(k) {
            for (weights, bias) in weights.chunks_exact(k).zip(bias) {
                let products = row.iter().zip(weights).map(|(&a, &b)| f64::from(a) * f64::from(b));
                out.push(products.sum::<f64>() + f64::from(*bias));
            }
        }
        out
    }

    #[test]
    fn products_of_awkward_shapes_agree_with_the_definition_on_every_instruction_set() {
        for arch in arches() {
            for (m, k, n) in [(1, 1, 1), (3, 5, 7), (13, 64, 33), (49, 20, 100), (200, 48, 31)] {
                let (x, weights, bias) = (numbers(m * k, 1), numbers(n * k, 2), numbers(n, 3));
                // Parts that end within a panel, as those of queries and keys do.
                let (first, second) = weights.split_at(n / 3 * k);
                let matrix = Matrix::for_arch(arch, &[first, second], Some(&bias), k).unwrap();
                let out = matmul(&x, &matrix, Activation::None);
                let expected = exact(&x, &weights, &bias, k);
                assert_eq!(out.len(), expected.len());
                for (got, expected) in out.iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} not {expected}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (k, n) = (96, 70);
        let (x, weights) = (numbers(150 * k, 1), numbers(n * k, 2));
        for arch in arches() {
            let matrix = Matrix::for_arch(arch, &[&weights], None, k).unwrap();
            let together = matmul(&x, &matrix, Activation::Gelu);
            for (x, row) in x.chunks_exact(k).zip(together.chunks_exact(n)) {
                assert_eq!(matmul(x, &matrix, Activation::Gelu), row);
            }
        }
    }

    #[test]
    fn the_row_maximum_is_the_maximum_of_the_product() {
        let (k, n, bounds) = (24, 5000, [0, 1, 14, 40]);
        let (x, weights, bias) = (numbers(40 * k, 4), numbers(n * k, 5), numbers(n, 6));
        for arch in arches() {
            let matrix = Matrix::for_arch(arch, &[&weights], Some(&bias), k).unwrap();
            let all = matmul(&x, &matrix, Activation::None);
            let largest = matmul_row_max(&x, &matrix, &bounds);
            for (group, largest) in largest.chunks_exact(n).enumerate() {
                for column in 0..n {
                    let rows = bounds[group]..bounds[group + 1];
                    let expected = rows.map(|row| all[row * n + column]).fold(f32::MIN, f32::max);
                    assert!((largest[column] - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn no_rows_give_no_rows() {
        let matrix = Matrix::new(&[&[1.0, 2.0]], None, 1).unwrap();
        assert_eq!(matmul(&[], &matrix, Activation::None), Vec::<f32>::new());
        assert_eq!(matmul_row_max(&[], &matrix, &[0]), Vec::<f32>::new());
    }
}
