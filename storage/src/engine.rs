//! The engine: opens a data directory, recovers it, and keeps it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Error;
use crate::catalog::{
    CatalogView, CollectionChange, CollectionInfo, IndexDef, NewCollection, NewIndex, PartitionInfo,
};
use crate::clock::{HybridClock, Wall};
use crate::collection::Collection;
use crate::pools::Pools;

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
    /// Writes are refused with [`Error::MemoryLimit`] while all collections together hold more
    /// unsealed bytes than this.
    pub growing_limit_bytes: usize,
    /// The collection that holds back the log most is checkpointed when the log is larger.
    pub log_limit_bytes: u64,
    /// How long a deleted or replaced row can still be seen by a view of the past.
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
            growing_limit_bytes: 2 << 30,
            log_limit_bytes: 1 << 30,
            retention_ms: 15 * 60 * 1000,
            wall: Wall::system(),
        }
    }
}

/// Whether the node can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether writes are accepted.
    pub writable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Ids of quarantined collections, each with its damage.
    pub damaged: Vec<(i64, String)>,
}

/// An open data directory. Clones are handles to the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<()>,
}

impl Engine {
    /// Locks the directory, recovers its content and starts the background threads.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process id; [`Error::Corrupt`] for a damaged catalog
    /// or log; [`Error::Io`].
    pub async fn open(options: Options) -> Result<Self, Error> {
        todo!("{options:?}")
    }

    /// Finishes queued writes, syncs the log and stops the threads. Does not checkpoint.
    pub async fn shutdown(&self) {}

    /// The source of all timestamps.
    pub fn clock(&self) -> &HybridClock {
        todo!()
    }

    /// The newest version of the catalog.
    pub fn catalog(&self) -> Arc<CatalogView> {
        todo!()
    }

    /// The open collection with that id.
    pub fn collection(&self, id: i64) -> Option<Arc<Collection>> {
        todo!("{id}")
    }

    /// Whether the node can do its work.
    pub fn health(&self) -> Health {
        todo!()
    }

    /// Where CPU work runs.
    pub fn pools(&self) -> &Pools {
        todo!()
    }

    /// Creates a database.
    ///
    /// # Errors
    /// [`Error::DatabaseExists`], or what prevents the commit.
    pub async fn create_database(
        &self,
        name: &str,
        properties: Vec<(String, String)>,
    ) -> Result<(), Error> {
        todo!("{name} {properties:?}")
    }

    /// Drops an empty database.
    ///
    /// # Errors
    /// [`Error::DatabaseNotFound`], [`Error::DatabaseNotEmpty`], [`Error::Invalid`] for the
    /// default database.
    pub async fn drop_database(&self, name: &str) -> Result<(), Error> {
        todo!("{name}")
    }

    /// Sets and removes properties of a database.
    ///
    /// # Errors
    /// [`Error::DatabaseNotFound`].
    pub async fn alter_database(
        &self,
        name: &str,
        set: Vec<(String, String)>,
        delete: Vec<String>,
    ) -> Result<(), Error> {
        todo!("{name} {set:?} {delete:?}")
    }

    /// Creates a collection.
    ///
    /// # Errors
    /// [`Error::DatabaseNotFound`], [`Error::CollectionExists`], [`Error::AliasNameConflict`],
    /// [`Error::Invalid`] for an unusable schema.
    pub async fn create_collection(
        &self,
        db: &str,
        new: NewCollection,
    ) -> Result<Arc<CollectionInfo>, Error> {
        todo!("{db} {new:?}")
    }

    /// Drops a collection with its aliases; its files go when the last reader is done.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`].
    pub async fn drop_collection(&self, db: &str, name: &str) -> Result<(), Error> {
        todo!("{db} {name}")
    }

    /// Renames a collection, also into another database.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::DatabaseNotFound`], [`Error::CollectionExists`],
    /// [`Error::AliasNameConflict`].
    pub async fn rename_collection(
        &self,
        db: &str,
        old: &str,
        new_db: &str,
        new: &str,
    ) -> Result<(), Error> {
        todo!("{db} {old} {new_db} {new}")
    }

    /// Changes a collection and returns what it is now.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::PartitionNotFound`], [`Error::Invalid`].
    pub async fn alter_collection(
        &self,
        db: &str,
        name: &str,
        change: CollectionChange,
    ) -> Result<Arc<CollectionInfo>, Error> {
        todo!("{db} {name} {change:?}")
    }

    /// Creates a partition; it is loaded if the collection is.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::PartitionExists`].
    pub async fn create_partition(
        &self,
        db: &str,
        collection: &str,
        name: &str,
    ) -> Result<PartitionInfo, Error> {
        todo!("{db} {collection} {name}")
    }

    /// Drops a partition with its rows.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::PartitionNotFound`], [`Error::Invalid`] for the
    /// default partition.
    pub async fn drop_partition(
        &self,
        db: &str,
        collection: &str,
        name: &str,
    ) -> Result<(), Error> {
        todo!("{db} {collection} {name}")
    }

    /// Creates an alias.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::AliasExists`], [`Error::AliasNameConflict`].
    pub async fn create_alias(&self, db: &str, alias: &str, collection: &str) -> Result<(), Error> {
        todo!("{db} {alias} {collection}")
    }

    /// Drops an alias.
    ///
    /// # Errors
    /// [`Error::AliasNotFound`].
    pub async fn drop_alias(&self, db: &str, alias: &str) -> Result<(), Error> {
        todo!("{db} {alias}")
    }

    /// Points an existing alias to another collection.
    ///
    /// # Errors
    /// [`Error::AliasNotFound`], [`Error::CollectionNotFound`].
    pub async fn alter_alias(&self, db: &str, alias: &str, collection: &str) -> Result<(), Error> {
        todo!("{db} {alias} {collection}")
    }

    /// Defines an index; the same definition again changes nothing.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::IndexExists`], [`Error::Invalid`] for an unknown
    /// field.
    pub async fn create_index(
        &self,
        db: &str,
        collection: &str,
        new: NewIndex,
    ) -> Result<IndexDef, Error> {
        todo!("{db} {collection} {new:?}")
    }

    /// Drops the definition of an index.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::IndexNotFound`].
    pub async fn drop_index(&self, db: &str, collection: &str, name: &str) -> Result<(), Error> {
        todo!("{db} {collection} {name}")
    }

    /// Sets and removes parameters of an index.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::IndexNotFound`].
    pub async fn alter_index(
        &self,
        db: &str,
        collection: &str,
        name: &str,
        set: Vec<(String, String)>,
        delete: Vec<String>,
    ) -> Result<(), Error> {
        todo!("{db} {collection} {name} {set:?} {delete:?}")
    }

    /// Seals what is growing, now. Returns the ids of the new segments.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] and what prevents writing.
    pub async fn flush(&self, collection: i64) -> Result<Vec<i64>, Error> {
        todo!("{collection}")
    }

    /// Removes all rows.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] and what prevents writing.
    pub async fn truncate(&self, collection: i64) -> Result<(), Error> {
        todo!("{collection}")
    }
}
