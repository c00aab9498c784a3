//! What a collection needs done while nobody waits: few segments, without rows that nobody can
//! see, and indexes as they were defined.
//!
//! Upkeep goes a step at a time: segments are merged where that pays (`compact`), then index
//! files that no definition wants go, then a sealed segment gets one that it lacks. It is asked
//! for whenever something changed (a checkpoint, a definition, damage, the start of the node),
//! and every so often, because rows expire and are forgotten as time goes by. It never runs twice
//! at a time for one collection.
//!
//! An index is built without holding the collection's manifests, which may take minutes; they are
//! taken only to publish it, once segment and definition are seen to be there still.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use elanus_index::{Cancel, Progress, Row};

use crate::Error;
use crate::apply::Control;
use crate::budget::Held;
use crate::catalog::{CollectionInfo, IndexDef};
use crate::checkpoint::{checkpoint, open_manifests, remove_files};
use crate::collection::Collection;
use crate::compact::{self, Merge};
use crate::engine::Core;
use crate::manifest::{Edit, IndexKind, Manifests, collection_dir};
use crate::pools::panicked;
use crate::schema::{DataType, Field};
use crate::segment::index;
use crate::segment::seal::Outdated;
use crate::segment::sealed::{Repair, SealedSegment};
use crate::segment::{Body, Segment};

/// An index that a segment should have.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The compactions that were asked for and did not begin.
    wanted: Vec<i64>,
    failures: Vec<Failure>,
    seeds: Vec<Seed>,
}

/// A segment with graphs that was merged into another, whose graphs begin with its links. It is
/// forgotten once they are built, and then its files go.
#[derive(Clone, Debug)]
pub(crate) struct Seed {
    /// The segment that it was merged into.
    pub(crate) target: i64,
    pub(crate) source: Arc<SealedSegment>,
    /// For each of its rows the row of the target; [`Row::MAX`] if it is gone.
    pub(crate) places: Arc<[Row]>,
    /// Counts the places.
    pub(crate) _memory: Arc<Held>,
}

/// Why an index could not be built.
#[derive(Debug)]
struct Failure {
    task: Task,
    why: String,
    /// Another attempt would fail as well: it is kept until its segment or its definition goes.
    /// Others are forgotten when upkeep begins, which tries again.
    lasts: bool,
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

    /// Whether nothing is left to do.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.state().phase == Phase::Idle
    }

    /// Begins to run; `stands` says whether a task still has its segment and its definition.
    fn begin(&self, stands: impl Fn(&Task) -> bool) {
        let mut state = self.state();
        state.phase = Phase::Running;
        state.failures.retain(|failure| failure.lasts && stands(&failure.task));
    }

    /// Whether it was asked for again meanwhile.
    fn end(&self) -> bool {
        let mut state = self.state();
        let again = state.phase == Phase::RunningAndAsked;
        state.phase = if again { Phase::Queued } else { Phase::Idle };
        again
    }

    /// Keeps a segment for the graphs of the one it was merged into; those of which that is gone are
    /// forgotten.
    pub(crate) fn sow(&self, seed: Seed, is_there: impl Fn(i64) -> bool) {
        let mut state = self.state();
        state.seeds.retain(|seed| is_there(seed.target));
        state.seeds.push(seed);
    }

    /// Takes the compactions that were asked for.
    fn take_wanted(&self) -> Vec<i64> {
        std::mem::take(&mut self.state().wanted)
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

    /// Why an index over a field could not be built for some segment.
    pub(crate) fn failure(&self, field: i64) -> Option<String> {
        self.failure_where(|task| task.field == field)
    }

    fn failure_where(&self, is_asked: impl Fn(&Task) -> bool) -> Option<String> {
        let state = self.state();
        state.failures.iter().find(|failure| is_asked(&failure.task)).map(|f| f.why.clone())
    }
}

/// Has the collection looked after, some time soon.
pub(crate) fn ask(core: &Arc<Core>, collection: &Arc<Collection>) {
    if collection.upkeep().ask() {
        let (core2, collection) = (Arc::clone(core), Arc::clone(collection));
        core.jobs.upkeep(move || run(&core2, &collection));
    }
}

/// Has what no view asks for forgotten: when rows died that died before the retention time.
pub(crate) fn forget(core: &Core, collection: &Collection) {
    let horizon = core.horizon();
    if collection.version().segments.iter().any(|segment| segment.deletes.has_past(horizon)) {
        let order = Control::Forget { collection: collection.id(), horizon };
        // It fails only where the log does, and is repeated.
        let _ = core.log().and_then(|log| log.control(order));
    }
}

/// Has the collection compacted as far as possible, next; what becomes of it is told under `id`.
pub(crate) fn compact(core: &Arc<Core>, collection: &Arc<Collection>, id: i64) {
    core.compactions.begin(id, collection.id());
    collection.upkeep().state().wanted.push(id);
    // Indexes over segments that are about to go need not be finished.
    collection.upkeep().stop();
    ask(core, collection);
}

/// The indexes of a collection are defined otherwise now: stops a build in vain, and has the
/// right ones built.
pub(crate) fn indexes_changed(core: &Arc<Core>, collection: &Arc<Collection>) {
    let info = collection.info();
    collection.upkeep().stop_unless(|task| is_defined(&info, task));
    ask(core, collection);
}

fn run(core: &Arc<Core>, collection: &Arc<Collection>) {
    loop {
        let (info, version) = (collection.info(), collection.version());
        collection.upkeep().begin(|task| {
            let is_of = |segment: &Arc<Segment>| segment.id == task.segment;
            is_defined(&info, task) && version.segments.iter().any(is_of)
        });
        let done = catch_unwind(AssertUnwindSafe(|| keep(core, collection)));
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

fn keep(core: &Arc<Core>, collection: &Arc<Collection>) -> Result<(), Error> {
    if collection.damage().is_some() {
        return Ok(());
    }
    let mut merging = true;
    loop {
        compact_as_wanted(core, collection);
        while merging {
            let outdated = compact::outdated(core, collection);
            match merge_once(core, collection, outdated, false) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error @ (Error::Closed | Error::CollectionNotFound { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    let collection = collection.id();
                    tracing::warn!(%error, collection, "segments could not be merged");
                    // Not again before the next time.
                    merging = false;
                }
            }
        }
        drop_unwanted(core, collection)?;
        let Some((task, sealed)) = next_task(core, collection) else {
            collection.upkeep().state().seeds.clear();
            return Ok(());
        };
        let built = build(core, collection, &task, &sealed);
        collection.upkeep().state().building = None;
        match built {
            Ok(()) => {}
            Err(error @ (Error::Closed | Error::CollectionNotFound { .. })) => return Err(error),
            Err(error) => {
                let Task { segment, field, .. } = task;
                tracing::warn!(%error, segment, field, "an index could not be built");
                let lasts = matches!(error, Error::Search(elanus_index::Error::TooLarge { .. }));
                let mut why = error.to_string();
                if lasts {
                    why += "; filters look at the rows instead. It is tried again after a restart, \
                            which may give the node more memory";
                }
                let failure = Failure { task, why, lasts };
                collection.upkeep().state().failures.push(failure);
            }
        }
    }
}

/// Merges the next segments that should be; `None` if there are none.
fn merge_once(
    core: &Arc<Core>,
    collection: &Collection,
    outdated: Outdated,
    all: bool,
) -> Result<Option<Merge>, Error> {
    let sources = compact::plan(core, collection, outdated, all)?;
    let began = core.clock.now();
    let merge = compact::merge(core, collection, &sources, outdated)?;
    if let Some(Merge { sources, target, partition }) = &merge {
        let ms = core.clock.now().millis().saturating_sub(began.millis());
        tracing::info!(partition, ?sources, ?target, ms, "segments were merged");
    }
    Ok(merge)
}

/// Runs the compactions that users asked for.
fn compact_as_wanted(core: &Arc<Core>, collection: &Arc<Collection>) {
    let ids = collection.upkeep().take_wanted();
    if ids.is_empty() {
        return;
    }
    let compacted = catch_unwind(AssertUnwindSafe(|| {
        checkpoint(core, collection)?;
        // Fixed, or it might never end while rows die.
        let outdated = compact::outdated(core, collection);
        while let Some(merge) = merge_once(core, collection, outdated, true)? {
            core.compactions.change(&ids, |compaction| compaction.merges.push(merge.clone()));
        }
        Ok(())
    }));
    let failure = compacted.unwrap_or_else(|panic| Err(panicked(&*panic))).err();
    if let Some(error) = &failure {
        tracing::warn!(%error, collection = collection.id(), "a compaction was cut short");
    }
    core.compactions.change(&ids, |compaction| {
        compaction.failure = failure.as_ref().map(Error::to_string);
        compaction.done = true;
    });
}

/// The kind of index that a definition asks for, as far as segments are large enough.
fn kind_of(index: &IndexDef, field: &Field) -> Option<IndexKind> {
    match (index.graph, &index.terms) {
        _ if field.data_type == DataType::SparseFloatVector => Some(IndexKind::SparseInverted),
        (Some(graph), _) => Some(IndexKind::Hnsw(graph)),
        (None, terms) => terms.clone().map(IndexKind::Terms),
    }
}

/// The kinds of indexes that segments should have over a field, as far as they are large enough.
fn kinds_wanted(info: &CollectionInfo, field: &Field) -> Vec<IndexKind> {
    if field.data_type == DataType::SparseFloatVector {
        return vec![IndexKind::SparseInverted];
    }
    let of_field = info.indexes.iter().filter(|index| index.field == field.name);
    of_field.filter_map(|index| kind_of(index, field)).collect()
}

/// Whether a segment should have an index that is wanted of segments.
fn is_worthwhile(core: &Core, sealed: &SealedSegment, field: &Field, kind: &IndexKind) -> bool {
    sealed.has_column(field)
        && match kind {
            IndexKind::SparseInverted => true,
            IndexKind::Hnsw(_) | IndexKind::Terms(_) => sealed.rows() >= core.options.index_rows,
        }
}

/// Whether a segment lacks an index that it should have.
fn lacks(sealed: &SealedSegment, field: i64, kind: &IndexKind) -> bool {
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
pub(crate) fn pending_of(core: &Core, collection: &Collection, index: &IndexDef) -> usize {
    let info = collection.info();
    let Some(field) = info.schema.field(&index.field) else { return 0 };
    kind_of(index, field).map_or(0, |kind| lacking_rows(core, collection, field, &kind))
}

/// Live rows of sealed segments that still lack an index over a field, for each that is wanted.
pub(crate) fn pending_rows(core: &Core, collection: &Collection, field: &Field) -> usize {
    let kinds = kinds_wanted(&collection.info(), field);
    kinds.iter().map(|kind| lacking_rows(core, collection, field, kind)).sum()
}

fn lacking_rows(core: &Core, collection: &Collection, field: &Field, kind: &IndexKind) -> usize {
    let version = collection.version();
    let building = collection.upkeep().state().building.clone();
    let pending = version.segments.iter().filter_map(|segment| {
        let sealed = sealed(segment)?;
        if !is_worthwhile(core, sealed, field, kind) || !lacks(sealed, field.id, kind) {
            return None;
        }
        let task = Task { segment: segment.id, field: field.id, kind: kind.clone() };
        let building = building.as_ref().filter(|building| building.task == task);
        let done = building.map_or(0, |building| building.progress.done());
        // Until it is published, not even the last row is done.
        Some(segment.live_rows().saturating_sub(done).max(1))
    });
    pending.sum()
}

/// Why the index that a definition asks for could not be built for some segment.
pub(crate) fn failure(collection: &Collection, index: &IndexDef) -> Option<String> {
    let info = collection.info();
    let field = info.schema.field(&index.field)?;
    let kind = kind_of(index, field)?;
    collection.upkeep().failure_where(|task| task.field == field.id && task.kind == kind)
}

/// The first index to build, and the segment that lacks it; none that failed already.
fn next_task(core: &Core, collection: &Collection) -> Option<(Task, Arc<SealedSegment>)> {
    let (info, version) = (collection.info(), collection.version());
    let state = collection.upkeep().state();
    version.segments.iter().find_map(|segment| {
        let sealed = sealed(segment)?;
        info.schema.stored_fields().find_map(|field| {
            let lacking = |kind: &IndexKind| {
                is_worthwhile(core, sealed, field, kind) && lacks(sealed, field.id, kind)
            };
            let kinds = kinds_wanted(&info, field).into_iter().filter(lacking);
            let mut tasks = kinds.map(|kind| Task { segment: segment.id, field: field.id, kind });
            let failed = |task: &Task| state.failures.iter().any(|failure| failure.task == *task);
            tasks.find(|task| !failed(task)).map(|task| (task, Arc::clone(sealed)))
        })
    })
}

/// Removes indexes that no definition asks for, and what was made of columns that no field has, with
/// one commit.
fn drop_unwanted(core: &Arc<Core>, collection: &Collection) -> Result<(), Error> {
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    let (info, version) = (collection.info(), collection.version());
    let mut edit = Edit::default();
    for entry in &manifests.current().segments {
        for index in &entry.indexes {
            let field = info.schema.stored_field(index.field);
            if !field.is_some_and(|field| kinds_wanted(&info, field).contains(&index.kind)) {
                edit.drop_indexes.push((entry.id, index.clone()));
            }
        }
        for column in &entry.columns {
            let place = (entry.id, column.field);
            if !collection.is_stored(column.field) && !edit.drop_columns.contains(&place) {
                edit.drop_columns.push(place);
            }
        }
    }
    if edit.drop_indexes.is_empty() && edit.drop_columns.is_empty() {
        return Ok(());
    }
    let (indexes, columns) = (edit.drop_indexes.clone(), edit.drop_columns.clone());
    manifests.commit(edit, core.clock.now())?;
    let of =
        |id: i64| version.segments.iter().find(|segment| segment.id == id).and_then(|s| sealed(s));
    for (id, index) in indexes {
        of(id).into_iter().for_each(|sealed| sealed.drop_index(&index));
    }
    for (id, field) in columns {
        of(id).into_iter().for_each(|sealed| sealed.drop_column(field));
    }
    Ok(())
}

/// Whether segment and definition are still there.
fn is_wanted(info: &CollectionInfo, manifests: &Manifests, task: &Task) -> bool {
    is_defined(info, task) && manifests.current().segment(task.segment).is_some()
}

fn is_defined(info: &CollectionInfo, task: &Task) -> bool {
    let field = info.schema.stored_field(task.field);
    field.is_some_and(|field| kinds_wanted(info, field).contains(&task.kind))
}

fn build(
    core: &Arc<Core>,
    collection: &Collection,
    task: &Task,
    sealed: &SealedSegment,
) -> Result<(), Error> {
    let building =
        Building { task: task.clone(), progress: Arc::default(), cancel: Cancel::never() };
    collection.upkeep().state().building = Some(building.clone());
    // Whoever raises the flag from now on is heard; who wanted to before is asked here.
    if core.jobs.is_stopping() || collection.dir().is_doomed() {
        return Err(Error::Closed);
    }
    if !collection.upkeep().state().wanted.is_empty() {
        return Ok(());
    }
    let info = collection.info();
    let Some(field) = info.schema.stored_field(task.field) else { return Ok(()) };
    let version = match &*collection.manifests() {
        Some(manifests) => manifests.next_version(),
        None => return Ok(()),
    };
    let dir = collection_dir(collection.id());
    let file = format!("{}-{}-{version}.idx", task.segment, task.field);
    let column = sealed.column(field)?;
    let most = core.budget.most_for_terms();
    let bytes = index::build_bytes(&task.kind, &column, most);
    // An index frees nothing: on a disk that is nearly full the rows are scanned instead.
    core.space.admit(bytes)?;
    let _scratch = core.budget.hold_for_build(bytes);
    let began = core.clock.now();
    let Building { progress, cancel, .. } = &building;
    let seed = collection.upkeep().state().seeds.iter().find(|s| s.target == task.segment).cloned();
    let seed = seed.and_then(|seed| Some((seed.source.graph(field, &task.kind)?, seed.places)));
    let seed = seed.as_ref().map(|(graph, places)| (&**graph, &**places));
    let place = (&core.blobs, dir.as_str(), file.as_str());
    let written = core
        .pools
        .build(|| index::write(place, &task.kind, field, &column, most, seed, (progress, cancel)));
    let written = match written {
        // Stopped: the node, the collection or the definition is going.
        Err(Error::Search(elanus_index::Error::Cancelled)) => return Ok(()),
        written => written?,
    };
    let index = match sealed.open_index(written.clone(), field) {
        Ok(index) => index,
        Err(error) => {
            remove_files(core, collection, &[file]);
            return Err(error);
        }
    };

    let mut guard = collection.manifests();
    let manifests = match open_manifests(collection, &mut guard) {
        Ok(manifests) if is_wanted(&collection.info(), manifests, task) => manifests,
        gone_or_unwanted => {
            remove_files(core, collection, &[file]);
            return gone_or_unwanted.map(drop);
        }
    };
    let edit = Edit { indexes: vec![(task.segment, written)], ..Edit::default() };
    manifests.commit(edit, core.clock.now())?;
    sealed.put_index(index);
    let ms = core.clock.now().millis().saturating_sub(began.millis());
    let Task { segment, field, kind } = task;
    let (rows, seeded) = (sealed.rows(), seed.is_some());
    tracing::info!(segment, field, ?kind, rows, seeded, ms, "an index was built");
    Ok(())
}

/// Asks for the upkeep of one collection, and for what its indexes need.
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

    fn admit_index(&self, field: &Field, bytes: usize) -> Option<Held> {
        let core = self.core.upgrade()?;
        let collection = core.collection(self.collection)?;
        let is_mapped = collection.info().is_index_mapped(&field.name);
        if is_mapped { None } else { core.budget.admit_index(bytes) }
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        if let Some(core) = self.core.upgrade() {
            core.jobs.upkeep(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TermsDef;

    #[test]
    fn what_would_fail_again_is_not_tried_again_while_it_stands() {
        let upkeep = Upkeep::default();
        let task =
            |segment| Task { segment, field: 100, kind: IndexKind::Terms(TermsDef::default()) };
        for (segment, lasts) in [(1, true), (2, false), (3, true)] {
            let why = segment.to_string();
            upkeep.state().failures.push(Failure { task: task(segment), why, lasts });
        }
        upkeep.begin(|task| task.segment != 3);
        let failed = |segment| upkeep.failure_where(|of| *of == task(segment));
        assert_eq!([1, 2, 3].map(failed), [Some("1".to_owned()), None, None]);
        assert_eq!(upkeep.failure(100), Some("1".to_owned()));
    }
}
