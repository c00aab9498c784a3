//! Giving up: a stop flag and a deadline, looked at every few thousand rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::Error;

/// Says whether anybody still waits for the answer. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Cancel {
    /// No deadline; stops only through [`Cancel::flag`].
    #[must_use]
    pub fn never() -> Self {
        Self::default()
    }

    /// Stops at `deadline`, or earlier through [`Cancel::flag`].
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { flag: Arc::default(), deadline: Some(deadline) }
    }

    /// The flag to raise when the caller has gone away.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// Reads the flag and, where there is a deadline, the clock.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once the flag is up or the deadline has passed.
    pub fn check(&self) -> Result<(), Error> {
        let late = || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if self.flag.load(Ordering::Relaxed) || late() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_stops_every_clone() {
        let cancel = Cancel::never();
        let clone = cancel.clone();
        assert_eq!(clone.check(), Ok(()));
        cancel.flag().store(true, Ordering::Relaxed);
        assert_eq!(clone.check(), Err(Error::Cancelled));
    }

    #[test]
    fn a_deadline_in_the_past_stops_and_one_in_the_future_does_not() {
        assert_eq!(Cancel::until(Instant::now()).check(), Err(Error::Cancelled));
        let later = Instant::now() + std::time::Duration::from_secs(3600);
        assert_eq!(Cancel::until(later).check(), Ok(()));
    }
}
