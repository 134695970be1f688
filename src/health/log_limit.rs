//! A limit for log lines that one cause can repeat without end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Shortest time between two lines about the same thing.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line about each thing through in [`LOG_INTERVAL`], and counts the others.
pub struct LogLimit {
    /// When the last line was written, and how many were suppressed since. Bounded by the number of names in the code: a name
    /// is a constant, never text of a peer.
    last: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
}

impl LogLimit {
    /// Creates a limit that has seen no line.
    pub const fn new() -> Self {
        Self { last: Mutex::new(BTreeMap::new()) }
    }

    /// Returns how many lines were suppressed since the last one, or `None` where this one is to be suppressed too.
    pub fn due(&self, about: &'static str) -> Option<u64> {
        self.due_at(about, Instant::now())
    }

    fn due_at(&self, about: &'static str, now: Instant) -> Option<u64> {
        let mut last = self.last.lock();
        match last.get_mut(about) {
            Some((written, suppressed)) if now.saturating_duration_since(*written) < LOG_INTERVAL => {
                *suppressed += 1;
                None
            }
            Some(known) => Some(std::mem::replace(known, (now, 0)).1),
            None => {
                last.insert(about, (now, 0));
                Some(0)
            }
        }
    }
}

/// Logs what a peer has done: a line at INFO once in an interval, with the number of those in between, which are logged at DEBUG.
///
/// Begins with a [`LogLimit`] of the line's own; then as `tracing::info!`.
macro_rules! info_seldom {
    ($limit:expr, $($line:tt)+) => {
        match $limit.due("") {
            Some(suppressed) => tracing::info!(suppressed, $($line)+),
            None => tracing::debug!($($line)+),
        }
    };
}

pub(crate) use info_seldom;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_line_is_written_once_in_an_interval_with_the_number_of_the_others() {
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
