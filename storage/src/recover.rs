//! Opening a data directory: from whatever the last process left to a consistent state.
//!
//! In this order: lock the directory; read the newest catalog; open each collection's manifest
//! and segments, where damage quarantines that collection and no other; remove files that nothing
//! refers to; replay the log through the same code that applied it first; publish; start.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::Error;
use crate::apply::{self, Applier};
use crate::blobs::{Blobs, Published};
use crate::catalog::store::CatalogStore;
use crate::catalog::{CatalogView, CollectionInfo};
use crate::checkpoint;
use crate::clock::{HybridClock, Ts};
use crate::collection::Collection;
use crate::disk::{self, Disk, Lock};
use crate::engine::{Core, Options};
use crate::log::Lsn;
use crate::log::files::{DiskLog, Files, LogDir};
use crate::log::reader::{Frame, replay};
use crate::log::writer::{Apply, CommitLog, LogSize};
use crate::manifest::{Manifests, SegmentEntry, collection_dir};
use crate::segment::Segment;
use crate::segment::delete::DeleteMask;
use crate::segment::sealed::SealedSegment;
use crate::segment::section_file::SectionFile;
use crate::space::Space;
use crate::upkeep::{self, repair};

pub(crate) const DATA_DIR: &str = "data";
pub(crate) const LOG_DIR: &str = "log";

/// Small batches are merged whenever so many records were replayed.
const MERGE_EVERY: u64 = 512;

/// Opens a data directory.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    options: Options,
) -> Result<(Arc<Core>, Box<dyn Lock>), Error> {
    disk::create_dir(&*disk, &options.dir)?;
    let lock = disk.lock(&options.dir)?;
    // Before anything is written: a node must start on a full disk.
    let space = Space::open(Arc::clone(&disk), &options.dir, options.disk_reserve_bytes)?;
    lock.tell_holder();
    let blobs = Blobs::open(Arc::clone(&disk), &options.dir)?;
    // Directories that are there may be pending still, from a process that was killed.
    blobs.sync_dir("")?;
    let log = DiskLog::open(disk, blobs.path(LOG_DIR))?;
    let clock = Arc::new(HybridClock::new(options.wall.clone()));
    let (mut store, catalog) = CatalogStore::open(&blobs)?;
    let catalog = match catalog {
        Some(catalog) => catalog,
        None => {
            refuse_orphans(&blobs)?;
            store.commit(CatalogView::fresh(clock.next()))?
        }
    };
    clock.observe(catalog.ts());
    let log_start = catalog.log_start();
    let core = Arc::new(Core::new(options, space, blobs, clock, store, catalog)?);
    let opened = recover(&core, log, log_start);
    if opened.is_err() {
        core.jobs.stop();
    }
    opened.map(|()| (core, lock))
}

/// Data without a catalog is not a new directory but a damaged one.
fn refuse_orphans(blobs: &Blobs) -> Result<(), Error> {
    if blobs.list(DATA_DIR)?.is_empty() && blobs.list(LOG_DIR)?.is_empty() {
        return Ok(());
    }
    Err(Error::corrupt(&blobs.path("catalog"), "the catalog is missing, but there is data"))
}

fn recover(core: &Arc<Core>, log: DiskLog, log_start: Lsn) -> Result<(), Error> {
    let mut applier = Applier::new(Arc::clone(core));
    let mut collections = HashMap::new();
    for info in core.catalog().all_collections() {
        let collection = open_collection(core, &mut applier, info);
        collections.insert(collection.id(), collection);
    }
    remove_dropped_collections(core, &collections)?;

    let mut size = LogSize { bytes: 0 };
    let reached = core.catalog().log_end().max(applier.reached());
    let replayed = replay(&log, log_start, reached, &mut |frame| {
        replay_frame(&mut applier, frame);
        if frame.lsn % MERGE_EVERY == 0 {
            applier.publish(&size);
        }
        Ok(())
    })?;
    core.clock.observe(replayed.ts);
    size.bytes = replayed.files.iter().map(|&(_, len)| len).sum();
    applier.publish(&size);
    if replayed.frames > 0 {
        tracing::info!(records = replayed.frames, bytes = size.bytes, "the log was replayed");
    }

    let sound: Vec<_> = collections.values().filter(|c| c.damage().is_none()).cloned().collect();
    core.set_collections(collections);
    let files = Files::start(Box::new(log) as Box<dyn LogDir>, replayed.files, replayed.next)?;
    let (durability, clock) = (core.options.durability, Arc::clone(&core.clock));
    core.set_log(CommitLog::start(files, replayed.next, durability, clock, applier)?);

    let pause = Duration::from_millis(core.options.upkeep_every_ms.max(1));
    let weak = Arc::downgrade(core);
    core.jobs.every(pause, move || {
        let Some(core) = weak.upgrade() else { return };
        for collection in core.collections().values() {
            upkeep::forget(&core, collection);
            upkeep::ask(&core, collection);
        }
    })?;
    let core = Arc::clone(core);
    core.clone().in_background(move || {
        for collection in sound {
            // Also what a crash kept from being removed.
            if let Err(error) = checkpoint::remove_dropped_partitions(&core, &collection) {
                tracing::warn!(%error, "space of dropped partitions stays until the next start");
            }
            upkeep::ask(&core, &collection);
        }
    });
    Ok(())
}

fn replay_frame(applier: &mut Applier, frame: &Frame<'_>) {
    if !applier.needs(frame.lsn, frame.collection) {
        return;
    }
    let applied = frame.record().and_then(|record| applier.apply(frame.lsn, frame.ts, record));
    if let Err(error) = applied {
        applier.quarantine(frame.collection, &error);
    }
}

/// Opens a collection; one that is damaged shows its damage instead of rows.
fn open_collection(
    core: &Arc<Core>,
    applier: &mut Applier,
    info: &Arc<CollectionInfo>,
) -> Arc<Collection> {
    let dir = Arc::new(core.blobs.published(&collection_dir(info.id)));
    let opened = Manifests::open(&core.blobs, info.id).and_then(|manifests| {
        let segments = open_segments(core, info, &dir, &manifests)?;
        remove_unreferenced(&core.blobs, &manifests)?;
        Ok((manifests, segments))
    });
    match opened {
        Ok((manifests, segments)) => {
            let current = manifests.current();
            core.raise_next_segment(current.next_segment);
            core.clock.observe(current.ts);
            let (floor, ts) = (current.log_floor, current.ts);
            let core = Arc::clone(core);
            let collection = Collection::new(core, Arc::clone(info), dir, Some(manifests));
            let collection = Arc::new(collection);
            applier.open(Arc::clone(&collection), segments, floor, ts, None);
            collection
        }
        Err(damage) => {
            tracing::error!(
                collection = info.id, name = info.name, error = %damage,
                "the collection is quarantined; the others go on"
            );
            let collection = Collection::new(Arc::clone(core), Arc::clone(info), dir, None);
            let collection = Arc::new(collection);
            let damage = Some(Arc::new(damage));
            applier.open(Arc::clone(&collection), Vec::new(), 0, Ts::ZERO, damage);
            collection
        }
    }
}

fn open_segments(
    core: &Arc<Core>,
    info: &CollectionInfo,
    dir: &Arc<Published>,
    manifests: &Manifests,
) -> Result<Vec<Segment>, Error> {
    let repair = repair(core, info.id);
    (manifests.current().segments.iter())
        .filter(|entry| info.partition_by_id(entry.partition).is_some())
        .map(|entry| {
            let sealed = SealedSegment::open(dir, &info.schema, entry, Arc::clone(&repair))?;
            let deletes = open_deletes(dir, entry)?;
            Ok(apply::sealed(sealed, entry.id, entry.partition, deletes))
        })
        .collect()
}

pub(crate) fn open_deletes(dir: &Published, entry: &SegmentEntry) -> Result<DeleteMask, Error> {
    let Some(deletes) = &entry.deletes else { return Ok(DeleteMask::default()) };
    let file = SectionFile::open(&dir.file(&deletes.file), deletes)?;
    if file.rows() != entry.rows as usize {
        let detail = format!("{} rows, the segment has {}", file.rows(), entry.rows);
        return Err(Error::corrupt(file.path(), detail));
    }
    DeleteMask::from_file(&file)
}

/// Removes what a crash left in a collection's directory.
fn remove_unreferenced(blobs: &Blobs, manifests: &Manifests) -> Result<(), Error> {
    let dir = collection_dir(manifests.current().collection);
    let live: HashSet<&str> = manifests.current().files().map(|(file, _)| file).collect();
    for entry in blobs.list(&dir)? {
        if !live.contains(entry.name.as_str()) && !entry.is_dir {
            let key = format!("{dir}/{}", entry.name);
            tracing::info!(file = %blobs.path(&key).display(), "an unreferenced file is removed");
            blobs.delete(&key)?;
        }
    }
    Ok(())
}

/// Removes the directories of collections that are not in the catalog.
fn remove_dropped_collections(
    core: &Core,
    collections: &HashMap<i64, Arc<Collection>>,
) -> Result<(), Error> {
    for disk::Entry { name, .. } in core.blobs.list(DATA_DIR)? {
        if !name.parse().is_ok_and(|id: i64| collections.contains_key(&id)) {
            core.blobs.remove_dir(&format!("{DATA_DIR}/{name}"))?;
        }
    }
    Ok(())
}
