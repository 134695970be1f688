//! Converts durations to whole milliseconds.

use std::time::Duration;

/// Returns whole milliseconds; `u64::MAX` for a longer duration.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
