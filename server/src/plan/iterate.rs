//! Search iterators: pages of one ranking, over several requests.
//!
//! The wire's cursor is a score alone, so rows with equal scores that straddle a page border
//! would be lost or repeated. Under each token the node therefore remembers the exact score at
//! which the last page ended and the keys of the rows with it that were sent. A
//! token that is unknown (the node restarted, the cursor expired) falls back to the score: the
//! next page begins strictly beyond it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use elanus_storage::{CollectionInfo, Key, Ts};

use super::Params;
use super::rank::narrow;
use super::search::Page;
use crate::status::Failure;

/// How long a cursor outlives its last page.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// Rows of one page at most (Milvus's limit).
const MAX_BATCH: usize = 16_384;

/// Cursors kept at once; each is some hundred bytes.
const MAX_CURSORS: usize = 1_000;

/// Rows of equal score that one iteration remembers.
const MAX_TIES: usize = 1_000_000;

/// Rows of equal score that all iterations remember together.
const MAX_ALL_TIES: usize = 2 * MAX_TIES;

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

/// Where an iterator stands, in the order of descending scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    /// The internal score of the last row sent.
    pub score: f32,
    /// The score as the client was told it.
    told: f32,
    /// The keys of the rows sent whose score is `score`.
    sent: HashSet<Key>,
}

impl Cursor {
    /// The cursor after a page whose rows are `(internal score, key)`, best first. `before` is
    /// where the page began.
    ///
    /// # Errors
    /// Code 1100 when more rows share one score than a cursor can tell apart.
    pub fn advance(
        before: Option<&Self>,
        page: &[(f32, Key)],
        told: f32,
    ) -> Result<Option<Self>, Failure> {
        let Some((score, _)) = page.last() else { return Ok(before.cloned()) };
        let ties = page.iter().rev().take_while(|row| row.0 == *score);
        let mut sent: HashSet<Key> = ties.map(|row| row.1.clone()).collect();
        if let Some(before) = before.filter(|before| before.score == *score) {
            sent.extend(before.sent.iter().cloned());
        }
        if sent.len() > MAX_TIES {
            return Err(Failure::invalid(format!(
                "more than {MAX_TIES} rows have the score {told}, a search iterator cannot tell them apart; use a query iterator"
            )));
        }
        Ok(Some(Self { score: *score, told, sent }))
    }

    /// Rows sent already that a search up to `score` finds again.
    pub fn ties(&self) -> usize {
        self.sent.len()
    }

    /// Whether a row was not sent yet.
    pub fn is_before(&self, score: f32, key: &Key) -> bool {
        score < self.score || (score == self.score && !self.sent.contains(key))
    }
}

/// The cursors of all iterators that clients are in the middle of.
#[derive(Debug, Default)]
pub struct Iterators {
    cursors: Mutex<Cursors>,
}

#[derive(Debug, Default)]
struct Cursors {
    by_token: HashMap<String, (Instant, Cursor)>,
    /// Of all cursors.
    ties: usize,
}

impl Cursors {
    fn remove(&mut self, token: &str) {
        if let Some((_, cursor)) = self.by_token.remove(token) {
            self.ties -= cursor.ties();
        }
    }

    fn is_full(&self) -> bool {
        self.by_token.len() > MAX_CURSORS || self.ties > MAX_ALL_TIES
    }
}

impl Iterators {
    /// The cursor under `token` if it stands where the client believes (`told`).
    pub fn get(&self, token: &str, told: f32) -> Option<Cursor> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let (touched, cursor) = cursors.by_token.get(token)?;
        (touched.elapsed() < KEEP && cursor.told == told).then(|| cursor.clone())
    }

    /// Moves the cursor under `token`; the cursors that rested longest give way.
    pub fn put(&self, token: &str, cursor: Cursor) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.remove(token);
        cursors.ties += cursor.ties();
        cursors.by_token.insert(token.to_owned(), (Instant::now(), cursor));
        while cursors.is_full() {
            let oldest = cursors.by_token.iter().min_by_key(|(_, (touched, _))| *touched);
            let Some(oldest) = oldest.map(|(token, _)| token.clone()) else { return };
            cursors.remove(&oldest);
        }
    }

    /// Forgets the cursor of an iterator that has reached its end.
    pub fn remove(&self, token: &str) {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: i64) -> Key {
        Key::Int(id)
    }

    fn cursor(score: f32, told: f32) -> Cursor {
        Cursor { score, told, sent: HashSet::from([key(7)]) }
    }

    #[test]
    fn rows_with_equal_scores_across_pages_are_neither_lost_nor_repeated() {
        // The order among equal scores is that of the search, which need not be that of the keys.
        let rows: Vec<(f32, Key)> = [(0.9, 1), (0.5, 9), (0.5, 3), (0.5, 2), (0.5, 4), (0.1, 5)]
            .map(|(s, k)| (s, key(k)))
            .to_vec();
        let mut cursor: Option<Cursor> = None;
        let mut seen = Vec::new();
        loop {
            // What a search bounded by the cursor's score finds, ties included.
            let found = rows.iter().filter(|row| cursor.as_ref().is_none_or(|c| row.0 <= c.score));
            let wanted = 2 + cursor.as_ref().map_or(0, Cursor::ties);
            let page: Vec<_> = found
                .take(wanted)
                .filter(|row| cursor.as_ref().is_none_or(|c| c.is_before(row.0, &row.1)))
                .cloned()
                .collect();
            if page.is_empty() {
                break;
            }
            seen.extend(page.iter().map(|row| row.1.clone()));
            cursor = Cursor::advance(cursor.as_ref(), &page, page[page.len() - 1].0).unwrap();
        }
        assert_eq!(seen, [1, 9, 3, 2, 4, 5].map(key));
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
    fn a_cursor_answers_only_to_its_token_and_its_bound() {
        let iterators = Iterators::default();
        iterators.put("a", cursor(-4.0, 4.0));
        assert_eq!(iterators.get("a", 4.0), Some(cursor(-4.0, 4.0)));
        assert_eq!(iterators.get("a", 5.0), None);
        assert_eq!(iterators.get("b", 4.0), None);
        iterators.remove("a");
        assert_eq!(iterators.get("a", 4.0), None);
    }

    #[test]
    fn the_number_of_cursors_is_bounded() {
        let iterators = Iterators::default();
        for token in 0..MAX_CURSORS + 5 {
            iterators.put(&token.to_string(), cursor(0.0, 0.0));
        }
        let cursors = iterators.cursors.lock().unwrap();
        assert_eq!((cursors.by_token.len(), cursors.ties), (MAX_CURSORS, MAX_CURSORS));
        assert!(cursors.by_token.contains_key(&(MAX_CURSORS + 4).to_string()));
    }
}
