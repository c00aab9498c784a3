//! A disk in memory that forgets what was not synced, and fails on demand.
//!
//! A file's bytes survive a crash as they were at its last sync, a name as it was when its
//! directory was last synced. What is pending may survive too, wholly, in part or not at all, and
//! each file and name for itself: [`Survival`] says which of that happens. Every call that changes
//! something is a point at which the disk can fail, and of which it can keep a picture.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use arrow_buffer::{Buffer, MutableBuffer};

use super::{Disk, Entry, File, Lock};
use crate::Error;

/// The unit in which pending bytes reach the disk in any order.
const SECTOR: usize = 512;

/// What of the pending changes is there after a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    /// Nothing: power was cut before anything was written back.
    Synced,
    /// Everything: only the process died. What was pending still is.
    Everything,
    /// Whatever chance leaves, by this seed.
    Some(u64),
}

/// What the disk is told to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This call only.
    Once(io::ErrorKind),
    /// This call and all later ones.
    FromNowOn(io::ErrorKind),
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Takes space; what a full disk refuses.
    Space,
    /// Takes none.
    Change,
    Sync,
}

/// A disk. Clones are handles to the same one.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

/// Told of every change, with the disk as it was before.
type Watch = Box<dyn FnMut(&Picture) + Send>;

#[derive(Default)]
struct State {
    now: Picture,
    /// Changing calls so far.
    calls: u64,
    syncs: u64,
    plan: Option<(u64, Failure)>,
    fail_syncs: bool,
    watch: Option<Watch>,
    locked: bool,
}

/// All that is on a disk, pending changes included. Cheap to clone: the bytes are shared.
#[derive(Clone)]
pub(crate) struct Picture {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Names as the process sees them, and as they are on disk.
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Arc<Vec<u8>>,
    synced: Arc<Vec<u8>>,
}

impl Default for Picture {
    fn default() -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Dir)]);
        Self { inodes: BTreeMap::new(), next_inode: 0, durable: root.clone(), names: root }
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryDisk")
    }
}

impl Picture {
    /// The disk that a crash at this moment leaves.
    pub(crate) fn crashed(&self, survival: Survival) -> MemoryDisk {
        let mut dice = Dice(match survival {
            Survival::Some(seed) => Some(seed),
            Survival::Synced | Survival::Everything => None,
        });
        if matches!(survival, Survival::Everything) {
            return MemoryDisk(Arc::new(Mutex::new(State {
                now: self.clone(),
                ..State::default()
            })));
        }
        let paths: std::collections::BTreeSet<&PathBuf> =
            self.names.keys().chain(self.durable.keys()).collect();
        let mut names = BTreeMap::new();
        for path in paths {
            let source = if dice.flip() == Some(true) { &self.names } else { &self.durable };
            let is_reachable = path.parent().is_none_or(|parent| {
                parent.as_os_str().is_empty() || names.get(parent) == Some(&Node::Dir)
            });
            if let Some(node) = source.get(path).filter(|_| is_reachable) {
                names.insert(path.clone(), *node);
            }
        }
        let mut inodes = BTreeMap::new();
        for node in names.values() {
            let Node::File(id) = *node else { continue };
            let inode = &self.inodes[&id];
            let bytes = match survival {
                Survival::Synced | Survival::Everything => Arc::clone(&inode.synced),
                Survival::Some(_) if inode.bytes == inode.synced => Arc::clone(&inode.synced),
                Survival::Some(_) => Arc::new(torn(inode, &mut dice)),
            };
            inodes.insert(id, Inode { synced: Arc::clone(&bytes), bytes });
        }
        let now = Self { inodes, next_inode: self.next_inode, durable: names.clone(), names };
        MemoryDisk(Arc::new(Mutex::new(State { now, ..State::default() })))
    }

    /// Feeds all that is there, pending or not, to a hasher.
    pub(crate) fn hash(&self, hasher: &mut impl Hasher) {
        for (path, node) in self.names.iter().chain(&self.durable) {
            path.hash(hasher);
            if let Node::File(id) = node {
                let Inode { bytes, synced } = &self.inodes[id];
                (id, bytes, synced).hash(hasher);
            }
        }
    }

    fn parent_is_there(&self, path: &Path) -> bool {
        path.parent().is_none_or(|parent| {
            parent.as_os_str().is_empty() || self.names.get(parent) == Some(&Node::Dir)
        })
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn children(&self, dir: &Path) -> impl Iterator<Item = (&PathBuf, &Node)> {
        self.names.iter().filter(move |(path, _)| path.parent() == Some(dir))
    }
}

/// A pending file as it may be found: some length between the two, some sectors not written.
fn torn(inode: &Inode, dice: &mut Dice) -> Vec<u8> {
    let (old, new) = (&inode.synced, &inode.bytes);
    let shorter = old.len().min(new.len());
    let len = shorter + dice.below(old.len().max(new.len()) - shorter + 1);
    let mut found = vec![0; len];
    for at in (0..len).step_by(SECTOR) {
        let end = (at + SECTOR).min(len);
        let source = if dice.below(4) == 0 { old } else { new };
        for (i, byte) in found[at..end].iter_mut().enumerate() {
            *byte = source.get(at + i).copied().unwrap_or(0);
        }
    }
    found
}

/// Chance by a seed; none without one.
struct Dice(Option<u64>);

impl Dice {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> Option<u64> {
        let state = self.0.as_mut()?;
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Some(z ^ (z >> 31))
    }

    fn flip(&mut self) -> Option<bool> {
        self.next().map(|n| n % 2 == 0)
    }

    fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap();
        usize::try_from(self.next().unwrap_or(0) % n).unwrap()
    }
}

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The disk as it is.
    pub(crate) fn picture(&self) -> Picture {
        self.state().now.clone()
    }

    /// Calls `watch` before every change, with the disk as it is then.
    pub(crate) fn watch(&self, watch: impl FnMut(&Picture) + Send + 'static) {
        self.state().watch = Some(Box::new(watch));
    }

    /// Changes so far.
    pub(crate) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Syncs of files so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Lets the change after `calls` others fail.
    pub(crate) fn fail_after(&self, calls: u64, failure: Failure) {
        let mut state = self.state();
        state.plan = Some((state.calls + calls, failure));
    }

    /// Makes the disk work again.
    pub(crate) fn mend(&self) {
        let mut state = self.state();
        (state.plan, state.fail_syncs) = (None, false);
    }

    /// Lets all syncs fail.
    pub(crate) fn fail_syncs(&self) {
        self.state().fail_syncs = true;
    }

    fn change<T>(
        &self,
        call: Call,
        change: impl FnOnce(&mut Picture) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(watch) = &mut state.watch {
            watch(&state.now);
        }
        let number = state.calls;
        state.calls += 1;
        state.syncs += u64::from(call == Call::Sync);
        let fails = state.plan.and_then(|(at, failure)| match failure {
            Failure::Once(kind) => (at == number).then_some(kind),
            Failure::FromNowOn(kind) => (at <= number).then_some(kind),
        });
        if let Some(kind) = fails
            && (kind != io::ErrorKind::StorageFull || call == Call::Space)
        {
            return Err(kind.into());
        }
        if call == Call::Sync && state.fail_syncs {
            return Err(io::Error::other("the disk is broken"));
        }
        change(&mut state.now)
    }
}

impl Disk for MemoryDisk {
    fn lock(&self, dir: &Path) -> Result<Box<dyn Lock>, Error> {
        let mut state = self.state();
        if std::mem::replace(&mut state.locked, true) {
            return Err(Error::Locked { path: dir.to_owned(), pid: "unknown".into() });
        }
        Ok(Box::new(Unlock(self.clone())))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Call::Space, |now| {
            if now.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !now.parent_is_there(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            now.names.insert(path.to_owned(), Node::Dir);
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Call::Sync, |now| {
            let in_dir: Vec<(PathBuf, Node)> =
                now.children(path).map(|(path, node)| (path.clone(), *node)).collect();
            now.durable.retain(|name, _| name.parent() != Some(path));
            now.durable.extend(in_dir);
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state();
        if state.now.names.get(path) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entries = state.now.children(path).map(|(path, node)| look(&state.now, path, *node));
        Ok(entries.collect())
    }

    fn look(&self, path: &Path) -> io::Result<Entry> {
        let state = self.state();
        let node = state.now.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(look(&state.now, path, *node))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let inode = self.change(Call::Space, |now| {
            if !now.parent_is_there(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if let Ok(id) = now.file(path) {
                now.inodes.entry(id).or_default().bytes = Arc::default();
                return Ok(id);
            }
            let id = now.next_inode;
            now.next_inode += 1;
            now.inodes.insert(id, Inode::default());
            now.names.insert(path.to_owned(), Node::File(id));
            Ok(id)
        })?;
        Ok(Box::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn read(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let state = self.state();
        let bytes = &state.now.inodes[&state.now.file(path)?].bytes;
        Ok(Box::new(Cursor::new(bytes.as_ref().clone())))
    }

    fn map(&self, path: &Path) -> io::Result<Buffer> {
        let state = self.state();
        let bytes = &state.now.inodes[&state.now.file(path)?].bytes;
        let mut aligned = MutableBuffer::new(bytes.len());
        aligned.extend_from_slice(bytes);
        Ok(aligned.into())
    }

    fn truncate(&self, path: &Path, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.change(Call::Change, |now| {
            let id = now.file(path)?;
            Arc::make_mut(&mut now.inodes.entry(id).or_default().bytes).truncate(len);
            Ok(())
        })?;
        self.change(Call::Sync, |now| {
            let id = now.file(path)?;
            let inode = now.inodes.entry(id).or_default();
            inode.synced = Arc::clone(&inode.bytes);
            Ok(())
        })
    }

    fn rewrite(&self, path: &Path, _: u64) -> io::Result<()> {
        self.change(Call::Sync, |now| {
            let id = now.file(path)?;
            let inode = now.inodes.entry(id).or_default();
            inode.synced = Arc::clone(&inode.bytes);
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Call::Change, |now| {
            let id = now.file(from)?;
            now.names.remove(from);
            now.names.insert(to.to_owned(), Node::File(id));
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Call::Space, |now| {
            let id = now.file(from)?;
            if now.names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            now.names.insert(to.to_owned(), Node::File(id));
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(Call::Change, |now| {
            now.file(path)?;
            now.names.remove(path);
            Ok(())
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Call::Change, |now| {
            if now.names.get(path) != Some(&Node::Dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if now.children(path).next().is_some() {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            now.names.remove(path);
            Ok(())
        })
    }

    fn space(&self, _: &Path) -> io::Result<(u64, u64)> {
        Ok((1 << 40, 1 << 40))
    }

    fn reserve(&self, _: &Path, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn look(now: &Picture, path: &Path, node: Node) -> Entry {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match node {
        Node::Dir => Entry { name, len: 0, is_dir: true },
        Node::File(id) => Entry { name, len: now.inodes[&id].bytes.len() as u64, is_dir: false },
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: u64,
}

impl Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inode = self.inode;
        self.disk.change(Call::Space, |now| {
            let file = now.inodes.entry(inode).or_default();
            Arc::make_mut(&mut file.bytes).extend_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn sync(&mut self) -> io::Result<()> {
        let inode = self.inode;
        self.disk.change(Call::Sync, |now| {
            let file = now.inodes.entry(inode).or_default();
            file.synced = Arc::clone(&file.bytes);
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let (inode, len) = (self.inode, usize::try_from(len).unwrap());
        self.disk.change(Call::Change, |now| {
            Arc::make_mut(&mut now.inodes.entry(inode).or_default().bytes).truncate(len);
            Ok(())
        })
    }
}

struct Unlock(MemoryDisk);

impl Lock for Unlock {
    fn tell_holder(&self) {}
}

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}
