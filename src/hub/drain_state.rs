//! State of a drain.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use parking_lot::Mutex;

/// State of a drain, and of the close of all connections at shutdown.
#[derive(Debug, Default)]
pub(super) struct DrainState {
    pub draining: AtomicBool,
    /// Number of the last drain or cancellation, which replaces an earlier one. Locked while one begins, so that `draining`
    /// and `/readyz` agree.
    pub generation: Mutex<u64>,
    /// Most connections when a drain or the shutdown began.
    pub closing: AtomicUsize,
}
