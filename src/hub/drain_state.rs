//! State of a drain.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use parking_lot::Mutex;

/// State of a drain, and of the close of all connections at shutdown.
#[derive(Debug, Default)]
pub(super) struct DrainState {
    /// Held while a drain begins or is cancelled, so that `draining` and `/readyz` agree.
    pub change: Mutex<()>,
    pub draining: AtomicBool,
    /// Number of the last drain, which replaces an earlier one.
    pub generation: AtomicU64,
    /// Most connections when a drain or the shutdown began.
    pub closing: AtomicUsize,
}
