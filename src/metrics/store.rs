//! Figures of a store for monitoring.

use std::time::Duration;

use prometheus_client::{metrics::gauge::ConstGauge, registry::Registry};

use super::Latency;

/// Figures of an embedded store. It reads no message and no user for them.
#[derive(Clone, Debug)]
pub struct StoreFigures {
    /// Messages stored for users and not removed yet.
    ///
    /// In the value log, an acknowledged message counts until its block of at most 48 KiB is removed. After a start,
    /// messages of earlier starts are added in steps.
    pub pending_messages: u64,
    /// Bytes of payload of these messages.
    pub pending_bytes: u64,
    /// Bytes of the records in the WAL that are not flushed yet.
    pub wal_bytes: u64,
    /// Memory of the entries in the WAL, in bytes.
    pub memory_bytes: u64,
    /// Bytes of the store's files, and free bytes on their disk. `None`: the store is in memory.
    pub disk: Option<(u64, u64)>,
    /// Age of the oldest record in the WAL.
    pub flush_lag: Duration,
    /// Durations of commits that have a dispatch or a clear: the write to the WAL and its sync.
    pub commit_latency: Latency,
}

impl StoreFigures {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut add = |name, help: &str, value: u64| registry.register(name, help, ConstGauge::new(value));
        add(
            "pending_messages",
            "Messages stored for users and not removed yet; an acknowledged one counts until its block is removed",
            self.pending_messages,
        );
        add("pending_bytes", "Bytes of the stored messages", self.pending_bytes);
        add("store_wal_bytes", "Bytes in the write-ahead log that are not flushed yet", self.wal_bytes);
        add("store_memory_bytes", "Memory of the messages in the write-ahead log", self.memory_bytes);
        if let Some((used, free)) = self.disk {
            add("store_disk_bytes", "Bytes of the files of the store", used);
            add("store_disk_free_bytes", "Free bytes on the disk of the store", free);
        }
        registry.register(
            "store_flush_lag_seconds",
            "Age of the oldest record in the write-ahead log",
            ConstGauge::new(self.flush_lag.as_secs_f64()),
        );
        registry.register(
            "commit_duration_seconds",
            "Durations of commits: the write to the write-ahead log and its sync",
            self.commit_latency.clone(),
        );
    }
}
