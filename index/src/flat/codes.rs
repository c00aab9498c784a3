//! Rows in a byte per dimension, with how far each is from what it stands for: a scan reads an
//! eighth of the bytes of most rows, and scores exactly only those that could be among the best.
//!
//! Each row has a step of its own, `x ≈ step · (code - 128)`, and its codes lie in two planes of
//! half bytes. The upper one is looked at first; by itself it tells codes up to 16 apart. With either,
//! a row keeps the length of the *rest* `x - x'`, where `x'` is what it stands for. By Cauchy and Schwarz
//!
//! ```text
//! q·x  =  q'·x' + q'·(x - x') + (q - q')·x  <=  q'·x' + |q'| |x - x'| + |q - q'| |x|
//! ```
//!
//! So does a bound on the score follow, for any metric, and a row whose bound is not above the floor
//! of a scan cannot enter. Nothing is lost, whatever the rows are like; where codes tell too little,
//! the scan does without.

use std::cmp::Ordering;

use arrow_buffer::{Buffer, MutableBuffer, ScalarBuffer};

use super::WORD;
use crate::kernel::{self, LINE, NIBBLES, NibbleKernel, Picked, Step};
use crate::mask::ones;
use crate::{Elem, Metric, Row, Vectors, fold};

/// The code of zero.
const ZERO: f32 = 128.0;
/// How far codes with the same upper half reach, and their middle.
const HALF: f32 = 16.0;
const MIDDLE: f32 = 7.5;
/// The largest absolute level of a row or a query.
const LEVELS: f32 = 127.0;
/// Lengths between which no square, product or sum of them overflows or vanishes. Other rows have
/// no bound, and are scored exactly.
const LENGTHS: std::ops::RangeInclusive<f32> = 1e-12..=1e18;
/// What the length of a rest is multiplied with so that it is none too short: the sum of up to
/// 32,768 squares, 16 side by side, is wrong by 2⁻¹³ of itself at most.
const REST_GROWS: f32 = 1.001;
/// What is added to it, as a share of the vector's length: what is left of each number is wrong by
/// 2⁻²⁴ of the number and of itself.
const REST_OF_LENGTH: f32 = 1e-6;
/// Of so many allowed rows among 64 on, all 64 are looked at.
const MANY: usize = 16;
/// Cache lines of the next 64 rows that are asked for beside these.
const LINES_AHEAD: usize = 36;
/// 256 rows that pass at the beginning of a scan, while few were seen, say nothing about the codes.
const GRACE_ROWS: usize = 256;

/// Rows of float32 vectors as codes. Cloning shares them.
#[derive(Debug, Clone)]
pub struct FlatCodes {
    dim: usize,
    /// The upper and the lower halves of the codes: whole cache lines of each row, in the order of
    /// [`NIBBLES`].
    planes: [Buffer; 2],
    steps: ScalarBuffer<f32>,
    /// Upper bounds of `|x - x'|` by the upper plane and by both; not numbers where a row has no bound.
    rests: [ScalarBuffer<f32>; 2],
    lengths: ScalarBuffer<f32>,
}

impl FlatCodes {
    /// Whether rows of that kind have codes: of float32, and so wide that codes take at most half
    /// of what the rows take.
    #[must_use]
    pub fn suit(elem: Elem, dim: usize) -> bool {
        elem == Elem::F32 && dim.next_multiple_of(NIBBLES) <= 2 * dim
    }

    /// Encodes all rows.
    ///
    /// # Panics
    /// If they are not of float32.
    #[must_use]
    pub fn encode(vectors: &Vectors) -> Self {
        assert_eq!(vectors.elem(), Elem::F32, "codes are of float32");
        let (dim, rows) = (vectors.dim(), vectors.rows());
        let stride = stride(dim);
        let mut planes = [(); 2].map(|()| MutableBuffer::from_len_zeroed(rows * stride));
        let mut rests = [(); 2].map(|()| vec![f32::NAN; rows]);
        let (mut steps, mut lengths) = (vec![0.0; rows], vec![0.0; rows]);
        let (mut numbers, mut left) = (Vec::with_capacity(dim), Vec::with_capacity(dim));
        let mut codes = Vec::with_capacity(dim);
        for row in 0..rows {
            read(vectors.range(row, 1), &mut numbers);
            let length = fold::product(&numbers, &numbers).sqrt();
            lengths[row] = length;
            if !LENGTHS.contains(&length) {
                continue;
            }
            let largest = fold::largest(&numbers);
            let (step, levels) = (largest / LEVELS, LEVELS / largest);
            steps[row] = step;
            codes.clear();
            codes.extend(numbers.iter().map(|x| (fold::rounded(x * levels) + ZERO as i32) as u8));
            let [upper, lower] = planes
                .each_mut()
                .map(|plane| &mut plane.as_slice_mut()[row * stride..(row + 1) * stride]);
            for (at, codes) in codes.chunks(LINE).enumerate() {
                let (line, shift) = (at / 2 * LINE, at % 2 * 4);
                for (place, code) in upper[line..].iter_mut().zip(codes) {
                    *place |= code >> 4 << shift;
                }
                for (place, code) in lower[line..].iter_mut().zip(codes) {
                    *place |= (code & 15) << shift;
                }
            }
            let mut rest_of = |meant: fn(u8) -> f32| {
                left.clear();
                left.extend(numbers.iter().zip(&codes).map(|(x, code)| x - step * meant(*code)));
                rest(&left, length)
            };
            rests[0][row] = rest_of(|code| f32::from(code & 240) + (MIDDLE - ZERO));
            rests[1][row] = rest_of(|code| f32::from(code) - ZERO);
        }
        Self {
            dim,
            planes: planes.map(Into::into),
            steps: steps.into(),
            rests: rests.map(Into::into),
            lengths: lengths.into(),
        }
    }

    /// The rows of several, one after another.
    ///
    /// # Panics
    /// If there are none, or they are of different dimensions.
    #[must_use]
    pub fn concat(parts: &[&Self]) -> Self {
        let dim = parts[0].dim;
        assert!(parts.iter().all(|part| part.dim == dim), "codes of one dimension");
        let plane = |at: usize| {
            let bytes = parts.iter().map(|part| part.planes[at].len()).sum();
            let mut plane = MutableBuffer::new(bytes);
            parts.iter().for_each(|part| plane.extend_from_slice(&part.planes[at]));
            plane.into()
        };
        let join = |of: fn(&Self) -> &ScalarBuffer<f32>| -> ScalarBuffer<f32> {
            parts.iter().flat_map(|part| of(part).iter().copied()).collect::<Vec<_>>().into()
        };
        Self {
            dim,
            planes: [plane(0), plane(1)],
            steps: join(|part| &part.steps),
            rests: [join(|part| &part.rests[0]), join(|part| &part.rests[1])],
            lengths: join(|part| &part.lengths),
        }
    }

    /// `len` rows from row `start` on, without a copy.
    ///
    /// # Panics
    /// If the range is not within the rows.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let stride = stride(self.dim);
        let rows = |numbers: &ScalarBuffer<f32>| numbers.slice(start, len);
        let plane = |plane: &Buffer| plane.slice_with_length(start * stride, len * stride);
        Self {
            dim: self.dim,
            planes: self.planes.each_ref().map(plane),
            steps: rows(&self.steps),
            rests: self.rests.each_ref().map(rows),
            lengths: rows(&self.lengths),
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.steps.len()
    }

    /// Bytes of memory that the rows take here.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        2 * self.planes[0].len() + 4 * size_of_val(&*self.steps)
    }

    /// Bytes that a scan reads of most rows.
    #[must_use]
    pub fn scanned_bytes(&self) -> usize {
        self.planes[0].len() + 3 * size_of_val(&*self.steps)
    }

    /// Whether these can be the codes of `vectors`.
    pub(super) fn are_of(&self, vectors: &Vectors) -> bool {
        vectors.elem() == Elem::F32 && (self.rows(), self.dim) == (vectors.rows(), vectors.dim())
    }
}

/// Bytes of a row in a plane.
fn stride(dim: usize) -> usize {
    dim.next_multiple_of(NIBBLES) / 2
}

/// The numbers of a float32 row.
fn read(bytes: &[u8], numbers: &mut Vec<f32>) {
    numbers.clear();
    numbers.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
}

/// At least the length of what is left of a vector of that length, which are `numbers` as single
/// precision has them.
fn rest(numbers: &[f32], length: f32) -> f32 {
    fold::product(numbers, numbers).sqrt() * REST_GROWS + length * REST_OF_LENGTH
}

/// A query over codes, and how they serve it.
pub(super) struct CodeScan<'a> {
    codes: &'a FlatCodes,
    metric: Metric,
    dot: NibbleKernel,
    /// The query's levels.
    levels: Vec<Step>,
    /// What a level counts.
    factor: f32,
    /// The sum of the levels.
    sum: f32,
    /// What products of levels and codes may be wrong by, once they are in single precision.
    rounding: f32,
    length: f32,
    /// `|q - q'|` at most.
    rest: f32,
    /// What errors of single precision come to, as a share of `|q| |x|`.
    slack: f32,
    seen: usize,
    passed: usize,
}

impl<'a> CodeScan<'a> {
    /// A scan for a float32 `query` as wide as the rows; `None` if the query is of a length that
    /// bounds cannot be computed with, or the metric is none of float32.
    pub(super) fn new(codes: &'a FlatCodes, metric: Metric, query: &[u8]) -> Option<Self> {
        if matches!(metric, Metric::Hamming | Metric::Jaccard) {
            return None;
        }
        let mut numbers = Vec::with_capacity(codes.dim);
        read(query, &mut numbers);
        let length = fold::product(&numbers, &numbers).sqrt();
        if !LENGTHS.contains(&length) {
            return None;
        }
        let largest = fold::largest(&numbers);
        let (factor, scale) = (largest / LEVELS, LEVELS / largest);
        // Two of the query's for a line of half bytes.
        let mut levels = vec![Step::ZERO; codes.dim.next_multiple_of(NIBBLES) / LINE];
        let (mut sum, mut sizes) = (0, 0);
        for (step, numbers) in levels.iter_mut().zip(numbers.chunks_mut(LINE)) {
            for (place, x) in step.0.iter_mut().zip(numbers) {
                let level = fold::rounded(*x * scale);
                *place = level as i8;
                sum += level;
                sizes += level.abs();
                *x -= factor * level as f32;
            }
        }
        Some(Self {
            codes,
            metric,
            dot: kernel::nibble_dot(),
            levels,
            factor,
            sum: sum as f32,
            // Two products, their sum, the offset and the difference, each wrong by 2⁻²⁴ of at most
            // 256 times all levels; counted more than twice.
            rounding: 6.0 * f32::EPSILON * 256.0 * sizes as f32,
            length,
            rest: rest(&numbers, length),
            // As for many queries at once: twice what product, kernel and lengths err by.
            slack: 2.0 * (codes.dim as f32 + 8.0) * f32::EPSILON,
            seen: 0,
            passed: 0,
        })
    }

    /// Whether codes have ruled out enough rows so far to be worth reading.
    pub(super) fn pays(&self) -> bool {
        self.passed <= GRACE_ROWS + self.seen / 2
    }

    /// Of the rows from `start` on that have a bit in `word`, those that may score above `floor`.
    pub(super) fn may_pass(&mut self, start: usize, word: u64, floor: f32) -> u64 {
        let rows = word.count_ones() as usize;
        let mut upper = [0.0; WORD];
        let left = if rows >= MANY && start + WORD <= self.codes.rows() {
            self.products(0, start, !0, &mut upper);
            word & self.all_above(start, &upper, floor)
        } else {
            self.products(0, start, word, &mut upper);
            self.above(0, start, word, &upper, floor)
        };
        let mut lower = [0.0; WORD];
        self.products(1, start, left, &mut lower);
        lower.iter_mut().zip(&upper).for_each(|(lower, upper)| *lower += upper);
        let passing = self.above(1, start, left, &lower, floor);
        self.seen += rows;
        self.passed += passing.count_ones() as usize;
        passing
    }

    /// The products of the query's levels with what the rows that have a bit in `word` stand for, in
    /// their steps: by the upper plane, or what the lower one adds to that.
    fn products(&self, plane: usize, start: usize, word: u64, products: &mut [f32; WORD]) {
        let mut places = [0; WORD];
        let mut count = 0;
        for bit in ones(word) {
            places[count] = start as Row + bit;
            count += 1;
        }
        let (bytes, stride) = (self.codes.planes[plane].as_slice(), stride(self.codes.dim));
        if plane == 0 {
            let next = bytes.get((start + WORD) * stride..).unwrap_or_default();
            kernel::prefetch(next, LINES_AHEAD);
        }
        let mut dots = [0.0; WORD];
        let picked = Picked { bytes, stride, places: &places[..count] };
        (self.dot.picked)(&self.levels, picked, &mut dots[..count]);
        let (step, offset) = match plane {
            0 => (HALF, (MIDDLE - ZERO) * self.sum),
            // From the middle of what the upper half reaches back to its beginning.
            _ => (1.0, -MIDDLE * self.sum),
        };
        if count == WORD {
            for (product, dot) in products.iter_mut().zip(&dots) {
                *product = dot * step + offset;
            }
            return;
        }
        for (place, dot) in places[..count].iter().zip(&dots) {
            products[*place as usize - start] = dot * step + offset;
        }
    }

    /// The rows of a word that may score above `floor` by their upper plane.
    fn all_above(&self, start: usize, products: &[f32; WORD], floor: f32) -> u64 {
        let mut bounds = [0.0; WORD];
        let lengths = &self.codes.lengths[start..start + WORD];
        let rests = &self.codes.rests[0][start..start + WORD];
        let steps = &self.codes.steps[start..start + WORD];
        let of_rows = steps.iter().zip(rests).zip(lengths);
        for ((bound, product), ((step, rest), length)) in
            bounds.iter_mut().zip(products).zip(of_rows)
        {
            *bound = self.at_most(*product, *step, *rest, *length);
        }
        // Apart from the products, so that each loop is one for the compiler.
        let bounded = bounds.iter_mut().zip(lengths);
        match self.metric {
            Metric::Cosine => {
                bounded.for_each(|(bound, length)| *bound = self.cosine(*bound, *length));
            }
            Metric::L2 => bounded.for_each(|(bound, length)| *bound = self.l2(*bound, *length)),
            Metric::Ip | Metric::Hamming | Metric::Jaccard => {}
        }
        let mut above = [0];
        (kernel::select())(&bounds, floor, &mut above);
        above[0]
    }

    /// The rows with a bit in `word` that may score above `floor`, by what a plane tells.
    fn above(
        &self,
        plane: usize,
        start: usize,
        word: u64,
        products: &[f32; WORD],
        floor: f32,
    ) -> u64 {
        let FlatCodes { steps, rests, lengths, .. } = self.codes;
        ones(word).fold(0, |above, bit| {
            let (row, product) = (start + bit as usize, products[bit as usize]);
            let product = self.at_most(product, steps[row], rests[plane][row], lengths[row]);
            let bound = match self.metric {
                Metric::Cosine => self.cosine(product, lengths[row]),
                Metric::L2 => self.l2(product, lengths[row]),
                Metric::Ip | Metric::Hamming | Metric::Jaccard => product,
            };
            // What is not a number passes.
            let passes = bound.partial_cmp(&floor).is_none_or(Ordering::is_gt);
            above | u64::from(passes) << bit
        })
    }

    /// What the query's product with a row is at most, by that of their levels.
    #[inline(always)]
    fn at_most(&self, product: f32, step: f32, rest: f32, length: f32) -> f32 {
        let of_codes = step * self.factor * (product + self.rounding);
        let of_rest = (self.length + self.rest) * rest;
        of_codes + of_rest + (self.rest + self.slack * self.length) * length
    }

    /// What a score is at most, by the product.
    #[inline(always)]
    fn cosine(&self, product: f32, length: f32) -> f32 {
        product / (length * self.length)
    }

    /// As [`CodeScan::cosine`]: `-|q - x|² = 2qx - |q|² - |x|²`.
    #[inline(always)]
    fn l2(&self, product: f32, length: f32) -> f32 {
        let both = self.length + length;
        let squares = self.length * self.length + length * length;
        2.0 * product - squares + self.slack * both * both
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Random, encode};
    use crate::{Bounds, Cancel, FlatIndex, Query, RowMask, SearchParams, VectorIndex};

    const METRICS: [Metric; 3] = [Metric::L2, Metric::Ip, Metric::Cosine];

    fn vectors(numbers: &[f32], dim: usize) -> Vectors {
        let bytes = Buffer::from_vec(encode(Elem::F32, numbers));
        Vectors::new(bytes, Elem::F32, dim).expect("whole rows")
    }

    /// Rows of one kind, or of all kinds.
    fn numbers(random: &mut Random, kind: usize, rows: usize, dim: usize) -> Vec<f32> {
        let centres: Vec<f32> = (0..4 * dim).map(|_| random.float() * 3.0).collect();
        let mut numbers = Vec::with_capacity(rows * dim);
        for _ in 0..rows {
            let kind = if kind == 8 { random.below(8) } else { kind };
            let size = match kind {
                4 => [0.0, 1e-45, 1e-38, 1e-22, 1e-12, 1e9, 1e18, 1e19, 3e38][random.below(9)],
                _ => 1.0,
            };
            let centre = random.below(4) * dim;
            let row = (0..dim).map(|d| match kind {
                // Around anywhere.
                0 | 4 => random.float() * size,
                // In clusters, so close that codes hardly tell rows apart.
                1 => centres[centre + d] + random.float() * 1e-3,
                // Far from the origin.
                2 => 1e4 + random.float(),
                // Whole numbers, whose scores tie.
                3 => random.below(5) as f32 - 2.0,
                // With a dimension that takes all steps for itself.
                5 => random.float() * if d == 0 { 1e4 } else { 1.0 },
                6 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0, 0.0]
                    [if random.below(9) == 0 { random.below(6) } else { 5 }],
                _ => 0.0,
            });
            numbers.extend(row);
        }
        numbers
    }

    /// A mask of all, most, half or few of the rows.
    fn mask(random: &mut Random, rows: usize) -> RowMask {
        let out_of = [1, 50, 2, 30][random.below(4)];
        RowMask::from_fn(rows, |_| match out_of {
            1 => true,
            50 => random.below(50) > 0,
            _ => random.below(out_of) == 0,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn codes_change_no_hit_and_no_score(
            kinds in (0_usize..9, 0_usize..9),
            sizes in (1_usize..600, 1_usize..600),
            dim in prop_oneof![1_usize..40, 60_usize..140, Just(384)],
            k in prop_oneof![1_usize..12, Just(100), Just(2_000)],
            bounded in (any::<bool>(), any::<bool>()),
            seed: u64,
        ) {
            let random = &mut Random(seed);
            let parts = [sizes.0, sizes.1].map(|rows| numbers(random, kinds.0, rows, dim));
            let of = parts.each_ref().map(|numbers| FlatCodes::encode(&vectors(numbers, dim)));
            let codes = FlatCodes::concat(&of.each_ref());
            // Joined, and without the first rows.
            let from = random.below(sizes.0);
            let rows = sizes.0 + sizes.1 - from;
            let all = vectors(&parts.concat(), dim).slice(from, rows);
            prop_assert_eq!(codes.rows(), from + rows);
            let codes = codes.slice(from, rows);
            let queries = numbers(random, kinds.1, 4, dim);
            let queries = vectors(&queries, dim);
            for metric in METRICS {
                let plain = FlatIndex::new(all.clone(), metric);
                let coded = FlatIndex::new(all.clone(), metric);
                let coded = coded.with_codes(codes.clone()).expect("codes of these rows");
                // Some rows in place of queries: the best score is then as good as it gets.
                let near = all.row(random.below(rows) as Row);
                for query in (0..4).map(|at| queries.row(at)).chain([near]) {
                    let allowed = mask(random, rows);
                    let search = |index: &FlatIndex, bounds| {
                        let params = SearchParams { k, bounds, ..SearchParams::default() };
                        index.search(&Query::Dense(query), &params, &allowed, &Cancel::never())
                    };
                    let open = search(&plain, Bounds::default()).expect("a search");
                    // Bounds at scores that there are.
                    let mut bound = |wanted: bool| match open.len() {
                        0 => None,
                        hits => wanted.then(|| open[random.below(hits)].score),
                    };
                    let bounds = Bounds { above: bound(bounded.0), at_most: bound(bounded.1) };
                    let expected = search(&plain, bounds).expect("a search");
                    let found = search(&coded, bounds).expect("a search");
                    prop_assert_eq!(found, expected, "{:?} within {:?}", metric, bounds);
                }
            }
        }

        #[test]
        fn no_score_is_above_its_bound(
            kinds in (0_usize..9, 0_usize..9),
            dim in prop_oneof![1_usize..40, 60_usize..140, Just(1024)],
            seed: u64,
        ) {
            let random = &mut Random(seed);
            let rows = vectors(&numbers(random, kinds.0, 130, dim), dim);
            let queries = vectors(&numbers(random, kinds.1, 3, dim), dim);
            let codes = FlatCodes::encode(&rows);
            for metric in METRICS {
                let scorer = super::super::Scorer::new(&rows, metric).expect("float32");
                for query in (0..3).map(|at| queries.row(at)).chain([rows.row(0)]) {
                    let Some(mut scan) = CodeScan::new(&codes, metric, query) else { continue };
                    let scale = scorer.scale(query);
                    for row in 0..130 {
                        let score = scorer.score(query, scale, row);
                        // A floor just below it.
                        let floor = score.next_down();
                        if score > floor {
                            let (start, bit) = (row as usize / WORD * WORD, row as usize % WORD);
                            prop_assert_eq!(scan.may_pass(start, 1 << bit, floor), 1 << bit);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn of_rows_that_point_anywhere_few_are_scored() {
        let random = &mut Random(3);
        let (rows, dim) = (4_096, 384);
        let rows_of = vectors(&numbers(random, 0, rows, dim), dim);
        let codes = FlatCodes::encode(&rows_of);
        for metric in METRICS {
            let scorer = super::super::Scorer::new(&rows_of, metric).expect("float32");
            let query = rows_of.row(7);
            let scale = scorer.scale(query);
            let mut scores: Vec<f32> =
                (0..rows as Row).map(|row| scorer.score(query, scale, row)).collect();
            scores.sort_by(|a, b| b.total_cmp(a));
            let mut scan = CodeScan::new(&codes, metric, query).expect("an ordinary query");
            let words = (0..rows).step_by(WORD);
            let passed: u32 = words.map(|at| scan.may_pass(at, !0, scores[10]).count_ones()).sum();
            assert!((10..40).contains(&passed), "{metric:?}: {passed} rows for the ten best");
            assert!(scan.pays());
        }
    }

    #[test]
    fn codes_that_rule_nothing_out_are_not_read_for_long() {
        let random = &mut Random(5);
        let (rows, dim) = (2_048, 64);
        // Far from the origin and close together: distances drown in the steps.
        let rows_of = vectors(&numbers(random, 2, rows, dim), dim);
        let codes = FlatCodes::encode(&rows_of);
        let mut scan = CodeScan::new(&codes, Metric::L2, rows_of.row(0)).expect("ordinary");
        let read = (0..rows).step_by(WORD).take_while(|at| {
            scan.may_pass(*at, !0, -1.0);
            scan.pays()
        });
        assert!(read.count() < 16);
    }

    #[test]
    fn codes_of_other_rows_are_refused() {
        let rows = vectors(&[1.0; 640], 64);
        let codes = FlatCodes::encode(&rows);
        assert_eq!(codes.heap_bytes(), 10 * (128 + 16));
        let index = |rows: &Vectors| FlatIndex::new(rows.clone(), Metric::Ip);
        assert!(index(&rows).with_codes(codes.clone()).is_ok());
        for other in [vectors(&[1.0; 64], 64), vectors(&[1.0; 650], 65)] {
            assert!(matches!(
                index(&other).with_codes(codes.clone()),
                Err(crate::Error::Unsupported(_))
            ));
        }
        assert!(FlatCodes::suit(Elem::F32, 384) && FlatCodes::suit(Elem::F32, 64));
        assert!(!FlatCodes::suit(Elem::F32, 63) && !FlatCodes::suit(Elem::I8, 384));
    }
}
