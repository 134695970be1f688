//! Bounds of the portal queues.

use std::time::Duration;

/// Bounds of the pool. None of them grows with the number of clients.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Portals. At this limit a new portal replaces a disconnected one that could still resume; if none is, it is rejected.
    pub portals: usize,
    /// Events in one queue. Beyond it events go to other portals, or the oldest are dropped.
    pub events: usize,
    /// Bytes of those events, with the same consequence; also the limit for bytes of retained events.
    pub bytes: usize,
    /// Taken events that are retained for a resume, within `bytes`. A portal that needs more receives a marker instead.
    pub retained: usize,
    /// Time within which a disconnected portal may resume its queue.
    pub resume_timeout: Duration,
    /// A portal that takes none of its queued events for this long counts as dead.
    pub stall_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            portals: 1024,
            events: 8192,
            bytes: 8 << 20,
            retained: 1024,
            resume_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Id of a consumer without a queue: an [`EventForwarder`](super::EventForwarder) delivers its events.
pub type ConsumerId = u64;
