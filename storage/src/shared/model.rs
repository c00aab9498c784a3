//! The cells under `loom`: every order in which few threads can come is run.
//!
//! What is checked is how the engine uses them. A version is published, then acknowledged; a
//! segment that was merged away is doomed before or after the version without it is published; an
//! index is replaced while a search opens it.

use std::collections::BTreeSet;
use std::sync::{Arc as StdArc, Mutex as StdMutex};

use loom::thread;

use cell::{Doomable, Kept, Newest, Outside, Parts};
use sync::{Arc, AtomicBool, Ordering};

#[expect(clippy::duplicate_mod, reason = "the same code, with other threads")]
#[path = "cell.rs"]
mod cell;

/// What the cells need of threads, as loom has it.
mod sync {
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering};

    /// What `arc_swap` promises: loads and stores happen one after the other.
    #[derive(Debug)]
    pub(super) struct ArcSwap<T>(loom::sync::Mutex<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(super) fn new(value: Arc<T>) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(super) fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.0.lock().unwrap())
        }

        pub(super) fn store(&self, value: Arc<T>) {
            let old = std::mem::replace(&mut *self.0.lock().unwrap(), value);
            // Not under the lock, which readers of the real one do not wait for.
            drop(old);
        }
    }
}

/// The names in a directory.
#[derive(Clone, Debug, Default)]
struct Disk(StdArc<StdMutex<BTreeSet<u32>>>);

impl Disk {
    fn create(&self, name: u32) -> Arc<Kept<File>> {
        assert!(self.0.lock().unwrap().insert(name), "file {name} is there twice");
        Arc::new(Kept::new(File { disk: self.clone(), name }))
    }

    fn names(&self) -> Vec<u32> {
        self.0.lock().unwrap().iter().copied().collect()
    }
}

#[derive(Debug)]
struct File {
    disk: Disk,
    name: u32,
}

impl File {
    /// What a reader does that maps it late.
    fn open(&self) {
        assert!(self.disk.names().contains(&self.name), "file {} is gone", self.name);
    }
}

impl Outside for File {
    fn remove(&self) {
        assert!(self.disk.0.lock().unwrap().remove(&self.name), "file {} goes twice", self.name);
    }
}

/// A version and the files of its segments.
struct Version {
    ts: u32,
    files: Vec<Arc<Kept<File>>>,
}

#[test]
fn a_version_is_seen_once_it_is_acknowledged_and_time_does_not_go_back() {
    loom::model(|| {
        let newest = Arc::new(Newest::new(Version { ts: 1, files: vec![] }));
        let acknowledged = Arc::new(AtomicBool::new(false));
        let writer = {
            let (newest, acknowledged) = (Arc::clone(&newest), Arc::clone(&acknowledged));
            thread::spawn(move || {
                newest.store(Version { ts: 2, files: vec![] });
                acknowledged.store(true, Ordering::Release);
                newest.store(Version { ts: 3, files: vec![] });
            })
        };
        let was_told = acknowledged.load(Ordering::Acquire);
        let first = newest.load();
        assert!(!was_told || first.ts >= 2, "an acknowledged write is not seen");
        assert!(newest.load().ts >= first.ts, "time goes back");
        writer.join().unwrap();
        assert_eq!(newest.load().ts, 3);
    });
}

#[test]
fn the_files_of_a_version_are_there_for_its_readers_and_go_with_the_last() {
    loom::model(|| {
        let disk = Disk::default();
        let files = vec![disk.create(1), disk.create(2)];
        let newest = Arc::new(Newest::new(Version { ts: 1, files }));
        let read = |newest: &Newest<Version>| {
            let version = newest.load();
            version.files.iter().for_each(|file| file.what().open());
        };
        let reader = {
            let newest = Arc::clone(&newest);
            thread::spawn(move || read(&newest))
        };
        // As a merge does it: 1 and 2 become 3. One is doomed before the new version is there,
        // and one after.
        let old = newest.load();
        let merged = disk.create(3);
        old.files[0].doom();
        newest.store(Version { ts: 2, files: vec![merged] });
        old.files[1].doom();
        assert!(old.files.iter().all(|file| file.is_doomed()));
        drop(old);
        read(&newest);
        reader.join().unwrap();
        assert_eq!(disk.names(), [3], "what was replaced goes with its last reader");
        drop(newest);
        assert_eq!(disk.names(), [3], "what was not doomed stays");
    });
}

/// An index, as a part of a segment.
struct Index {
    field: u32,
    file: Arc<Kept<File>>,
}

impl Doomable for Index {
    fn doom(&self) {
        self.file.doom();
    }
}

#[test]
fn an_index_is_replaced_while_a_search_opens_it() {
    loom::model(|| {
        let disk = Disk::default();
        let index = |field, name| Arc::new(Index { field, file: disk.create(name) });
        let parts = Arc::new(Parts::new(vec![index(7, 1), index(8, 2)]));
        let reader = {
            let parts = Arc::clone(&parts);
            thread::spawn(move || {
                let found = parts.load();
                let of_field: Vec<_> = found.iter().filter(|index| index.field == 7).collect();
                assert_eq!(of_field.len(), 1, "a search sees both or none");
                of_field[0].file.what().open();
            })
        };
        parts.replace(|index| index.field == 7, Some(index(7, 3)));
        reader.join().unwrap();
        assert_eq!(disk.names(), [2, 3]);
        parts.replace(|index| index.field == 8, None);
        assert_eq!(disk.names(), [3]);
        // The segment goes, and its reader is the last who holds it.
        let reader = {
            let parts = Arc::clone(&parts);
            thread::spawn(move || parts.load().iter().for_each(|index| index.file.what().open()))
        };
        parts.doom();
        drop(parts);
        reader.join().unwrap();
        assert_eq!(disk.names(), [0; 0]);
    });
}
