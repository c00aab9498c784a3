//! Search iterators: pages of one ranking, over several requests.
//!
//! Under each token the node keeps where the search stands, graphs included, so that a page goes on
//! from there ([`elanus_storage::Iteration`]). The wire's own cursor is a score alone. A client is told the lowest
//! score of all rows that it was sent, and a token that is unknown (the node restarted, others
//! needed the room, a page is asked for again) falls back to that: all rows that score less are
//! ranked anew, exactly. So no row is sent twice. What is lost then is what a score cannot tell: rows
//! with the very score that was told, and those above it that a walk had not come to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use elanus_index::{Cancel, Metric, SearchParams};
use elanus_storage::{AnnQuery, CollectionInfo, Found, Held, Iteration, ReadView, Selection, Ts};

use super::Params;
use super::rank::narrow;
use super::search::{Leg, LegScope, Page};
use crate::convert::placeholder::QueryRows;
use crate::status::Failure;

/// How long a cursor outlives its last page.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// Rows of one page at most (Milvus's limit).
const MAX_BATCH: usize = 16_384;

/// Cursors kept at once.
const MAX_CURSORS: usize = 1_000;

/// 64 MiB: what all cursors hold together. One over a million rows begins with 250 KiB.
const MAX_BYTES: usize = 64 << 20;

/// What a request says of the page it wants.
#[derive(Clone, Debug, PartialEq)]
pub struct PageRequest {
    /// Names the iteration; `None` on its first page.
    pub token: Option<String>,
    /// The score at which the page before ended, as the client was told it.
    pub last_bound: Option<f32>,
    /// Rows wanted.
    pub batch: usize,
}

impl PageRequest {
    /// Reads the parameters of an iterator of the second version; `None` for other searches.
    ///
    /// # Errors
    /// Code 1100 for an offset, a batch out of range, and a collection that was made anew.
    pub fn parse(
        params: &Params,
        info: &CollectionInfo,
        page: Page,
    ) -> Result<Option<Self>, Failure> {
        if !params.flag("iterator")? || !params.flag("search_iter_v2")? {
            return Ok(None);
        }
        if page.offset > 0 {
            return Err(Failure::invalid("Not allowed to set an offset when doing iteration"));
        }
        if let Some(id) = params.int("collection_id")?.filter(|id| *id > 0 && *id != info.id) {
            return Err(Failure::invalid(format!(
                "alter collection {} during iteration: its id was {id} and is {} now",
                info.name, info.id
            )));
        }
        let batch = match params.int("search_iter_batch_size")? {
            None => page.limit,
            Some(batch) => usize::try_from(batch)
                .ok()
                .filter(|batch| (1..=MAX_BATCH).contains(batch))
                .ok_or_else(|| {
                    Failure::invalid(format!(
                        "batch size [{batch}] is invalid, it should be in range [1, {MAX_BATCH}]"
                    ))
                })?,
        };
        Ok(Some(Self {
            token: params.text("search_iter_id").map(Cow::into_owned),
            last_bound: params.float("search_iter_last_bound")?.map(narrow),
            batch,
        }))
    }
}

/// Names an iteration over a vector field, by its id.
pub fn token(ts: Ts, field: i64) -> String {
    format!("{:x}@{field}", ts.0)
}

/// Refuses to go on with an iteration over vectors that others took the place of.
///
/// # Errors
/// Code 1100 for an iteration that began over another field, by its id.
pub fn resume(token: &str, field: i64) -> Result<(), Failure> {
    match token.rsplit_once('@').and_then(|(_, began)| began.parse::<i64>().ok()) {
        Some(began) if began != field => Err(Failure::invalid(
            "the vectors were made anew during iteration, and scores of the old and the new \
             cannot be compared: begin the iteration again",
        )),
        _ => Ok(()),
    }
}

/// Where an iterator stands.
#[derive(Debug)]
pub struct Cursor {
    /// What it looks for.
    rows: QueryRows,
    metric: Metric,
    /// Among which rows.
    scope: LegScope,
    /// The lowest internal score of all rows sent.
    lowest: Option<f32>,
    /// The cursor before it was lost: it began with the rows that score less than this.
    behind: Option<f32>,
    iteration: Iteration,
}

impl Cursor {
    /// At the beginning, or behind the rows of an internal score.
    pub fn new(leg: &Leg, rows: &QueryRows, behind: Option<f32>) -> Self {
        Self {
            rows: rows.clone(),
            metric: leg.metric,
            scope: leg.scope.clone(),
            lowest: None,
            behind,
            iteration: Iteration::default(),
        }
    }

    /// Whether it stands in a search like this.
    pub fn is_of(&self, leg: &Leg, rows: &QueryRows) -> bool {
        (&self.rows, self.metric, &self.scope) == (rows, leg.metric, &leg.scope)
    }

    /// The next rows, best first; none at the end.
    ///
    /// # Errors
    /// Whatever the search reports; the cursor is of no use then.
    pub fn next(
        &mut self,
        view: &ReadView,
        leg: &Leg,
        batch: usize,
        selection: &Selection,
        cancel: &Cancel,
    ) -> Result<Vec<Found>, Failure> {
        let mut params = SearchParams { k: batch, ..leg.params };
        if let Some(behind) = self.behind {
            let most = behind.next_down();
            params.bounds.at_most =
                Some(params.bounds.at_most.map_or(most, |at_most| at_most.min(most)));
        }
        let queries = self.rows.queries();
        let ann = AnnQuery {
            field: &leg.field.name,
            metric: leg.metric,
            queries: &queries,
            params,
            // A walk would begin with all the rows that were sent.
            exact: leg.exact || self.behind.is_some(),
        };
        let found = view.next_page(&mut self.iteration, selection, &ann, cancel)?;
        let scores = found.iter().map(|found| found.score).chain(self.lowest);
        self.lowest = scores.reduce(f32::min);
        Ok(found)
    }

    /// The lowest internal score of all rows that it found.
    pub fn lowest(&self) -> Option<f32> {
        self.lowest
    }

    /// About how many bytes it holds.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.iteration.bytes()
    }
}

/// The cursors of all iterators that clients are in the middle of.
#[derive(Debug, Default)]
pub struct Iterators {
    cursors: Mutex<Cursors>,
}

#[derive(Debug, Default)]
struct Cursors {
    by_token: HashMap<String, Kept>,
    /// Of all cursors.
    bytes: usize,
}

/// A cursor at rest.
#[derive(Debug)]
struct Kept {
    since: Instant,
    /// The score that the client was told last.
    told: f32,
    cursor: Cursor,
    bytes: usize,
    /// Counts `bytes` against the node's memory.
    _memory: Option<Held>,
}

impl Cursors {
    fn remove(&mut self, token: &str) -> Option<Kept> {
        let kept = self.by_token.remove(token)?;
        self.bytes -= kept.bytes;
        Some(kept)
    }

    /// Forgets those that rested longest, while there are too many and as far as they are too old.
    fn make_room(&mut self) {
        loop {
            let oldest = self.by_token.iter().min_by_key(|(_, kept)| kept.since);
            let Some((token, kept)) = oldest else { return };
            let is_full = self.by_token.len() > MAX_CURSORS || self.bytes > MAX_BYTES;
            if !is_full && kept.since.elapsed() < KEEP {
                return;
            }
            let token = token.clone();
            self.remove(&token);
        }
    }
}

impl Iterators {
    /// Takes the cursor under `token`, if it stands where the client believes (`told`).
    pub fn take(&self, token: &str, told: f32) -> Option<Cursor> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.make_room();
        let kept = cursors.remove(token)?;
        (kept.told == told).then_some(kept.cursor)
    }

    /// Keeps a cursor whose client was `told` a score; those that rested longest give way.
    pub fn put(&self, token: &str, told: f32, cursor: Cursor, memory: Option<Held>) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.remove(token);
        let (since, bytes) = (Instant::now(), cursor.bytes());
        cursors.bytes += bytes;
        let kept = Kept { since, told, cursor, bytes, _memory: memory };
        cursors.by_token.insert(token.to_owned(), kept);
        cursors.make_room();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        Cursor {
            rows: QueryRows::Dense(Vec::new()),
            metric: Metric::L2,
            scope: LegScope::default(),
            lowest: Some(-4.0),
            behind: None,
            iteration: Iteration::default(),
        }
    }

    #[test]
    fn an_iteration_ends_where_its_vectors_do() {
        let token = token(Ts(255), 102);
        assert_eq!(token, "ff@102");
        assert!(resume(&token, 102).is_ok());
        let refused = resume(&token, 105).unwrap_err();
        assert!(refused.reason().contains("made anew"), "{refused}");
        assert!(resume("of another kind", 105).is_ok());
    }

    #[test]
    fn a_cursor_answers_once_to_its_token_and_its_bound() {
        let iterators = Iterators::default();
        iterators.put("a", 4.0, cursor(), None);
        iterators.put("b", 4.0, cursor(), None);
        assert!(iterators.take("c", 4.0).is_none());
        assert!(iterators.take("a", 4.0).is_some());
        assert!(iterators.take("a", 4.0).is_none());
        assert!(iterators.take("b", 5.0).is_none());
        assert_eq!(iterators.cursors.lock().unwrap().bytes, 0);
    }

    #[test]
    fn cursors_are_bounded_in_number_and_those_that_rested_longest_go_first() {
        let iterators = Iterators::default();
        for token in 0..MAX_CURSORS + 5 {
            iterators.put(&token.to_string(), 0.0, cursor(), None);
        }
        let cursors = iterators.cursors.lock().unwrap();
        assert_eq!(cursors.by_token.len(), MAX_CURSORS);
        assert_eq!(cursors.bytes, MAX_CURSORS * cursor().bytes());
        assert!(!cursors.by_token.contains_key("4"));
        assert!(cursors.by_token.contains_key(&(MAX_CURSORS + 4).to_string()));
    }
}
