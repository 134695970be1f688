//! The store's clock: by it messages expire, ids and devices are forgotten.
//!
//! It begins where the calendar is when the store is opened, or where the store's own clock was when that is later, and
//! goes on by the machine's steady clock. So a calendar that is set to and fro while the server runs changes nothing,
//! and one that was set back while it was away makes nothing young again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// How far ahead of the calendar it may begin before that is worth a word.
const AHEAD_MS_MAX: u64 = 60_000;

/// See the module.
#[derive(Clone, Debug)]
pub struct Clock {
    began_ms: u64,
    began: Instant,
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// `last_ms`: the latest time this store has written down. `ahead_ms` is added to all it says, for tests.
    pub fn new(last_ms: u64, ahead_ms: Arc<AtomicU64>) -> Self {
        let calendar_ms = millis(SystemTime::now());
        if last_ms > calendar_ms + AHEAD_MS_MAX {
            let ahead_s = (last_ms - calendar_ms) / 1000;
            tracing::warn!(ahead_s, "the calendar is behind the store's clock, by which the store goes on");
        }
        Self { began_ms: calendar_ms.max(last_ms), began: Instant::now(), ahead_ms }
    }

    /// Milliseconds of the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        let since_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        self.began_ms + since_ms + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Seconds of the Unix epoch.
    pub fn now_s(&self) -> u32 {
        seconds(self.now_ms())
    }
}

/// Whole seconds, rounded down; for times until 2106.
pub fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

/// Milliseconds of the Unix epoch; 0 for a calendar that is set before it.
pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calendar_that_was_set_back_makes_nothing_young_again() {
        let ahead = millis(SystemTime::now()) + 3_600_000;
        assert!(Clock::new(ahead, Arc::default()).now_ms() >= ahead);
        assert!(Clock::new(1, Arc::default()).now_ms() + 1000 >= millis(SystemTime::now()));
    }
}
