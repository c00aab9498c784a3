//! What a collection needs done while nobody waits: its indexes kept as they were defined.
//!
//! Upkeep compares what there is with what the catalog asks for and brings the one to the other,
//! a step at a time: index files that no definition wants go, then each sealed segment gets those
//! that it lacks. It is asked for whenever something changed (a checkpoint, a definition, damage,
//! the start of the node) and never runs twice at a time for one collection.
//!
//! An index is built without holding the collection's manifests, which may take minutes; they are
//! taken only to publish it, once segment and definition are seen to be there still.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use elanus_index::{Cancel, Progress};

use crate::Error;
use crate::catalog::{CollectionInfo, IndexDef};
use crate::checkpoint::{open_manifests, remove_files};
use crate::collection::Collection;
use crate::engine::Core;
use crate::manifest::{Edit, IndexKind, collection_dir};
use crate::pools::panicked;
use crate::schema::{DataType, Field};
use crate::segment::index;
use crate::segment::sealed::{Repair, SealedSegment};
use crate::segment::{Body, Segment};

/// An index that a segment should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Task {
    segment: i64,
    field: i64,
    kind: IndexKind,
}

/// Where the upkeep of one collection stands.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    building: Option<Building>,
    /// Why an index could not be built, by segment and field; until the next attempt.
    failures: HashMap<(i64, i64), String>,
}

/// A build under way.
#[derive(Clone, Debug)]
struct Building {
    task: Task,
    progress: Arc<Progress>,
    cancel: Cancel,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Queued,
    Running,
    /// Something changed since it began.
    RunningAndAsked,
}

impl Upkeep {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a job must be queued.
    fn ask(&self) -> bool {
        let mut state = self.state();
        let (next, queue) = match state.phase {
            Phase::Idle => (Phase::Queued, true),
            Phase::Queued => (Phase::Queued, false),
            Phase::Running | Phase::RunningAndAsked => (Phase::RunningAndAsked, false),
        };
        state.phase = next;
        queue
    }

    fn begin(&self) {
        let mut state = self.state();
        state.phase = Phase::Running;
        state.failures.clear();
    }

    /// Whether it was asked for again meanwhile.
    fn end(&self) -> bool {
        let mut state = self.state();
        let again = state.phase == Phase::RunningAndAsked;
        state.phase = if again { Phase::Queued } else { Phase::Idle };
        again
    }

    /// Stops a build whose task is not `wanted` any more.
    fn stop_unless(&self, wanted: impl FnOnce(&Task) -> bool) {
        if let Some(building) = &self.state().building
            && !wanted(&building.task)
        {
            building.cancel.flag().store(true, Ordering::Relaxed);
        }
    }

    /// Stops what is being built.
    pub(crate) fn stop(&self) {
        self.stop_unless(|_| false);
    }

    /// Why the index over a field could not be built for some segment.
    pub(crate) fn failure(&self, field: i64) -> Option<String> {
        self.state().failures.iter().find(|((_, of), _)| *of == field).map(|(_, why)| why.clone())
    }
}

/// Has the collection looked after, some time soon.
pub(crate) fn ask(core: &Arc<Core>, collection: &Arc<Collection>) {
    if collection.upkeep().ask() {
        let (core2, collection) = (Arc::clone(core), Arc::clone(collection));
        core.jobs.upkeep(move || run(&core2, &collection));
    }
}

/// The indexes of a collection are defined otherwise now: stops a build in vain, and has the
/// right ones built.
pub(crate) fn indexes_changed(core: &Arc<Core>, collection: &Arc<Collection>) {
    let info = collection.info();
    collection.upkeep().stop_unless(|task| {
        let field = info.schema.field_by_id(task.field);
        field.is_some_and(|field| kind_wanted(&info, field) == Some(task.kind))
    });
    ask(core, collection);
}

fn run(core: &Arc<Core>, collection: &Collection) {
    loop {
        collection.upkeep().begin();
        let done = catch_unwind(AssertUnwindSafe(|| keep_indexes(core, collection)));
        match done.unwrap_or_else(|panic| Err(panicked(&*panic))) {
            Ok(()) | Err(Error::Closed | Error::CollectionNotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, collection = collection.id(), "upkeep was cut short");
            }
        }
        if !collection.upkeep().end() || core.jobs.is_stopping() {
            return;
        }
    }
}

fn keep_indexes(core: &Arc<Core>, collection: &Collection) -> Result<(), Error> {
    if collection.damage().is_some() {
        return Ok(());
    }
    loop {
        drop_unwanted(core, collection)?;
        let Some((task, sealed)) = next_task(core, collection) else { return Ok(()) };
        let built = build(core, collection, task, &sealed);
        collection.upkeep().state().building = None;
        match built {
            Ok(()) => {}
            Err(error @ (Error::Closed | Error::CollectionNotFound { .. })) => return Err(error),
            Err(error) => {
                let Task { segment, field, .. } = task;
                tracing::warn!(%error, segment, field, "an index could not be built");
                let mut state = collection.upkeep().state();
                state.failures.insert((segment, field), error.to_string());
            }
        }
    }
}

/// The kind of index that segments should have over a field, as far as they are large enough.
fn kind_wanted(info: &CollectionInfo, field: &Field) -> Option<IndexKind> {
    if field.data_type == DataType::SparseFloatVector {
        return Some(IndexKind::SparseInverted);
    }
    info.index_of_field(&field.name).and_then(|index| index.graph).map(IndexKind::Hnsw)
}

/// The kind of index that a segment should have over a field.
fn wanted(
    core: &Core,
    info: &CollectionInfo,
    sealed: &SealedSegment,
    field: &Field,
) -> Option<IndexKind> {
    kind_wanted(info, field).filter(|kind| match kind {
        IndexKind::SparseInverted => sealed.has_column(field),
        IndexKind::Hnsw(_) => sealed.has_column(field) && sealed.rows() >= core.options.graph_rows,
    })
}

/// Whether a segment lacks an index that it should have.
fn lacks(sealed: &SealedSegment, field: i64, kind: IndexKind) -> bool {
    let has = |index: &Arc<index::Index>| {
        index.field() == field && index.kind() == kind && !index.is_damaged()
    };
    !sealed.indexes().iter().any(has)
}

fn sealed(segment: &Segment) -> Option<&Arc<SealedSegment>> {
    match &segment.body {
        Body::Sealed(sealed) => Some(sealed),
        Body::Growing(_) => None,
    }
}

/// Live rows of sealed segments that still lack the index that a definition asks for.
pub(crate) fn pending_rows(core: &Core, collection: &Collection, index: &IndexDef) -> usize {
    let (info, version) = (collection.info(), collection.version());
    let Some(field) = info.schema.field(&index.field) else { return 0 };
    let building = collection.upkeep().state().building.clone();
    let pending = version.segments.iter().filter_map(|segment| {
        let sealed = sealed(segment)?;
        let kind = wanted(core, &info, sealed, field)?;
        if !lacks(sealed, field.id, kind) {
            return None;
        }
        let task = Task { segment: segment.id, field: field.id, kind };
        let building = building.as_ref().filter(|building| building.task == task);
        let done = building.map_or(0, |building| building.progress.done());
        // Until it is published, not even the last row is done.
        Some(segment.live_rows().saturating_sub(done).max(1))
    });
    pending.sum()
}

/// The first index to build, and the segment that lacks it; none that failed already.
fn next_task(core: &Core, collection: &Collection) -> Option<(Task, Arc<SealedSegment>)> {
    let (info, version) = (collection.info(), collection.version());
    let state = collection.upkeep().state();
    version.segments.iter().find_map(|segment| {
        let sealed = sealed(segment)?;
        info.schema.fields.iter().find_map(|field| {
            let kind = wanted(core, &info, sealed, field)?;
            let failed = state.failures.contains_key(&(segment.id, field.id));
            let task = Task { segment: segment.id, field: field.id, kind };
            (!failed && lacks(sealed, field.id, kind)).then(|| (task, Arc::clone(sealed)))
        })
    })
}

/// Removes graphs that no definition asks for, with one commit.
fn drop_unwanted(core: &Arc<Core>, collection: &Collection) -> Result<(), Error> {
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    let (info, version) = (collection.info(), collection.version());
    let mut edit = Edit::default();
    for entry in &manifests.current().segments {
        for index in &entry.indexes {
            let field = info.schema.field_by_id(index.field);
            if field.and_then(|field| kind_wanted(&info, field)) != Some(index.kind) {
                edit.drop_indexes.push((entry.id, index.field));
            }
        }
    }
    if edit.drop_indexes.is_empty() {
        return Ok(());
    }
    let dropped = edit.drop_indexes.clone();
    manifests.commit(edit, core.clock.now())?;
    for (id, field) in dropped {
        let segment = version.segments.iter().find(|segment| segment.id == id);
        if let Some(sealed) = segment.and_then(|segment| sealed(segment)) {
            sealed.drop_index(field);
        }
    }
    Ok(())
}

fn build(
    core: &Arc<Core>,
    collection: &Collection,
    task: Task,
    sealed: &SealedSegment,
) -> Result<(), Error> {
    let building = Building { task, progress: Arc::default(), cancel: Cancel::never() };
    collection.upkeep().state().building = Some(building.clone());
    // Whoever raises the flag from now on is heard; who wanted to before is asked here.
    if core.jobs.is_stopping() || collection.dir().is_doomed() {
        return Err(Error::Closed);
    }
    let info = collection.info();
    let Some(field) = info.schema.field_by_id(task.field) else { return Ok(()) };
    let version = match &*collection.manifests() {
        Some(manifests) => manifests.next_version(),
        None => return Ok(()),
    };
    let dir = collection_dir(collection.id());
    let file = format!("{}-{}-{version}.idx", task.segment, task.field);
    let column = sealed.column(field)?;
    let began = core.clock.now();
    let Building { progress, cancel, .. } = &building;
    let place = (dir.as_str(), file.as_str());
    let written = core
        .pools
        .build(|| index::write(&core.blobs, place, task.kind, field, &column, progress, cancel));
    let written = match written {
        // Stopped: the node, the collection or the definition is going.
        Err(Error::Search(elanus_index::Error::Cancelled)) => return Ok(()),
        written => written?,
    };

    let mut guard = collection.manifests();
    let published = open_manifests(collection, &mut guard).and_then(|manifests| {
        let info = collection.info();
        let field = info.schema.field_by_id(task.field);
        let defined = field.and_then(|field| kind_wanted(&info, field)) == Some(task.kind);
        if !defined || manifests.current().segment(task.segment).is_none() {
            return Ok(false);
        }
        let edit = Edit { indexes: vec![(task.segment, written.clone())], ..Edit::default() };
        manifests.commit(edit, core.clock.now())?;
        sealed.put_index(written);
        Ok(true)
    });
    if !matches!(published, Ok(true)) {
        remove_files(core, collection, &[file]);
    }
    if published? {
        let ms = core.clock.now().millis().saturating_sub(began.millis());
        let Task { segment, field, kind } = task;
        tracing::info!(segment, field, ?kind, rows = sealed.rows(), ms, "an index was built");
    }
    Ok(())
}

/// Asks for the upkeep of one collection.
#[derive(Debug)]
struct IndexRepair {
    /// Segments may outlive the engine.
    core: Weak<Core>,
    collection: i64,
}

/// The repair service for the segments of a collection.
pub(crate) fn repair(core: &Arc<Core>, collection: i64) -> Arc<dyn Repair> {
    Arc::new(IndexRepair { core: Arc::downgrade(core), collection })
}

impl Repair for IndexRepair {
    fn index_is_damaged(&self) {
        if let Some(core) = self.core.upgrade()
            && let Some(collection) = core.collection(self.collection)
        {
            ask(&core, &collection);
        }
    }
}
