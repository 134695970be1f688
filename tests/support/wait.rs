//! Waits for conditions, always with a timeout.

use std::time::{Duration, Instant};

/// Longest time that a test waits for one step, sufficient on a loaded machine and for the end of a lease.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Blocks the thread until a condition holds, polled every 20 ms. Panics after [`WAIT_TIMEOUT`].
pub fn block_until(condition: &str, holds: impl FnMut() -> bool) {
    block_until_within(WAIT_TIMEOUT, condition, holds);
}

/// Blocks the thread until a condition holds, polled every 20 ms. Panics after `timeout`.
pub fn block_until_within(timeout: Duration, condition: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !holds() {
        assert!(Instant::now() < end, "expected within {timeout:?}: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
