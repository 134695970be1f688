//! State of a drain.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

/// State of a drain, and of the close of all connections at shutdown.
#[derive(Debug, Default)]
pub(super) struct DrainState {
    pub draining: AtomicBool,
    /// Number of the last drain, which replaces an earlier one.
    pub generation: AtomicU64,
    /// Most connections when a drain or the shutdown began.
    pub closing: AtomicUsize,
}
