//! How long to wait for others, and how often to ask again.

use std::time::Duration;

/// Time limits and repetitions of calls to another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until a server begins to answer, and between two pieces of what it sends.
    pub answer: Duration,
    /// How often a call is made at most, the first time included.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles each time.
    pub pause: Duration,
}

/// The longest pause, and the longest that a server may ask for.
const LONGEST: Duration = Duration::from_secs(60);

impl Patience {
    /// The pause after the attempt `attempt` (the first is 1) failed. What the server asked for goes
    /// first.
    pub(crate) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let own = self.pause.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        asked.unwrap_or(own).min(LONGEST)
    }
}

impl Default for Patience {
    /// As Milvus: 30 seconds, three attempts, one second and two between them.
    fn default() -> Self {
        Self { answer: Duration::from_secs(30), attempts: 3, pause: Duration::from_secs(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_have_a_bound() {
        let patience = Patience::default();
        let pauses = [1, 2, 3, 40].map(|attempt| patience.pause(attempt, None).as_secs());
        assert_eq!(pauses, [1, 2, 4, 60]);
        assert_eq!(patience.pause(1, Some(Duration::from_secs(7))).as_secs(), 7);
        assert_eq!(patience.pause(1, Some(Duration::from_secs(7_000))).as_secs(), 60);
    }
}
