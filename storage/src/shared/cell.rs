//! The cells: the newest value of something, parts that are replaced one by one, and what is
//! outside of the memory and goes with its last holder.
//!
//! This module decides nothing about when to replace or remove.

use super::sync::{Arc, ArcSwap, AtomicBool, Ordering};

/// The newest of a row of values that never change. Who loads one keeps it as long as it likes;
/// nobody waits.
#[derive(Debug)]
pub(crate) struct Newest<T>(ArcSwap<T>);

impl<T> Newest<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(ArcSwap::new(Arc::new(value)))
    }

    pub(crate) fn load(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// From here on this is what is loaded.
    pub(crate) fn store(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

/// What can be told that nothing refers to it any more.
pub(crate) trait Doomable {
    /// Has it removed with its last holder.
    fn doom(&self);
}

/// Parts of something that stays, each of which is replaced while readers use them.
#[derive(Debug)]
pub(crate) struct Parts<T>(Newest<Vec<Arc<T>>>);

impl<T: Doomable> Parts<T> {
    pub(crate) fn new(parts: Vec<Arc<T>>) -> Self {
        Self(Newest::new(parts))
    }

    pub(crate) fn load(&self) -> Arc<Vec<Arc<T>>> {
        self.0.load()
    }

    /// Puts one in the place of those that are old: a reader finds it or them, and what it found
    /// stays until it lets go. Only one thread at a time may replace.
    pub(crate) fn replace(&self, is_old: impl Fn(&T) -> bool, new: Option<Arc<T>>) {
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.load().iter().cloned().partition(|part| is_old(part));
        self.0.store(kept.into_iter().chain(new).collect());
        gone.iter().for_each(|part| part.doom());
    }

    /// Has all of them removed, each with its last holder.
    pub(crate) fn doom(&self) {
        self.load().iter().for_each(|part| part.doom());
    }
}

/// Something outside of the memory, such as a file.
pub(crate) trait Outside {
    /// Removes it.
    fn remove(&self);
}

/// Keeps something that is outside of the memory: once it is doomed, dropping this removes it.
#[derive(Debug)]
pub(crate) struct Kept<T: Outside> {
    what: T,
    doomed: AtomicBool,
}

impl<T: Outside> Kept<T> {
    pub(crate) fn new(what: T) -> Self {
        Self { what, doomed: AtomicBool::new(false) }
    }

    pub(crate) fn what(&self) -> &T {
        &self.what
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }
}

impl<T: Outside> Doomable for Kept<T> {
    fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }
}

impl<T: Outside> Drop for Kept<T> {
    fn drop(&mut self) {
        if self.is_doomed() {
            self.what.remove();
        }
    }
}
