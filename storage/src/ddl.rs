//! Changes of the catalog: each commits one version, durably, and then takes effect.
//!
//! They run one after another on the catalog's thread. The order of steps is what makes them
//! atomic through a crash: what the catalog will refer to is on disk before it is committed, and
//! what it no longer refers to goes afterwards, at the latest at the next start.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Error;
use crate::apply::Control;
use crate::catalog::{
    CatalogView, CollectionChange, CollectionInfo, IndexDef, NewCollection, NewIndex, PartitionInfo,
};
use crate::checkpoint;
use crate::clock::Ts;
use crate::collection::Collection;
use crate::engine::{Core, Engine};
use crate::manifest::{Manifests, collection_dir};
use crate::upkeep;

impl Engine {
    /// Commits a change of one collection and shows it to the collection.
    async fn change<T: Send + 'static>(
        &self,
        edit: impl FnOnce(&mut CatalogView, Ts) -> Result<(Arc<CollectionInfo>, T), Error>
        + Send
        + 'static,
    ) -> Result<T, Error> {
        let core = Arc::clone(self.core());
        let work = move || {
            let (info, value) = core.commit_catalog(edit)?;
            show(&core, &info)?;
            Ok(value)
        };
        self.core().jobs.ddl(work).await
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
        let (core, name) = (Arc::clone(self.core()), name.to_owned());
        let work = move || {
            core.commit_catalog(|catalog, ts| catalog.create_database(&name, properties, ts))
        };
        self.core().jobs.ddl(work).await
    }

    /// Drops an empty database.
    ///
    /// # Errors
    /// [`Error::DatabaseNotFound`], [`Error::DatabaseNotEmpty`], [`Error::Invalid`] for the
    /// default database.
    pub async fn drop_database(&self, name: &str) -> Result<(), Error> {
        let (core, name) = (Arc::clone(self.core()), name.to_owned());
        let work = move || core.commit_catalog(|catalog, _| catalog.drop_database(&name));
        self.core().jobs.ddl(work).await
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
        let (core, name) = (Arc::clone(self.core()), name.to_owned());
        let work =
            move || core.commit_catalog(|catalog, _| catalog.alter_database(&name, set, &delete));
        self.core().jobs.ddl(work).await
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
        let (core, db) = (Arc::clone(self.core()), db.to_owned());
        self.core().jobs.ddl(move || create_collection(&core, &db, new)).await
    }

    /// Drops a collection with its aliases; its files go when the last reader is done.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`].
    pub async fn drop_collection(&self, db: &str, name: &str) -> Result<(), Error> {
        let (core, db, name) = (Arc::clone(self.core()), db.to_owned(), name.to_owned());
        self.core().jobs.ddl(move || drop_collection(&core, &db, &name)).await
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
        let [db, old, new_db, new] = [db, old, new_db, new].map(str::to_owned);
        self.change(move |catalog, _| {
            catalog.rename_collection(&db, &old, &new_db, &new).map(|info| (info, ()))
        })
        .await
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
        let [db, name] = [db, name].map(str::to_owned);
        self.change(move |catalog, ts| {
            let info = catalog.alter_collection(&db, &name, change, ts)?;
            Ok((Arc::clone(&info), info))
        })
        .await
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
        let [db, collection, name] = [db, collection, name].map(str::to_owned);
        self.change(move |catalog, ts| catalog.create_partition(&db, &collection, &name, ts)).await
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
        let [db, collection, name] = [db, collection, name].map(str::to_owned);
        let core = Arc::clone(self.core());
        self.change(move |catalog, _| {
            let info = catalog.drop_partition(&db, &collection, &name)?;
            Ok((Arc::clone(&info), info.id))
        })
        .await
        .map(|id| remove_partitions_in_background(&core, id))
    }

    /// Creates an alias.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::AliasExists`], [`Error::AliasNameConflict`].
    pub async fn create_alias(&self, db: &str, alias: &str, collection: &str) -> Result<(), Error> {
        let (core, [db, alias, collection]) =
            (Arc::clone(self.core()), [db, alias, collection].map(str::to_owned));
        let work = move || {
            core.commit_catalog(|catalog, _| catalog.create_alias(&db, &alias, &collection))
        };
        self.core().jobs.ddl(work).await
    }

    /// Drops an alias.
    ///
    /// # Errors
    /// [`Error::AliasNotFound`].
    pub async fn drop_alias(&self, db: &str, alias: &str) -> Result<(), Error> {
        let (core, [db, alias]) = (Arc::clone(self.core()), [db, alias].map(str::to_owned));
        let work = move || core.commit_catalog(|catalog, _| catalog.drop_alias(&db, &alias));
        self.core().jobs.ddl(work).await
    }

    /// Points an existing alias to another collection.
    ///
    /// # Errors
    /// [`Error::AliasNotFound`], [`Error::CollectionNotFound`].
    pub async fn alter_alias(&self, db: &str, alias: &str, collection: &str) -> Result<(), Error> {
        let (core, [db, alias, collection]) =
            (Arc::clone(self.core()), [db, alias, collection].map(str::to_owned));
        let work =
            move || core.commit_catalog(|catalog, _| catalog.alter_alias(&db, &alias, &collection));
        self.core().jobs.ddl(work).await
    }

    /// Defines an index; the same definition again changes nothing. A graph is built in the
    /// background ([`Collection::index_progress`]), until then searches are exact; so are sorted
    /// terms, until then filters look at the rows.
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
        let [db, collection] = [db, collection].map(str::to_owned);
        self.change(move |catalog, _| catalog.create_index(&db, &collection, new)).await
    }

    /// Drops the definition of an index; its files go in the background.
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`], [`Error::IndexNotFound`].
    pub async fn drop_index(&self, db: &str, collection: &str, name: &str) -> Result<(), Error> {
        let [db, collection, name] = [db, collection, name].map(str::to_owned);
        self.change(move |catalog, _| {
            catalog.drop_index(&db, &collection, &name).map(|info| (info, ()))
        })
        .await
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
        let [db, collection, name] = [db, collection, name].map(str::to_owned);
        self.change(move |catalog, _| {
            catalog.alter_index(&db, &collection, &name, set, &delete).map(|info| (info, ()))
        })
        .await
    }
}

/// Lets a collection and the applier know what the catalog says now.
pub(crate) fn show(core: &Arc<Core>, info: &Arc<CollectionInfo>) -> Result<(), Error> {
    let Some(collection) = core.collection(info.id) else { return Ok(()) };
    let partitions = |info: &CollectionInfo| info.partitions.iter().map(|p| p.id).collect();
    let live = partitions(info);
    let before = collection.info();
    let changed = live != partitions(&before);
    collection.set_info(Arc::clone(info));
    if info.indexes != before.indexes || info.schema.pending != before.schema.pending {
        upkeep::indexes_changed(core, &collection);
    }
    if changed {
        // Whoever reads after this must not see rows of a partition that is gone.
        let collection = info.id;
        checkpoint::ask(core, |reply| Control::Partitions { collection, live, reply })?;
    }
    Ok(())
}

fn create_collection(
    core: &Arc<Core>,
    db: &str,
    new: NewCollection,
) -> Result<Arc<CollectionInfo>, Error> {
    core.admit_rows(0)?;
    let (info, manifests) = core.commit_catalog(|catalog, ts| {
        let info = catalog.create_collection(db, new, ts)?;
        // An attempt that failed may have left a directory of that id.
        core.blobs.remove_dir(&collection_dir(info.id))?;
        let manifests = Manifests::create(&core.blobs, info.id, ts)?;
        Ok((info, manifests))
    })?;
    let dir = Arc::new(core.blobs.published(&collection_dir(info.id)));
    let collection =
        Arc::new(Collection::new(Arc::clone(core), Arc::clone(&info), dir, Some(manifests)));
    core.log()?.control(Control::Open(Arc::clone(&collection)))?;
    let mut collections: HashMap<_, _> = core.collections().as_ref().clone();
    collections.insert(info.id, collection);
    core.set_collections(collections);
    Ok(info)
}

fn drop_collection(core: &Arc<Core>, db: &str, name: &str) -> Result<(), Error> {
    let id = core.commit_catalog(|catalog, _| catalog.drop_collection(db, name))?;
    let mut collections: HashMap<_, _> = core.collections().as_ref().clone();
    if let Some(collection) = collections.remove(&id) {
        // The files go when the applier, running jobs and the last reader have let go.
        collection.dir().doom();
        collection.upkeep().stop();
    }
    core.set_collections(collections);
    core.log()?.control(Control::Close(id))?;
    let core = Arc::clone(core);
    core.clone().in_background(move || checkpoint::trim_log(&core));
    Ok(())
}

fn remove_partitions_in_background(core: &Arc<Core>, id: i64) {
    let core = Arc::clone(core);
    core.clone().in_background(move || {
        let Some(collection) = core.collection(id) else { return };
        if let Err(error) = checkpoint::remove_dropped_partitions(&core, &collection) {
            tracing::warn!(%error, "space of a dropped partition stays until the next start");
        }
    });
}
