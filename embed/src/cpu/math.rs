//! Vector forms of the few functions between matrix products: exp, GELU, tanh, layer norm.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// `e^x` for `x` in about [-87, 88]; smaller `x` give about 1e-38. Relative error below 2e-7.
///
/// Split into a power of two and a rest in ±ln(2)/2, where a polynomial of degree 6, fitted by
/// least squares on Chebyshev nodes, is exact to 3e-9 before rounding.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln(2) in two parts; the first has few bits, so that its products are exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 7] =
        [0.001_394_864, 0.008_375_171, 0.041_666_217, 0.166_664_15, 0.5, 1.0, 1.0];

    let x = simd.max_f32s(x, simd.splat_f32s(-87.0));
    let x = simd.min_f32s(x, simd.splat_f32s(88.0));
    let round = simd.splat_f32s(ROUND);
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let power = simd.sub_f32s(shifted, round);
    let rest = simd.mul_add_e_f32s(power, simd.splat_f32s(-LN2[0]), x);
    let rest = simd.mul_add_e_f32s(power, simd.splat_f32s(-LN2[1]), rest);
    let value = polynomial(simd, rest, &COEFFICIENTS);

    // The exponent bits of 2^power: the shift drops all of ROUND's own bits.
    let bits = simd.wrapping_dyn_shl_u32s(
        simd.transmute_u32s_f32s(shifted),
        simd.splat_u32s(f32::MANTISSA_DIGITS - 1),
    );
    let bits = simd.add_u32s(bits, simd.splat_u32s(1.0_f32.to_bits()));
    simd.mul_f32s(value, simd.transmute_f32s_u32s(bits))
}

/// The exact (erf) GELU: `x / 2 * (1 + erf(x / √2))`, absolute error below 4e-7 * |x|.
///
/// erf(z) is `z * P(z²) / Q(z²)` on ±3.92, where it reaches 1 in f32; both polynomials have
/// degree 5 and only positive coefficients (least squares with Lawson weights on the relative
/// error, 2e-8 before rounding), so nothing cancels.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const BOUND: f32 = 3.92;
    const P: [f32; 6] = [
        2.050_077_7e-6,
        2.848_844e-4,
        3.765_682_5e-3,
        5.274_892_6e-2,
        0.190_407_98,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 6] =
        [3.809_17e-5, 1.162_551_7e-3, 1.496_934_8e-2, 0.114_109_74, 0.502_077_4, 1.0];

    let z = simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let z = simd.max_f32s(z, simd.splat_f32s(-BOUND));
    let z = simd.min_f32s(z, simd.splat_f32s(BOUND));
    let square = simd.mul_f32s(z, z);
    let above = simd.mul_f32s(z, polynomial(simd, square, &P));
    let erf = simd.div_f32s(above, polynomial(simd, square, &Q));
    let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
    simd.mul_add_e_f32s(half, erf, half)
}

/// `tanh(x) = 1 - 2 / (e^2x + 1)`, absolute error below 3e-7.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let two = simd.splat_f32s(2.0);
    let doubled = simd.max_f32s(simd.mul_f32s(x, two), simd.splat_f32s(-40.0));
    let doubled = simd.min_f32s(doubled, simd.splat_f32s(40.0));
    let power = exp(simd, doubled);
    simd.sub_f32s(one, simd.div_f32s(two, simd.add_f32s(power, one)))
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: &[f32; N]) -> S::f32s {
    let mut value = simd.splat_f32s(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        value = simd.mul_add_e_f32s(value, x, simd.splat_f32s(coefficient));
    }
    value
}

/// `left * gelu(right)` of every row's two halves (a GLU: Shazeer 2020); `x` has rows of
/// `2 × width`, the result rows of `width`.
pub(crate) fn gate(x: &[f32], width: usize) -> Vec<f32> {
    /// Rows of one task.
    const BLOCK: usize = 64;
    let mut out = vec![0.0; x.len() / 2];
    out.par_chunks_mut(BLOCK * width)
        .zip(x.par_chunks(BLOCK * 2 * width))
        .for_each(|(out, x)| Arch::new().dispatch(Gate { x, width, out }));
    out
}

struct Gate<'a> {
    x: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl WithSimd for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.x.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width));
        for (x, out) in rows {
            let (left, right) = x.split_at(self.width);
            let ((left, left_tail), (right, right_tail)) =
                (S::as_simd_f32s(left), S::as_simd_f32s(right));
            let (out, out_tail) = S::as_mut_simd_f32s(out);
            for ((out, left), right) in out.iter_mut().zip(left).zip(right) {
                *out = simd.mul_f32s(*left, gelu(simd, *right));
            }
            if !out_tail.is_empty() {
                let left = simd.partial_load_f32s(left_tail);
                let right = simd.partial_load_f32s(right_tail);
                simd.partial_store_f32s(out_tail, simd.mul_f32s(left, gelu(simd, right)));
            }
        }
    }
}

/// `1 / (1 + e^-x)`.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Divides `row` by its Euclidean length (at least 1e-12, as the reference does).
pub(crate) fn l2_normalize(row: &mut [f32]) {
    let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / squares.sqrt().max(1e-12);
    for x in row {
        *x = (f64::from(*x) * scale) as f32;
    }
}

/// Layer norm of every row of `x` (plus `residual` where there is one):
/// `(v - mean) / sqrt(variance + eps) * gamma + beta`. Rows have the width of `gamma`.
pub(crate) fn add_layer_norm(
    x: &[f32],
    residual: Option<&[f32]>,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) -> Vec<f32> {
    /// Rows of one task: small enough to balance, large enough to be worth a task.
    const BLOCK: usize = 128;
    let width = gamma.len();
    let mut out = x.to_vec();
    out.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, rows)| {
        let residual = residual.map(|all| &all[block * BLOCK * width..][..rows.len()]);
        Arch::new().dispatch(LayerNorm { rows, residual, gamma, beta, eps });
    });
    out
}

struct LayerNorm<'a> {
    rows: &'a mut [f32],
    residual: Option<&'a [f32]>,
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gamma.len();
        for (index, row) in self.rows.chunks_exact_mut(width).enumerate() {
            if let Some(residual) = self.residual {
                for (x, y) in row.iter_mut().zip(&residual[index * width..][..width]) {
                    *x += y;
                }
            }
            let mean = sum(simd, row, |simd, x| x_itself(simd, x)) / width as f32;
            for x in row.iter_mut() {
                *x -= mean;
            }
            let variance = sum(simd, row, |simd, x| simd.mul_f32s(x, x)) / width as f32;
            let scale = 1.0 / (variance + self.eps).sqrt();
            for ((x, g), b) in row.iter_mut().zip(self.gamma).zip(self.beta) {
                *x = *x * scale * g + b;
            }
        }
    }
}

#[inline(always)]
fn x_itself<S: Simd>(_: S, x: S::f32s) -> S::f32s {
    x
}

/// The sum of `f` over a row, in one accumulator per lane.
#[inline(always)]
fn sum<S: Simd>(simd: S, row: &[f32], f: impl Fn(S, S::f32s) -> S::f32s) -> f32 {
    let (body, tail) = S::as_simd_f32s(row);
    let mut total = simd.splat_f32s(0.0);
    for &x in body {
        total = simd.add_f32s(total, f(simd, x));
    }
    if !tail.is_empty() {
        total = simd.add_f32s(total, f(simd, simd.partial_load_f32s(tail)));
    }
    simd.reduce_sum_f32s(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map<'a, F> {
        values: &'a mut [f32],
        function: F,
    }

    /// The functions under test, so that one dispatch serves them all.
    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Gelu,
        Tanh,
    }

    impl WithSimd for Map<'_, Function> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (body, tail) = S::as_mut_simd_f32s(self.values);
            assert!(tail.is_empty(), "the tests use a multiple of every lane count");
            for x in body {
                *x = match self.function {
                    Function::Exp => exp(simd, *x),
                    Function::Gelu => gelu(simd, *x),
                    Function::Tanh => tanh(simd, *x),
                };
            }
        }
    }

    fn map(function: Function, values: &[f32]) -> Vec<(f64, f64)> {
        let mut out = values.to_vec();
        Arch::new().dispatch(Map { values: &mut out, function });
        values.iter().zip(out).map(|(&x, y)| (f64::from(x), f64::from(y))).collect()
    }

    fn range(from: f32, to: f32) -> Vec<f32> {
        const N: usize = 65_536;
        (0..N).map(|i| from + (to - from) * i as f32 / (N - 1) as f32).collect()
    }

    /// erf to 1e-14: the series below 3, the continued fraction above.
    fn erf(x: f64) -> f64 {
        let z = x.abs();
        let value = if z < 3.0 {
            let mut term = z;
            let mut total = z;
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                total += term / f64::from(2 * n + 1);
            }
            total * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let mut fraction = z;
            for n in (1..=60).rev() {
                fraction = z + f64::from(n) / 2.0 / fraction;
            }
            1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[test]
    fn exp_is_exact_to_two_in_ten_million() {
        for (x, y) in map(Function::Exp, &range(-86.9, 87.9)) {
            assert!((y / x.exp() - 1.0).abs() < 2e-7, "exp({x}) gave {y}");
        }
        let (_, low) = map(Function::Exp, &[f32::NEG_INFINITY; 64])[0];
        assert!((0.0..1e-37).contains(&low));
    }

    #[test]
    fn gelu_is_the_exact_one_and_not_the_tanh_form() {
        for (x, y) in map(Function::Gelu, &range(-12.0, 12.0)) {
            let exact = 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            assert!((y - exact).abs() <= 4e-7 * x.abs().max(0.1), "gelu({x}) gave {y} not {exact}");
        }
    }

    #[test]
    fn a_gate_multiplies_the_left_half_with_gelu_of_the_right_one() {
        for width in [1, 16, 37] {
            let x: Vec<f32> = (0..100 * 2 * width).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
            for (x, out) in x.chunks_exact(2 * width).zip(gate(&x, width).chunks_exact(width)) {
                for i in 0..width {
                    let right = f64::from(x[width + i]);
                    let gelu = 0.5 * right * (1.0 + erf(right * std::f64::consts::FRAC_1_SQRT_2));
                    let exact = f64::from(x[i]) * gelu;
                    assert!((f64::from(out[i]) - exact).abs() < 2e-6, "{} not {exact}", out[i]);
                }
            }
        }
    }

    #[test]
    fn tanh_is_exact_to_three_in_ten_million() {
        for (x, y) in map(Function::Tanh, &range(-30.0, 30.0)) {
            assert!((y - x.tanh()).abs() < 3e-7, "tanh({x}) gave {y}");
        }
    }

    #[test]
    fn layer_norm_of_any_width_agrees_with_the_formula() {
        for width in [1, 3, 16, 30, 64, 384] {
            let rows = 300;
            let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.37).sin() * 5.0).collect();
            let y: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.11).cos()).collect();
            let gamma: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            let beta: Vec<f32> = (0..width).map(|i| i as f32 * 0.02).collect();
            let out = add_layer_norm(&x, Some(&y), &gamma, &beta, 1e-5);
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let v: Vec<f64> = x[at.clone()]
                    .iter()
                    .zip(&y[at.clone()])
                    .map(|(&a, &b)| f64::from(a) + f64::from(b))
                    .collect();
                let mean = v.iter().sum::<f64>() / width as f64;
                let variance = v.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, got) in out[at].iter().enumerate() {
                    let exact = (v[i] - mean) / (variance + 1e-5).sqrt() * f64::from(gamma[i])
                        + f64::from(beta[i]);
                    assert!((f64::from(*got) - exact).abs() < 2e-5, "{got} not {exact}");
                }
            }
        }
    }

    #[test]
    fn a_zero_row_is_left_at_zero_by_normalisation() {
        let mut row = [0.0; 8];
        l2_normalize(&mut row);
        assert_eq!(row, [0.0; 8]);
    }
}
