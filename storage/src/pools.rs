//! Where CPU work runs: named pools, never a tokio worker and never rayon's global pool.
//!
//! Searching, building and encoding have a pool each, so that a long index build delays no
//! search and a burst of searches delays no insert.
//!
//! Most searches are one walk over one graph, and over before a second thread is awake; a pool that
//! shares work wakes one for every job, to see whether there is something to share. So searches wait
//! for threads that only run them, and [`share_out`] gives to a pool what can be shared.

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Sender, unbounded};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::Error;

/// The node's thread pools.
#[derive(Debug)]
pub struct Pools {
    search: Sender<Job>,
    build: ThreadPool,
    write: ThreadPool,
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// On a thread that runs searches: who shares the work of one.
    static SHARERS: OnceCell<Arc<ThreadPool>> = const { OnceCell::new() };
}

/// `work(0)` to `work(count - 1)`, on several threads if there is more than one, and none is
/// awake for nothing otherwise. The first error that is seen ends it.
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
    let share = || (0..count).into_par_iter().map(&work).collect();
    match SHARERS.with(|sharers| sharers.get().cloned()) {
        Some(sharers) => sharers.install(share),
        // A sharer already, or a pool of another kind.
        None => share(),
    }
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
        let (search, jobs) = unbounded::<Job>();
        for i in 0..sharers.current_num_threads() {
            let (sharers, jobs) = (Arc::clone(&sharers), jobs.clone());
            // It ends when the pools are dropped.
            let run = move || {
                SHARERS.with(|mine| mine.set(sharers)).expect("a new thread has none");
                jobs.iter().for_each(|job| job());
            };
            std::thread::Builder::new()
                .name(format!("elanus-search-{i}"))
                .spawn(run)
                .map_err(|error| failed("search", &error))?;
        }
        Ok(Self {
            search,
            build: pool("build", build_threads)?,
            write: pool("write", search_threads)?,
        })
    }

    /// Runs work of a reader, which may [`share_out`] parts of it.
    ///
    /// # Errors
    /// [`Error::Internal`] if the work panics.
    pub fn search<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, F> {
        let (run, result) = with_result(work);
        // Their threads live as long as the pools.
        let _ = self.search.send(Box::new(run));
        result
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

/// The work as a job that catches its panic, and what waits for its result.
fn with_result<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    work: F,
) -> (impl FnOnce() + Send + use<T, F>, impl Future<Output = Result<T, Error>> + Send + use<T, F>) {
    let (done, result) = tokio::sync::oneshot::channel();
    let run = move || {
        let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(&*panic));
        // The caller may have gone away; nobody else wants the result.
        let _ = done.send(outcome);
    };
    (run, async move { result.await.unwrap_or(Err(Error::Closed)) })
}

/// What a caught panic said.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::Internal(format!("a worker panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_a_named_thread_and_its_panic_is_an_error() {
        let pools = Pools::new(1, 1).unwrap();
        let name = || std::thread::current().name().unwrap_or("").to_owned();
        assert_eq!(pools.search(name).await.unwrap(), "elanus-search-0");
        assert_eq!(pools.build(name), "elanus-build-0");
        assert_eq!(pools.write(name).await.unwrap(), "elanus-write-0");
        let error = pools.search(|| panic!("boom {}", 7)).await.unwrap_err();
        assert!(error.to_string().contains("boom 7"), "{error}");
        assert_eq!(pools.search(|| 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_search_shares_what_has_parts_and_keeps_what_has_none() {
        let pools = Pools::new(2, 1).unwrap();
        let names = |count| {
            let name = |_| Ok::<_, Error>(std::thread::current().name().unwrap_or("").to_owned());
            pools.search(move || share_out(count, name))
        };
        assert!(names(0).await.unwrap().unwrap().is_empty());
        assert!(names(1).await.unwrap().unwrap()[0].starts_with("elanus-search-"));
        let shared = names(64).await.unwrap().unwrap();
        assert!(shared.iter().all(|name| name.starts_with("elanus-share-")), "{shared:?}");
        // A part shares in turn, and an error ends it.
        let nested = || share_out(3, |i| share_out(4, move |j| Ok::<_, usize>(10 * i + j)));
        let expected: Vec<Vec<usize>> =
            (0..3).map(|i| (0..4).map(|j| 10 * i + j).collect()).collect();
        assert_eq!(pools.search(nested).await.unwrap(), Ok(expected));
        let odd = |i| if i % 2 == 1 { Err(i) } else { Ok(i) };
        assert!(pools.search(move || share_out(2, odd)).await.unwrap().is_err());
    }
}
