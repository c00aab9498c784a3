//! How long work took that is like other work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// 1,024: more kinds than one application has; 8 KiB.
const PLACES: usize = 1024;

/// Searches that read the same columns and indexes and look equally hard, whatever they look for.
/// It is a hash of what tells them from others ([`crate::ReadView::kind`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub(crate) u64);

impl Kind {
    fn place(self) -> usize {
        self.0 as usize % PLACES
    }

    /// What tells it from others in its place.
    fn tag(self) -> u64 {
        self.0 >> 32
    }
}

/// The times of many kinds. One that shares its place with another begins anew after it.
#[derive(Debug)]
pub(super) struct Paces {
    /// The upper half is a kind's tag, the lower its time in nanoseconds; 0: none yet.
    places: [AtomicU64; PLACES],
}

impl Default for Paces {
    fn default() -> Self {
        Self { places: [const { AtomicU64::new(0) }; PLACES] }
    }
}

impl Paces {
    /// How long work of a kind takes, as far as that is known.
    pub(super) fn expected(&self, kind: Kind) -> Option<Duration> {
        let found = self.places[kind.place()].load(Ordering::Relaxed);
        let is_known = found != 0 && found >> 32 == kind.tag();
        is_known.then(|| Duration::from_nanos(found & u64::from(u32::MAX)))
    }

    /// Counts one that took so long. Down goes what is expected by half of the difference at once,
    /// up by an eighth: the first verifies files, and some wait for a processor.
    pub(super) fn record(&self, kind: Kind, took: Duration) {
        let expected = match self.expected(kind) {
            None => took,
            Some(before) if took <= before => before - (before - took) / 2,
            Some(before) => before + (took - before) / 8,
        };
        self.set(kind, expected);
    }

    /// Of two at the same time one is lost, which changes little.
    pub(super) fn set(&self, kind: Kind, expected: Duration) {
        let nanos = u32::try_from(expected.as_nanos()).unwrap_or(u32::MAX);
        // All bits zero are for nobody's time.
        let packed = (kind.tag() << 32) | u64::from(nanos.max(1));
        self.places[kind.place()].store(packed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paces: &Paces, kind: Kind) -> Option<u128> {
        paces.expected(kind).map(|expected| expected.as_micros())
    }

    #[test]
    fn what_is_expected_falls_quickly_and_rises_slowly() {
        let (paces, kind) = (Paces::default(), Kind(1 << 40));
        assert_eq!(of(&paces, kind), None);
        let after = |micros| {
            paces.record(kind, Duration::from_micros(micros));
            of(&paces, kind).unwrap()
        };
        assert_eq!(after(1_000_000), 1_000_000);
        assert_eq!(after(0), 500_000);
        for _ in 0..40 {
            after(80);
        }
        assert_eq!(after(80), 80);
        assert_eq!(after(880), 180);
        assert_eq!(after(80), 130);
        assert!(after(u64::MAX / 1_000) > 500_000);
    }

    #[test]
    fn kinds_in_one_place_do_not_take_each_other_s_times() {
        let paces = Paces::default();
        let (one, other) = (Kind((7 << 32) | 5), Kind((8 << 32) | (5 + PLACES as u64)));
        assert_eq!(one.place(), other.place());
        paces.record(one, Duration::from_micros(3));
        assert_eq!((of(&paces, one), of(&paces, other)), (Some(3), None));
        paces.record(other, Duration::from_micros(4));
        assert_eq!((of(&paces, one), of(&paces, other)), (None, Some(4)));
    }
}
