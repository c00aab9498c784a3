//! Rows in a byte per dimension, and scoring a query against them.
//!
//! Each dimension is cut into 255 steps between its own limits, so a dimension with outliers
//! does not spoil the others: `x ≈ offset + step · code`. A query is multiplied with the steps
//! once and kept in two planes of 7 bits each, so that only the rows' rounding is felt.
//!
//! Where rows lie far from zero compared with their distances from each other, and always for
//! L2, both sides are first moved to the rows' centre `c`, which leaves less to be rounded; what
//! that takes from a row's score is a number that lies behind its codes: `-|x - c|²` for L2,
//! `c · x` for inner products.
//!
//! Scores of codes only rank rows; what a caller sees is scored on the rows themselves.

use arrow_buffer::{Buffer, ScalarBuffer};
use half::{bf16, f16};
use rayon::prelude::*;

use super::coarse::{self, Coarse};
use super::layout::{CENTRE, COARSE, CODES, OFFSETS, STEPS};
use super::lines::Lines;
use crate::fold;
use crate::kernel::{self, CodeKernel, LINE, Step};
use crate::sections::typed;
use crate::{Cancel, Elem, Error, Metric, Row, Sections, Vectors};

/// 10,000 rows, evenly spread, from which limits are taken.
const SAMPLE: usize = 10_000;
/// 1,024 rows between looks at the clock, and for one thread at a time: a few milliseconds.
const ROWS_PER_CHECK: usize = 1024;
/// Four standard deviations: beyond lie so few that clipping them costs less than the coarser
/// steps for all others would.
const CLIP: f64 = 4.0;
/// Rows are moved to their centre from where it holds this share of their squared length on
/// average. Below, a larger row would cost more than finer rounding brings.
const CENTRED_FROM: f64 = 0.3;
/// The largest absolute value of a query's dimension: `high · 128 + low` with both in -64..=64.
const QUERY_LEVELS: f32 = 8128.0;

/// How numbers become codes.
#[derive(Debug)]
struct Scale {
    metric: Metric,
    offsets: ScalarBuffer<f32>,
    steps: ScalarBuffer<f32>,
    /// Subtracted first; empty if nothing is.
    centre: ScalarBuffer<f32>,
}

/// All rows of a segment as codes.
#[derive(Debug)]
pub(super) struct Codes {
    scale: Scale,
    lines: Lines,
    dot: CodeKernel,
    coarse: Option<Coarse>,
}

/// A query, or a row in its place, ready to be scored against codes.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    high: Vec<Step>,
    low: Vec<Step>,
    factor: f32,
    constant: f32,
    coarse: coarse::Prepared,
}

impl Prepared {
    /// Room for so many cache lines, all zero: what an earlier, wider query left there would be
    /// multiplied with what lies behind the codes.
    fn clear(&mut self, lines: usize) {
        for plane in [&mut self.high, &mut self.low] {
            plane.clear();
            plane.resize(lines, Step::ZERO);
        }
    }
}

/// A row's numbers as the graph sees them: of length 1 for cosine.
pub(super) fn numbers(metric: Metric, elem: Elem, bytes: &[u8], out: &mut Vec<f32>) {
    out.clear();
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match elem {
        Elem::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Elem::F16 => out.extend(pairs().map(|b| f16::from_le_bytes(*b).to_f32())),
        Elem::Bf16 => out.extend(pairs().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Elem::I8 | Elem::Bit => out.extend(bytes.iter().map(|b| f32::from(b.cast_signed()))),
    }
    if metric == Metric::Cosine {
        let length = out.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if length > 0.0 {
            out.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

impl Scale {
    fn fit(vectors: &Vectors, metric: Metric) -> Self {
        let (rows, dim) = (vectors.rows(), vectors.dim());
        let every = rows.div_ceil(SAMPLE).max(1);
        let mut row = Vec::with_capacity(dim);
        let (mut sums, mut squares) = (vec![0.0f64; dim], vec![0.0f64; dim]);
        let (mut low, mut high) = (vec![f32::INFINITY; dim], vec![f32::NEG_INFINITY; dim]);
        let mut count: f64 = 0.0;
        for at in (0..rows).step_by(every) {
            numbers(metric, vectors.elem(), vectors.row(at as Row), &mut row);
            if !row.iter().all(|x| x.is_finite()) {
                continue;
            }
            count += 1.0;
            for (d, x) in row.iter().enumerate() {
                sums[d] += f64::from(*x);
                squares[d] += f64::from(*x) * f64::from(*x);
                low[d] = low[d].min(*x);
                high[d] = high[d].max(*x);
            }
        }
        let count = count.max(1.0);
        let means: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
        let of_centre: f64 = means.iter().map(|mean| mean * mean).sum();
        let of_rows = squares.iter().sum::<f64>() / count;
        let centred = metric == Metric::L2 || of_centre > CENTRED_FROM * of_rows;
        let moved = |d: usize| if centred { means[d] as f32 } else { 0.0 };
        let (mut offsets, mut steps) = (Vec::with_capacity(dim), Vec::with_capacity(dim));
        for d in 0..dim {
            let spread = (squares[d] / count - means[d] * means[d]).max(0.0).sqrt() * CLIP;
            let from = (means[d] - spread).max(low[d].into());
            let to = (means[d] + spread).min(high[d].into());
            offsets.push((from - f64::from(moved(d))) as f32);
            steps.push(((to - from) / 255.0).max(0.0) as f32);
        }
        let centre: Vec<f32> = if centred { (0..dim).map(moved).collect() } else { Vec::new() };
        Self { metric, offsets: offsets.into(), steps: steps.into(), centre: centre.into() }
    }

    fn is_centred(&self) -> bool {
        !self.centre.is_empty()
    }

    /// Moves a query or a row to the centre.
    fn to_centre(&self, numbers: &mut [f32]) {
        numbers.iter_mut().zip(&*self.centre).for_each(|(x, centre)| *x -= centre);
    }

    /// Writes the codes of centred `numbers` to a zeroed row.
    fn encode(&self, numbers: &[f32], row: &mut [u8]) {
        let mut square = 0.0;
        let limits = self.offsets.iter().zip(&*self.steps);
        for ((x, (offset, step)), code) in numbers.iter().zip(limits).zip(row.iter_mut()) {
            let steps = if *step > 0.0 { (x - offset) / step } else { 0.0 };
            // The cast cuts the fraction off, clips to 0..=255 and makes NaN zero.
            *code = (steps + 0.5) as u8;
            let rounded = step * f32::from(*code) + offset;
            square += rounded * rounded;
        }
        let bias = match self.metric {
            Metric::L2 => -square,
            Metric::Ip | Metric::Cosine | Metric::Hamming | Metric::Jaccard => {
                let centre = self.centre.iter().zip(numbers);
                centre.map(|(centre, x)| centre * (x + centre)).sum()
            }
        };
        if self.is_centred()
            && let Some(place) = row.last_chunk_mut()
        {
            *place = bias.to_le_bytes();
        }
    }

    /// Makes a query of centred `numbers`, and of each the weight of a step in its dimension;
    /// returns the largest.
    fn prepare(&self, numbers: &mut [f32], prepared: &mut Prepared) -> f32 {
        let of_offsets = fold::product(numbers, &self.offsets);
        // -|q - x|² = -|q|² + 2qx - |x|², of which the last lies with the row.
        let (twice, constant) = match self.metric {
            Metric::L2 => (2.0, 2.0 * of_offsets - fold::product(numbers, numbers)),
            // qx = (q - c)(x - c) + cx + c(q - c), of which the second lies with the row.
            Metric::Ip | Metric::Cosine | Metric::Hamming | Metric::Jaccard => {
                (1.0, of_offsets + fold::product(numbers, &self.centre))
            }
        };
        numbers.iter_mut().zip(&*self.steps).for_each(|(q, step)| *q *= step * twice);
        let largest = fold::largest(numbers);
        let levels = if largest > 0.0 { QUERY_LEVELS / largest } else { 0.0 };
        (prepared.constant, prepared.factor) = (constant, largest / QUERY_LEVELS);
        let lines = prepared.high.iter_mut().zip(&mut prepared.low);
        for ((high, low), weights) in lines.zip(numbers.chunks(LINE)) {
            for ((high, low), weight) in high.0.iter_mut().zip(&mut low.0).zip(weights) {
                let level = fold::rounded(weight * levels);
                let upper = (level + 64) >> 7;
                *high = upper as i8;
                *low = (level - (upper << 7)) as i8;
            }
        }
        largest
    }
}

impl Codes {
    /// Encodes all rows.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn encode(
        vectors: &Vectors,
        metric: Metric,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let scale = Scale::fit(vectors, metric);
        let stride = stride(vectors.dim(), scale.is_centred());
        let mut bytes = vec![0; vectors.rows() * stride];
        let pieces = bytes.par_chunks_mut(ROWS_PER_CHECK * stride).enumerate();
        pieces.try_for_each(|(piece, codes)| {
            cancel.check()?;
            let mut row = Vec::with_capacity(vectors.dim());
            let start = (piece * ROWS_PER_CHECK) as Row;
            for (at, code) in (start..).zip(codes.chunks_exact_mut(stride)) {
                numbers(metric, vectors.elem(), vectors.row(at), &mut row);
                scale.to_centre(&mut row);
                scale.encode(&row, code);
            }
            Ok(())
        })?;
        let lines = Lines::new(Buffer::from_vec(bytes), stride, scale.is_centred());
        Ok(Self { scale, lines, dot: kernel::code_dot(), coarse: None })
    }

    /// Makes coarse rows, or drops them.
    pub(super) fn set_coarse(&mut self, wanted: bool) {
        let Self { scale, lines, .. } = self;
        let limits = || scale.offsets.iter().zip(&*scale.steps);
        let bias = |row: Row, meant: &[f32]| match scale.metric {
            Metric::L2 => {
                let rounded = meant.iter().zip(limits()).map(|(code, (o, step))| step * code + o);
                -rounded.map(|x| x * x).sum::<f32>()
            }
            // What is taken from a product by moving the row does not depend on rounding.
            Metric::Ip | Metric::Cosine | Metric::Hamming | Metric::Jaccard => lines.number(row),
        };
        let bias = scale.is_centred().then_some(&bias);
        let sizes = (lines.iter().len(), scale.steps.len());
        self.coarse = wanted.then(|| Coarse::of(lines, sizes, bias));
    }

    /// The coarse rows, if there are any.
    #[inline]
    pub(super) fn coarse(&self) -> Option<&Coarse> {
        self.coarse.as_ref()
    }

    /// The sections to open the same codes from; empty ones say that there are none.
    pub(super) fn into_sections(codes: Option<Self>) -> [(&'static str, Vec<u8>); 5] {
        let names = [OFFSETS, STEPS, CENTRE, CODES, COARSE];
        let Some(Self { scale, lines, coarse, .. }) = codes else {
            return names.map(|name| (name, Vec::new()));
        };
        let floats = |floats: &ScalarBuffer<f32>| floats.inner().to_vec();
        [
            (OFFSETS, floats(&scale.offsets)),
            (STEPS, floats(&scale.steps)),
            (CENTRE, floats(&scale.centre)),
            (CODES, lines.into_bytes()),
            (COARSE, coarse.map(Coarse::into_bytes).unwrap_or_default()),
        ]
    }

    /// # Errors
    /// [`Error::Corrupt`] if a section is missing or of another size than `vectors` ask for.
    pub(super) fn open(
        sections: &dyn Sections,
        vectors: &Vectors,
        metric: Metric,
    ) -> Result<Option<Self>, Error> {
        let scale = Scale {
            metric,
            offsets: typed(sections, OFFSETS)?,
            steps: typed(sections, STEPS)?,
            centre: typed(sections, CENTRE)?,
        };
        let stride = stride(vectors.dim(), scale.is_centred());
        let bytes = typed::<u8>(sections, CODES)?.into_inner();
        let coarse = typed::<u8>(sections, COARSE)?.into_inner();
        let widths = [scale.offsets.len(), scale.steps.len(), scale.centre.len()];
        if widths == [0; 3] && bytes.is_empty() && coarse.is_empty() {
            return Ok(None);
        }
        let dim = vectors.dim();
        let fits = widths == [dim; 3] || (widths == [dim, dim, 0] && metric != Metric::L2);
        if !fits || bytes.len() != vectors.rows() * stride {
            return Err(Error::Corrupt(format!(
                "HNSW codes: {} bytes and limits of {widths:?} dimensions for {} rows of {}",
                bytes.len(),
                vectors.rows(),
                dim,
            )));
        }
        let centred = scale.is_centred();
        let coarse_stride = coarse::stride(dim, centred);
        if !coarse.is_empty() && coarse.len() != vectors.rows() * coarse_stride {
            return Err(Error::Corrupt(format!(
                "HNSW coarse rows: {} bytes for {} rows of {dim} dimensions",
                coarse.len(),
                vectors.rows(),
            )));
        }
        let coarse = (!coarse.is_empty()).then(|| Coarse::open(coarse, coarse_stride, centred));
        let lines = Lines::new(bytes, stride, centred);
        Ok(Some(Self { scale, lines, dot: kernel::code_dot(), coarse }))
    }

    /// Makes a query of `numbers`, as [`numbers()`] gives them.
    pub(super) fn prepare(&self, numbers: &mut [f32], prepared: &mut Prepared) {
        prepared.clear(self.lines.per_row());
        self.scale.to_centre(numbers);
        let largest = self.scale.prepare(numbers, prepared);
        if let Some(coarse) = &self.coarse {
            coarse.prepare(numbers, largest, prepared.constant, &mut prepared.coarse);
        }
    }

    /// Makes a query of a row's codes.
    pub(super) fn prepare_row(&self, row: Row, numbers: &mut Vec<f32>, prepared: &mut Prepared) {
        numbers.clear();
        let limits = self.scale.offsets.iter().zip(&*self.scale.steps);
        let decoded = self.lines.row(row).iter().zip(limits);
        numbers.extend(decoded.map(|(code, (offset, step))| f32::from(*code) * step + offset));
        prepared.clear(self.lines.per_row());
        self.scale.prepare(numbers, prepared);
    }

    /// The score of a row by its half bytes; by its code where there are none.
    #[inline]
    pub(super) fn coarse_score(&self, query: &Prepared, row: Row) -> f32 {
        match &self.coarse {
            Some(coarse) => coarse.score(&query.coarse, row),
            None => self.score(query, row),
        }
    }

    /// [`Codes::coarse_score`] of several rows.
    #[inline]
    pub(super) fn coarse_score_all(&self, query: &Prepared, rows: &[Row], scores: &mut [f32]) {
        match &self.coarse {
            Some(coarse) => coarse.score_all(&query.coarse, rows, scores),
            None => self.score_all(query, rows, scores),
        }
    }

    /// The approximate score of a row.
    #[inline]
    pub(super) fn score(&self, query: &Prepared, row: Row) -> f32 {
        let mut dot = [(self.dot.one)(&query.high, &query.low, self.lines.row(row))];
        self.lines.finish(&[row], &mut dot, query.factor, query.constant);
        dot[0]
    }

    /// [`Codes::score`] of several rows.
    #[inline]
    pub(super) fn score_all(&self, query: &Prepared, rows: &[Row], scores: &mut [f32]) {
        (self.dot.picked)(&query.high, &query.low, self.lines.pick(rows), scores);
        self.lines.finish(rows, scores, query.factor, query.constant);
    }
}

/// Bytes of a row of codes, where centred with the number behind them.
fn stride(dim: usize, centred: bool) -> usize {
    let bias = if centred { size_of::<f32>() } else { 0 };
    (dim + bias).next_multiple_of(LINE)
}
