//! Products with weights of eight bits.
//!
//! Each output has its own scale, symmetric around zero; each input row gets a scale and a zero
//! point when it arrives (asymmetric, so that what GELU leaves uses all 256 values). The sums of
//! products are exact integers ([`super::dot`]), and what follows them is one expression in
//! f32: a row has the same bits alone and in any batch, whatever the machine's instructions.
//!
//! Scale and zero point per row and per output: Jacob et al., CVPR 2018; weights per channel and
//! dynamic activations are what onnxruntime's dynamic quantization does as well.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::dot::{GROUP, Level, PANEL, multiply};
use super::gemm::{Activation, write};
use super::math::{gelu, tanh};
use super::share::{BLOCK_ROWS, Columns, product};
use crate::mapped::Mapped;

/// Widest layer: sums of so many products of bytes, less those of the zero point, fit 32 bits.
pub(crate) const MAX_INPUTS: usize = 32_768;

/// A weight matrix of signed bytes in panels, with its bias.
pub(crate) struct QuantMatrix {
    level: Level,
    arch: Arch,
    panels: Panels,
    /// Per output: what one step of its weights is worth.
    scales: Vec<f32>,
    /// Per output: the sum of its weights, for the zero points of the rows.
    sums: Vec<i32>,
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

/// The bytes of a matrix: panel after panel, as [`multiply`] wants them.
pub(crate) enum Panels {
    /// On the heap, in whole cache lines.
    Owned(Vec<Line>),
    /// In a file.
    Mapped(Mapped),
}

/// A cache line: no vector of a panel lies across two.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Panels {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(lines) => bytemuck::cast_slice(lines),
            Self::Mapped(mapped) => mapped.bytes(),
        }
    }
}

impl std::fmt::Debug for QuantMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantMatrix({} -> {})", self.inputs, self.outputs)
    }
}

/// A matrix, without its bias, as it is written to a file and read back; see
/// [`QuantMatrix::from_parts`].
pub(crate) struct Parts<'a> {
    pub(crate) panels: &'a [u8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i32],
}

impl QuantMatrix {
    /// Bytes of the panels of a matrix.
    pub(crate) fn panel_bytes(inputs: usize, outputs: usize) -> usize {
        outputs.div_ceil(PANEL) * PANEL * groups(inputs) * GROUP
    }

    /// Quantizes and packs `weights` (`outputs × inputs`, row-major, as PyTorch stores a linear
    /// layer; at most [`MAX_INPUTS`] wide).
    ///
    /// # Panics
    /// If the lengths do not fit together; callers check shapes when they read files.
    pub(crate) fn new(weights: &[f32], bias: &[f32], inputs: usize) -> Self {
        let outputs = bias.len();
        assert_eq!(weights.len(), outputs * inputs, "one row of weights per bias");
        assert!(inputs <= MAX_INPUTS, "wider layers are not quantized");
        let row = |row: &[f32]| {
            let largest = row.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let bytes: Vec<i8> =
                row.iter().map(|w| (w * inverse).round_ties_even() as i8).collect();
            let sum = bytes.iter().map(|&w| i32::from(w)).sum();
            (largest / 127.0, sum, bytes)
        };
        let rows: Vec<(f32, i32, Vec<i8>)> = weights.par_chunks(inputs.max(1)).map(row).collect();
        let mut lines = vec![Line([0; 64]); Self::panel_bytes(inputs, outputs).div_ceil(64)];
        let panels: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        let panel_len = PANEL * groups(inputs) * GROUP;
        panels.par_chunks_exact_mut(panel_len.max(1)).zip(rows.par_chunks(PANEL)).for_each(
            |(panel, rows)| {
                for (column, (_, _, bytes)) in rows.iter().enumerate() {
                    for (k, byte) in bytes.iter().enumerate() {
                        panel[(k / GROUP * PANEL + column) * GROUP + k % GROUP] =
                            byte.cast_unsigned();
                    }
                }
            },
        );
        let scales = rows.iter().map(|row| row.0).collect();
        let sums = rows.iter().map(|row| row.1).collect();
        Self::from_parts(Panels::Owned(lines), scales, sums, bias.to_vec(), inputs)
    }

    /// From what [`QuantMatrix::parts`] gave.
    ///
    /// # Panics
    /// If the lengths do not fit together; callers check shapes when they read files.
    pub(crate) fn from_parts(
        panels: Panels,
        scales: Vec<f32>,
        sums: Vec<i32>,
        bias: Vec<f32>,
        inputs: usize,
    ) -> Self {
        let outputs = bias.len();
        assert_eq!(panels.bytes().len(), Self::panel_bytes(inputs, outputs), "whole panels");
        assert!(scales.len() == outputs && sums.len() == outputs, "one scale and sum per output");
        Self {
            level: Level::best(),
            arch: Arch::new(),
            panels,
            scales,
            sums,
            bias,
            inputs,
            outputs,
        }
    }

    /// What is written to a file.
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts { panels: self.panels.bytes(), scales: &self.scales, sums: &self.sums }
    }

    /// Width of a row that goes in.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of a row that comes out.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        self.panels.bytes().len() + 3 * self.outputs * size_of::<f32>()
    }

    fn columns(&self) -> Columns {
        Columns { outputs: self.outputs, panel_width: PANEL }
    }

    fn panel(&self, index: usize) -> &[i8] {
        let len = PANEL * groups(self.inputs) * GROUP;
        bytemuck::cast_slice(&self.panels.bytes()[index * len..][..len])
    }
}

fn groups(inputs: usize) -> usize {
    inputs.div_ceil(GROUP)
}

/// Input rows as bytes.
struct Rows {
    groups: usize,
    /// `groups` words of four bytes per row.
    words: Vec<u32>,
    /// Per row, what one step is worth and which byte stands for zero.
    steps: Vec<(f32, i32)>,
}

impl Rows {
    fn quantize(arch: Arch, x: &[f32], inputs: usize) -> Self {
        let (groups, rows) = (groups(inputs), x.len() / inputs);
        let mut words = vec![0; rows * groups];
        let mut steps = vec![(0.0, 0); rows];
        words
            .par_chunks_mut(BLOCK_ROWS * groups)
            .zip(steps.par_chunks_mut(BLOCK_ROWS))
            .zip(x.par_chunks(BLOCK_ROWS * inputs))
            .for_each(|((words, steps), x)| arch.dispatch(Quantize { x, inputs, words, steps }));
        Self { groups, words, steps }
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    words: &'a mut [u32],
    steps: &'a mut [(f32, i32)],
}

impl WithSimd for Quantize<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Adding 1.5 · 2²³ leaves the nearest integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        let groups = groups(self.inputs);
        let rows = self.x.chunks_exact(self.inputs).zip(self.words.chunks_exact_mut(groups));
        for ((x, words), step) in rows.zip(self.steps) {
            let (least, most) = range(simd, x);
            let inverse = if most > least { 255.0 / (most - least) } else { 0.0 };
            let zero = (-least * inverse).round_ties_even().clamp(0.0, 255.0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
            // Written out: a fused multiply-add would round otherwise on some machines.
            for (x, byte) in x.iter().zip(bytes) {
                let scaled = x * inverse;
                let shifted = (scaled + (ROUND + zero)).clamp(ROUND, ROUND + 255.0);
                *byte = shifted.to_bits() as u8;
            }
            *step = ((most - least) / 255.0, zero as i32);
        }
    }
}

/// Smallest and largest value of a row and zero.
#[inline(always)]
fn range<S: Simd>(simd: S, x: &[f32]) -> (f32, f32) {
    let (body, tail) = S::as_simd_f32s(x);
    let mut least = simd.splat_f32s(0.0);
    let mut most = least;
    for &x in body {
        least = simd.min_f32s(least, x);
        most = simd.max_f32s(most, x);
    }
    let (mut least, mut most) = (simd.reduce_min_f32s(least), simd.reduce_max_f32s(most));
    for x in tail {
        least = least.min(*x);
        most = most.max(*x);
    }
    (least, most)
}

/// `activation(x × weightsᵀ + bias)`: `rows × inputs` in, `rows × outputs` out, row-major.
pub(crate) fn matmul(x: &[f32], matrix: &QuantMatrix, activation: Activation) -> Vec<f32> {
    matmul_at(matrix.level, matrix.arch, x, matrix, activation)
}

fn matmul_at(
    level: Level,
    arch: Arch,
    x: &[f32],
    matrix: &QuantMatrix,
    activation: Activation,
) -> Vec<f32> {
    let x = Rows::quantize(arch, x, matrix.inputs);
    product(x.steps.len(), matrix.columns(), |rows, panels, out| {
        let first = panels.start * PANEL;
        let stride = out.len() / rows.len();
        let words = &x.words[rows.start * x.groups..rows.end * x.groups];
        let steps = &x.steps[rows];
        let mut sums = vec![0; steps.len() * PANEL];
        for panel in panels {
            multiply(level, words, x.groups, matrix.panel(panel), &mut sums);
            let column = panel * PANEL;
            let columns = PANEL.min(matrix.outputs - column);
            let offset = column - first;
            arch.dispatch(Finish {
                sums: &sums,
                steps,
                matrix,
                column,
                columns,
                activation,
                out,
                stride,
                offset,
            });
        }
    })
}

/// Turns the integers of one panel into numbers.
struct Finish<'a> {
    /// `rows × PANEL`.
    sums: &'a [i32],
    steps: &'a [(f32, i32)],
    matrix: &'a QuantMatrix,
    /// First output of the panel, and how many of its columns are outputs.
    column: usize,
    columns: usize,
    activation: Activation,
    /// Rows of `stride`; those of the panel begin at `offset`.
    out: &'a mut [f32],
    stride: usize,
    offset: usize,
}

impl WithSimd for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, steps, matrix, column, columns, activation, out, stride, offset } = self;
        let (mut scales, mut zeros, mut bias) = ([0.0; PANEL], [0; PANEL], [0.0; PANEL]);
        scales[..columns].copy_from_slice(&matrix.scales[column..][..columns]);
        zeros[..columns].copy_from_slice(&matrix.sums[column..][..columns]);
        bias[..columns].copy_from_slice(&matrix.bias[column..][..columns]);
        let rows = sums.as_chunks::<PANEL>().0.iter().zip(steps);
        for (row, (sums, &(step, zero))) in rows.enumerate() {
            let mut values = [0.0; PANEL];
            for (index, value) in values.iter_mut().enumerate() {
                let sum = sums[index] - zero * zeros[index];
                *value = sum as f32 * (step * scales[index]) + bias[index];
            }
            let vectors = S::as_mut_simd_f32s(&mut values).0;
            match activation {
                Activation::None => {}
                Activation::Gelu => vectors.iter_mut().for_each(|x| *x = gelu(simd, *x)),
                Activation::Tanh => vectors.iter_mut().for_each(|x| *x = tanh(simd, *x)),
            }
            write(&mut out[row * stride + offset..][..columns], &values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn products_are_within_a_step_of_the_definition() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (13, 64, 48), (49, 20, 100), (200, 48, 31)] {
            let (x, weights, bias) = (numbers(m * k, 1), numbers(n * k, 2), numbers(n, 3));
            let matrix = QuantMatrix::new(&weights, &bias, k);
            let out = matmul(&x, &matrix, Activation::None);
            assert_eq!(out.len(), m * n);
            for (row, out) in x.chunks_exact(k).zip(out.chunks_exact(n)) {
                for ((weights, bias), out) in weights.chunks_exact(k).zip(&bias).zip(out) {
                    let exact: f32 = row.iter().zip(weights).map(|(a, b)| a * b).sum();
                    // Half a step of each factor, and the factors are below 1.
                    let allowed = k as f32 * (0.5 * 2.0 / 255.0 + 0.5 / 127.0 + 1e-4);
                    assert!((exact + bias - out).abs() <= allowed, "{out}, not {exact} + {bias}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others_and_at_every_level() {
        let (k, n) = (98, 70);
        let (x, weights, bias) = (numbers(150 * k, 1), numbers(n * k, 2), numbers(n, 3));
        let matrix = QuantMatrix::new(&weights, &bias, k);
        let together = matmul(&x, &matrix, Activation::None);
        for (x, row) in x.chunks_exact(k).zip(together.chunks_exact(n)) {
            assert_eq!(matmul(x, &matrix, Activation::None), row);
        }
        let scalar = matmul_at(Level::Scalar, Arch::Scalar, &x, &matrix, Activation::None);
        assert_eq!(scalar, together);
    }

    #[test]
    fn rows_of_zeros_and_of_one_sign_are_exact_at_zero() {
        let matrix = QuantMatrix::new(&[1.0, -1.0, 0.0, 0.0], &[0.5, -3.0], 2);
        assert_eq!(matmul(&[0.0, 0.0], &matrix, Activation::None), [0.5, -3.0]);
        let out = matmul(&[2.0, 0.0, -2.0, 0.0], &matrix, Activation::None);
        for (found, expected) in out.iter().zip([2.5, -3.0, -1.5, -3.0]) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }
}
