//! Rows of whole cache lines that lie anywhere, as a walk or a filter picks them.

use super::{Step, prefetch};

/// Bytes of a cache line, which kernels read at a time.
pub const LINE: usize = size_of::<Step>();
/// Rows that are multiplied at once, so that the query is read once for all of them.
const AT_ONCE: usize = 4;
/// Cache lines asked for ahead of those being read; twice as many were no quicker.
const LINES_ON_THEIR_WAY: usize = 36;

/// Some rows of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Picked<'a> {
    /// All rows, one after another.
    pub bytes: &'a [u8],
    /// Bytes of a row, a multiple of [`LINE`].
    pub stride: usize,
    /// The places of those that are picked.
    pub places: &'a [u32],
}

impl<'a> Picked<'a> {
    #[inline(always)]
    fn row(&self, place: u32) -> &'a [[u8; LINE]] {
        let start = place as usize * self.stride;
        self.bytes[start..start + self.stride].as_chunks().0
    }

    #[inline(always)]
    fn ask(&self, places: &[u32]) {
        for &place in places {
            prefetch(self.row(place), self.stride / LINE);
        }
    }

    /// Puts what `dots` makes of each four rows into `out`. While some are multiplied the next ones
    /// are asked for, and no more: beyond as many cache lines as can be on their way at once, asking
    /// only waits.
    ///
    /// Always inlined, as is what it calls: only then can `dots` be, which has instructions that
    /// this function has not.
    #[inline(always)]
    pub(super) fn in_fours(
        self,
        out: &mut [f32],
        dots: impl Fn([&[[u8; LINE]]; AT_ONCE]) -> [f32; AT_ONCE],
    ) {
        let places = self.places;
        let lines = (self.stride / LINE).max(1);
        let mut asked = (LINES_ON_THEIR_WAY / lines).max(AT_ONCE).min(places.len());
        self.ask(&places[..asked]);
        for (four, out) in places.chunks(AT_ONCE).zip(out.chunks_mut(AT_ONCE)) {
            let end = (asked + AT_ONCE).min(places.len());
            self.ask(&places[asked..end]);
            asked = end;
            // The last ones are quicker together with one of them again than one by one.
            let place = |at: usize| four[at.min(four.len() - 1)];
            let [a, b, c, d] = [place(0), place(1), place(2), place(3)];
            let dots = dots([self.row(a), self.row(b), self.row(c), self.row(d)]);
            match out.first_chunk_mut() {
                Some(out) => *out = dots,
                None => out.copy_from_slice(&dots[..out.len()]),
            }
        }
    }

    /// As [`Picked::in_fours`], one row at a time.
    #[inline(always)]
    pub(super) fn each(self, out: &mut [f32], dot: impl Fn(&[[u8; LINE]]) -> f32) {
        self.in_fours(out, |[a, b, c, d]| [dot(a), dot(b), dot(c), dot(d)]);
    }
}
