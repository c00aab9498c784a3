//! Hybrid timestamps: wall-clock milliseconds that never repeat and never go back.
//!
//! A [`Ts`] has Milvus's layout, 46 bits of milliseconds since the epoch and an 18-bit counter,
//! so that clients may take it apart. The clock follows the wall but stays ahead of everything
//! it has seen, also across restarts ([`HybridClock::observe`]) and when the wall is set back.
//!
//! This module does not persist anything: the engine shows the clock the timestamps on disk.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Bits of a timestamp that count within one millisecond.
const COUNTER_BITS: u32 = 18;

/// A hybrid timestamp; orders every change of the node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Ts(pub u64);

impl Ts {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After everything.
    pub const MAX: Self = Self(u64::MAX);

    /// The first timestamp of a millisecond since the Unix epoch.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << COUNTER_BITS)
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The same counter, `millis` earlier; [`Ts::ZERO`] at the least.
    pub fn minus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis.saturating_mul(1 << COUNTER_BITS)))
    }
}

impl fmt::Display for Ts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the time of day comes from: milliseconds since the Unix epoch.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Wall {
    /// The operating system's clock.
    pub fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// A clock of the caller's making, for tests.
    pub fn new(millis: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(millis))
    }

    fn ts(&self) -> u64 {
        Ts::from_millis((self.0)()).0
    }
}

impl Default for Wall {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wall").field(&(self.0)()).finish()
    }
}

/// Source of timestamps of one node.
#[derive(Debug)]
pub struct HybridClock {
    wall: Wall,
    /// The greatest timestamp given out or seen.
    last: AtomicU64,
}

impl HybridClock {
    /// A clock that follows `wall`.
    pub fn new(wall: Wall) -> Self {
        Self { wall, last: AtomicU64::new(0) }
    }

    /// A reading: not below any timestamp given out or seen so far, and below all that
    /// [`HybridClock::next`] will give out from now on.
    pub fn now(&self) -> Ts {
        let wall = self.wall.ts();
        Ts(self.last.fetch_max(wall, Ordering::AcqRel).max(wall))
    }

    /// A timestamp greater than all before it.
    pub fn next(&self) -> Ts {
        self.next_block(1)
    }

    /// The first of `n` consecutive timestamps (at least one), all greater than all before them.
    pub fn next_block(&self, n: u64) -> Ts {
        let wall = self.wall.ts();
        let n = n.max(1);
        let mut last = self.last.load(Ordering::Acquire);
        loop {
            let first = wall.max(last.saturating_add(1));
            let end = first.saturating_add(n - 1);
            match self.last.compare_exchange_weak(last, end, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ts(first),
                Err(seen) => last = seen,
            }
        }
    }

    /// Stays ahead of `ts` from now on.
    pub fn observe(&self, ts: Ts) {
        self.last.fetch_max(ts.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn stopped_at(millis: u64) -> HybridClock {
        HybridClock::new(Wall::new(move || millis))
    }

    #[test]
    fn timestamps_have_milvus_layout() {
        let ts = Ts((1_700_000_000_123 << 18) | 5);
        assert_eq!(ts.millis(), 1_700_000_000_123);
        assert_eq!(Ts::from_millis(7).0, 7 << 18);
        assert_eq!(Ts::from_millis(7).minus_millis(3), Ts::from_millis(4));
        assert_eq!(Ts::from_millis(7).minus_millis(u64::MAX), Ts::ZERO);
    }

    #[test]
    fn timestamps_rise_while_the_wall_stands_still_or_goes_back() {
        let clock = stopped_at(10);
        let first = clock.next();
        assert_eq!(first.millis(), 10);
        assert!(clock.next() > first);
        clock.observe(Ts::from_millis(99));
        assert!(clock.next() > Ts::from_millis(99));
    }

    #[test]
    fn what_is_given_out_after_a_reading_is_greater_than_the_reading() {
        let clock = stopped_at(10);
        let reading = clock.now();
        assert!(clock.next() > reading);
        assert!(clock.now() > reading);
    }

    #[test]
    fn blocks_do_not_overlap() {
        let clock = stopped_at(1);
        let a = clock.next_block(5);
        let b = clock.next_block(1);
        assert_eq!(b.0, a.0 + 5);
    }

    #[test]
    fn concurrent_callers_never_share_a_timestamp() {
        let clock = stopped_at(1);
        let all: Vec<Vec<Ts>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..2000).map(|_| clock.next()).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|mine| mine.is_sorted()));
        assert_eq!(all.concat().into_iter().collect::<HashSet<_>>().len(), 8000);
    }
}
