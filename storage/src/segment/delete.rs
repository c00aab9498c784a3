//! Which rows of a segment are gone, and since when.
//!
//! A row dies once. Those that died within the retention time are kept with their timestamp, so
//! that a view of the past still shows them; all others are just dead.

use std::collections::HashMap;
use std::sync::Arc;

use elanus_index::{Row, RowMask};
use roaring::RoaringBitmap;

use super::section_file::{Section, SectionFile};
use crate::Error;
use crate::clock::Ts;

const DEAD: &str = "dead";
const ROWS: &str = "recent.rows";
const TIMES: &str = "recent.times";

/// The dead rows of a segment.
///
/// Clones share what is [settled](DeleteMask::settle), so publishing one per commit is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteMask {
    dead: RoaringBitmap,
    /// Rows with the time of their death, in order of time, in runs that are merged
    /// geometrically.
    recent: Vec<Arc<Vec<(Row, Ts)>>>,
    /// Rows that are not in a run yet.
    tail: Vec<(Row, Ts)>,
    newest: Ts,
}

impl DeleteMask {
    /// Kills a row at `ts`; false if it was dead. `ts` must not be below those before it.
    pub(crate) fn insert(&mut self, row: Row, ts: Ts) -> bool {
        let died = self.dead.insert(row);
        if died {
            self.tail.push((row, ts));
            self.newest = self.newest.max(ts);
        }
        died
    }

    pub(crate) fn contains(&self, row: Row) -> bool {
        self.dead.contains(row)
    }

    /// Number of dead rows.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.dead.len()).unwrap_or(usize::MAX)
    }

    /// Makes the next clone cheap.
    pub(crate) fn settle(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        self.recent.push(Arc::new(std::mem::take(&mut self.tail)));
        while let [.., before, last] = &self.recent[..]
            && before.len() < 2 * last.len()
        {
            let merged: Vec<_> = before.iter().chain(last.iter()).copied().collect();
            self.recent.truncate(self.recent.len() - 2);
            self.recent.push(Arc::new(merged));
        }
    }

    /// Forgets when rows died that died before `horizon`: no view goes back that far.
    pub(crate) fn forget_before(&mut self, horizon: Ts) {
        self.settle();
        // Runs are in order of time, so only the first that reaches the horizon is cut.
        self.recent.retain_mut(|run| {
            let cut = run.partition_point(|&(_, ts)| ts < horizon);
            let keep = cut < run.len();
            if cut > 0 && keep {
                *run = Arc::new(run[cut..].to_vec());
            }
            keep
        });
    }

    /// Takes the rows out of `mask` that were dead at `ts`.
    pub(crate) fn hide(&self, mask: &mut RowMask, ts: Ts) {
        if ts >= self.newest {
            self.dead.iter().for_each(|row| mask.remove(row));
            return;
        }
        let mut dead = self.dead.clone();
        for (row, died) in self.recent() {
            if died > ts {
                dead.remove(row);
            }
        }
        dead.iter().for_each(|row| mask.remove(row));
    }

    /// The dead rows, each with the time of its death as far as it is remembered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Row, Option<Ts>)> {
        let recent: HashMap<Row, Ts> = self.recent().collect();
        self.dead.iter().map(move |row| (row, recent.get(&row).copied()))
    }

    /// The rows that are dead here and not in `older`, an earlier state of this mask whose deaths
    /// are all remembered, with the time of their death.
    pub(crate) fn since(&self, older: &Self) -> impl Iterator<Item = (Row, Ts)> {
        self.recent().filter(|(row, _)| !older.contains(*row))
    }

    /// The deletes of several segments in a new order of their rows: row `i` of the result is row
    /// `order[i].1` of segment `order[i].0`.
    pub(crate) fn gathered(masks: &[Arc<Self>], order: &[(u32, Row)]) -> Self {
        let recent: Vec<HashMap<Row, Ts>> =
            masks.iter().map(|mask| mask.recent().collect()).collect();
        let mut dead = RoaringBitmap::new();
        let mut tail: Vec<(Row, Ts)> = Vec::new();
        for (new, &(from, old)) in (0..).zip(order) {
            if masks[from as usize].contains(old) {
                dead.insert(new);
                tail.extend(recent[from as usize].get(&old).map(|&ts| (new, ts)));
            }
        }
        tail.sort_unstable_by_key(|&(row, ts)| (ts, row));
        let newest = tail.last().map_or(Ts::ZERO, |&(_, ts)| ts);
        let mut gathered = Self { dead, recent: Vec::new(), tail, newest };
        gathered.settle();
        gathered
    }

    fn recent(&self) -> impl Iterator<Item = (Row, Ts)> {
        self.recent.iter().flat_map(|run| run.iter()).chain(&self.tail).copied()
    }

    /// The sections of a delete file.
    pub(crate) fn to_sections(&self) -> Result<Vec<Section>, Error> {
        let mut dead = Vec::with_capacity(self.dead.serialized_size());
        self.dead
            .serialize_into(&mut dead)
            .map_err(|error| Error::Internal(format!("cannot write a bitmap: {error}")))?;
        let rows = self.recent().flat_map(|(row, _)| row.to_le_bytes()).collect();
        let times = self.recent().flat_map(|(_, ts)| ts.0.to_le_bytes()).collect();
        Ok(vec![Section::new(DEAD, dead), Section::new(ROWS, rows), Section::new(TIMES, times)])
    }

    /// Reads a delete file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if its content makes no sense for a segment of that many rows.
    pub(crate) fn from_file(file: &SectionFile) -> Result<Self, Error> {
        let corrupt = |detail: &str| Error::corrupt(file.path(), detail);
        let section = |name: &str| {
            file.section(name)?.ok_or_else(|| corrupt(&format!("section `{name}` is missing")))
        };
        let dead = RoaringBitmap::deserialize_from(&section(DEAD)?[..])
            .map_err(|error| corrupt(&format!("section `{DEAD}`: {error}")))?;
        if dead.max().is_some_and(|row| row as usize >= file.rows()) {
            return Err(corrupt("a deleted row is beyond the end of the segment"));
        }
        let (rows, times) = (section(ROWS)?, section(TIMES)?);
        let (rows, times) = (rows.as_chunks::<4>(), times.as_chunks::<8>());
        if !rows.1.is_empty() || !times.1.is_empty() || rows.0.len() != times.0.len() {
            return Err(corrupt("recent deletes have differing numbers of rows and times"));
        }
        let mut recent = Vec::with_capacity(rows.0.len());
        for (row, ts) in rows.0.iter().zip(times.0) {
            let (row, ts) = (Row::from_le_bytes(*row), Ts(u64::from_le_bytes(*ts)));
            if !dead.contains(row) {
                return Err(corrupt("a recently deleted row is not deleted"));
            }
            recent.push((row, ts));
        }
        let newest = recent.iter().map(|&(_, ts)| ts).max().unwrap_or(Ts::ZERO);
        let mut mask = Self { dead, recent: Vec::new(), tail: recent, newest };
        mask.settle();
        Ok(mask)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const ROWS_IN_TEST: usize = 200;

    fn visible(mask: &DeleteMask, ts: u64) -> Vec<Row> {
        let mut rows = RowMask::all(ROWS_IN_TEST);
        mask.hide(&mut rows, Ts(ts));
        rows.iter().collect()
    }

    fn expected(deaths: &BTreeMap<Row, u64>, ts: u64) -> Vec<Row> {
        let alive = |row: &Row| deaths.get(row).is_none_or(|&died| died > ts);
        (0..ROWS_IN_TEST as Row).filter(alive).collect()
    }

    proptest! {
        #[test]
        fn a_view_of_the_past_sees_what_died_later(
            rows in proptest::collection::vec((0..ROWS_IN_TEST as Row, any::<bool>()), 0..150),
        ) {
            let mut mask = DeleteMask::default();
            let mut deaths = BTreeMap::new();
            for (ts, &(row, settle)) in (1..).zip(&rows) {
                prop_assert_eq!(mask.insert(row, Ts(ts)), !deaths.contains_key(&row));
                deaths.entry(row).or_insert(ts);
                if settle {
                    mask.settle();
                }
            }
            prop_assert_eq!(mask.len(), deaths.len());
            let end = rows.len() as u64;
            for ts in [0, 1, end / 3, end / 2, end, u64::MAX] {
                prop_assert_eq!(visible(&mask, ts), expected(&deaths, ts));
            }

            let order: Vec<(u32, Row)> = (0..ROWS_IN_TEST as Row).rev().map(|r| (1, r)).collect();
            let masks = [Arc::default(), Arc::new(mask.clone())];
            let gathered = DeleteMask::gathered(&masks, &order);
            for ts in [0, end / 2, end] {
                let mut back: Vec<Row> =
                    visible(&gathered, ts).into_iter().map(|row| order[row as usize].1).collect();
                back.reverse();
                prop_assert_eq!(back, expected(&deaths, ts));
            }

            mask.forget_before(Ts(end / 2));
            for ts in [end / 2, end] {
                prop_assert_eq!(visible(&mask, ts), expected(&deaths, ts));
            }
            prop_assert!(mask.recent().all(|(_, ts)| ts.0 >= end / 2));
            let early = visible(&mask, 0);
            prop_assert!(deaths.iter().all(|(row, &ts)| ts >= end / 2 || !early.contains(row)));
        }
    }

    #[test]
    fn runs_stay_few() {
        let mut mask = DeleteMask::default();
        for row in 0..10_000 {
            mask.insert(row, Ts(u64::from(row)));
            mask.settle();
        }
        assert!(mask.recent.len() <= 15, "{} runs", mask.recent.len());
        assert_eq!(mask.recent().count(), 10_000);
    }
}
