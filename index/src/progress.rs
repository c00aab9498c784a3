//! How far a long job has come, for another thread to read.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows done of rows in total. Share it between the job and whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Progress {
    /// Rows done so far.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Rows to be done; 0 before the job began.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self, total: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, rows: usize) {
        self.done.fetch_add(rows, Ordering::Relaxed);
    }
}
