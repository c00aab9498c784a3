//! Immutable snapshots: what a reader holds while it works.
//!
//! The write path publishes a new [`Version`] per group of commits; a [`ReadView`] is one version
//! and an upper bound in time. Neither ever changes, so a reader takes no lock and two reads of
//! one view agree. How a view is searched stands in `search`, how rows are fetched in `query`.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use elanus_index::RowMask;

use crate::Error;
use crate::budget::{Budget, Held};
use crate::clock::Ts;
use crate::pools::Kind;
use crate::schema::Schema;
use crate::segment::Segment;

/// Views of more segments are not looked at for the kinds of their searches: those have many parts.
const MAX_SEGMENTS: usize = 16;

/// All rows of a collection as of one moment.
#[derive(Debug)]
pub(crate) struct Version {
    /// Of the newest change in here.
    pub(crate) ts: Ts,
    /// In no particular order; positions are what [`RowAddr::segment`] refers to.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Why the collection must not be read, if its data is damaged.
    pub(crate) damage: Option<Arc<Error>>,
}

impl Version {
    /// Bytes of the rows that are in memory.
    pub(crate) fn growing_bytes(&self) -> u64 {
        self.segments.iter().filter(|segment| segment.is_growing()).map(|s| s.bytes()).sum()
    }
}

/// Position of a row in one view; meaningless in any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowAddr {
    /// Which segment of the view.
    pub segment: u32,
    /// Which row of the segment.
    pub row: u32,
}

/// A consistent view of a collection.
#[derive(Clone, Debug)]
pub struct ReadView {
    pub(crate) version: Arc<Version>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) ts: Ts,
    /// Rows that were written before this have expired.
    pub(crate) expired: Ts,
    /// What rows on their way to a client count against.
    pub(crate) budget: Arc<Budget>,
}

impl ReadView {
    /// What the view shows: every change up to and including this timestamp. A view at this
    /// timestamp shows the same rows again as long as they are retained
    /// ([`crate::Options::retention_ms`]).
    pub fn ts(&self) -> Ts {
        self.ts
    }

    /// The schema that rows are read by; fields that a segment lacks read as null or default.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// The kind of the searches of this collection that are described by the same words: while the kind
    /// stays the same, so does what they find open already. `None` for a view of many segments.
    pub fn kind(&self, words: &impl Hash) -> Option<Kind> {
        let segments = self.segments().ok().filter(|segments| segments.len() <= MAX_SEGMENTS)?;
        let mut hasher = DefaultHasher::new();
        segments.iter().for_each(|segment| segment.hash_state(&mut hasher));
        words.hash(&mut hasher);
        Some(Kind(hasher.finish()))
    }

    /// Counts memory for rows that were [taken](ReadView::take) until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`] if there is no more for now.
    pub fn hold(&self, bytes: usize) -> Result<Held, Error> {
        self.budget.admit_results(bytes)
    }

    /// The rows of a segment that this view shows.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a column that is needed is damaged.
    pub(crate) fn visible(&self, segment: &Segment) -> Result<RowMask, Error> {
        let mut visible = segment.visible(self.ts)?;
        if let Some(expired) = segment.written_before(self.expired)? {
            visible.and_not_with(&expired);
        }
        Ok(visible)
    }

    /// Whether rows, in ascending order of their addresses, are known to be in that of their keys, too.
    pub fn is_in_key_order(&self, addrs: &[RowAddr]) -> bool {
        let (Some(first), Some(last)) = (addrs.first(), addrs.last()) else { return true };
        let segment = self.version.segments.get(first.segment as usize);
        first.segment == last.segment && segment.is_some_and(|s| s.is_sorted_by_key())
    }

    /// The segments, in the order of [`RowAddr::segment`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the collection is quarantined.
    pub(crate) fn segments(&self) -> Result<&[Arc<Segment>], Error> {
        match &self.version.damage {
            Some(damage) => Err(damage.duplicate()),
            None => Ok(&self.version.segments),
        }
    }
}
