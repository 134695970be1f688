//! Figures of the commit thread for monitoring. That thread writes them, and any thread reads them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{store_state::StoreState, writer::state::Committer};
use crate::metrics::{Latency, StoreFigures};

/// Value for "none".
const NONE: u64 = u64::MAX;

/// Holds figures that the commit thread refreshes about every 100 ms, and at least once per second.
#[derive(Debug)]
pub(super) struct Figures {
    opened: Instant,
    wal_bytes: AtomicU64,
    /// Time of the oldest record in the WAL, in milliseconds since `opened`.
    oldest_ms: AtomicU64,
    disk_bytes: AtomicU64,
    disk_free: AtomicU64,
    pub commit_latency: Latency,
}

impl Figures {
    pub fn new() -> Self {
        Self {
            opened: Instant::now(),
            wal_bytes: AtomicU64::new(0),
            oldest_ms: AtomicU64::new(NONE),
            disk_bytes: AtomicU64::new(NONE),
            disk_free: AtomicU64::new(NONE),
            commit_latency: Latency::default(),
        }
    }
}

impl Committer {
    /// Refreshes the figures. `free` is the number of free bytes on the disk, if it is known.
    pub(super) fn refresh_figures(&self, free: Option<u64>) {
        let figures = &self.shared.figures;
        let since_opened = |time: Instant| time.saturating_duration_since(figures.opened).as_millis() as u64;
        let oldest = self.records.front().map_or(NONE, |record| since_opened(record.committed));
        figures.wal_bytes.store(self.wal_bytes as u64, Ordering::Relaxed);
        figures.oldest_ms.store(oldest, Ordering::Relaxed);
        // If it cannot be measured now, the last figure stays.
        if let Some(bytes) = self.shared.engine.disk_bytes() {
            figures.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        if let Some(free) = free {
            figures.disk_free.store(free, Ordering::Relaxed);
        }
    }
}

impl StoreState {
    /// Returns the figures of the store. Reads no message and no user.
    pub(super) fn figures(&self) -> StoreFigures {
        let figures = &self.figures;
        let known = |value: &AtomicU64| Some(value.load(Ordering::Relaxed)).filter(|value| *value != NONE);
        let (flushed, unflushed) = (self.engine.stored_entries(), self.logs.unflushed());
        let flush_lag = known(&figures.oldest_ms)
            .map_or(Duration::ZERO, |oldest| figures.opened.elapsed().saturating_sub(Duration::from_millis(oldest)));
        StoreFigures {
            pending_messages: flushed.entries + unflushed.entries,
            pending_bytes: flushed.bytes + unflushed.bytes,
            wal_bytes: figures.wal_bytes.load(Ordering::Relaxed),
            memory_bytes: self.logs.pinned_bytes(),
            disk: known(&figures.disk_bytes).zip(known(&figures.disk_free)),
            flush_lag,
            commit_latency: figures.commit_latency.clone(),
        }
    }
}
