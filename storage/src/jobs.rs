//! Background work on threads that may block.
//!
//! Catalog changes run one after another on a thread of their own, so that they never wait for a
//! checkpoint; checkpoints and truncation share a few threads, and upkeep, which may take long,
//! has others. A job that was handed in
//! runs to its end even if the caller goes away, because half a change in memory would be worse
//! than a change nobody asked for any more. On shutdown running jobs end, waiting ones are dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded, unbounded};
use tokio::sync::oneshot;

use crate::Error;
use crate::pools::panicked;

/// Checkpoints of that many collections can run at a time.
const MAINTENANCE_THREADS: usize = 3;

/// Collections that are looked after at a time: a small one need not wait for a large one. Builds
/// are done by [`crate::Pools`]; graphs are copied into memory here.
const UPKEEP_THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// The background threads.
#[derive(Debug)]
pub(crate) struct Jobs {
    ddl: Mutex<Option<Sender<Job>>>,
    maintenance: Mutex<Option<Sender<Job>>>,
    upkeep: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: Arc<AtomicBool>,
    /// Dropped to end what is done every so often.
    clock: Mutex<Option<Sender<()>>>,
}

impl Jobs {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system gives none.
    pub(crate) fn start() -> Result<Self, Error> {
        let (ddl, ddl_jobs) = unbounded::<Job>();
        let (maintenance, maintenance_jobs) = unbounded::<Job>();
        let (upkeep, upkeep_jobs) = unbounded::<Job>();
        let mut queues = vec![("elanus-catalog".to_owned(), ddl_jobs)];
        for i in 0..MAINTENANCE_THREADS {
            queues.push((format!("elanus-jobs-{i}"), maintenance_jobs.clone()));
        }
        for i in 0..UPKEEP_THREADS {
            queues.push((format!("elanus-upkeep-{i}"), upkeep_jobs.clone()));
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (name, queue) in queues {
            let stopping = Arc::clone(&stopping);
            let run = move || {
                for job in queue {
                    if !stopping.load(Ordering::Relaxed) {
                        job();
                    }
                }
            };
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(run)
                .map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
            threads.push(thread);
        }
        Ok(Self {
            ddl: Mutex::new(Some(ddl)),
            maintenance: Mutex::new(Some(maintenance)),
            upkeep: Mutex::new(Some(upkeep)),
            threads: Mutex::new(threads),
            stopping,
            clock: Mutex::default(),
        })
    }

    /// Calls `work` on a thread of its own every so often, until the shutdown. To be called once.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system gives no thread.
    pub(crate) fn every(
        &self,
        pause: Duration,
        work: impl Fn() + Send + 'static,
    ) -> Result<(), Error> {
        let (alive, ended) = bounded::<()>(0);
        let run = move || {
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                work();
            }
        };
        let thread = std::thread::Builder::new()
            .name("elanus-clock".to_owned())
            .spawn(run)
            .map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(alive);
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Runs a change of the catalog after those before it.
    pub(crate) async fn ddl<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, done) = with_result(work);
        submit(&self.ddl, job)?;
        done.await.unwrap_or(Err(Error::Closed))
    }

    /// Runs long work.
    pub(crate) async fn maintenance<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, done) = with_result(work);
        submit(&self.maintenance, job)?;
        done.await.unwrap_or(Err(Error::Closed))
    }

    /// Runs long work whose outcome nobody waits for; false after the shutdown.
    pub(crate) fn in_background(&self, work: impl FnOnce() + Send + 'static) -> bool {
        submit(&self.maintenance, caught(work)).is_ok()
    }

    /// Like [`Jobs::in_background`], for work that nothing else should wait for.
    pub(crate) fn upkeep(&self, work: impl FnOnce() + Send + 'static) -> bool {
        submit(&self.upkeep, caught(work)).is_ok()
    }

    /// Whether jobs should come to an end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Asks running jobs to come to an end.
    pub(crate) fn ask_to_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Lets running jobs end and drops the waiting ones. Blocks.
    pub(crate) fn stop(&self) {
        self.ask_to_stop();
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).take();
        for queue in [&self.ddl, &self.maintenance, &self.upkeep] {
            queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A job's panic is caught where it runs.
            let _ = thread.join();
        }
    }
}

fn caught(work: impl FnOnce() + Send + 'static) -> Job {
    Box::new(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            tracing::error!(error = %panicked(&*panic), "a background job failed");
        }
    })
}

fn submit(queue: &Mutex<Option<Sender<Job>>>, job: Job) -> Result<(), Error> {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.as_ref().and_then(|queue| queue.send(job).ok()).ok_or(Error::Closed)
}

fn with_result<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, Error>>) {
    let (done, result) = oneshot::channel();
    let job = Box::new(move || {
        let outcome =
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)));
        // The caller may have gone away.
        let _ = done.send(outcome);
    });
    (job, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_return_values_errors_and_panics() {
        let jobs = Jobs::start().unwrap();
        assert_eq!(jobs.ddl(|| Ok(1)).await.unwrap(), 1);
        assert!(matches!(
            jobs.maintenance(|| Err::<(), _>(Error::Closed)).await,
            Err(Error::Closed)
        ));
        let panic = jobs.ddl(|| -> Result<(), Error> { panic!("boom") }).await.unwrap_err();
        assert!(panic.to_string().contains("boom"));
        assert_eq!(jobs.ddl(|| Ok(2)).await.unwrap(), 2);
        jobs.stop();
        assert!(matches!(jobs.ddl(|| Ok(3)).await, Err(Error::Closed)));
        assert!(!jobs.in_background(|| ()));
    }
}
