//! From memory to files: checkpoints, truncation, and what else commits a manifest.
//!
//! A checkpoint cuts the log (an order in its queue), freezes what was growing, writes sealed
//! files and delete masks while writers go on, commits one manifest, and only then lets the
//! sealed segments take the place of the frozen ones. It is the only thing that moves the log
//! floor up. A job that dies before its commit leaves files that the next start removes.
//!
//! Each of these jobs holds the collection's manifests from beginning to end; the log thread never
//! does.

use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};

use crate::Error;
use crate::apply::{self, Control, Frozen, Installed};
use crate::blobs::Blobs;
use crate::collection::Collection;
use crate::compact;
use crate::engine::Core;
use crate::manifest::{Edit, Manifests, SectionsFile, SegmentEntry, collection_dir};
use crate::segment::delete::DeleteMask;
use crate::segment::seal::{self, SealedRows, Work};
use crate::segment::sealed::SealedSegment;
use crate::segment::section_file;
use crate::upkeep::{self, repair};

/// Seals what is growing. Returns the ids of the new segments.
pub(crate) fn checkpoint(
    core: &Arc<Core>,
    collection: &Arc<Collection>,
) -> Result<Vec<i64>, Error> {
    core.space.make_room()?;
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    let mut sealed = Vec::new();
    loop {
        let frozen = freeze(core, collection)?;
        // A cut that an earlier checkpoint could not finish is older than the one asked for.
        let again = frozen.left_over;
        sealed.extend(seal_frozen(core, collection, manifests, &frozen)?);
        if !again {
            break;
        }
    }
    drop(guard);
    trim_log(core);
    upkeep::ask(core, collection);
    Ok(sealed)
}

/// Removes all rows that are there now.
pub(crate) fn truncate(core: &Arc<Core>, collection: &Collection) -> Result<(), Error> {
    core.space.make_room()?;
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    loop {
        let frozen = freeze(core, collection)?;
        let removed: Vec<i64> = manifests.current().segments.iter().map(|s| s.id).collect();
        let old = delete_files(manifests, &removed);
        let edit = Edit { remove: removed.clone(), log_floor: Some(frozen.cut), ..Edit::default() };
        manifests.commit(edit, core.clock.now())?;
        let growing = frozen.growing.iter().map(|segment| segment.id).collect();
        install(core, collection, Installed { growing, removed, ..Installed::default() })?;
        remove_files(core, collection, &old);
        if !frozen.left_over {
            break;
        }
    }
    drop(guard);
    trim_log(core);
    Ok(())
}

/// Takes the segments of dropped partitions out of the manifest and removes their files.
pub(crate) fn remove_dropped_partitions(
    core: &Arc<Core>,
    collection: &Collection,
) -> Result<(), Error> {
    core.space.make_room()?;
    let mut guard = collection.manifests();
    let manifests = open_manifests(collection, &mut guard)?;
    let info = collection.info();
    let gone: Vec<SegmentEntry> = (manifests.current().segments.iter())
        .filter(|segment| info.partition_by_id(segment.partition).is_none())
        .cloned()
        .collect();
    let ids: Vec<i64> = gone.iter().map(|segment| segment.id).collect();
    if !ids.is_empty() {
        let mut files = delete_files(manifests, &ids);
        let edit = Edit { remove: ids.clone(), ..Edit::default() };
        manifests.commit(edit, core.clock.now())?;
        let unknown = ask(core, |reply| Control::Remove {
            collection: collection.id(),
            segments: ids,
            reply,
        })?;
        // Those that were never opened have no reader to wait for.
        for segment in gone.iter().filter(|segment| unknown.contains(&segment.id)) {
            files.push(segment.data.file.clone());
            files.extend(segment.columns.iter().map(|column| column.data.file.clone()));
            files.extend(segment.indexes.iter().map(|index| index.sections.file.clone()));
        }
        remove_files(core, collection, &files);
    }
    drop(guard);
    trim_log(core);
    Ok(())
}

/// The manifests of a collection that is sound and not dropped.
pub(crate) fn open_manifests<'a>(
    collection: &Collection,
    guard: &'a mut Option<Manifests>,
) -> Result<&'a mut Manifests, Error> {
    if let Some(damage) = collection.damage() {
        return Err(damage.duplicate());
    }
    if collection.dir().is_doomed() {
        let info = collection.info();
        return Err(Error::CollectionNotFound { db: info.db.clone(), name: info.name.clone() });
    }
    let manifests = guard
        .as_mut()
        .ok_or_else(|| Error::Internal("a sound collection has no manifest".into()))?;
    manifests.settle()?;
    Ok(manifests)
}

/// Sends an order through the log's queue and waits for its reply.
pub(crate) fn ask<T>(core: &Core, order: impl FnOnce(Sender<T>) -> Control) -> Result<T, Error> {
    let (reply, answer) = bounded(1);
    core.log()?.control(order(reply))?;
    answer.recv().map_err(|_| core.log().and_then(|log| log.check()).err().unwrap_or(Error::Closed))
}

fn freeze(core: &Core, collection: &Collection) -> Result<Frozen, Error> {
    ask(core, |reply| Control::Freeze { collection: collection.id(), reply })?
}

fn install(core: &Core, collection: &Collection, installed: Installed) -> Result<(), Error> {
    ask(core, |reply| Control::Install { collection: collection.id(), installed, reply })
}

/// Writes what was frozen, commits it, and puts it in place.
fn seal_frozen(
    core: &Arc<Core>,
    collection: &Collection,
    manifests: &mut Manifests,
    frozen: &Frozen,
) -> Result<Vec<i64>, Error> {
    let mut work = Sealing { core, collection, version: manifests.next_version(), files: vec![] };
    let (edit, sealed) = match work.write(manifests, frozen) {
        Ok(written) => written,
        Err(error) => {
            // Nothing refers to them, and on a full disk their space is dear.
            remove_files(core, collection, &work.files);
            return Err(error);
        }
    };
    let replaced: Vec<i64> = edit.deletes.iter().map(|(id, _)| *id).collect();
    let old = delete_files(manifests, &replaced);
    if !edit.add.is_empty() || !edit.deletes.is_empty() {
        manifests.commit(edit.clone(), core.clock.now())?;
    }
    let dir = collection.dir();
    let schema = &collection.info().schema;
    let mut installed = Installed {
        growing: frozen.growing.iter().map(|segment| segment.id).collect(),
        persisted: frozen.deleted.iter().map(|(id, mask)| (*id, mask.len())).collect(),
        ..Installed::default()
    };
    for (entry, (from, rows, deletes)) in edit.add.iter().zip(sealed) {
        let segment = SealedSegment::open(dir, schema, entry, repair(core, collection.id()))?;
        // Damage between writing and now would otherwise be met by the log thread.
        segment.keys()?;
        installed.persisted.push((entry.id, deletes.len()));
        let segment = apply::sealed(segment, entry.id, entry.partition, deletes);
        installed.sealed.push((from, Arc::new(segment), rows));
    }
    let ids = edit.add.iter().map(|entry| entry.id).collect();
    install(core, collection, installed)?;
    remove_files(core, collection, &old);
    Ok(ids)
}

/// The files of one checkpoint.
struct Sealing<'a> {
    core: &'a Arc<Core>,
    collection: &'a Collection,
    /// Of the manifest to be committed.
    version: u64,
    /// Those written so far.
    files: Vec<String>,
}

/// A sealed segment to be: the growing segment it replaces, its rows, and its deletes on disk.
type Successor = (i64, SealedRows, DeleteMask);

impl Work for Sealing<'_> {
    fn check(&self) -> Result<(), Error> {
        if self.core.jobs.is_stopping() { Err(Error::Closed) } else { Ok(()) }
    }

    fn scratch(&self, _: i64) -> Option<(&Blobs, String)> {
        None
    }
}

impl Sealing<'_> {
    fn write(
        &mut self,
        manifests: &Manifests,
        frozen: &Frozen,
    ) -> Result<(Edit, Vec<Successor>), Error> {
        let outdated = compact::outdated(self.core, self.collection);
        let schema = Arc::clone(&self.collection.info().schema);
        let mut edit = Edit {
            log_floor: Some(frozen.cut),
            schema_version: schema.version,
            forgotten: outdated.dead_before,
            ..Edit::default()
        };
        let mut sealed = Vec::new();
        for growing in &frozen.growing {
            let bytes = usize::try_from(growing.bytes()).unwrap_or(usize::MAX);
            // The log gives back about as much as the file takes, but only afterwards.
            self.core.space.require(bytes)?;
            let _scratch = self.core.budget.hold_for_build(bytes);
            let segments = std::slice::from_ref(growing);
            let Some(rows) = seal::sort(&schema, segments, outdated, self)? else {
                continue;
            };
            let id = self.core.next_segment();
            self.files.push(format!("{id}.arrow"));
            self.files.extend(schema.stored_fields().map(|field| seal::index_name(id, field.id)));
            let (blobs, collection) = (&self.core.blobs, self.collection.id());
            let partition = growing.partition;
            let entry = seal::write(blobs, collection, &schema, id, partition, &rows, self);
            // Stopped while it wrote, it failed by that.
            self.check()?;
            let mut entry = entry?;
            let deletes = rows.deletes(std::slice::from_ref(&growing.deletes));
            if deletes.len() > 0 {
                entry.deletes = Some(self.write_deletes(id, entry.rows, &deletes)?);
            }
            edit.add.push(entry);
            sealed.push((growing.id, rows, deletes));
        }
        for (id, mask) in &frozen.deleted {
            // The partition may have been dropped, and the segment with it.
            let Some(entry) = manifests.current().segment(*id) else { continue };
            let mut mask = mask.as_ref().clone();
            mask.forget_before(outdated.dead_before);
            let file = self.write_deletes(*id, entry.rows, &mask)?;
            edit.deletes.push((*id, file));
        }
        Ok((edit, sealed))
    }

    fn write_deletes(
        &mut self,
        segment: i64,
        rows: u32,
        mask: &DeleteMask,
    ) -> Result<SectionsFile, Error> {
        let file = format!("{segment}-{}.del", self.version);
        self.files.push(file.clone());
        write_deletes(self.core, self.collection, &file, rows, mask)
    }
}

/// Writes the deletes of a segment of that many rows.
pub(crate) fn write_deletes(
    core: &Core,
    collection: &Collection,
    file: &str,
    rows: u32,
    mask: &DeleteMask,
) -> Result<SectionsFile, Error> {
    let dir = collection_dir(collection.id());
    section_file::write(&core.blobs, &dir, file, rows as usize, &mask.to_sections()?)
}

/// Names of the delete files that some segments have now.
pub(crate) fn delete_files(manifests: &Manifests, segments: &[i64]) -> Vec<String> {
    (segments.iter())
        .filter_map(|id| Some(manifests.current().segment(*id)?.deletes.as_ref()?.file.clone()))
        .collect()
}

/// Removes files that nothing refers to. What stays behind goes at the next start.
pub(crate) fn remove_files(core: &Core, collection: &Collection, files: &[String]) {
    for file in files {
        let key = format!("{}/{file}", collection_dir(collection.id()));
        if let Err(error) = core.blobs.delete(&key) {
            tracing::warn!(%error, "an unused file stays until the next start");
        }
    }
}

/// Gives back the log files that no collection needs any more. What stays behind goes with the
/// next checkpoint.
pub(crate) fn trim_log(core: &Core) {
    let trimmed = || {
        let Some(start) = ask(core, |reply| Control::LogStart { reply })? else { return Ok(()) };
        // The catalog must know first: recovery takes a missing log file for damage.
        core.commit_catalog(|catalog, _| {
            catalog.set_log_start(start);
            Ok(())
        })?;
        core.log()?.control(Control::Trim(start))
    };
    match trimmed() {
        Ok(()) | Err(Error::Closed) => {}
        Err(error) => tracing::warn!(%error, "finished log files stay until the next checkpoint"),
    }
}
