//! Applying the log: what a record does to a collection in memory.
//!
//! One thread owns this state (the log thread; recovery before it), so nothing here locks. It
//! knows where each key of the growing rows lives, marks replaced and deleted rows, and publishes
//! one new [`Version`] per group of records. Replay goes through the same code, so memory after a
//! restart is what it was before.
//!
//! A key is live in at most one place: the active generation, the frozen one, or one sealed
//! segment. A *generation* is all growing segments since the last cut; a checkpoint freezes it,
//! and it stays readable, and rows in it can still die, until its sealed segments take its place.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::{Array, RecordBatch};
use crossbeam::channel::Sender;
use elanus_index::Row;

use crate::Error;
use crate::clock::Ts;
use crate::collection::Collection;
use crate::engine::Core;
use crate::keys::{KeyColumn, KeyRef};
use crate::log::Lsn;
use crate::log::record::{Change, Record};
use crate::log::writer::{Apply, LogControl, LogSize};
use crate::segment::delete::DeleteMask;
use crate::segment::growing::{Growing, GrowingBuilder};
use crate::segment::seal::SealedRows;
use crate::segment::sealed::SealedSegment;
use crate::segment::{Body, Segment};
use crate::view::Version;

/// An order to the applier, in the queue between writes.
pub(crate) enum Control {
    /// A collection was created.
    Open(Arc<Collection>),
    /// A collection was dropped.
    Close(i64),
    /// The partitions that a collection has now; rows of others go.
    Partitions { collection: i64, live: HashSet<i64> },
    /// Cut here: freeze what is growing.
    Freeze { collection: i64, reply: Sender<Result<Frozen, Error>> },
    /// Sealed segments, committed, take the place of the frozen generation.
    Install { collection: i64, installed: Installed, reply: Sender<()> },
    /// Segments left the manifest; the reply names those that were not in memory.
    Remove { collection: i64, segments: Vec<i64>, reply: Sender<Vec<i64>> },
    /// Where could the log begin, by what the collections still need?
    LogStart { reply: Sender<Option<Lsn>> },
    /// Remove log files below.
    Trim(Lsn),
}

/// A collection as of a cut.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Records below are contained in what follows.
    pub(crate) cut: Lsn,
    /// A cut that an earlier checkpoint did not bring to an end.
    pub(crate) left_over: bool,
    /// The growing segments.
    pub(crate) growing: Vec<Arc<Segment>>,
    /// Sealed segments whose deletes are not on disk as they are now.
    pub(crate) deleted: Vec<(i64, Arc<DeleteMask>)>,
}

/// What a checkpoint made of a [`Frozen`].
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// New segments, each with the id of the growing segment whose rows it has, and their order.
    /// A growing segment without a live row has no successor.
    pub(crate) sealed: Vec<(i64, Arc<Segment>, SealedRows)>,
    /// Ids of all growing segments of the cut.
    pub(crate) growing: Vec<i64>,
    /// Number of deletes on disk, by segment.
    pub(crate) persisted: Vec<(i64, usize)>,
    /// Ids of sealed segments that left the manifest.
    pub(crate) removed: Vec<i64>,
    /// Rows that died before this need no time of death any more.
    pub(crate) horizon: Ts,
}

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
}

impl Slot {
    fn kill(&mut self, row: Row, ts: Ts) -> bool {
        let died = self.deletes.insert(row, ts);
        self.changed |= died;
        died
    }

    fn publish(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let mut segment = self.segment.as_ref().clone();
        if let Some(builder) = &mut self.builder {
            segment.body = Body::Growing(builder.snapshot()?);
        }
        if self.deletes.len() != segment.deletes.len() {
            self.deletes.settle();
            segment.deletes = Arc::new(self.deletes.clone());
        }
        self.segment = Arc::new(segment);
        Ok(())
    }
}

/// One collection in memory.
#[derive(Debug)]
struct State {
    collection: Arc<Collection>,
    partitions: HashSet<i64>,
    slots: BTreeMap<i64, Slot>,
    /// Segments of dropped partitions, until they have left the manifest.
    retired: BTreeMap<i64, Slot>,
    active: Generation,
    frozen: Option<Generation>,
    /// Of the newest record.
    ts: Ts,
    /// Records below are contained in the manifest.
    floor: Lsn,
    damage: Option<Arc<Error>>,
    checkpoint_asked: bool,
    /// As counted last.
    growing_bytes: usize,
}

/// All collections in memory.
#[derive(Debug)]
pub(crate) struct Applier {
    core: Arc<Core>,
    states: HashMap<i64, State>,
    touched: BTreeSet<i64>,
    growing_bytes: usize,
}

impl Applier {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, states: HashMap::new(), touched: BTreeSet::new(), growing_bytes: 0 }
    }

    /// Takes in a collection. `segments` come with the number of deletes on disk; records below
    /// `floor` are contained in them.
    pub(crate) fn open(
        &mut self,
        collection: Arc<Collection>,
        segments: Vec<Segment>,
        floor: Lsn,
        ts: Ts,
        damage: Option<Arc<Error>>,
    ) {
        let slots = (segments.into_iter())
            .map(|segment| {
                let deletes = segment.deletes.as_ref().clone();
                let persisted = deletes.len();
                let segment = Arc::new(segment);
                let slot = Slot { segment, builder: None, deletes, persisted, changed: false };
                (slot.segment.id, slot)
            })
            .collect();
        let partitions = collection.info().partitions.iter().map(|p| p.id).collect();
        let id = collection.id();
        let state = State {
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
        };
        self.states.insert(id, state);
        self.touched.insert(id);
    }

    /// Whether a record of the log is still to be applied.
    pub(crate) fn needs(&self, lsn: Lsn, collection: i64) -> bool {
        self.states.get(&collection).is_some_and(|s| lsn >= s.floor && s.damage.is_none())
    }

    /// Makes a collection unreadable; the others go on.
    pub(crate) fn quarantine(&mut self, collection: i64, error: &Error) {
        if let Some(state) = self.states.get_mut(&collection) {
            tracing::error!(collection, %error, "the collection is quarantined");
            state.damage = Some(Arc::new(error.duplicate()));
            self.touched.insert(collection);
        }
    }

    /// The lsn from which records are needed; `None` where a damaged collection needs them all.
    fn log_start(&self, next: Lsn) -> Option<Lsn> {
        let mut start = next;
        for state in self.states.values() {
            if state.damage.is_some() {
                return None;
            }
            start = start.min(state.first_needed().unwrap_or(next));
        }
        Some(start)
    }

    /// Keeps count of growing rows, and asks for checkpoints where there are too many.
    fn check_limits(&mut self, id: i64) {
        let limits = &self.core.options;
        let Some(state) = self.states.get_mut(&id) else { return };
        let (rows, bytes) = state.growing();
        self.growing_bytes += bytes;
        self.growing_bytes -= std::mem::replace(&mut state.growing_bytes, bytes);
        self.core.growing_bytes.store(self.growing_bytes, Ordering::Relaxed);
        if rows >= limits.seal_rows || bytes >= limits.seal_bytes {
            state.ask_for_checkpoint(&self.core);
        }
    }

    /// Asks for a checkpoint of the collection that holds back the log most.
    fn relieve_log(&mut self) {
        let oldest = (self.states.values())
            .filter(|state| state.damage.is_none())
            .filter_map(|state| Some((state.first_needed()?, state.collection.id())))
            .min();
        if let Some((_, id)) = oldest
            && let Some(state) = self.states.get_mut(&id)
        {
            state.ask_for_checkpoint(&self.core);
        }
    }
}

impl Apply for Applier {
    type Control = Control;

    fn apply(&mut self, lsn: Lsn, ts: Ts, record: Record) -> Result<usize, Error> {
        let id = record.collection;
        let Some(state) = self.states.get_mut(&id) else {
            return Err(Error::CollectionNotFound { db: String::new(), name: id.to_string() });
        };
        if let Some(damage) = &state.damage {
            return Err(damage.duplicate());
        }
        self.touched.insert(id);
        let applied = match record.change {
            Change::Insert(parts) => state.insert(lsn, ts, parts, &self.core),
            Change::Delete { partitions, keys } => {
                state.delete(lsn, ts, partitions.as_deref(), keys.iter())
            }
        };
        if let Err(error @ Error::Corrupt { .. }) = &applied {
            self.quarantine(id, error);
        }
        applied
    }

    fn publish(&mut self, log: &LogSize) {
        for id in std::mem::take(&mut self.touched) {
            let Some(state) = self.states.get_mut(&id) else { continue };
            if let Err(error) = state.publish() {
                self.quarantine(id, &error);
                // Without segments a version cannot fail.
                let _ = self.states.get_mut(&id).map(State::publish);
            }
            self.check_limits(id);
        }
        self.touched.clear();
        if log.bytes > self.core.options.log_limit_bytes {
            self.relieve_log();
        }
    }

    fn control(&mut self, control: Control, log: &mut LogControl<'_>) {
        // A reply fails only if the asker has gone away.
        match control {
            Control::Open(collection) => {
                let ts = collection.info().created;
                self.open(collection, Vec::new(), log.next_lsn(), ts, None);
            }
            Control::Close(id) => {
                if let Some(state) = self.states.remove(&id) {
                    self.growing_bytes -= state.growing_bytes;
                    // Unmapping and unlinking takes a while, which no writer should wait for.
                    self.core.in_background(move || drop(state));
                }
            }
            Control::Partitions { collection, live } => {
                if let Some(state) = self.states.get_mut(&collection) {
                    state.set_partitions(live);
                    self.touched.insert(collection);
                }
            }
            Control::Freeze { collection, reply } => {
                let frozen = self.freeze(collection, log);
                let _ = reply.send(frozen);
            }
            Control::Install { collection, installed, reply } => {
                if let Some(state) = self.states.get_mut(&collection) {
                    state.install(installed, &self.core);
                    self.touched.insert(collection);
                }
                self.publish(&log.size());
                let _ = reply.send(());
            }
            Control::Remove { collection, segments, reply } => {
                let mut unknown = segments;
                if let Some(state) = self.states.get_mut(&collection) {
                    unknown.retain(|id| !state.remove(*id));
                    self.touched.insert(collection);
                }
                self.publish(&log.size());
                let _ = reply.send(unknown);
            }
            Control::LogStart { reply } => {
                let start = self.log_start(log.next_lsn());
                let _ = reply.send(start.and_then(|start| log.start_above(start)));
            }
            Control::Trim(floor) => {
                if let Err(error) = log.remove_below(floor) {
                    tracing::warn!(%error, "finished log files stay until the next checkpoint");
                }
            }
        }
        if !self.touched.is_empty() {
            self.publish(&log.size());
        }
    }
}

impl Applier {
    fn freeze(&mut self, id: i64, log: &mut LogControl<'_>) -> Result<Frozen, Error> {
        let Some(state) = self.states.get_mut(&id) else {
            return Err(Error::CollectionNotFound { db: String::new(), name: id.to_string() });
        };
        if let Some(damage) = &state.damage {
            return Err(damage.duplicate());
        }
        // What is cut off must be on disk before a manifest says that the log is not needed.
        log.rotate()?;
        Ok(state.freeze(log.next_lsn()))
    }
}

impl State {
    fn insert(
        &mut self,
        lsn: Lsn,
        ts: Ts,
        parts: Vec<(i64, RecordBatch)>,
        core: &Core,
    ) -> Result<usize, Error> {
        if let Some((gone, _)) = parts.iter().find(|(id, _)| !self.partitions.contains(id)) {
            return Err(Error::PartitionNotFound(gone.to_string()));
        }
        self.note(lsn, ts);
        let key_name = self.collection.info().schema.primary().name.clone();
        let mut rows = 0;
        for (partition, batch) in parts {
            let column = batch.column_by_name(&key_name).ok_or_else(|| {
                Error::Internal(format!("a batch lacks the primary key `{key_name}`"))
            })?;
            let keys = KeyColumn::new(column)?;
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
            rows += batch.num_rows();
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

    fn delete<'a>(
        &mut self,
        lsn: Lsn,
        ts: Ts,
        partitions: Option<&[i64]>,
        keys: impl Iterator<Item = KeyRef<'a>>,
    ) -> Result<usize, Error> {
        self.note(lsn, ts);
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
        };
        self.slots.insert(id, slot);
        id
    }

    /// Rows and bytes that are not sealed.
    fn growing(&self) -> (usize, usize) {
        self.slots
            .values()
            .filter_map(|slot| slot.builder.as_ref())
            .fold((0, 0), |sum, builder| (sum.0 + builder.rows(), sum.1 + builder.bytes()))
    }

    fn first_needed(&self) -> Option<Lsn> {
        self.frozen.as_ref().and_then(|frozen| frozen.first).or(self.active.first)
    }

    fn ask_for_checkpoint(&mut self, core: &Arc<Core>) {
        if !self.checkpoint_asked && self.damage.is_none() {
            self.checkpoint_asked = core.checkpoint_in_background(&self.collection);
        }
    }

    fn publish(&mut self) -> Result<(), Error> {
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

    fn set_partitions(&mut self, live: HashSet<i64>) {
        let gone: HashSet<i64> = (self.slots.values())
            .filter(|slot| !live.contains(&slot.segment.partition))
            .map(|slot| slot.segment.id)
            .collect();
        self.partitions = live;
        self.retired.extend(self.slots.extract_if(.., |id, _| gone.contains(id)));
        for generation in [Some(&mut self.active), self.frozen.as_mut()].into_iter().flatten() {
            generation.keys.retain(|place| !gone.contains(&place.segment));
            generation.segments.retain(|_, id| !gone.contains(id));
        }
    }

    fn freeze(&mut self, next: Lsn) -> Frozen {
        self.checkpoint_asked = false;
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

    fn install(&mut self, installed: Installed, core: &Core) {
        let Installed { sealed, growing, persisted, removed, horizon } = installed;
        for (from, segment, rows) in sealed {
            // The partition may have been dropped meanwhile; then so is the segment.
            let Some(old) = self.slots.get(&from) else { continue };
            // Rows that died since the cut must be dead from the first moment.
            let deletes = rows.deletes(&[Arc::new(old.deletes.clone())]);
            let slot = Slot { segment, builder: None, deletes, persisted: 0, changed: true };
            self.slots.insert(slot.segment.id, slot);
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
        for slot in self.slots.values_mut() {
            slot.deletes.forget_before(horizon);
        }
        if let Some(frozen) = self.frozen.take() {
            self.floor = self.floor.max(frozen.cut);
            // A large map takes a while to free, which no writer should wait for.
            core.in_background(move || drop(frozen));
        }
    }

    /// Takes a sealed segment out; its files go with the last reader. False if there is none.
    fn remove(&mut self, id: i64) -> bool {
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

/// A sealed segment as it is opened.
pub(crate) fn sealed(
    sealed: SealedSegment,
    id: i64,
    partition: i64,
    deletes: DeleteMask,
) -> Segment {
    Segment { id, partition, body: Body::Sealed(Arc::new(sealed)), deletes: Arc::new(deletes) }
}
