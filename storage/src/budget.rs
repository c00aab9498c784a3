//! Memory that the node may use, and who has it.
//!
//! Requests that are being read, rows that are not sealed, writes on their way, results on theirs and
//! the scratch space of builds are counted here, and indexes that were read into memory; what else is in the process (models) is
//! told. Past [`Budget::soft`] the largest
//! collection is sealed, past the hard limit writes and results are refused until that has helped. Work that
//! frees memory is counted but never refused. Mapped files are the kernel's to take back and do
//! not count.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fs_err as fs;

use crate::Error;

/// The limit where neither a cgroup nor the machine tells one.
const UNKNOWN_LIMIT: usize = 2 << 30;

/// The share of the limit at which sealing begins: a collection's rows are in memory twice while
/// they are sorted.
const SOFT: (usize, usize) = (1, 2);

/// The share of the limit at which writes are refused. The rest is for what is not counted: code,
/// stacks, results, the allocator's own.
const HARD: (usize, usize) = (4, 5);

/// The share of the limit that requests may take while they are read and answered. They cannot take
/// the room that answering them needs.
const REQUESTS: (usize, usize) = (1, 4);

/// The share of the limit that indexes in memory may take, together with the models, which stay as
/// well. Beyond it indexes are mapped.
const INDEXES: (usize, usize) = (1, 4);

/// The share of the limit that sorted terms may take while they are made.
const TERMS: (usize, usize) = (1, 4);

/// Who uses memory now, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What the node may use.
    pub limit: usize,
    /// Requests that are being read or answered.
    pub requests: usize,
    /// Rows that are not sealed.
    pub growing: usize,
    /// Writes on their way into the log.
    pub writes: usize,
    /// Rows on their way to clients.
    pub results: usize,
    /// Scratch space of checkpoints and index builds.
    pub builds: usize,
    /// Indexes that were read into memory.
    pub indexes: usize,
    /// What was told with [`crate::Engine::set_other_memory`].
    pub other: usize,
}

impl MemoryUse {
    fn total(&self) -> usize {
        [self.requests, self.writes, self.results, self.builds, self.indexes, self.other]
            .iter()
            .fold(self.growing, |a, b| a.saturating_add(*b))
    }

    fn is_above(&self, (part, of): (usize, usize), bytes: usize) -> bool {
        self.total().saturating_add(bytes) > self.limit / of * part
    }

    /// Why writes are refused, while they are.
    pub fn refusal(&self) -> Option<String> {
        self.is_above(HARD, 0).then(|| self.explained(0))
    }

    fn explained(&self, bytes: usize) -> String {
        let Self { limit, requests, growing, writes, results, builds, indexes, other } = self;
        format!(
            "{bytes} more bytes beside {requests} of requests, {growing} of rows that are not sealed, \
             {writes} of writes, {results} of results, {builds} of builds, {indexes} of indexes and {other} of models \
             come too close to {limit}; rows are being sealed, try again"
        )
    }
}

/// The node's memory.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    requests: AtomicUsize,
    growing: AtomicUsize,
    writes: AtomicUsize,
    results: AtomicUsize,
    builds: AtomicUsize,
    indexes: AtomicUsize,
    other: AtomicUsize,
    /// Something is being sealed to free memory.
    relieving: AtomicBool,
}

impl Budget {
    /// A budget of `limit` bytes; 0 takes what the cgroup or the machine has.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let limit = if limit == 0 { detect(Path::new("/")) } else { limit };
        Arc::new(Self {
            limit,
            requests: AtomicUsize::new(0),
            growing: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            results: AtomicUsize::new(0),
            builds: AtomicUsize::new(0),
            indexes: AtomicUsize::new(0),
            other: AtomicUsize::new(0),
            relieving: AtomicBool::new(false),
        })
    }

    pub(crate) fn now(&self) -> MemoryUse {
        let load = |bytes: &AtomicUsize| bytes.load(Ordering::Relaxed);
        MemoryUse {
            limit: self.limit,
            requests: load(&self.requests),
            growing: load(&self.growing),
            writes: load(&self.writes),
            results: load(&self.results),
            builds: load(&self.builds),
            indexes: load(&self.indexes),
            other: load(&self.other),
        }
    }

    pub(crate) fn set_growing(&self, bytes: usize) {
        self.growing.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_other(&self, bytes: usize) {
        self.other.store(bytes, Ordering::Relaxed);
    }

    /// For a request, whose bytes count [as they arrive](Held::grow) until the guard is dropped.
    pub(crate) fn hold_request(self: &Arc<Self>) -> Held {
        self.hold(Kind::Request, 0)
    }

    /// Lets a write in; it counts until the guard is dropped. The second value says that sealing
    /// should begin.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`]; sealing should begin as well.
    pub(crate) fn admit_write(self: &Arc<Self>, bytes: usize) -> (Result<Held, Error>, bool) {
        let now = self.now();
        if now.is_above(HARD, bytes) {
            return (Err(Error::MemoryLimit(now.explained(bytes))), true);
        }
        (Ok(self.hold(Kind::Write, bytes)), now.is_above(SOFT, bytes))
    }

    /// Lets rows that are on their way to a client take memory; it counts until the guard is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`].
    pub(crate) fn admit_results(self: &Arc<Self>, bytes: usize) -> Result<Held, Error> {
        let now = self.now();
        if now.is_above(HARD, bytes) {
            return Err(Error::MemoryLimit(now.explained(bytes)));
        }
        Ok(self.hold(Kind::Results, bytes))
    }

    /// Lets an index be read into memory, for as long as the guard is kept; `None` if there is no
    /// room for it.
    pub(crate) fn admit_index(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        // Counted first, so that two at once do not both take the last room.
        let held = self.hold(Kind::Index, bytes);
        let MemoryUse { limit, indexes, other, .. } = self.now();
        let (part, of) = INDEXES;
        (indexes.saturating_add(other) <= limit / of * part).then_some(held)
    }

    /// What the terms of one segment may take while they are sorted. It is not less while others
    /// take much: what cannot be built once is not tried again.
    pub(crate) fn most_for_terms(&self) -> usize {
        let (part, of) = TERMS;
        self.limit / of * part
    }

    /// Counts the scratch space of a build until the guard is dropped.
    pub(crate) fn hold_for_build(self: &Arc<Self>, bytes: usize) -> Held {
        self.hold(Kind::Build, bytes)
    }

    fn hold(self: &Arc<Self>, kind: Kind, bytes: usize) -> Held {
        self.of(kind).fetch_add(bytes, Ordering::Relaxed);
        Held { budget: Arc::clone(self), kind, bytes: AtomicUsize::new(bytes) }
    }

    fn of(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Request => &self.requests,
            Kind::Write => &self.writes,
            Kind::Results => &self.results,
            Kind::Build => &self.builds,
            Kind::Index => &self.indexes,
        }
    }

    /// Whether the caller is to free memory; whoever is told so calls [`Budget::relieved`].
    pub(crate) fn may_relieve(&self) -> bool {
        !self.relieving.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn relieved(&self) {
        self.relieving.store(false, Ordering::Release);
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Request,
    Write,
    Results,
    Build,
    Index,
}

/// Memory that counts until this is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    kind: Kind,
    bytes: AtomicUsize,
}

impl Held {
    /// Lets more bytes of a request in.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`].
    pub fn grow(&self, bytes: usize) -> Result<(), Error> {
        let now = self.budget.now();
        let (part, of) = REQUESTS;
        if now.is_above(HARD, bytes) || now.requests.saturating_add(bytes) > now.limit / of * part {
            return Err(Error::MemoryLimit(now.explained(bytes)));
        }
        self.budget.of(self.kind).fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.of(self.kind).fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// What the process may use at most: the smallest limit of its cgroups, version 2 and 1, and the
/// memory of the machine. `root` is `/`.
fn detect(root: &Path) -> usize {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_cgroups = cgroups.lines().filter_map(|line| {
        // `hierarchy:controllers:path`; version 2 has hierarchy 0 and names no controller.
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let mount = root.join("sys/fs/cgroup");
        if controllers.is_empty() {
            smallest(&mount, path, "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            smallest(&mount.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    });
    of_cgroups.chain(machine).min().unwrap_or(UNKNOWN_LIMIT)
}

/// The smallest limit of a cgroup and those around it. In a container the path may be the host's
/// and not exist; the outermost one does.
fn smallest(mount: &Path, path: &str, file: &str) -> Option<usize> {
    let inner: PathBuf = mount.join(path.trim_start_matches('/'));
    (inner.ancestors().take_while(|dir| dir.starts_with(mount)))
        // `max`, and a number too large for any machine, mean that there is no limit.
        .filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> usize {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        detect(dir.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 3 kB\n");

    #[test]
    fn the_smallest_limit_counts_in_both_versions_of_cgroups() {
        assert_eq!(machine(&[]), UNKNOWN_LIMIT);
        assert_eq!(machine(&[MEMINFO]), 1_024_000);
        let two = ("proc/self/cgroup", "0::/a/b\n");
        let inner = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(machine(&[MEMINFO, two, inner]), 1_024_000);
        let outer = ("sys/fs/cgroup/a/memory.max", "4096\n");
        assert_eq!(machine(&[MEMINFO, two, inner, outer]), 4096);
        let one = ("proc/self/cgroup", "3:cpu:/x\n4:hugetlb,memory:/docker/x\n");
        let none = ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(machine(&[MEMINFO, one, none]), 1_024_000);
        let container = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8192\n");
        assert_eq!(machine(&[MEMINFO, one, container]), 8192);
    }

    #[test]
    fn writes_are_refused_past_the_hard_limit_and_sealing_begins_before() {
        let budget = Budget::new(1000);
        let (first, seal) = budget.admit_write(400);
        assert!(first.is_ok() && !seal);
        budget.set_growing(101);
        let (second, seal) = budget.admit_write(100);
        assert!(second.is_ok() && seal);
        let build = budget.hold_for_build(150);
        let (third, seal) = budget.admit_write(100);
        assert!(matches!(third, Err(Error::MemoryLimit(_))) && seal);
        assert_eq!(budget.now().total(), 751);
        assert!(matches!(budget.admit_results(100), Err(Error::MemoryLimit(_))));
        let results = budget.admit_results(49).unwrap();
        assert_eq!(budget.now().total(), 800);
        drop(results);
        drop((first, second, build));
        assert_eq!(budget.now().total(), 101);
        budget.set_other(900);
        assert!(budget.now().refusal().is_some());
    }

    #[test]
    fn requests_count_as_they_arrive_and_leave_room_to_be_answered() {
        let budget = Budget::new(1000);
        let (first, second) = (budget.hold_request(), budget.hold_request());
        first.grow(100).unwrap();
        first.grow(100).unwrap();
        let refused = second.grow(51).unwrap_err();
        assert!(refused.to_string().contains("200 of requests"), "{refused}");
        assert_eq!(budget.now().requests, 200);
        assert!(budget.admit_write(400).0.is_ok());
        drop(first);
        second.grow(51).unwrap();
        assert_eq!(budget.now().total(), 51);
        budget.set_growing(740);
        second.grow(51).unwrap_err();
    }

    #[test]
    fn indexes_are_admitted_to_a_quarter_that_they_share_with_models() {
        let budget = Budget::new(1000);
        let first = budget.admit_index(200).unwrap();
        assert!(budget.admit_index(51).is_none());
        assert_eq!(budget.now().indexes, 200);
        drop(first);
        budget.set_other(100);
        assert!(budget.admit_index(200).is_none());
        let second = budget.admit_index(150);
        assert!(second.is_some());
        assert_eq!(budget.now().total(), 250);
    }
}
