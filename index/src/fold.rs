//! Sums and the like over the dimensions of a query, several at a time: one after another, each
//! addition would wait for the last, and a narrow walk spent a tenth of its time so.

/// Numbers folded side by side: a cache line.
const LANES: usize = 16;
/// 1.5 · 2²³: a number below 2²² that is added to it has its integer in the lowest bits.
const SHIFT: f32 = 12_582_912.0;

/// Folds `each(a, b)` of all pairs with `join`, for which `start` is neutral.
#[inline(always)]
fn fold(
    (a, b): (&[f32], &[f32]),
    start: f32,
    each: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let ((wide_a, rest_a), (wide_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [start; LANES];
    for (a, b) in wide_a.iter().zip(wide_b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane = join(*lane, each(*a, *b));
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(a, b)| each(*a, *b));
    lanes.into_iter().chain(rest).fold(start, join)
}

/// The inner product; of the shorter one's dimensions.
pub(crate) fn product(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    fold((&a[..len], &b[..len]), 0.0, |a, b| a * b, |x, y| x + y)
}

/// The sum.
pub(crate) fn sum(a: &[f32]) -> f32 {
    fold((a, a), 0.0, |a, _| a, |x, y| x + y)
}

/// The largest absolute value.
pub(crate) fn largest(a: &[f32]) -> f32 {
    fold((a, a), 0.0, |a, _| a.abs(), f32::max)
}

/// The nearest integer of a number below 2²²; of others, any.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> i32 {
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_those_of_one_after_another() {
        for len in [0, 1, 15, 16, 17, 384, 1_001] {
            let a: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
            let b: Vec<f32> = (0..len).map(|i| ((i * 53 % 89) as f32 - 44.0) / 4.0).collect();
            // Multiples of a 32nd, whose sums are exact in any order.
            assert_eq!(product(&a, &b), a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
            assert_eq!(sum(&a), a.iter().sum::<f32>());
            assert_eq!(largest(&a), a.iter().fold(0.0, |most, x| x.abs().max(most)));
        }
        assert_eq!(product(&[2.0], &[]), 0.0);
    }

    #[test]
    fn integers_are_the_nearest() {
        for x in [0.0, 0.49, -0.49, 0.51, -0.51, 126.7, -127.2, 8_127.6, -8_128.0, 4_194_303.0] {
            assert_eq!(rounded(x), x.round() as i32, "{x}");
        }
    }
}
