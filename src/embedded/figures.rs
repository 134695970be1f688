//! Figures of the commit thread for monitoring. That thread writes them, and any thread reads them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::metrics::Latency;

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

impl Figures {
    /// Sets the bytes in the WAL, and the time of its oldest record.
    pub fn set_wal(&self, bytes: usize, oldest: Option<Instant>) {
        let since_opened = |time: Instant| time.saturating_duration_since(self.opened).as_millis() as u64;
        self.wal_bytes.store(bytes as u64, Ordering::Relaxed);
        self.oldest_ms.store(oldest.map_or(NONE, since_opened), Ordering::Relaxed);
    }

    /// Sets the bytes of the files, and the free bytes of their disk. A figure that cannot be measured now stays.
    pub fn set_disk(&self, bytes: Option<u64>, free: Option<u64>) {
        for (figure, value) in [(&self.disk_bytes, bytes), (&self.disk_free, free)] {
            value.into_iter().for_each(|value| figure.store(value, Ordering::Relaxed));
        }
    }

    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Ordering::Relaxed)
    }

    /// Returns the age of the oldest record in the WAL.
    pub fn flush_lag(&self) -> Duration {
        let age = |oldest| self.opened.elapsed().saturating_sub(Duration::from_millis(oldest));
        known(&self.oldest_ms).map_or(Duration::ZERO, age)
    }

    /// Returns the bytes of the files, and the free bytes of their disk; `None` in memory.
    pub fn disk(&self) -> Option<(u64, u64)> {
        known(&self.disk_bytes).zip(known(&self.disk_free))
    }
}

fn known(figure: &AtomicU64) -> Option<u64> {
    Some(figure.load(Ordering::Relaxed)).filter(|value| *value != NONE)
}
