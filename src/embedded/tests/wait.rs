//! Waits for an event of a store, with a bound.

use std::time::{Duration, Instant};

/// Time after which a wait fails.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `done` returns true. `what` names the event.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT_TIMEOUT;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {WAIT_TIMEOUT:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
