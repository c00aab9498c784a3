//! A search that hands out its rows page by page.
//!
//! Each segment has its own place in the ranking. A graph is walked from where the last page left
//! it, and more rows are kept ready than a page needs, as a beam is wider than what is asked for:
//! what is found late, and is better than what was handed out before, comes with the next page. Once
//! the walk is over, because it came to its end or would take longer than a look at every row, the
//! rows that it did not come to are looked at, as are those without a graph; of what that finds, many
//! are kept ready. So no row is handed out twice, and none is left out of an iteration that goes to
//! its end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use elanus_index::{Bounds, Cancel, Hit, Row, RowMask, SearchParams, Trail};

use crate::Error;
use crate::keys::{Key, KeyColumn, Keys};
use crate::pools::share_out;
use crate::schema::Field;
use crate::search::{AnnQuery, Found, Piece, Selection};
use crate::segment::Segment;
use crate::view::{ReadView, RowAddr};

/// Rows that a walk keeps ready beyond a page where no beam is asked for: twice as many as a search,
/// because what one page misses all later ones come too late for.
const KEPT_BEYOND: usize = 128;
/// One row more is kept ready for so many that were handed out: farther from the query, more rows are
/// about equally far.
const SENT_PER_KEPT: usize = 2;
/// A look at every row keeps so many times as many rows ready as were found before, so that there
/// are few of them.
const READY_PER_FOUND: usize = 4;
/// 512 KiB: rows that looks at every row keep ready, over all segments, unless a page is larger.
const MOST_READY: usize = 1 << 16;
/// Rows that are kept ready of every segment all the same.
const FEWEST_READY: usize = 1 << 10;

/// Where a search stands that hands out its rows page by page; a new one stands at the beginning.
///
/// It is for one query, one field and one selection of rows, of one moment: pages of other ones
/// mean nothing. Segments may be merged between two pages. Their rows are found again by their keys
/// then, and left out.
#[derive(Debug, Default)]
pub struct Iteration {
    places: HashMap<Home, Place>,
    /// The keys of all rows handed out.
    sent: Vec<Key>,
    /// Of `sent`.
    key_bytes: usize,
}

/// A segment, and whether it is growing; its rows are numbered anew when it is sealed.
type Home = (i64, bool);

/// How far one segment has come.
#[derive(Debug)]
struct Place {
    stage: Stage,
    /// Rows that were found and not handed out, best first.
    ready: VecDeque<Hit>,
    /// Rows that were found.
    found: RowMask,
}

#[derive(Debug)]
enum Stage {
    /// Rows come from a walk.
    Walk(Trail),
    /// Rows come from looks at every row: those that are not ready score at most this.
    Scan { floor: f32 },
    /// All are ready.
    Done,
}

/// A page of one segment, as it is asked for.
struct Asked<'a> {
    field: &'a Field,
    ann: &'a AnnQuery<'a>,
    /// Rows that a walk keeps ready beyond the page.
    beyond: usize,
    /// Rows that a look at every row keeps ready.
    most_ready: usize,
    cancel: &'a Cancel,
}

impl Iteration {
    /// About how many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let places = self.places.values().map(Place::bytes).sum::<usize>();
        places + self.key_bytes + self.sent.capacity() * size_of::<Key>()
    }

    /// Leaves out of the segments that came in the place of others what was handed out of those.
    fn follow(&mut self, view: &ReadView) -> Result<(), Error> {
        let segments = view.segments()?;
        let homes: HashSet<Home> = segments.iter().map(|segment| home(segment)).collect();
        if self.places.keys().all(|home| homes.contains(home)) {
            return Ok(());
        }
        self.places.clear();
        let ints = |key: &Key| if let Key::Int(key) = key { Some(*key) } else { None };
        let strs = |key: &Key| if let Key::Str(key) = key { Some(key.clone()) } else { None };
        let keys = match self.sent.first() {
            None => return Ok(()),
            Some(Key::Int(_)) => Keys::Int(self.sent.iter().filter_map(ints).collect()),
            Some(Key::Str(_)) => Keys::Str(self.sent.iter().filter_map(strs).collect()),
        };
        for addr in view.locate(&keys)?.into_iter().flatten() {
            let segment = &segments[addr.segment as usize];
            let place = self.places.entry(home(segment)).or_default();
            place.fit(segment.rows());
            place.found.insert(addr.row);
        }
        Ok(())
    }
}

fn home(segment: &Segment) -> Home {
    (segment.id, segment.is_growing())
}

impl ReadView {
    /// The next `params.k` rows of an iteration, best first; fewer at its end, then none.
    ///
    /// The scores are exact, and so is the order within a page. Where a graph is walked, a row of a
    /// later page may be better than one of an earlier page.
    ///
    /// After an error the iteration is of no use.
    ///
    /// # Errors
    /// As [`ReadView::search`]; [`Error::Invalid`] if there is not exactly one query.
    pub fn next_page(
        &self,
        iteration: &mut Iteration,
        selection: &Selection,
        ann: &AnnQuery<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Found>, Error> {
        let field = self.known_field(ann.field)?;
        if ann.queries.len() != 1 {
            let detail = format!("an iteration has one query, not {}", ann.queries.len());
            return Err(Error::Invalid(detail));
        }
        iteration.follow(self)?;
        let segments = self.segments()?;
        let mut parts = Vec::new();
        for (at, (segment, masks)) in segments.iter().zip(&selection.segments).enumerate() {
            if let Some(masks) = masks {
                let mut place = iteration.places.remove(&home(segment)).unwrap_or_default();
                place.fit(segment.rows());
                parts.push((at, segment, masks, Mutex::new(place)));
            }
        }
        let wanted = ann.params.k.min(selection.rows());
        let asked = Asked {
            field,
            ann: &AnnQuery { params: SearchParams { k: wanted, ..ann.params }, ..*ann },
            beyond: (ann.params.ef.unwrap_or(KEPT_BEYOND).max(wanted))
                .max(iteration.sent.len() / SENT_PER_KEPT),
            most_ready: (MOST_READY / parts.len().max(1)).max(FEWEST_READY).max(wanted),
            cancel,
        };
        let fill = |at: usize| {
            let (position, segment, masks, place) = &parts[at];
            let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
            place.fill(*position, segment, masks, &asked)?;
            let best = place.ready.iter().take(wanted);
            let addr = |row| RowAddr { segment: *position as u32, row };
            Ok::<_, Error>(
                best.map(|hit| Found { addr: addr(hit.row), score: hit.score }).collect(),
            )
        };
        let best: Vec<Vec<Found>> = share_out(parts.len(), fill)?;
        let mut page: Vec<Found> = best.into_iter().flatten().collect();
        self.best_first(&mut page)?;
        page.truncate(wanted);
        let taken: HashSet<RowAddr> = page.iter().map(|found| found.addr).collect();
        for (at, segment, _, place) in parts {
            let mut place = place.into_inner().unwrap_or_else(PoisonError::into_inner);
            let is_taken = |row| taken.contains(&RowAddr { segment: at as u32, row });
            // Those of the page are among the first, but for the order of equal scores.
            let first: Vec<Hit> = place.ready.drain(..wanted.min(place.ready.len())).collect();
            for hit in first.into_iter().rev().filter(|hit| !is_taken(hit.row)) {
                place.ready.push_front(hit);
            }
            iteration.places.insert(home(segment), place);
        }
        let addrs: Vec<RowAddr> = page.iter().map(|found| found.addr).collect();
        let keys = self.take(&addrs, &[self.schema.primary().name.as_str()])?;
        for key in KeyColumn::new(keys.column(0))?.iter().map(|key| key.to_key()) {
            iteration.key_bytes += if let Key::Str(key) = &key { key.len() } else { 0 };
            iteration.sent.push(key);
        }
        Ok(page)
    }
}

impl Default for Place {
    fn default() -> Self {
        let stage = Stage::Walk(Trail::default());
        Self { stage, ready: VecDeque::new(), found: RowMask::none(0) }
    }
}

impl Place {
    fn bytes(&self) -> usize {
        let trail = match &self.stage {
            Stage::Walk(trail) => trail.heap_bytes(),
            Stage::Scan { .. } | Stage::Done => 0,
        };
        trail + self.ready.capacity() * size_of::<Hit>() + self.found.len() / 8
    }

    /// Makes room for the rows of a segment that has grown.
    fn fit(&mut self, rows: usize) {
        if self.found.len() < rows {
            self.found = RowMask::from_fn(rows, |row| self.found.contains(row));
        }
    }

    /// Sees to it that the rows that belong into the page are ready.
    fn fill(
        &mut self,
        position: usize,
        segment: &Arc<Segment>,
        masks: &[RowMask],
        asked: &Asked<'_>,
    ) -> Result<(), Error> {
        let chunks: Vec<(Row, usize)> = segment.chunks().collect();
        let is_allowed = |row: Row| {
            let of_row = chunks.iter().zip(masks).rfind(|((first, _), _)| *first <= row);
            of_row.is_some_and(|((first, _), mask)| mask.contains(row - first))
        };
        // Rows may have expired since they were found.
        self.ready.retain(|hit| is_allowed(hit.row));
        if let Stage::Walk(_) = self.stage {
            self.walk(segment, masks, asked)?;
        }
        let Stage::Scan { floor } = self.stage else { return Ok(()) };
        let sure = self.ready.partition_point(|hit| hit.score >= floor);
        if sure < asked.ann.params.k {
            self.scan(position, segment, masks, asked)?;
        }
        Ok(())
    }

    /// Walks on until enough rows are ready, or the walk is over.
    fn walk(
        &mut self,
        segment: &Segment,
        masks: &[RowMask],
        asked: &Asked<'_>,
    ) -> Result<(), Error> {
        let &Asked { field, ann, beyond, cancel, .. } = asked;
        let (index, [mask]) = (segment.index(field, ann.metric, ann.exact), masks) else {
            self.stage = Stage::Scan { floor: f32::INFINITY };
            return Ok(());
        };
        let mut allowed = mask.clone();
        if let Some(nulls) = segment.column(0, field)?.nulls() {
            allowed.and_with(&RowMask::from_boolean_buffer(nulls.inner()));
        }
        let Bounds { above, at_most } = ann.params.bounds;
        let is_past = |hit: &Hit| above.is_some_and(|above| hit.score <= above);
        let wanted = ann.params.k.saturating_add(beyond);
        while self.ready.len() < wanted {
            let (Stage::Walk(trail), Some(index)) = (&mut self.stage, &index) else { break };
            let missing = wanted - self.ready.len();
            let hits = index.go_on(trail, &ann.queries[0], missing, &allowed, cancel)?;
            if hits.iter().all(is_past) {
                break;
            }
            let hits = hits.into_iter().filter(|hit| !self.found.contains(hit.row));
            let within = |hit: &Hit| !is_past(hit) && at_most.is_none_or(|most| hit.score <= most);
            let hits: Vec<Hit> = hits.filter(within).collect();
            self.add(hits);
        }
        if self.ready.len() < wanted {
            self.stage = Stage::Scan { floor: f32::INFINITY };
        }
        Ok(())
    }

    /// Looks at all rows that were not found.
    fn scan(
        &mut self,
        position: usize,
        segment: &Segment,
        masks: &[RowMask],
        asked: &Asked<'_>,
    ) -> Result<(), Error> {
        let &Asked { field, ann, most_ready, cancel, .. } = asked;
        let mut left = masks.to_vec();
        for ((first, rows), mask) in segment.chunks().zip(&mut left) {
            mask.and_not_with(&self.found.slice(first as usize, rows));
        }
        let found = self.found.count() + ann.params.k;
        let k = found.saturating_mul(READY_PER_FOUND).clamp(FEWEST_READY, most_ready);
        let ann = AnnQuery { params: SearchParams { k, ..ann.params }, exact: true, ..*ann };
        let pieces = Piece::of(position, segment, &left, field, &ann);
        let search = |at: usize| pieces[at].search(segment, field, &ann, cancel);
        let mut hits: Vec<Hit> = Vec::new();
        for (piece, lists) in pieces.iter().zip(share_out(pieces.len(), search)?) {
            let of_segment = |hit| {
                let Found { addr, score } = piece.found(hit);
                Hit { row: addr.row, score }
            };
            hits.extend(lists.into_iter().flatten().map(of_segment));
        }
        hits.sort_unstable_by(Hit::best_first);
        self.stage = match hits.get(k - 1) {
            Some(last) => Stage::Scan { floor: last.score },
            None => Stage::Done,
        };
        hits.truncate(k);
        self.add(hits);
        Ok(())
    }

    /// Takes in what was found, best first.
    fn add(&mut self, hits: Vec<Hit>) {
        hits.iter().for_each(|hit| self.found.insert(hit.row));
        self.ready.extend(hits);
        self.ready.make_contiguous().sort_unstable_by(Hit::best_first);
    }
}
