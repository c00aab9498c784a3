//! Merging sealed segments: many small ones become few large ones, and rows that nobody can see
//! any more leave the disk.
//!
//! What is merged is decided by [`plan`], from sizes alone, and done by [`merge`]: the rows are
//! sorted and written while everybody goes on, without the collection's manifests; these are
//! taken to publish the result with one commit. Rows that died meanwhile are dead in the new
//! segment before anybody sees it: those known at the commit are in its delete file, the others
//! are carried over by the one thread that applies deletes, as it swaps the segments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use elanus_index::Row;

use crate::Error;
use crate::apply::{self, Control, Merged};
use crate::blobs::Blobs;
use crate::budget::Held;
use crate::checkpoint::{ask, delete_files, open_manifests, remove_files, write_deletes};
use crate::collection::Collection;
use crate::engine::Core;
use crate::manifest::{Edit, collection_dir};
use crate::schema::{Field, Schema};
use crate::segment::seal::{self, Outdated, SealedRows, Work};
use crate::segment::sealed::SealedSegment;
use crate::segment::{Body, Segment};
use crate::upkeep::{Seed, repair};

/// Fewer small segments than this are left alone: each row is copied once per so many.
const FEWEST: usize = 4;

/// A segment joins smaller ones while it has at most this many times their bytes, so that a row
/// is copied a number of times that grows with the logarithm of the rows.
const STEP: u64 = 2;

/// A segment is rewritten when one in this many rows can go.
const ROWS_PER_DEAD: usize = 5;

/// 512 MiB: what the columns of a merged segment may hold that are put together in memory; dense
/// and binary vectors go through a file.
const IN_MEMORY_BYTES: u64 = 512 << 20;

/// Finished compactions that are remembered.
const REMEMBERED: usize = 1_000;

/// What one merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The segments that are gone.
    pub sources: Vec<i64>,
    /// The segment that has their rows; `None` where no row was left.
    pub target: Option<i64>,
    /// Their partition.
    pub partition: i64,
}

/// A compaction that a user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Of the collection.
    pub collection: i64,
    /// Whether it has come to its end.
    pub done: bool,
    /// What was merged so far.
    pub merges: Vec<Merge>,
    /// Why it came to its end early, if it did.
    pub failure: Option<String>,
}

/// The compactions that users asked for since the start.
#[derive(Debug, Default)]
pub(crate) struct Compactions {
    by_id: Mutex<BTreeMap<i64, Compaction>>,
}

impl Compactions {
    pub(crate) fn get(&self, id: i64) -> Option<Compaction> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn begin(&self, id: i64, collection: i64) {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.insert(id, Compaction { collection, ..Compaction::default() });
        while by_id.len() > REMEMBERED {
            by_id.pop_first();
        }
    }

    pub(crate) fn change(&self, ids: &[i64], change: impl Fn(&mut Compaction)) {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().for_each(|id| by_id.get_mut(id).into_iter().for_each(&change));
    }
}

/// What the choice of segments needs to know of one.
struct Candidate {
    segment: Arc<Segment>,
    /// Rows that can go.
    gone: usize,
    /// Of the rows that stay.
    bytes: u64,
    /// Of `bytes`, those that are put together in memory.
    in_memory: u64,
    /// Its files hold columns that no field has any more, or hold them apart.
    outgrown: bool,
}

/// The segments that should be merged next, all of one partition; a single one to be written
/// anew; or none. With `all`, as few segments as the limits allow are the aim, whatever it costs.
pub(crate) fn plan(
    core: &Core,
    collection: &Collection,
    outdated: Outdated,
    all: bool,
) -> Result<Vec<Arc<Segment>>, Error> {
    let (info, version) = (collection.info(), collection.version());
    let mut partitions: BTreeMap<i64, Vec<Candidate>> = BTreeMap::new();
    for segment in &version.segments {
        // One whose columns are being made anew waits until it has them, and so does all that was
        // made of them.
        if let Body::Sealed(sealed) = &segment.body
            && info.partition_by_id(segment.partition).is_some()
            && info.schema.pending_fields().all(|field| sealed.has_column(field))
        {
            let candidate = Candidate::new(segment, sealed, &info.schema, outdated)?;
            partitions.entry(segment.partition).or_default().push(candidate);
        }
    }
    let limit = core.options.segment_bytes;
    let chosen = partitions.into_values().find_map(|candidates| choose(candidates, limit, all));
    Ok(chosen.unwrap_or_default())
}

fn choose(mut candidates: Vec<Candidate>, limit: u64, all: bool) -> Option<Vec<Arc<Segment>>> {
    candidates.sort_by_key(|candidate| candidate.bytes);
    // Smaller ones join what is merged in any case: that costs little.
    let starts = if all { 0..1 } else { 0..candidates.len() };
    let runs = starts.map(|start| (start, start + near(&candidates[start..], limit, all)));
    let fewest = if all { 2 } else { FEWEST };
    if let Some((start, end)) = runs.into_iter().find(|(start, end)| end - start >= fewest) {
        let first =
            (0..start).find(|from| near(&candidates[*from..end], limit, true) == end - from);
        let chosen = candidates.drain(first.unwrap_or(start)..end);
        return Some(chosen.map(|candidate| candidate.segment).collect());
    }
    let dirty = |candidate: &Candidate| {
        let enough = if all { 1 } else { candidate.segment.rows().div_ceil(ROWS_PER_DEAD) };
        candidate.gone >= enough.max(1) || (all && candidate.outgrown)
    };
    candidates.into_iter().find(dirty).map(|candidate| vec![candidate.segment])
}

/// How many of the candidates, in ascending order of size, are near enough in size and fit one
/// segment.
fn near(candidates: &[Candidate], limit: u64, all: bool) -> usize {
    let (mut bytes, mut in_memory) = (0_u64, 0_u64);
    let run = candidates.iter().enumerate().take_while(|(at, candidate)| {
        let near = all || *at == 0 || candidate.bytes <= STEP.saturating_mul(bytes);
        bytes = bytes.saturating_add(candidate.bytes);
        in_memory = in_memory.saturating_add(candidate.in_memory);
        near && bytes <= limit && in_memory <= IN_MEMORY_BYTES
    });
    run.count()
}

impl Candidate {
    fn new(
        segment: &Arc<Segment>,
        sealed: &SealedSegment,
        schema: &Schema,
        outdated: Outdated,
    ) -> Result<Self, Error> {
        let rows = segment.rows();
        let gone = seal::outdated_rows(segment, outdated)?;
        let share = |bytes: u64| {
            // Row counts fit 32 bits, so the product fits 128.
            let kept = u128::from(bytes) * (rows - gone) as u128 / rows.max(1) as u128;
            u64::try_from(kept).unwrap_or(u64::MAX)
        };
        let widths = schema.stored_fields().filter(|field| sealed.has_column(field));
        let width: usize = widths.filter_map(|field| field.data_type.bytes_per_row()).sum();
        let vectors = (width as u64).saturating_mul(rows as u64);
        Ok(Self {
            segment: Arc::clone(segment),
            gone,
            bytes: share(sealed.bytes()),
            in_memory: share(sealed.bytes().saturating_sub(vectors)),
            outgrown: sealed.is_outgrown(schema),
        })
    }
}

/// Puts one segment in the place of `sources`, which are sealed and of one partition; none where
/// no row is left. `None` if they are not there any more when it is done.
pub(crate) fn merge(
    core: &Arc<Core>,
    collection: &Collection,
    sources: &[Arc<Segment>],
    outdated: Outdated,
) -> Result<Option<Merge>, Error> {
    let Some(partition) = sources.first().map(|segment| segment.partition) else { return Ok(None) };
    let _scratch = make_room(core, sources, outdated)?;
    let id = core.next_segment();
    let mut files = Files { core, collection, names: vec![format!("{id}.arrow")], kept: false };
    let schema = Arc::clone(&collection.info().schema);
    let work = Rewriting { core, collection, segment: id };
    let rows = seal::sort(&schema, sources, outdated, &work)?;
    files.names.extend(schema.stored_fields().map(|field| seal::index_name(id, field.id)));
    let entry = (rows.as_ref())
        .map(|rows| seal::write(&core.blobs, collection.id(), &schema, id, partition, rows, &work))
        .transpose();
    // Stopped while it wrote, it failed by that.
    work.check()?;
    let mut entry = entry?;

    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    let version = collection.version();
    let ids: Vec<i64> = sources.iter().map(|segment| segment.id).collect();
    // Nobody persists deletes while the manifests are held, so these are at least as new as the
    // delete files of the sources.
    let known: Vec<_> = (ids.iter())
        .filter(|id| manifests.current().segment(**id).is_some())
        .filter_map(|id| version.segments.iter().find(|segment| segment.id == *id))
        .map(|segment| Arc::clone(&segment.deletes))
        .collect();
    if known.len() < sources.len() {
        return Ok(None);
    }
    // A column that was made while they were merged must not be lost.
    let has_column = |field: &Field| {
        rows.as_ref().is_none_or(|rows| rows.batch.column_by_name(field.column()).is_some())
    };
    let all_have = |field: &Field| sources.iter().all(|segment| segment.has_column(0, field));
    if collection.info().schema.stored_fields().any(|f| !has_column(f) && all_have(f)) {
        return Ok(None);
    }
    let mut target = None;
    if let (Some(rows), Some(entry)) = (rows, &mut entry) {
        let deletes = rows.deletes(&known);
        if deletes.len() > 0 {
            let file = format!("{id}-{}.del", manifests.next_version());
            files.names.push(file.clone());
            entry.deletes = Some(write_deletes(core, collection, &file, entry.rows, &deletes)?);
        }
        // Opened before the commit: what was committed must not fail to take its place.
        let repair = repair(core, collection.id());
        let segment = SealedSegment::open(collection.dir(), &schema, entry, repair)?;
        segment.keys()?;
        let segment = apply::sealed(segment, id, partition, deletes);
        target = Some((Arc::new(segment), rows));
    }
    let old = delete_files(manifests, &ids);
    let edit = Edit {
        add: entry.into_iter().collect(),
        remove: ids.clone(),
        schema_version: schema.version,
        forgotten: outdated.dead_before,
        ..Edit::default()
    };
    // Should the commit fail, it may be on disk all the same, and needs them.
    files.kept = true;
    manifests.commit(edit, core.clock.now())?;
    let merge =
        Merge { sources: ids.clone(), target: target.as_ref().map(|(new, _)| new.id), partition };
    let seed = target.as_ref().and_then(|(new, rows)| seed_of(core, sources, new.id, rows));
    let merged = Merged { sources: ids.into_iter().zip(known).collect(), target };
    ask(core, |reply| Control::Merge { collection: collection.id(), merged, reply })?;
    remove_files(core, collection, &old);
    if let Some(seed) = seed {
        let segments = collection.version();
        let is_there = |id| segments.segments.iter().any(|segment| segment.id == id);
        collection.upkeep().sow(seed, is_there);
    }
    Ok(Some(merge))
}

/// The largest of the sources that have graphs, for those of the segment that they became.
fn seed_of(core: &Core, sources: &[Arc<Segment>], target: i64, rows: &SealedRows) -> Option<Seed> {
    let with_graphs = (0..).zip(sources).filter_map(|(at, segment)| match &segment.body {
        Body::Sealed(sealed) if sealed.has_graph() => Some((at, sealed)),
        Body::Sealed(_) | Body::Growing(_) => None,
    });
    let (position, source) = with_graphs.max_by_key(|(_, sealed)| sealed.rows())?;
    let mut places = vec![Row::MAX; source.rows()];
    for (new, (segment, row)) in (0..).zip(&rows.order) {
        if *segment == position {
            places[*row as usize] = new;
        }
    }
    let memory = core.budget.hold_for_build(size_of_val(&*places));
    let (source, places) = (Arc::clone(source), Arc::from(places));
    Some(Seed { target, source, places, _memory: Arc::new(memory) })
}

/// Room on the disk for the result of a merge, and the memory it takes until the guard is dropped.
fn make_room(core: &Core, sources: &[Arc<Segment>], outdated: Outdated) -> Result<Held, Error> {
    let bytes = sources.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.bytes()));
    let in_memory = usize::try_from(bytes.min(IN_MEMORY_BYTES)).unwrap_or(usize::MAX);
    // Vectors lie in a scratch file before they lie in the new one.
    let bytes = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
    let mut frees = false;
    for segment in sources {
        frees |= seal::outdated_rows(segment, outdated)? > 0;
    }
    // What is kept back on a full disk is for work that frees space.
    if frees { core.space.require(bytes) } else { core.space.admit(bytes) }?;
    Ok(core.budget.hold_for_build(in_memory))
}

/// Files that are removed again unless they are to be committed.
struct Files<'a> {
    core: &'a Core,
    collection: &'a Collection,
    names: Vec<String>,
    kept: bool,
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        if !self.kept {
            remove_files(self.core, self.collection, &self.names);
        }
    }
}

/// Work on the files of a segment that is made, or made more of.
pub(crate) struct Rewriting<'a> {
    pub(crate) core: &'a Core,
    pub(crate) collection: &'a Collection,
    pub(crate) segment: i64,
}

impl Work for Rewriting<'_> {
    fn check(&self) -> Result<(), Error> {
        if self.core.jobs.is_stopping() || self.collection.dir().is_doomed() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    fn scratch(&self, field: i64) -> Option<(&Blobs, String)> {
        let dir = collection_dir(self.collection.id());
        Some((&self.core.blobs, format!("{dir}/{}-{field}.scratch", self.segment)))
    }
}

/// Rows that have outlived every reader, as of now.
pub(crate) fn outdated(core: &Core, collection: &Collection) -> Outdated {
    Outdated { dead_before: core.horizon(), written_before: collection.expired_before() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::segment::growing::Growing;

    const MIB: u64 = 1 << 20;

    fn candidate(id: i64, bytes: u64) -> Candidate {
        let body = Body::Growing(Arc::new(Growing::default()));
        let segment = Arc::new(Segment { id, partition: 1, body, deletes: Arc::default() });
        Candidate { segment, gone: 0, bytes, in_memory: bytes / 10, outgrown: false }
    }

    /// Merges until nothing is left to do; returns the sizes left and the bytes written.
    fn settle(mut sizes: Vec<u64>, limit: u64, all: bool) -> (Vec<u64>, u64) {
        let mut written = 0;
        loop {
            let candidates = (0..).zip(&sizes).map(|(id, bytes)| candidate(id, *bytes)).collect();
            let Some(chosen) = choose(candidates, limit, all) else { return (sizes, written) };
            let gone: Vec<usize> = chosen.iter().map(|segment| segment.id as usize).collect();
            let merged: u64 = gone.iter().map(|at| sizes[*at]).sum();
            assert!(merged <= limit && gone.len() > 1);
            let mut at = 0..;
            sizes.retain(|_| !gone.contains(&at.next().unwrap()));
            sizes.push(merged);
            written += merged;
        }
    }

    #[test]
    fn a_million_rows_of_768_dimensions_end_in_two_large_segments() {
        let mut sizes = Vec::new();
        let mut written = 0;
        for _ in 0..12 {
            sizes.push(256 * MIB);
            let (left, merged) = settle(sizes, 2048 * MIB, false);
            sizes = left;
            written += merged;
        }
        sizes.sort_unstable();
        assert_eq!(sizes, [256 * MIB, 1024 * MIB, 1792 * MIB]);
        assert!(written <= 2 * 3072 * MIB, "each row is copied twice at most: {written}");
        let (mut all, _) = settle(sizes, 2048 * MIB, true);
        all.sort_unstable();
        assert_eq!(all, [1280 * MIB, 1792 * MIB]);
    }

    proptest! {
        #[test]
        fn few_segments_are_left_and_rows_are_copied_few_times(
            sizes in proptest::collection::vec(1_u64..200, 1..200),
        ) {
            let total: u64 = sizes.iter().sum();
            let (mut left, mut written) = (Vec::new(), 0);
            for bytes in sizes {
                left.push(bytes * MIB);
                let (settled, merged) = settle(left, 1024 * MIB, false);
                left = settled;
                written += merged;
            }
            prop_assert!(written <= 8 * total * MIB, "{written} of {total} MiB");
            let small = left.iter().filter(|bytes| **bytes < 100 * MIB).count();
            prop_assert!(small < 12, "{left:?}");
            let (all, _) = settle(left, 1024 * MIB, true);
            prop_assert!(all.len() as u64 <= 2 * (total / 1024 + 1), "{all:?}");
        }
    }
}
