//! Every level against the reference, and alone against among others.

use proptest::prelude::*;

use super::*;
use crate::MAX_DIM;
use crate::testing::{Random, combinations, decode, encode};

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// Numbers of all sizes whose squares neither vanish nor overflow in single precision.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1.0f32..1.0,
        2 => -130.0f32..130.0,
        1 => Just(0.0f32),
        1 => Just(-128.0f32),
        1 => Just(127.0f32),
        1 => prop_oneof![Just(1e15f32), Just(-1e15), Just(1e-15), Just(65504.0), Just(6e-8)],
    ]
}

/// As bytes of `elem`: half precision would make infinities of the largest numbers.
fn bytes(elem: Elem, numbers: &[f32]) -> Vec<u8> {
    match elem {
        Elem::Bit => encode(Elem::I8, numbers),
        Elem::F16 => {
            let clamped: Vec<f32> = numbers.iter().map(|n| n.clamp(-65504.0, 65504.0)).collect();
            encode(elem, &clamped)
        }
        Elem::F32 | Elem::Bf16 | Elem::I8 => encode(elem, numbers),
    }
}

/// The result in double precision, and how far single precision may be from it.
fn expected(metric: Metric, elem: Elem, query: &[u8], row: &[u8]) -> (f64, f64) {
    let (query, row) = (decode(elem, query), decode(elem, row));
    let pairs = || query.iter().copied().zip(row.iter().copied());
    let dot: f64 = pairs().map(|(q, r)| q * r).sum();
    let dot_size: f64 = pairs().map(|(q, r)| (q * r).abs()).sum();
    let length = row.iter().map(|r| r * r).sum::<f64>().sqrt();
    let either: f64 = pairs().map(|(q, r)| q.max(r)).sum();
    // Whole numbers below 2^24 are exact in single precision.
    let exact = matches!(elem, Elem::I8 | Elem::Bit) && query.len() < 600;
    let rounding = if exact { 0.0 } else { (query.len() + 8) as f64 * f64::from(f32::EPSILON) };
    let few = 4.0 * f64::from(f32::EPSILON);
    match metric {
        Metric::L2 => {
            let square: f64 = pairs().map(|(q, r)| (q - r) * (q - r)).sum();
            (square, rounding * square)
        }
        Metric::Ip => (dot, rounding * dot_size),
        Metric::Cosine if length == 0.0 => (0.0, 0.0),
        Metric::Cosine => (dot / length, (rounding + few) * dot_size / length),
        Metric::Hamming => (pairs().filter(|(q, r)| q != r).count() as f64, 0.0),
        Metric::Jaccard if either == 0.0 => (1.0, 0.0),
        Metric::Jaccard => (1.0 - dot / either, few),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_level_computes_the_metric_at_every_width_and_alignment(
        numbers in proptest::collection::vec((number(), number()), 1..300),
        skew in 0usize..8,
    ) {
        let (query, row): (Vec<f32>, Vec<f32>) = numbers.into_iter().unzip();
        for (metric, elem) in combinations() {
            let shifted = |numbers: &[f32], by: usize| {
                let mut skewed = vec![0xA5; by];
                skewed.extend(bytes(elem, numbers));
                skewed
            };
            let (query, row) = (shifted(&query, skew), shifted(&row, skew + 1));
            let (query, row) = (&query[skew..], &row[skew + 1..]);
            let (expected, tolerance) = expected(metric, elem, query, row);
            for level in levels() {
                let kernel = Kernel::at(level, metric, elem).expect("it applies");
                let result = f64::from((kernel.pair)(query, row));
                prop_assert!(
                    (result - expected).abs() <= tolerance + 1e-37,
                    "{level:?} {metric:?} {elem:?}: {result} but {expected} ± {tolerance}"
                );
            }
        }
    }

    #[test]
    fn a_row_scores_the_same_alone_and_among_others(
        width in 1usize..150,
        rows in 0usize..11,
        seed in any::<u64>(),
    ) {
        let mut random = crate::testing::Random(seed);
        let numbers: Vec<f32> = (0..width * (rows + 1)).map(|_| random.float() * 100.0).collect();
        for (metric, elem) in combinations() {
            let bytes = bytes(elem, &numbers);
            let (query, rows) = bytes.split_at(bytes.len() / (rows + 1));
            for level in levels() {
                let kernel = Kernel::at(level, metric, elem).expect("it applies");
                let alone: Vec<u32> = rows
                    .chunks_exact(query.len())
                    .map(|row| (kernel.pair)(query, row).to_bits())
                    .collect();
                let mut among = vec![f32::NAN; alone.len()];
                (kernel.block)(query, rows, &mut among);
                let among: Vec<u32> = among.into_iter().map(f32::to_bits).collect();
                prop_assert_eq!(among, alone, "{:?} {:?} {:?}", level, metric, elem);
            }
        }
    }

    #[test]
    fn what_passes_in_a_tile_is_what_the_products_say(
        dim in 1usize..70,
        queries in 1usize..=TILE_QUERIES,
        square in prop_oneof![Just(0.0f32), Just(0.5)],
        seed in any::<u64>(),
    ) {
        let mut random = crate::testing::Random(seed);
        let mut vectors = |count: usize| -> Vec<Vec<u8>> {
            let mut numbers = || (0..dim).map(|_| random.float()).collect::<Vec<f32>>();
            (0..count).map(|_| encode(Elem::F32, &numbers())).collect()
        };
        let (queries, rows) = (vectors(queries), vectors(TILE_ROWS));
        let queries: Vec<&[u8]> = queries.iter().map(Vec::as_slice).collect();
        let rows: [&[u8]; TILE_ROWS] = std::array::from_fn(|row| rows[row].as_slice());
        for level in levels() {
            let mut tiles = Tiles::new(level, &queries, square);
            let every = !0 >> (64 - queries.len());
            prop_assert_eq!(tiles.pass(rows, rows), [every; TILE_ROWS], "{:?}", level);
            let limit = Limit { constant: 0.1, linear: 0.2 };
            (0..queries.len()).for_each(|query| tiles.set_limit(query, limit));
            let words = tiles.pass(rows, rows);
            for (row, word) in rows.iter().zip(words) {
                let length = expected(Metric::Ip, Elem::F32, row, row).0;
                let limit = 0.1 + 0.2 * length.sqrt() + f64::from(square) * length;
                prop_assert_eq!(word & !every, 0, "{:?}", level);
                for (at, query) in queries.iter().enumerate() {
                    let (product, tolerance) = expected(Metric::Ip, Elem::F32, query, row);
                    let near = (product - limit).abs() <= tolerance + 1e-5 * (1.0 + limit);
                    prop_assert!(
                        near || (word >> at & 1 == 1) == (product > limit),
                        "{level:?} query {at}: {product} and {limit}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_level_selects_what_the_reference_selects(
        scores in proptest::collection::vec(
            prop_oneof![
                4 => (-3i8..4).prop_map(f32::from),
                1 => Just(-0.0),
                1 => Just(f32::NAN),
                1 => Just(f32::NEG_INFINITY),
            ],
            0..300,
        ),
        floor in prop_oneof![(-3i8..4).prop_map(f32::from), Just(f32::NAN)],
    ) {
        let mut expected = vec![0; scores.len().div_ceil(64)];
        for (i, score) in scores.iter().enumerate() {
            let at_or_below = *score <= floor;
            expected[i / 64] |= u64::from(!at_or_below) << (i % 64);
        }
        for level in levels() {
            let mut words = vec![!0; expected.len()];
            select_at(level).expect("available")(&scores, floor, &mut words);
            prop_assert_eq!(&words, &expected, "{:?}", level);
        }
    }
}

#[test]
fn every_level_multiplies_codes_as_the_reference_does_up_to_the_widest_rows() {
    let mut random = crate::testing::Random(3);
    for steps in [0, 1, 2, 3, 6, 7, MAX_DIM / 64 + 1] {
        for extreme in [false, true] {
            let mut plane = |_| {
                let mut step = Step::ZERO;
                let number = |n: usize| if extreme { 64 } else { n as i8 - 64 };
                step.0.iter_mut().for_each(|q| *q = number(random.below(129)));
                step
            };
            let high: Vec<Step> = (0..steps).map(&mut plane).collect();
            let low: Vec<Step> = (0..steps).map(&mut plane).collect();
            let code: Vec<u8> =
                (0..steps * 64).map(|_| if extreme { 255 } else { random.next() as u8 }).collect();
            let dot = |plane: &[Step]| -> i64 {
                let plane = plane.iter().flat_map(|step| step.0);
                plane.zip(&code).map(|(q, c)| i64::from(q) * i64::from(*c)).sum()
            };
            let expected = dot(&high) as f32 * 128.0 + dot(&low) as f32;
            for level in levels() {
                let dots = code_dot_at(level).expect("available");
                let result = (dots.one)(&high, &low, &code);
                assert_eq!(result, expected, "{level:?} {steps} {extreme}");
                let mut others: [Vec<u8>; 4] = std::array::from_fn(|_| code.clone());
                for (at, other) in others.iter_mut().enumerate() {
                    other.rotate_left((at * 7).min(code.len()));
                }
                let alone = others.each_ref().map(|code| (dots.one)(&high, &low, code));
                let picked = Picked {
                    bytes: &others.concat(),
                    stride: steps * 64,
                    places: &[3, 0, 1, 2, 2],
                };
                let mut together = [0.0; 5];
                (dots.picked)(&high, &low, picked, &mut together);
                let expected = picked.places.iter().map(|at| alone[*at as usize]);
                assert!(expected.eq(together), "{level:?} {steps} {extreme}");
            }
        }
    }
}

#[test]
fn the_widest_int8_rows_of_the_farthest_numbers_do_not_overflow() {
    let low = vec![i8::MIN.cast_unsigned(); MAX_DIM];
    let high = vec![i8::MAX.cast_unsigned(); MAX_DIM];
    let width = MAX_DIM as f32;
    for level in levels() {
        let pair = |metric, a: &[u8], b: &[u8]| {
            (Kernel::at(level, metric, Elem::I8).expect("it applies").pair)(a, b)
        };
        assert_eq!(pair(Metric::L2, &low, &high), 255.0 * 255.0 * width, "{level:?}");
        assert_eq!(pair(Metric::Ip, &low, &low), 128.0 * 128.0 * width, "{level:?}");
        assert_eq!(pair(Metric::Ip, &low, &high), -128.0 * 127.0 * width, "{level:?}");
        let expected = 128.0 * width.sqrt();
        assert_eq!(pair(Metric::Cosine, &low, &low), expected, "{level:?}");
    }
}

#[test]
fn half_precision_infinities_and_subnormals_are_read_as_they_are() {
    for level in levels() {
        for elem in [Elem::F16, Elem::Bf16] {
            let ip = Kernel::at(level, Metric::Ip, elem).expect("it applies").pair;
            let one = encode(elem, &[1.0; 40]);
            let infinite = encode(elem, &[f32::INFINITY; 40]);
            assert_eq!(ip(&one, &infinite), f32::INFINITY, "{level:?} {elem:?}");
            assert!(ip(&one, &encode(elem, &[f32::NAN; 40])).is_nan(), "{level:?} {elem:?}");
        }
        let ip = Kernel::at(level, Metric::Ip, Elem::F16).expect("it applies").pair;
        // 2^-24, the smallest half-precision number.
        let smallest = [1u16.to_le_bytes(); 32].concat();
        let sum = ip(&encode(Elem::F16, &[1.0; 32]), &smallest);
        assert_eq!(sum, 32.0 * 2f32.powi(-24), "{level:?}");
    }
}

#[test]
fn a_row_of_which_the_length_is_not_known_passes_every_limit() {
    let query = encode(Elem::F32, &[1.0; 20]);
    let limit = Limit { constant: 1e9, linear: 0.1 };
    for level in levels() {
        for square in [0.0, 0.5] {
            let mut tiles = Tiles::new(level, &[query.as_slice(); 17], square);
            (0..17).for_each(|query| tiles.set_limit(query, limit));
            for (number, word) in [
                (1.0, 0),
                (0.0, !0 >> 47),
                (1e-20, !0 >> 47),
                (1e30, !0 >> 47),
                (f32::NAN, !0 >> 47),
            ] {
                let row = encode(Elem::F32, &[number; 20]);
                let rows = [row.as_slice(); TILE_ROWS];
                assert_eq!(tiles.pass(rows, rows), [word; TILE_ROWS], "{level:?} {number}");
            }
        }
    }
}

#[test]
fn a_metric_that_does_not_apply_is_refused() {
    for elem in crate::testing::DENSE {
        assert!(matches!(Kernel::best(Metric::Hamming, elem), Err(Error::Unsupported(_))));
    }
    assert!(matches!(Kernel::best(Metric::Cosine, Elem::Bit), Err(Error::Unsupported(_))));
}

#[test]
fn bits_are_counted_at_every_length() {
    let mut random = Random(11);
    let words: Vec<u64> = (0..100).map(|_| random.next()).collect();
    for len in 0..=words.len() {
        let expected: u32 = words[..len].iter().map(|word| word.count_ones()).sum();
        assert_eq!(count_ones(&words[..len]), expected as usize, "{len} words");
    }
}
