//! The engine: opens a data directory, recovers it, and keeps it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use crate::Error;
use crate::apply::Control;
use crate::blobs::Blobs;
use crate::budget::{Budget, Held, MemoryUse};
use crate::catalog::CatalogView;
use crate::catalog::store::CatalogStore;
use crate::checkpoint;
use crate::clock::{HybridClock, Ts, Wall};
use crate::collection::Collection;
use crate::compact::{Compaction, Compactions};
use crate::disk::{Disk, LocalDisk, Lock};
use crate::jobs::Jobs;
use crate::log::writer::CommitLog;
use crate::pools::Pools;
use crate::recover;
use crate::space::{DiskSpace, Space};
use crate::upkeep;

/// A background checkpoint that failed is not tried again for so long.
const RETRY_PAUSE_MS: u64 = 1_000;

/// 4,096 rows: looking at all of them takes about a millisecond at 768 dimensions or for a path in
/// JSON, and far less for other filters.
const INDEX_ROWS: usize = 4_096;

/// 2 GiB: a million rows of 768 dimensions are two large segments.
const SEGMENT_BYTES: u64 = 2 << 30;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After `fdatasync`: it survives power loss.
    #[default]
    Sync,
    /// After `write`: it survives the end of the process, not of the machine. Synced every
    /// 100 ms.
    Async,
}

/// How to open a data directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Created if missing.
    pub dir: PathBuf,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Threads that search; 0: one per core.
    pub search_threads: usize,
    /// Threads that build indexes; 0: one per core.
    pub build_threads: usize,
    /// A collection with this many unsealed rows is checkpointed in the background.
    pub seal_rows: usize,
    /// A collection with this many unsealed bytes is checkpointed in the background.
    pub seal_bytes: usize,
    /// Memory that the node may use; 0: what the cgroup or the machine has. Collections are
    /// sealed, and then writes refused with [`Error::MemoryLimit`], before it is used up.
    pub memory_limit_bytes: usize,
    /// Disk space kept back for what frees space: rows are refused with [`Error::DiskFull`] when
    /// there is no more than this. 0 chooses by the size of the disk.
    pub disk_reserve_bytes: u64,
    /// The collection that holds back the log most is checkpointed when the log is larger.
    pub log_limit_bytes: u64,
    /// Segments are merged up to so many bytes.
    pub segment_bytes: u64,
    /// A sealed segment with fewer rows gets neither graph nor sorted terms: its rows are looked at.
    pub index_rows: usize,
    /// How often collections are looked through for rows that can leave the disk.
    pub upkeep_every_ms: u64,
    /// How long a deleted or replaced row can still be seen by a view of the past; an older view is
    /// refused. Until then its time of death is in memory: 4 to 16 bytes.
    pub retention_ms: u64,
    /// The time of day.
    pub wall: Wall,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("elanus-data"),
            durability: Durability::Sync,
            search_threads: 0,
            build_threads: 0,
            seal_rows: 200_000,
            seal_bytes: 256 << 20,
            memory_limit_bytes: 0,
            disk_reserve_bytes: 0,
            log_limit_bytes: 1 << 30,
            segment_bytes: SEGMENT_BYTES,
            index_rows: INDEX_ROWS,
            upkeep_every_ms: 30_000,
            retention_ms: 15 * 60 * 1000,
            wall: Wall::system(),
        }
    }
}

/// Whether the node can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the log takes writes; once it does not, only a restart helps.
    pub writable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Why rows are refused for now: no room on the disk or in memory. Passes by itself when there
    /// is room; reads and deletes go on.
    pub refusing_rows: Option<String>,
    /// Ids of quarantined collections, each with its damage.
    pub damaged: Vec<(i64, String)>,
}

/// Counters of the commit log since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCounters {
    /// Syncs of records.
    pub syncs: u64,
    /// Acknowledged records.
    pub records: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Length of the log files that are there.
    pub len: u64,
}

/// What all parts of an open engine share.
pub(crate) struct Core {
    pub(crate) options: Options,
    pub(crate) blobs: Blobs,
    pub(crate) clock: Arc<HybridClock>,
    pub(crate) pools: Pools,
    pub(crate) jobs: Jobs,
    pub(crate) space: Space,
    pub(crate) budget: Arc<Budget>,
    /// Set once, when recovery is done.
    log: OnceLock<CommitLog<Control>>,
    catalog: ArcSwap<CatalogView>,
    store: Mutex<CatalogStore>,
    collections: ArcSwap<HashMap<i64, Arc<Collection>>>,
    next_segment: AtomicI64,
    pub(crate) compactions: Compactions,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(
        options: Options,
        space: Space,
        blobs: Blobs,
        clock: Arc<HybridClock>,
        store: CatalogStore,
        catalog: CatalogView,
    ) -> Result<Self, Error> {
        let pools = Pools::new(options.search_threads, options.build_threads)?;
        let next_segment = AtomicI64::new(catalog.segment_floor());
        let budget = Budget::new(options.memory_limit_bytes);
        Ok(Self {
            options,
            blobs,
            clock,
            pools,
            jobs: Jobs::start()?,
            space,
            budget,
            log: OnceLock::new(),
            catalog: ArcSwap::from_pointee(catalog),
            store: Mutex::new(store),
            collections: ArcSwap::default(),
            next_segment,
            compactions: Compactions::default(),
        })
    }

    /// The log.
    ///
    /// # Errors
    /// [`Error::Closed`] before recovery is done, when nobody has a collection to write to.
    pub(crate) fn log(&self) -> Result<&CommitLog<Control>, Error> {
        self.log.get().ok_or(Error::Closed)
    }

    pub(crate) fn set_log(&self, log: CommitLog<Control>) {
        if self.log.set(log).is_err() {
            unreachable!("the log is set once, at the end of recovery");
        }
    }

    pub(crate) fn catalog(&self) -> Arc<CatalogView> {
        self.catalog.load_full()
    }

    /// Makes the next version of the catalog, durably, and shows it. Nothing is committed if the
    /// edit fails or changes nothing.
    pub(crate) fn commit_catalog<T>(
        &self,
        edit: impl FnOnce(&mut CatalogView, Ts) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.space.make_room()?;
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.settle()?;
        let current = self.catalog();
        let mut next = current.as_ref().clone();
        let ts = self.clock.next();
        let value = edit(&mut next, ts)?;
        if next != *current {
            next.advance(ts, self.next_segment.load(Ordering::Relaxed));
            self.catalog.store(Arc::new(store.commit(next)?));
        }
        Ok(value)
    }

    pub(crate) fn collection(&self, id: i64) -> Option<Arc<Collection>> {
        self.collections.load().get(&id).cloned()
    }

    /// Like [`Core::collection`], with the error a user should see.
    pub(crate) fn require(&self, id: i64) -> Result<Arc<Collection>, Error> {
        self.collection(id)
            .ok_or_else(|| Error::CollectionNotFound { db: String::new(), name: id.to_string() })
    }

    pub(crate) fn collections(&self) -> Arc<HashMap<i64, Arc<Collection>>> {
        self.collections.load_full()
    }

    pub(crate) fn set_collections(&self, collections: HashMap<i64, Arc<Collection>>) {
        self.collections.store(Arc::new(collections));
    }

    /// A segment id that was never used.
    pub(crate) fn next_segment(&self) -> i64 {
        self.next_segment.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives no segment id below `floor`.
    pub(crate) fn raise_next_segment(&self, floor: i64) {
        self.next_segment.fetch_max(floor, Ordering::Relaxed);
    }

    /// Rows that died before this are seen by no view.
    pub(crate) fn horizon(&self) -> Ts {
        self.clock.now().minus_millis(self.options.retention_ms)
    }

    /// Lets a write of so many bytes in, as far as memory goes; it counts until the guard is
    /// dropped. Where memory gets short, sealing begins.
    pub(crate) fn admit_write(self: &Arc<Self>, bytes: usize) -> Result<Held, Error> {
        let (admitted, seal) = self.budget.admit_write(bytes);
        if seal && self.budget.may_relieve() {
            let core = Arc::clone(self);
            let begun = self.jobs.in_background(move || {
                core.seal_largest();
                core.budget.relieved();
            });
            if !begun {
                self.budget.relieved();
            }
        }
        admitted
    }

    /// Lets rows of so many bytes in, as far as the disk goes. Where it does not, whatever holds
    /// the log back is sealed, so that the log can be given back.
    pub(crate) fn admit_rows(&self, bytes: usize) -> Result<(), Error> {
        self.space.admit(bytes).inspect_err(|_| {
            // An engine that is closing needs no room.
            let _ = self.log().and_then(|log| log.control(Control::RelieveLog));
        })
    }

    /// Seals the collection that has the most rows in memory.
    fn seal_largest(self: &Arc<Self>) {
        let now = self.clock.now();
        let largest = (self.collections().values())
            .filter(|c| c.damage().is_none() && !c.failed_recently(now, RETRY_PAUSE_MS))
            .map(|c| (c.version().growing_bytes(), c.id()))
            .max();
        if let Some((bytes, id)) = largest
            && bytes > 0
            && let Some(collection) = self.collection(id)
        {
            self.checkpoint_and_note(&collection);
        }
    }

    /// Runs work that nobody waits for.
    pub(crate) fn in_background(&self, work: impl FnOnce() + Send + 'static) {
        self.jobs.in_background(work);
    }

    /// Seals what is growing in a collection, some time soon; false if that is of no use now.
    pub(crate) fn checkpoint_in_background(self: &Arc<Self>, collection: &Arc<Collection>) -> bool {
        if collection.failed_recently(self.clock.now(), RETRY_PAUSE_MS) {
            return false;
        }
        let (core, collection) = (Arc::clone(self), Arc::clone(collection));
        self.jobs.in_background(move || core.checkpoint_and_note(&collection))
    }

    /// A checkpoint that nobody waits for; remembers whether it failed.
    fn checkpoint_and_note(self: &Arc<Self>, collection: &Arc<Collection>) {
        let failed_at = match checkpoint::checkpoint(self, collection) {
            Ok(_) | Err(Error::Closed | Error::CollectionNotFound { .. }) => 0,
            Err(error) => {
                tracing::warn!(%error, collection = collection.id(), "a checkpoint failed");
                self.clock.now().millis()
            }
        };
        collection.failed_at().store(failed_at, Ordering::Relaxed);
    }
}

/// An open data directory. Clones are handles to the same engine; dropping the last one shuts it
/// down.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    lock: Mutex<Option<Box<dyn Lock>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

impl Inner {
    /// Ends all threads and gives the directory free. Blocks.
    fn stop(&self) {
        self.core.jobs.ask_to_stop();
        self.core.collections().values().for_each(|collection| collection.upkeep().stop());
        self.core.jobs.stop();
        if let Some(end) = self.core.log().ok().and_then(CommitLog::stop) {
            // From here on a torn end of the log is damage.
            let noted = self.core.commit_catalog(|catalog, _| {
                catalog.set_log_end(end);
                Ok(())
            });
            if let Err(error) = noted {
                tracing::warn!(%error, "the end of the log could not be noted");
            }
        }
        // Collections hold the core as well; without this neither would ever be freed.
        self.core.set_collections(HashMap::new());
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine {
    /// Locks the directory, recovers its content and starts the background threads.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process id; [`Error::Corrupt`] for a damaged catalog
    /// or log; [`Error::Io`].
    pub async fn open(options: Options) -> Result<Self, Error> {
        Self::open_on(Arc::new(LocalDisk), options).await
    }

    /// Like [`Engine::open`], on any disk.
    pub(crate) async fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<Self, Error> {
        let opened = tokio::task::spawn_blocking(move || recover::open(disk, options)).await;
        let (core, lock) = opened.map_err(|error| Error::Internal(error.to_string()))??;
        Ok(Self { inner: Arc::new(Inner { core, lock: Mutex::new(Some(lock)) }) })
    }

    /// Finishes queued writes, syncs the log, stops the threads and gives the directory free.
    /// Does not checkpoint. Later writes fail with [`Error::Closed`]; views stay readable.
    pub async fn shutdown(&self) {
        let inner = Arc::clone(&self.inner);
        if let Err(error) = tokio::task::spawn_blocking(move || inner.stop()).await {
            tracing::error!(%error, "the shutdown was cut short");
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// The source of all timestamps.
    pub fn clock(&self) -> &HybridClock {
        &self.inner.core.clock
    }

    /// The newest version of the catalog.
    pub fn catalog(&self) -> Arc<CatalogView> {
        self.inner.core.catalog()
    }

    /// The open collection with that id.
    pub fn collection(&self, id: i64) -> Option<Arc<Collection>> {
        self.inner.core.collection(id)
    }

    /// Whether the node can do its work.
    pub fn health(&self) -> Health {
        let core = &self.inner.core;
        let reason = match core.log() {
            Ok(log) => log.check().err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let mut damaged: Vec<(i64, String)> = (core.collections().values())
            .filter_map(|c| c.damage().map(|damage| (c.id(), damage.to_string())))
            .collect();
        damaged.sort_unstable();
        let disk = core.space.now().map_or_else(|error| Some(error.to_string()), |d| d.refusal());
        let refusing_rows = disk.or_else(|| core.budget.now().refusal());
        Health { writable: reason.is_none(), reason, refusing_rows, damaged }
    }

    /// Whether rows would be let in now, for callers who have work to do before they write.
    ///
    /// # Errors
    /// [`Error::LogPoisoned`], [`Error::DiskFull`], [`Error::MemoryLimit`].
    pub fn check_room(&self) -> Result<(), Error> {
        let core = self.core();
        core.log()?.check()?;
        core.admit_rows(0)?;
        core.admit_write(0).map(drop)
    }

    /// The room on the data disk.
    ///
    /// # Errors
    /// [`Error::Io`] if the system does not tell.
    pub fn disk_space(&self) -> Result<DiskSpace, Error> {
        self.inner.core.space.now()
    }

    /// Who uses memory now.
    pub fn memory(&self) -> MemoryUse {
        self.inner.core.budget.now()
    }

    /// For a request that is about to be read: its bytes are to be [counted](Held::grow) as they
    /// arrive, and the guard kept until it is answered.
    pub fn hold_request(&self) -> Held {
        self.inner.core.budget.hold_request()
    }

    /// Tells how much memory the process uses for what the engine cannot know, such as models.
    pub fn set_other_memory(&self, bytes: usize) {
        self.inner.core.budget.set_other(bytes);
    }

    /// How the engine was opened.
    pub fn options(&self) -> &Options {
        &self.inner.core.options
    }

    /// Counters of the commit log.
    pub fn log_counters(&self) -> LogCounters {
        match self.inner.core.log() {
            Ok(log) => log.counters(),
            Err(_) => LogCounters { syncs: 0, records: 0, bytes: 0, len: 0 },
        }
    }

    /// Where CPU work runs.
    pub fn pools(&self) -> &Pools {
        &self.inner.core.pools
    }

    /// Seals what is growing, now. Returns the ids of the new segments.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] and what prevents writing.
    pub async fn flush(&self, collection: i64) -> Result<Vec<i64>, Error> {
        let core = Arc::clone(self.core());
        let collection = core.require(collection)?;
        let work = move || checkpoint::checkpoint(&core, &collection);
        self.core().jobs.maintenance(work).await
    }

    /// Has the segments of a collection merged into as few as [`Options::segment_bytes`] allows, in
    /// the background, recent rows included; returns the number of this compaction.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::Corrupt`].
    pub fn compact(&self, collection: i64) -> Result<i64, Error> {
        let core = self.core();
        let collection = core.require(collection)?;
        if let Some(damage) = collection.damage() {
            return Err(damage.duplicate());
        }
        let id = i64::try_from(core.clock.next().0).unwrap_or(i64::MAX);
        upkeep::compact(core, &collection, id);
        Ok(id)
    }

    /// What became of a compaction; `None` if that number was never given. One that is not
    /// remembered is over: none outlives its process.
    pub fn compaction(&self, id: i64) -> Option<Compaction> {
        let core = self.core();
        let forgotten = || {
            let was_given = u64::try_from(id).is_ok_and(|id| Ts(id) <= core.clock.now());
            was_given.then(|| Compaction { done: true, ..Compaction::default() })
        };
        core.compactions.get(id).or_else(forgotten)
    }

    /// Removes all rows.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] and what prevents writing.
    pub async fn truncate(&self, collection: i64) -> Result<(), Error> {
        let core = Arc::clone(self.core());
        let collection = core.require(collection)?;
        let work = move || checkpoint::truncate(&core, &collection);
        self.core().jobs.maintenance(work).await
    }
}
