//! The catalog on disk: a versioned document, committed before anybody sees a change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CatalogView, CollectionInfo, DEFAULT_DB, DatabaseInfo};
use crate::Error;
use crate::blobs::Blobs;
use crate::clock::Ts;
use crate::document::{self, Document};
use crate::log::Lsn;

/// Directory of the catalog's versions.
const PREFIX: &str = "catalog";

/// The catalog's form on disk.
#[derive(Serialize, Deserialize)]
struct Content {
    next_id: i64,
    segment_floor: i64,
    log_start: Lsn,
    #[serde(default)]
    log_end: Lsn,
    ts: Ts,
    databases: Vec<DatabaseInfo>,
    collections: Vec<CollectionInfo>,
    aliases: Vec<Alias>,
}

#[derive(Serialize, Deserialize)]
struct Alias {
    db: String,
    alias: String,
    collection: i64,
}

/// The one place that commits versions of the catalog.
#[derive(Debug)]
pub(crate) struct CatalogStore {
    document: Document,
}

impl CatalogStore {
    /// Opens the newest version; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged.
    pub(crate) fn open(blobs: &Blobs) -> Result<(Self, Option<CatalogView>), Error> {
        let (document, content) = Document::open::<Content>(blobs, PREFIX)?;
        let version = document.version();
        let view = content.map(|content| CatalogView::from_content(content, version));
        Ok((Self { document }, view))
    }

    /// The newest version, or `None` where there is none. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged.
    pub(crate) fn peek(blobs: &Blobs) -> Result<Option<CatalogView>, Error> {
        let found = Document::peek::<Content>(blobs, PREFIX)?;
        Ok(found.map(|(version, content)| CatalogView::from_content(content, version)))
    }

    /// See [`Document::settle`].
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.document.settle()
    }

    /// Commits the next version; durable on return.
    pub(crate) fn commit(&mut self, mut view: CatalogView) -> Result<CatalogView, Error> {
        view.version = self.document.commit(&view.to_content())?;
        view.index();
        Ok(view)
    }
}

/// Reads a version of the catalog back. The error says what was expected and what was found.
pub(crate) fn decode(bytes: &[u8], version: u64) -> Result<CatalogView, String> {
    let content = document::decode::<Content>(bytes, version)?;
    Ok(CatalogView::from_content(content, version))
}

impl CatalogView {
    /// The catalog of a new data directory.
    pub(crate) fn fresh(ts: Ts) -> Self {
        let default = DatabaseInfo {
            id: 1,
            name: DEFAULT_DB.to_owned(),
            created: ts,
            properties: Vec::new(),
        };
        Self {
            next_id: 2,
            segment_floor: 1,
            log_start: 1,
            ts,
            databases: [(DEFAULT_DB.to_owned(), default)].into(),
            ..Self::default()
        }
    }

    /// Greater than every segment id that a collection, dropped ones included, may have used.
    pub(crate) fn segment_floor(&self) -> i64 {
        self.segment_floor
    }

    /// The log holds every record from here on; what is before has been removed.
    pub(crate) fn log_start(&self) -> Lsn {
        self.log_start
    }

    /// The log held every record below when a node was stopped in good order last.
    pub(crate) fn log_end(&self) -> Lsn {
        self.log_end
    }

    /// Not below any timestamp in the catalog.
    pub(crate) fn ts(&self) -> Ts {
        self.ts
    }

    fn from_content(content: Content, version: u64) -> Self {
        let mut aliases: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for Alias { db, alias, collection } in content.aliases {
            aliases.entry(db).or_default().insert(alias, collection);
        }
        let mut view = Self {
            version,
            next_id: content.next_id,
            segment_floor: content.segment_floor,
            log_start: content.log_start,
            log_end: content.log_end,
            ts: content.ts,
            databases: content.databases.into_iter().map(|db| (db.name.clone(), db)).collect(),
            collections: (content.collections.into_iter())
                .map(|collection| (collection.id, Arc::new(collection)))
                .collect(),
            names: HashMap::new(),
            aliases,
        };
        view.index();
        view
    }

    fn to_content(&self) -> Content {
        let aliases = (self.aliases.iter())
            .flat_map(|(db, aliases)| aliases.iter().map(move |(alias, id)| (db, alias, *id)))
            .map(|(db, alias, collection)| Alias {
                db: db.clone(),
                alias: alias.clone(),
                collection,
            })
            .collect();
        Content {
            next_id: self.next_id,
            segment_floor: self.segment_floor,
            log_start: self.log_start,
            log_end: self.log_end,
            ts: self.ts,
            databases: self.databases.values().cloned().collect(),
            collections: self.collections.values().map(|info| info.as_ref().clone()).collect(),
            aliases,
        }
    }

    /// Rebuilds the way from names to collections.
    fn index(&mut self) {
        self.names = HashMap::new();
        for info in self.collections.values() {
            self.names.entry(info.db.clone()).or_default().insert(info.name.clone(), info.id);
        }
    }
}
