//! Marks the logs that a backup reads.
//!
//! A backup reads a log page by page, and its row last. The row must hide every entry that a page has and a reader no
//! longer sees. The row hides acknowledged, evicted, cleared and expired entries for good. A collapsed entry is hidden
//! by its gap, and a log forgets old gaps. So a pinned log forgets no gap that hides an entry.
//!
//! The entry that replaces a collapsed one must be in the backup too. So for the last part of a log, the backup stops
//! collapses: an entry appended after that part replaces nothing.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

/// Pins a log until it is dropped.
#[derive(Debug, Default)]
pub struct BackupPin {
    stops_collapses: AtomicBool,
    is_erased: AtomicBool,
}

impl BackupPin {
    /// Returns whether the user was erased since the log was pinned.
    pub fn is_erased(&self) -> bool {
        self.is_erased.load(Ordering::SeqCst)
    }

    /// Stops collapses of the log. Call this while the log is locked.
    pub fn stop_collapses(&self) {
        self.stops_collapses.store(true, Ordering::SeqCst);
    }
}

/// Holds the pins of a log: one for each backup that reads it.
#[derive(Debug, Default)]
pub struct BackupPins(Vec<Weak<BackupPin>>);

impl BackupPins {
    /// Pins the log.
    pub fn add(&mut self) -> Arc<BackupPin> {
        self.0.retain(|pin| pin.strong_count() > 0);
        let pin = Arc::default();
        self.0.push(Arc::downgrade(&pin));
        pin
    }

    /// Returns whether a backup reads the log.
    pub fn any(&self) -> bool {
        self.0.iter().any(|pin| pin.strong_count() > 0)
    }

    /// Returns whether a new entry must replace none.
    pub fn stop_collapses(&self) -> bool {
        self.0.iter().filter_map(Weak::upgrade).any(|pin| pin.stops_collapses.load(Ordering::SeqCst))
    }

    /// Notifies the backups that the user is erased.
    pub fn set_erased(&self) {
        self.0.iter().filter_map(Weak::upgrade).for_each(|pin| pin.is_erased.store(true, Ordering::SeqCst));
    }
}
