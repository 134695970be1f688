//! Rate limit for repeated log lines.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Shortest time between two lines about the same subject.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Allows one line per subject in [`LOG_INTERVAL`], and counts suppressed lines.
pub struct LogLimit {
    /// Time of the last line about a subject, and number of lines suppressed since.
    ///
    /// Subjects are constants of the code, never text of a peer, so the map is bounded.
    last: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
}

impl LogLimit {
    /// Creates a limit for which every first line is due.
    pub const fn new() -> Self {
        Self { last: Mutex::new(BTreeMap::new()) }
    }

    /// Returns the number of lines suppressed since the last one, or `None` if this one must be suppressed.
    pub fn due(&self, subject: &'static str) -> Option<u64> {
        self.due_at(subject, Instant::now())
    }

    fn due_at(&self, subject: &'static str, now: Instant) -> Option<u64> {
        let mut last = self.last.lock();
        match last.get_mut(subject) {
            Some((written, suppressed)) if now.saturating_duration_since(*written) < LOG_INTERVAL => {
                *suppressed += 1;
                None
            }
            Some(known) => Some(std::mem::replace(known, (now, 0)).1),
            None => {
                last.insert(subject, (now, 0));
                Some(0)
            }
        }
    }
}

/// Logs an event that a peer caused, with at most one INFO line per 10 s.
///
/// The line has the number of suppressed lines, which are logged at DEBUG. The first argument is a [`LogLimit`] for
/// this line only. The others are those of `tracing::info!`.
macro_rules! info_seldom {
    ($limit:expr, $($line:tt)+) => {
        match $limit.due("") {
            Some(suppressed) => tracing::info!(suppressed, $($line)+),
            None => tracing::debug!($($line)+),
        }
    };
}

/// Logs a slow operation, with at most one WARN line per 10 s for each subject. Arguments as in [`info_seldom!`].
macro_rules! warn_seldom {
    ($limit:expr, $($line:tt)+) => {
        match $limit.due("") {
            Some(suppressed) => tracing::warn!(suppressed, $($line)+),
            None => tracing::debug!($($line)+),
        }
    };
}

pub(crate) use {info_seldom, warn_seldom};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_line_is_due_once_per_interval_with_the_suppressed_count() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        assert_eq!(limit.due_at("a", start), Some(0));
        assert_eq!(limit.due_at("b", start), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.due_at("a", start + LOG_INTERVAL / 2), None);
        }
        assert_eq!(limit.due_at("a", start + LOG_INTERVAL), Some(1000));
        assert_eq!(limit.due_at("a", start + LOG_INTERVAL * 2), Some(0));
    }
}
