//! Applying the log: what a record does to a collection in memory.
//!
//! One thread owns this state (the log thread; recovery before it), so nothing here locks. It
//! knows where each key of the growing rows lives, marks replaced and deleted rows, and publishes
//! one new [`crate::view::Version`] per group of records. Replay goes through the same code, so memory after a
//! restart is what it was before. What happens to one collection stands in [`state`].

mod state;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::Error;
use crate::clock::Ts;
use crate::collection::Collection;
use crate::engine::Core;
use crate::log::Lsn;
use crate::log::record::{Change, Record};
use crate::log::writer::{Apply, LogControl, LogSize};
use crate::segment::delete::DeleteMask;
use crate::segment::seal::SealedRows;
use crate::segment::sealed::SealedSegment;
use crate::segment::{Body, Segment};
use state::State;

/// An order to the applier, in the queue between writes.
pub(crate) enum Control {
    /// A collection was created.
    Open(Arc<Collection>),
    /// A collection was dropped.
    Close(i64),
    /// The partitions that a collection has now; rows of others go.
    Partitions { collection: i64, live: HashSet<i64>, reply: Sender<()> },
    /// Cut here: freeze what is growing.
    Freeze { collection: i64, reply: Sender<Result<Frozen, Error>> },
    /// Sealed segments, committed, take the place of the frozen generation.
    Install { collection: i64, installed: Installed, reply: Sender<()> },
    /// One sealed segment, committed, takes the place of several.
    Merge { collection: i64, merged: Merged, reply: Sender<()> },
    /// Segments left the manifest; the reply names those that were not in memory.
    Remove { collection: i64, segments: Vec<i64>, reply: Sender<Vec<i64>> },
    /// Rows that died before this need no time of death any more.
    Forget { collection: i64, horizon: Ts },
    /// Where could the log begin, by what the collections still need?
    LogStart { reply: Sender<Option<Lsn>> },
    /// Remove log files below.
    Trim(Lsn),
    /// Seal what holds the log back most.
    RelieveLog,
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
}

/// What a merge made of some sealed segments.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Ids of the segments, with those of their deletes that the new segment has.
    pub(crate) sources: Vec<(i64, Arc<DeleteMask>)>,
    /// The new segment and its rows' order; none if no row was left.
    pub(crate) target: Option<(Arc<Segment>, SealedRows)>,
}

/// All collections in memory.
#[derive(Debug)]
pub(crate) struct Applier {
    core: Arc<Core>,
    states: HashMap<i64, State>,
    touched: BTreeSet<i64>,
    growing_bytes: usize,
    /// The length of the log when it was told last that damage holds it back.
    told_log_bytes: u64,
}

impl Applier {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            states: HashMap::new(),
            touched: BTreeSet::new(),
            growing_bytes: 0,
            told_log_bytes: 0,
        }
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
        let id = collection.id();
        let state = State::new(collection, segments, floor, ts, damage);
        self.states.insert(id, state);
        self.touched.insert(id);
    }

    /// Whether a record of the log is still to be applied.
    pub(crate) fn needs(&self, lsn: Lsn, collection: i64) -> bool {
        self.states.get(&collection).is_some_and(|s| lsn >= s.floor && s.damage.is_none())
    }

    /// The log reached at least as far, say the manifests.
    pub(crate) fn reached(&self) -> Lsn {
        self.states.values().map(|state| state.floor).max().unwrap_or(0)
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
        let unsealed = state.unsealed_bytes();
        self.growing_bytes += unsealed;
        self.growing_bytes -= std::mem::replace(&mut state.growing_bytes, unsealed);
        self.core.budget.set_growing(self.growing_bytes);
        let (rows, bytes) = state.active();
        if rows >= limits.seal_rows || bytes >= limits.seal_bytes {
            state.ask_for_checkpoint(&self.core);
        }
    }

    /// Asks for a checkpoint of the collection that holds back the log most. What a damaged
    /// collection holds back stays until somebody drops or repairs it, so that is told, again
    /// whenever the log has doubled.
    fn relieve_log(&mut self, log: &LogSize) {
        let damaged = self.states.iter().find(|(_, state)| state.damage.is_some());
        if let Some((collection, _)) = damaged
            && log.bytes / 2 >= self.told_log_bytes
        {
            self.told_log_bytes = log.bytes;
            tracing::error!(
                collection,
                log_bytes = log.bytes,
                "the log cannot be given back while the collection is damaged: drop it, or stop \
                 the node and run `elanus repair`"
            );
        }
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

    fn admit(&self, record: &Record) -> Result<(), Error> {
        let state = self.states.get(&record.collection);
        state.ok_or_else(|| not_found(record.collection))?.admit(&record.change)?;
        match record.change {
            Change::Insert(_) | Change::Replace { .. } => Ok(()),
            // Deletes are what makes room; they go on when rows are refused.
            Change::Delete { .. } => self.core.space.make_room(),
        }
    }

    fn apply(&mut self, lsn: Lsn, ts: Ts, record: Record) -> Result<usize, Error> {
        let id = record.collection;
        let state = self.states.get_mut(&id).ok_or_else(|| not_found(id))?;
        self.touched.insert(id);
        let applied = match record.change {
            Change::Insert(parts) => state.insert(lsn, ts, parts, &self.core),
            Change::Delete { partitions, keys } => {
                state.delete(lsn, ts, partitions.as_deref(), keys.iter())
            }
            Change::Replace { keys, parts } => (state.delete(lsn, ts, None, keys.iter()))
                .and_then(|_| state.insert(lsn, ts, parts, &self.core)),
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
            self.relieve_log(log);
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
                    self.core.budget.set_growing(self.growing_bytes);
                    // Unmapping and unlinking takes a while, which no writer should wait for.
                    self.core.in_background(move || drop(state));
                }
            }
            Control::Partitions { collection, live, reply } => {
                if let Some(state) = self.states.get_mut(&collection) {
                    state.set_partitions(live);
                    self.touched.insert(collection);
                }
                self.publish(&log.size());
                let _ = reply.send(());
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
            Control::Merge { collection, merged, reply } => {
                if let Some(state) = self.states.get_mut(&collection) {
                    state.merge(merged);
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
            Control::Forget { collection, horizon } => {
                if let Some(state) = self.states.get_mut(&collection) {
                    state.forget_before(horizon);
                    self.touched.insert(collection);
                }
            }
            Control::LogStart { reply } => {
                let start = self.log_start(log.next_lsn());
                // Nothing that is in the active file is needed: after a drop it may be large.
                if start == Some(log.next_lsn())
                    && let Err(error) = log.rotate()
                {
                    tracing::warn!(%error, "the log file in use stays until the next checkpoint");
                }
                let _ = reply.send(start.and_then(|start| log.start_above(start)));
            }
            Control::RelieveLog => self.relieve_log(&log.size()),
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
        let state = self.states.get_mut(&id).ok_or_else(|| not_found(id))?;
        state.checkpoint_asked = false;
        if let Some(damage) = &state.damage {
            return Err(damage.duplicate());
        }
        // What is cut off must be on disk before a manifest says that the log is not needed.
        log.rotate()?;
        Ok(state.freeze(log.next_lsn()))
    }
}
fn not_found(collection: i64) -> Error {
    Error::CollectionNotFound { db: String::new(), name: collection.to_string() }
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
