//! Bounds of the pool of portals.

use std::time::Duration;

/// Bounds of the pool. None of them grows with the number of clients.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Portals. At this limit a new portal replaces a disconnected one; if all are connected, it is rejected.
    pub portals: usize,
    /// Events in one queue. At this limit events go to other portals, or the oldest are dropped.
    pub events: usize,
    /// Bytes of those events, with the same consequence; also the limit for bytes of retained events.
    pub bytes: usize,
    /// Taken events that are retained for a resume, within `bytes`. A gap marker replaces older ones.
    pub retained: usize,
    /// Time within which a disconnected portal may resume its queue.
    pub resume_timeout: Duration,
    /// Time within which a portal has to take an event while some are queued. Then it is disconnected.
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
