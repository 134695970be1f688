//! Bounds of the portals.

use std::time::Duration;

/// How much the pool holds for portals. None of it grows with the number of clients.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Portals. Those that may still come back are forgotten early for one more; where all are there it is refused.
    pub portals: usize,
    /// Events that wait in one inbox; beyond that see above.
    pub events: usize,
    /// Bytes of those events; likewise. And bytes of those that it took last.
    pub bytes: usize,
    /// Events that a portal took last and may ask for again, in no more than `bytes`; where it asks for more it is told how
    /// many are missing.
    pub kept: usize,
    /// For how long a portal that has gone may come back to its inbox.
    pub resume_for: Duration,
    /// A portal that has taken nothing of what waits for it for this long is taken for dead.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            portals: 1024,
            events: 8192,
            bytes: 8 << 20,
            kept: 1024,
            resume_for: Duration::from_secs(60),
            patience: Duration::from_secs(30),
        }
    }
}

/// A portal without an inbox: whoever [`Portals::seat`]s it passes events on himself.
pub type SeatId = u64;
