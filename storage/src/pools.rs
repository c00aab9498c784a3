//! Where CPU work runs: named pools, never a tokio worker and never rayon's global pool.
//!
//! Searching, building and encoding have a pool each, so that a long index build delays no
//! search and a burst of searches delays no insert.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

/// The node's thread pools.
#[derive(Debug)]
pub struct Pools {
    search: rayon::ThreadPool,
    build: rayon::ThreadPool,
    write: rayon::ThreadPool,
}

impl Pools {
    /// Starts the threads; 0 means as many as the machine has cores.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system gives no threads.
    pub(crate) fn new(search_threads: usize, build_threads: usize) -> Result<Self, Error> {
        let pool = |name: &'static str, threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |i| format!("elanus-{name}-{i}"))
                .build()
                .map_err(|error| Error::Internal(format!("cannot start {name} threads: {error}")))
        };
        Ok(Self {
            search: pool("search", search_threads)?,
            build: pool("build", build_threads)?,
            write: pool("write", search_threads)?,
        })
    }

    /// Runs work of a reader; rayon's parallel iterators inside it stay in this pool.
    ///
    /// # Errors
    /// [`Error::Internal`] if the work panics.
    pub fn search<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, F> {
        run_on(&self.search, work)
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
        run_on(&self.write, work)
    }
}

fn run_on<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    pool: &rayon::ThreadPool,
    work: F,
) -> impl Future<Output = Result<T, Error>> + Send + use<T, F> {
    let (done, result) = tokio::sync::oneshot::channel();
    pool.spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(&*panic));
        // The caller may have gone away; nobody else wants the result.
        let _ = done.send(outcome);
    });
    async move { result.await.unwrap_or(Err(Error::Closed)) }
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
}
