//! Where CPU work runs: named pools, never a tokio worker (but for the shortest) and never rayon's
//! global pool.
//!
//! Searching, building and encoding have a pool each, so that a long index build delays no
//! search and a burst of searches delays no insert.
//!
//! To wake a thread costs more than most searches, which are one walk over one graph. So a search
//! that is alone, and of a [`Kind`] that was always over soon, stays on the thread that asks for it,
//! with help for its legs if that comes in time ([`share_out_owned`]). Others wait for threads that
//! only run searches, and [`share_out`] gives to a pool that shares work, and wakes a thread for every
//! job to see whether there is something to share, what has parts and takes long.

mod pace;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, unbounded};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::Error;
pub use pace::Kind;
use pace::Paces;

/// What is short keeps a thread of the network at most for this time, in which another could be woken a
/// few times, and is shared out only as [`share_out_owned`] does.
const SHORT: Duration = Duration::from_micros(600);

/// So many searches in a row must have been alone for the next to be taken for one that will be.
const ALONE: usize = 32;

/// The node's thread pools.
#[derive(Debug)]
pub struct Pools {
    search: Sender<Job>,
    /// Whether there is more than one processor for searches.
    can_help: bool,
    /// Searches that run or wait.
    searches: Arc<AtomicUsize>,
    /// How many in a row were alone.
    alone: AtomicUsize,
    paces: Arc<Paces>,
    build: ThreadPool,
    write: ThreadPool,
}

/// A search for one of the threads that run them.
struct Job {
    run: Box<dyn FnOnce() + Send>,
    /// Whether its parts are shared out.
    shared: bool,
}

thread_local! {
    /// Who shares the work of the search that this thread runs, if anybody does.
    static SHARERS: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
    /// Who may help with the search that this thread runs for its own request, if it runs one.
    static HELPERS: RefCell<Option<Sender<Job>>> = const { RefCell::new(None) };
    /// Nanoseconds that sharers worked for this thread, less those that it waited for them.
    static BY_OTHERS: Cell<i64> = const { Cell::new(0) };
}

/// `work(0)` to `work(count - 1)`, on several threads if there is more than one and the search is
/// not a short one, and none is awake for nothing otherwise. The first error that is seen ends it.
///
/// # Errors
/// Whatever the work reports.
pub fn share_out<T: Send, E: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync + Send,
) -> Result<Vec<T>, E> {
    if count <= 1 {
        return (0..count).map(work).collect();
    }
    let share = |work: &(dyn Fn(usize) -> Result<T, E> + Sync)| {
        (0..count).into_par_iter().map(work).collect()
    };
    match SHARERS.with_borrow(Clone::clone) {
        Some(sharers) => {
            let worked = AtomicU64::new(0);
            let timed = |part| {
                let began = Instant::now();
                let done = work(part);
                worked.fetch_add(nanos(began.elapsed()), Ordering::Relaxed);
                done
            };
            let began = Instant::now();
            let done = sharers.install(|| share(&timed));
            let more = worked.into_inner().cast_signed() - nanos(began.elapsed()).cast_signed();
            BY_OTHERS.set(BY_OTHERS.get().saturating_add(more));
            done
        }
        // A sharer already, or a pool of another kind.
        None if rayon::current_thread_index().is_some() => share(&work),
        None => (0..count).map(work).collect(),
    }
}

/// As [`share_out`], of a few parts that take about as long as it takes to wake a thread, and own what
/// they read: where a search runs on the thread of its request, it has one of those for searches
/// woken, and does itself what that one has not begun by then.
///
/// # Errors
/// Whatever the work reports.
pub fn share_out_owned<T: Send + 'static, E: Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync + Send + 'static,
) -> Result<Vec<T>, E> {
    let helpers = if count > 1 { HELPERS.with_borrow(Clone::clone) } else { None };
    let Some(helpers) = helpers else { return share_out(count, work) };
    let work = Arc::new(work);
    let begun: Arc<[AtomicBool]> = (0..count).map(|_| AtomicBool::new(false)).collect();
    let begin = |begun: &[AtomicBool], part: usize| !begun[part].swap(true, Ordering::Relaxed);
    let (done, by_helper) = bounded(count);
    let (its_work, its_begun) = (Arc::clone(&work), Arc::clone(&begun));
    let help = move || {
        for part in (0..count).filter(|part| begin(&its_begun, *part)) {
            let outcome = catch_unwind(AssertUnwindSafe(|| its_work(part)));
            // It may have failed meanwhile.
            let _ = done.send((part, outcome));
        }
    };
    // Their threads live as long as the pools.
    let _ = helpers.send(Job { run: Box::new(help), shared: false });
    let mut parts: Vec<Option<T>> = (0..count).map(|_| None).collect();
    // From the other end, so that both rarely want the same one.
    for part in (0..count).rev().filter(|part| begin(&begun, *part)) {
        parts[part] = Some(work(part)?);
    }
    while parts.iter().any(Option::is_none) {
        match by_helper.recv() {
            Ok((part, Ok(outcome))) => parts[part] = Some(outcome?),
            Ok((_, Err(panic))) => resume_unwind(panic),
            // It sends all that it began.
            Err(gone) => resume_unwind(Box::new(gone.to_string())),
        }
    }
    Ok(parts.into_iter().flatten().collect())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Pools {
    /// Starts the threads; 0 means as many as the machine has cores.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system gives no threads.
    pub(crate) fn new(search_threads: usize, build_threads: usize) -> Result<Self, Error> {
        let failed = |name: &str, error: &dyn std::fmt::Display| {
            Error::Internal(format!("cannot start {name} threads: {error}"))
        };
        let pool = |name: &'static str, threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |i| format!("elanus-{name}-{i}"))
                .build()
                .map_err(|error| failed(name, &error))
        };
        let sharers = Arc::new(pool("share", search_threads)?);
        let can_help = sharers.current_num_threads() > 1;
        let (search, jobs) = unbounded::<Job>();
        for i in 0..sharers.current_num_threads() {
            let (sharers, jobs) = (Arc::clone(&sharers), jobs.clone());
            // It ends when the pools are dropped.
            let run = move || {
                for job in jobs {
                    SHARERS.set(job.shared.then(|| Arc::clone(&sharers)));
                    (job.run)();
                }
            };
            std::thread::Builder::new()
                .name(format!("elanus-search-{i}"))
                .spawn(run)
                .map_err(|error| failed("search", &error))?;
        }
        Ok(Self {
            search,
            can_help,
            searches: Arc::default(),
            alone: AtomicUsize::new(0),
            paces: Arc::default(),
            build: pool("build", build_threads)?,
            write: pool("write", search_threads)?,
        })
    }

    /// Runs work of a reader, which may [`share_out`] parts of it.
    ///
    /// Without a kind nothing is known of it, and it goes to the threads for searches. So does the
    /// first of a kind, which verifies what it reads, and those after it until they are known to
    /// be short. Then one stays on this thread, which nobody else can use meanwhile, if it is alone,
    /// as those before it were.
    ///
    /// # Errors
    /// [`Error::Internal`] if the work panics.
    pub async fn search<T: Send + 'static>(
        &self,
        kind: Option<Kind>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let expected = kind.and_then(|kind| self.paces.expected(kind));
        let is_short = expected.is_some_and(|expected| expected <= SHORT);
        let (under_way, is_alone) = UnderWay::begin(&self.searches);
        let alone = match is_alone {
            true => self.alone.fetch_add(1, Ordering::Relaxed),
            false => self.alone.swap(0, Ordering::Relaxed),
        };
        let paces = Arc::clone(&self.paces);
        let work = move || {
            let _under_way = under_way;
            BY_OTHERS.set(0);
            let began = Instant::now();
            let outcome = work();
            if let Some(kind) = kind {
                let took = nanos(began.elapsed()).saturating_add_signed(BY_OTHERS.get());
                paces.record(kind, Duration::from_nanos(took));
            }
            outcome
        };
        if is_short && is_alone && alone >= ALONE {
            let helpers = self.can_help.then(|| self.search.clone());
            HELPERS.set(helpers);
            let outcome = caught(work);
            HELPERS.set(None);
            return outcome;
        }
        let (run, result) = with_result(work);
        // Their threads live as long as the pools.
        let _ = self.search.send(Job { run: Box::new(run), shared: !is_short });
        result.await
    }

    /// Runs long background work, such as building an index, and waits for it; a panic in it
    /// goes on in the caller.
    pub(crate) fn build<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.build.install(work)
    }

    /// Runs the short work that prepares a write.
    ///
    /// # Errors
    /// [`Error::Internal`] if the work panics.
    pub(crate) fn write<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, F> {
        let (run, result) = with_result(work);
        self.write.spawn(run);
        result
    }
}

/// Counts one search for as long as it runs or waits.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    /// Also tells whether there is no other.
    fn begin(searches: &Arc<AtomicUsize>) -> (Self, bool) {
        let others = searches.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(searches)), others == 0)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The work as a job that catches its panic, and what waits for its result.
fn with_result<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    work: F,
) -> (impl FnOnce() + Send + use<T, F>, impl Future<Output = Result<T, Error>> + Send + use<T, F>) {
    let (done, result) = tokio::sync::oneshot::channel();
    let run = move || {
        // The caller may have gone away; nobody else wants the result.
        let _ = done.send(caught(work));
    };
    (run, async move { result.await.unwrap_or(Err(Error::Closed)) })
}

/// Runs the work; its panic is an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(&*panic))
}

/// What a caught panic said.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::Internal(format!("a worker panicked: {text}"))
}

#[cfg(test)]
mod tests;
