//! Which rows of a segment are gone, and since when.
//!
//! A row dies once. Those that died within the retention time are kept with their timestamp, so
//! that a view of the past still shows them; all others are just dead. A time is kept once for all
//! rows that died at it, as those of one write do: 4 bytes a row, and 12 for each time.

use std::sync::Arc;

use elanus_index::{Row, RowMask};
use roaring::RoaringBitmap;

use super::section_file::{Section, SectionFile};
use crate::Error;
use crate::clock::Ts;

const DEAD: &str = "dead";
const ROWS: &str = "recent.rows";
const TIMES: &str = "recent.times";

/// 65,536: the most rows in a run. A run is forgotten as a whole, so this bounds both what is
/// remembered for too long and what is copied.
const RUN: usize = 1 << 16;

/// Rows with the time of their death, in order of time.
#[derive(Clone, Debug, Default)]
struct Deaths {
    rows: Vec<Row>,
    /// Each time, and the number of rows that died at it or before.
    times: Vec<Ts>,
    ends: Vec<u32>,
}

impl Deaths {
    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds a row that died no earlier than those before it.
    fn push(&mut self, row: Row, ts: Ts) {
        self.rows.push(row);
        let end = u32::try_from(self.rows.len()).expect("a run is split long before");
        match self.ends.last_mut() {
            Some(last) if self.times.last() == Some(&ts) => *last = end,
            _ => {
                self.times.push(ts);
                self.ends.push(end);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Row, Ts)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let spans = starts.zip(&self.ends).map(|(start, &end)| start as usize..end as usize);
        spans.zip(&self.times).flat_map(|(span, &ts)| self.rows[span].iter().map(move |&r| (r, ts)))
    }

    fn joined(&self, other: &Self) -> Self {
        let mut joined = Self::default();
        joined.rows.reserve_exact(self.len() + other.len());
        joined.times.reserve_exact(self.times.len() + other.times.len());
        joined.ends.reserve_exact(self.times.len() + other.times.len());
        self.iter().chain(other.iter()).for_each(|(row, ts)| joined.push(row, ts));
        joined
    }
}

/// The dead rows of a segment.
///
/// Clones share what is [settled](DeleteMask::settle), so publishing one per commit is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteMask {
    dead: RoaringBitmap,
    /// Of the rows that died of late, in order of time, in runs that are merged geometrically.
    recent: Vec<Arc<Deaths>>,
    /// Those that are not in a run yet.
    tail: Deaths,
    newest: Ts,
}

impl DeleteMask {
    /// Kills a row at `ts`; false if it was dead. `ts` must not be below those before it.
    pub(crate) fn insert(&mut self, row: Row, ts: Ts) -> bool {
        let died = self.dead.insert(row);
        if died {
            self.remember(row, ts);
        }
        died
    }

    fn remember(&mut self, row: Row, ts: Ts) {
        if self.tail.len() >= RUN {
            self.settle();
        }
        self.tail.push(row, ts);
        self.newest = self.newest.max(ts);
    }

    /// Kills a row that no view shows, so that nobody asks when.
    pub(crate) fn bury(&mut self, row: Row) {
        self.dead.insert(row);
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
        if self.tail.len() == 0 {
            return;
        }
        self.recent.push(Arc::new(std::mem::take(&mut self.tail)));
        while let [.., before, last] = &self.recent[..]
            && before.len() < 2 * last.len()
            && before.len() + last.len() <= RUN
        {
            let joined = before.joined(last);
            self.recent.truncate(self.recent.len() - 2);
            self.recent.push(Arc::new(joined));
        }
    }

    /// Forgets when rows died that died before `horizon`: no view goes back that far. Some may be
    /// remembered for a while longer.
    pub(crate) fn forget_before(&mut self, horizon: Ts) {
        self.settle();
        self.recent.retain(|run| !is_past(run, horizon));
    }

    /// Whether [`DeleteMask::forget_before`] would change anything.
    pub(crate) fn has_past(&self, horizon: Ts) -> bool {
        self.recent.first().is_some_and(|run| is_past(run, horizon))
    }

    /// Takes the rows out of `mask` that were dead at `ts`.
    pub(crate) fn hide(&self, mask: &mut RowMask, ts: Ts) {
        if ts >= self.newest {
            self.dead.iter().for_each(|row| mask.remove(row));
        } else {
            self.dead_before(Ts(ts.0 + 1)).iter().for_each(|row| mask.remove(row));
        }
    }

    /// The rows that died before `ts`. Those that died before what is remembered count, whatever
    /// `ts` is.
    pub(crate) fn dead_before(&self, ts: Ts) -> RoaringBitmap {
        let mut dead = self.dead.clone();
        for (row, died) in self.recent() {
            if died >= ts {
                dead.remove(row);
            }
        }
        dead
    }

    /// The rows that are dead here and not in `older`, an earlier state of this mask, with the time
    /// of their death as far as it is remembered.
    pub(crate) fn since(&self, older: &Self) -> Vec<(Row, Option<Ts>)> {
        let mut news = &self.dead - &older.dead;
        let mut since = Vec::new();
        for (row, ts) in self.recent() {
            if news.remove(row) {
                since.push((row, Some(ts)));
            }
        }
        since.extend(news.iter().map(|row| (row, None)));
        since
    }

    /// The deletes of several segments in a new order of their rows: row `i` of the result is row
    /// `order[i].1` of segment `order[i].0`.
    pub(crate) fn gathered(masks: &[Arc<Self>], order: &[(u32, Row)]) -> Self {
        let by_row = |mask: &Arc<Self>| {
            let mut recent: Vec<(Row, Ts)> = mask.recent().collect();
            recent.sort_unstable();
            recent
        };
        let recent: Vec<Vec<(Row, Ts)>> = masks.iter().map(by_row).collect();
        let mut gathered = Self::default();
        let mut died: Vec<(Ts, Row)> = Vec::new();
        for (new, &(from, old)) in (0..).zip(order) {
            if masks[from as usize].contains(old) {
                gathered.bury(new);
                let recent = &recent[from as usize];
                let at = recent.binary_search_by_key(&old, |&(row, _)| row);
                died.extend(at.ok().map(|at| (recent[at].1, new)));
            }
        }
        died.sort_unstable();
        died.into_iter().for_each(|(ts, row)| gathered.remember(row, ts));
        gathered.settle();
        gathered
    }

    fn recent(&self) -> impl Iterator<Item = (Row, Ts)> {
        self.recent.iter().map(|run| &**run).chain(Some(&self.tail)).flat_map(Deaths::iter)
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
        let mut mask = Self { dead, ..Self::default() };
        for (row, ts) in rows.0.iter().zip(times.0) {
            let (row, ts) = (Row::from_le_bytes(*row), Ts(u64::from_le_bytes(*ts)));
            if !mask.contains(row) {
                return Err(corrupt("a recently deleted row is not deleted"));
            }
            mask.remember(row, ts);
        }
        mask.settle();
        Ok(mask)
    }
}

fn is_past(run: &Deaths, horizon: Ts) -> bool {
    run.times.last().is_none_or(|&ts| ts < horizon)
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

            let dead: Vec<Row> = mask.dead_before(Ts(end / 2)).iter().collect();
            let died = deaths.iter().filter(|(_, died)| **died < end / 2);
            prop_assert_eq!(dead, died.map(|(row, _)| *row).collect::<Vec<_>>());

            let earlier = mask.clone();
            mask.forget_before(Ts(end / 2));
            for ts in [end / 2, end] {
                prop_assert_eq!(visible(&mask, ts), expected(&deaths, ts));
            }
            // Its death is news, whether its time is known or not.
            let news = if mask.insert(0, Ts(end + 1)) { vec![0] } else { vec![] };
            deaths.entry(0).or_insert(end + 1);
            let known: Vec<_> = news.iter().map(|&row| (row, Some(Ts(end + 1)))).collect();
            prop_assert_eq!(mask.since(&earlier), known);
            mask.forget_before(Ts(end + 2));
            prop_assert_eq!(mask.recent().count(), 0);
            prop_assert_eq!(visible(&mask, 0), expected(&deaths, end + 1));
            let unknown: Vec<_> = news.iter().map(|&row| (row, None)).collect();
            prop_assert_eq!(mask.since(&earlier), unknown);
        }
    }

    #[test]
    fn what_is_past_is_forgotten_but_for_a_run_and_a_time_is_kept_once() {
        let mut mask = DeleteMask::default();
        let (writes, rows) = (30_000_u32, 10);
        for write in 0..writes {
            for row in write * rows..(write + 1) * rows {
                assert!(mask.insert(row, Ts(u64::from(write))));
            }
            mask.settle();
        }
        let times =
            |mask: &DeleteMask| mask.recent.iter().map(|run| run.times.len()).sum::<usize>();
        assert!(times(&mask) < writes as usize + 10, "{} times", times(&mask));
        assert!(!mask.has_past(Ts(0)) && mask.has_past(Ts(u64::from(writes))));
        mask.forget_before(Ts(u64::from(writes / 2)));
        let kept = mask.recent().count();
        let needed = (writes / 2 * rows) as usize;
        assert!((needed..needed + RUN).contains(&kept), "{kept}");
        assert_eq!(mask.len(), (writes * rows) as usize);

        let order: Vec<(u32, Row)> = (0..writes * rows).map(|row| (0, row)).collect();
        let mut gathered = DeleteMask::gathered(&[Arc::new(mask)], &order);
        assert_eq!(gathered.recent().count(), kept);
        assert!(gathered.recent.iter().all(|run| run.len() <= RUN));
        gathered.forget_before(Ts(u64::from(writes)));
        assert_eq!((gathered.recent().count(), gathered.len()), (0, (writes * rows) as usize));
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
