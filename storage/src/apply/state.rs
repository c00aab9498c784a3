//! One collection in memory, as the applier changes it.
//!
//! A key is live in at most one place: the active generation, the frozen one, or one sealed
//! segment. A *generation* is all growing segments since the last cut; a checkpoint freezes it,
//! and it stays readable, and rows in it can still die, until its sealed segments take its place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use elanus_index::Row;

use super::{Frozen, Installed, Merged};
use crate::Error;
use crate::clock::Ts;
use crate::collection::{Collection, check_columns};
use crate::engine::Core;
use crate::keys::{KeyColumn, KeyRef};
use crate::log::Lsn;
use crate::log::record::Change;
use crate::segment::delete::DeleteMask;
use crate::segment::growing::{Growing, GrowingBuilder};
use crate::segment::{Body, Segment};
use crate::view::Version;

/// Memory that a growing row takes beside its columns, in bytes: its timestamp, and its key's
/// place in a hash table that is between seven sixteenths and seven eighths full.
const ROW_OVERHEAD: usize = 64;

/// Where a growing row is.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: i64,
    row: Row,
}

/// Where the live keys of a generation are.
#[derive(Debug, Default)]
struct KeyMap {
    ints: HashMap<i64, Place>,
    strs: HashMap<Box<str>, Place>,
}

impl KeyMap {
    fn insert(&mut self, key: KeyRef<'_>, place: Place) -> Option<Place> {
        match key {
            KeyRef::Int(key) => self.ints.insert(key, place),
            KeyRef::Str(key) => match self.strs.get_mut(key) {
                Some(old) => Some(std::mem::replace(old, place)),
                None => self.strs.insert(key.into(), place),
            },
        }
    }

    fn get(&self, key: KeyRef<'_>) -> Option<Place> {
        match key {
            KeyRef::Int(key) => self.ints.get(&key).copied(),
            KeyRef::Str(key) => self.strs.get(key).copied(),
        }
    }

    fn remove(&mut self, key: KeyRef<'_>) -> Option<Place> {
        match key {
            KeyRef::Int(key) => self.ints.remove(&key),
            KeyRef::Str(key) => self.strs.remove(key),
        }
    }

    fn retain(&mut self, keep: impl Fn(Place) -> bool) {
        self.ints.retain(|_, place| keep(*place));
        self.strs.retain(|_, place| keep(*place));
    }
}

/// Everything that came after a cut.
#[derive(Debug, Default)]
struct Generation {
    keys: KeyMap,
    /// Growing segment of each partition.
    segments: HashMap<i64, i64>,
    /// The first record in here; `None` without any.
    first: Option<Lsn>,
    /// The first record that is not in here, once frozen.
    cut: Lsn,
}

/// A segment and what is known of it since the last version.
#[derive(Debug)]
struct Slot {
    /// As published.
    segment: Arc<Segment>,
    /// The rows, while they grow.
    builder: Option<GrowingBuilder>,
    deletes: DeleteMask,
    /// Number of deletes that are on disk.
    persisted: usize,
    changed: bool,
    /// Whether `deletes` are not as published.
    mask_changed: bool,
}

impl Slot {
    /// A segment whose deletes, of which so many are on disk, may be more than it shows.
    fn sealed(segment: Arc<Segment>, deletes: DeleteMask, persisted: usize) -> Self {
        Self { segment, builder: None, deletes, persisted, changed: true, mask_changed: true }
    }

    fn kill(&mut self, row: Row, ts: Ts) -> bool {
        let died = self.deletes.insert(row, ts);
        self.changed |= died;
        self.mask_changed |= died;
        died
    }

    /// Gives back the memory of times of death that no view asks for.
    fn forget_before(&mut self, horizon: Ts) {
        if self.deletes.has_past(horizon) {
            self.deletes.forget_before(horizon);
            self.changed = true;
            self.mask_changed = true;
        }
    }

    fn publish(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let mut segment = self.segment.as_ref().clone();
        if let Some(builder) = &mut self.builder {
            segment.body = Body::Growing(builder.snapshot()?);
        }
        if std::mem::take(&mut self.mask_changed) {
            self.deletes.settle();
            segment.deletes = Arc::new(self.deletes.clone());
        }
        self.segment = Arc::new(segment);
        Ok(())
    }
}

/// One collection in memory.
#[derive(Debug)]
pub(super) struct State {
    pub(super) collection: Arc<Collection>,
    partitions: HashSet<i64>,
    slots: BTreeMap<i64, Slot>,
    /// Segments of dropped partitions, until they have left the manifest.
    retired: BTreeMap<i64, Slot>,
    active: Generation,
    frozen: Option<Generation>,
    /// Of the newest record.
    ts: Ts,
    /// Records below are contained in the manifest.
    pub(super) floor: Lsn,
    pub(super) damage: Option<Arc<Error>>,
    pub(super) checkpoint_asked: bool,
    /// As counted last.
    pub(super) growing_bytes: usize,
}

impl State {
    /// A collection whose sealed segments come with the deletes that are on disk; records below
    /// `floor` are contained in them.
    pub(super) fn new(
        collection: Arc<Collection>,
        segments: Vec<Segment>,
        floor: Lsn,
        ts: Ts,
        damage: Option<Arc<Error>>,
    ) -> Self {
        let slots = (segments.into_iter())
            .map(|segment| {
                let deletes = segment.deletes.as_ref().clone();
                let persisted = deletes.len();
                (segment.id, Slot::sealed(Arc::new(segment), deletes, persisted))
            })
            .collect();
        let partitions = collection.info().partitions.iter().map(|p| p.id).collect();
        Self {
            partitions,
            collection,
            slots,
            retired: BTreeMap::new(),
            active: Generation::default(),
            frozen: None,
            ts,
            floor,
            damage,
            checkpoint_asked: false,
            growing_bytes: 0,
        }
    }

    pub(super) fn insert(
        &mut self,
        lsn: Lsn,
        ts: Ts,
        parts: Vec<(i64, RecordBatch)>,
        core: &Core,
    ) -> Result<usize, Error> {
        self.note(lsn, ts);
        let key_name = self.collection.info().schema.primary().name.clone();
        let mut rows = 0;
        for (partition, batch) in parts {
            let column = batch.column_by_name(&key_name).ok_or_else(|| {
                Error::Internal(format!("a batch lacks the primary key `{key_name}`"))
            })?;
            let keys = KeyColumn::new(column)?;
            rows += batch.num_rows();
            if !self.partitions.contains(&partition) {
                // Only in replay: the partition was dropped later, and its rows with it. The rows
                // that they had replaced elsewhere are gone all the same.
                self.kill_all(keys.iter(), None, ts)?;
                continue;
            }
            let segment = self.growing_segment(partition, core);
            let first = self.slots.get(&segment).and_then(|slot| slot.builder.as_ref());
            let first = first.map_or(0, GrowingBuilder::next_row);
            let mut elsewhere = Vec::new();
            for (row, key) in (first..).zip(keys.iter()) {
                let old = self.active.keys.insert(key, Place { segment, row });
                let old = old.or_else(|| self.frozen.as_mut().and_then(|f| f.keys.remove(key)));
                match old {
                    Some(place) => drop(self.kill(place, ts)),
                    None => elsewhere.push(key),
                }
            }
            self.kill_sealed(elsewhere, None, ts)?;
            let bytes = batch_bytes(&batch);
            if let Some(slot) = self.slots.get_mut(&segment)
                && let Some(builder) = &mut slot.builder
            {
                builder.push(batch, ts, bytes);
                slot.changed = true;
            }
        }
        Ok(rows)
    }

    pub(super) fn delete<'a>(
        &mut self,
        lsn: Lsn,
        ts: Ts,
        partitions: Option<&[i64]>,
        keys: impl Iterator<Item = KeyRef<'a>>,
    ) -> Result<usize, Error> {
        self.note(lsn, ts);
        self.kill_all(keys, partitions, ts)
    }

    /// Whether a change may be logged.
    pub(super) fn admit(&self, change: &Change) -> Result<(), Error> {
        if let Some(damage) = &self.damage {
            return Err(damage.duplicate());
        }
        let (Change::Insert(parts) | Change::Replace { parts, .. }) = change else { return Ok(()) };
        if let Some((gone, _)) = parts.iter().find(|(id, _)| !self.partitions.contains(id)) {
            return Err(Error::PartitionNotFound(gone.to_string()));
        }
        // They may have been checked before the schema changed.
        let schema = &self.collection.info().schema;
        parts.iter().try_for_each(|(_, rows)| check_columns(schema, rows))
    }

    /// Kills the live rows of some keys; returns how many died.
    fn kill_all<'a>(
        &mut self,
        keys: impl Iterator<Item = KeyRef<'a>>,
        partitions: Option<&[i64]>,
        ts: Ts,
    ) -> Result<usize, Error> {
        let mut died = 0;
        let mut elsewhere = Vec::new();
        for key in keys {
            let place = self.active.keys.get(key).or_else(|| self.frozen.as_ref()?.keys.get(key));
            let Some(place) = place else {
                elsewhere.push(key);
                continue;
            };
            let partition = self.slots.get(&place.segment).map(|slot| slot.segment.partition);
            if partitions.is_some_and(|only| !partition.is_some_and(|p| only.contains(&p))) {
                continue;
            }
            self.active.keys.remove(key);
            if let Some(frozen) = &mut self.frozen {
                frozen.keys.remove(key);
            }
            died += usize::from(self.kill(place, ts));
        }
        Ok(died + self.kill_sealed(elsewhere, partitions, ts)?)
    }

    fn note(&mut self, lsn: Lsn, ts: Ts) {
        self.active.first.get_or_insert(lsn);
        self.ts = self.ts.max(ts);
    }

    fn kill(&mut self, place: Place, ts: Ts) -> bool {
        self.slots.get_mut(&place.segment).is_some_and(|slot| slot.kill(place.row, ts))
    }

    /// Kills the live rows of some keys in sealed segments; returns how many died.
    fn kill_sealed(
        &mut self,
        mut keys: Vec<KeyRef<'_>>,
        partitions: Option<&[i64]>,
        ts: Ts,
    ) -> Result<usize, Error> {
        keys.sort_unstable();
        let mut died = 0;
        for slot in self.slots.values_mut() {
            let Body::Sealed(sealed) = &slot.segment.body else { continue };
            if partitions.is_some_and(|only| !only.contains(&slot.segment.partition)) {
                continue;
            }
            let sealed = Arc::clone(sealed);
            let column = sealed.keys()?;
            let Some(last) = column.len().checked_sub(1) else { continue };
            let from = keys.partition_point(|key| *key < column.get(0));
            let to = keys.partition_point(|key| *key <= column.get(last));
            let mut at = 0;
            for key in keys.get(from..to).unwrap_or_default() {
                let rows = column.equal_range(*key, at);
                at = rows.start;
                for row in rows {
                    let row = Row::try_from(row).expect("segments have 32-bit rows");
                    died += usize::from(slot.kill(row, ts));
                }
            }
        }
        Ok(died)
    }

    /// The growing segment of a partition in the active generation.
    fn growing_segment(&mut self, partition: i64, core: &Core) -> i64 {
        if let Some(id) = self.active.segments.get(&partition) {
            return *id;
        }
        let id = core.next_segment();
        self.active.segments.insert(partition, id);
        let segment = Segment {
            id,
            partition,
            body: Body::Growing(Arc::new(Growing::default())),
            deletes: Arc::default(),
        };
        let slot = Slot {
            segment: Arc::new(segment),
            builder: Some(GrowingBuilder::default()),
            deletes: DeleteMask::default(),
            persisted: 0,
            changed: true,
            mask_changed: false,
        };
        self.slots.insert(id, slot);
        id
    }

    /// Memory that rows take which are not sealed.
    pub(super) fn unsealed_bytes(&self) -> usize {
        (self.slots.values())
            .filter_map(|slot| slot.builder.as_ref())
            .map(|builder| builder.bytes() + builder.code_bytes() + builder.rows() * ROW_OVERHEAD)
            .sum()
    }

    /// Rows and bytes since the last cut, which the next checkpoint would seal.
    pub(super) fn active(&self) -> (usize, usize) {
        (self.active.segments.values())
            .filter_map(|id| self.slots.get(id)?.builder.as_ref())
            .fold((0, 0), |sum, builder| (sum.0 + builder.rows(), sum.1 + builder.bytes()))
    }

    pub(super) fn first_needed(&self) -> Option<Lsn> {
        self.frozen.as_ref().and_then(|frozen| frozen.first).or(self.active.first)
    }

    pub(super) fn ask_for_checkpoint(&mut self, core: &Arc<Core>) {
        if !self.checkpoint_asked && self.damage.is_none() {
            self.checkpoint_asked = core.checkpoint_in_background(&self.collection);
        }
    }

    pub(super) fn publish(&mut self) -> Result<(), Error> {
        let mut segments = Vec::with_capacity(self.slots.len());
        let damage = self.damage.clone();
        if damage.is_none() {
            for slot in self.slots.values_mut() {
                slot.publish()?;
                segments.push(Arc::clone(&slot.segment));
            }
        }
        self.collection.publish(Version { ts: self.ts, segments, damage });
        Ok(())
    }

    pub(super) fn set_partitions(&mut self, live: HashSet<i64>) {
        let (kept, dropped): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.slots)
            .into_iter()
            .partition(|(_, slot)| live.contains(&slot.segment.partition));
        let gone: HashSet<i64> = dropped.keys().copied().collect();
        self.partitions = live;
        self.slots = kept;
        self.retired.extend(dropped.into_iter().filter(|(_, slot)| slot.builder.is_none()));
        for generation in [Some(&mut self.active), self.frozen.as_mut()].into_iter().flatten() {
            generation.keys.retain(|place| !gone.contains(&place.segment));
            generation.segments.retain(|_, id| !gone.contains(id));
        }
    }

    pub(super) fn freeze(&mut self, next: Lsn) -> Frozen {
        let left_over = self.frozen.is_some();
        if !left_over {
            self.active.cut = next;
            self.frozen = Some(std::mem::take(&mut self.active));
        }
        let frozen = self.frozen.get_or_insert_default();
        let growing = (frozen.segments.values())
            .filter_map(|id| self.slots.get(id))
            .map(|slot| Arc::clone(&slot.segment))
            .collect();
        // All deletes up to now may be written: those after the cut are in the log as well.
        let deleted = (self.slots.values())
            .filter(|slot| slot.builder.is_none() && slot.deletes.len() != slot.persisted)
            .map(|slot| (slot.segment.id, Arc::clone(&slot.segment.deletes)))
            .collect();
        Frozen { cut: frozen.cut, left_over, growing, deleted }
    }

    pub(super) fn install(&mut self, installed: Installed, core: &Core) {
        let Installed { sealed, growing, persisted, removed } = installed;
        for (from, segment, rows) in sealed {
            // The partition may have been dropped meanwhile; then so is the segment.
            let Some(old) = self.slots.get(&from) else { continue };
            // Rows that died since the cut must be dead from the first moment.
            let deletes = rows.deletes(&[Arc::new(old.deletes.clone())]);
            self.slots.insert(segment.id, Slot::sealed(segment, deletes, 0));
        }
        for id in growing {
            self.slots.remove(&id);
        }
        for id in removed {
            self.remove(id);
        }
        for (id, count) in persisted {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.persisted = count;
            }
        }
        if let Some(frozen) = self.frozen.take() {
            self.floor = self.floor.max(frozen.cut);
            // A large map takes a while to free, which no writer should wait for.
            core.in_background(move || drop(frozen));
        }
    }

    /// Puts a segment in the place of those that it was made of.
    pub(super) fn merge(&mut self, merged: Merged) {
        let Merged { sources, target } = merged;
        // A partition that was dropped meanwhile has its segments among the retired.
        let retired = sources.iter().any(|(id, _)| !self.slots.contains_key(id));
        if let Some((segment, rows)) = target {
            let mut news = HashMap::new();
            for (at, (id, known)) in (0..).zip(&sources) {
                if let Some(slot) = self.slots.get(id).or_else(|| self.retired.get(id)) {
                    let since = slot.deletes.since(known);
                    news.extend(since.into_iter().map(|(row, ts)| ((at, row), ts)));
                }
            }
            // Rows that died since must be dead from the first moment.
            let mut news = rows.places(&mut news);
            news.sort_unstable_by_key(|&(row, ts)| (ts, row));
            let mut deletes = segment.deletes.as_ref().clone();
            let persisted = deletes.len();
            for (row, ts) in news {
                match ts {
                    Some(ts) => drop(deletes.insert(row, ts)),
                    None => deletes.bury(row),
                }
            }
            let id = segment.id;
            let slot = Slot::sealed(segment, deletes, persisted);
            if retired { &mut self.retired } else { &mut self.slots }.insert(id, slot);
        }
        for (id, _) in sources {
            self.remove(id);
        }
    }

    /// Forgets when rows died that died before `horizon`.
    pub(super) fn forget_before(&mut self, horizon: Ts) {
        self.slots.values_mut().for_each(|slot| slot.forget_before(horizon));
    }

    /// Takes a sealed segment out; its files go with the last reader. False if there is none.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        let slot = self.slots.remove(&id).or_else(|| self.retired.remove(&id));
        match slot.map(|slot| slot.segment.body.clone()) {
            Some(Body::Sealed(sealed)) => {
                sealed.doom();
                true
            }
            Some(Body::Growing(_)) | None => false,
        }
    }
}

/// Bytes that the rows of a batch take.
fn batch_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &dyn Array| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(|column| bytes(&**column)).sum()
}
