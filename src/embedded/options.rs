//! Defines the options of an embedded store.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use crate::{
    failpoints::{self, Failpoint},
    health::Health,
    store::{Durability, Limits, OutboxOptions},
};

/// Configures an embedded store, on disk or in memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the store. It never changes.
    pub namespace: Option<String>,
    /// Durability that an append has when it is answered.
    pub durability: Durability,
    /// Number of operations that may be queued for the commit thread. Further callers wait.
    pub queue: usize,
    /// Quotas and capacity.
    pub limits: Limits,
    /// Memory for the newest WAL records, in bytes.
    pub record_cache_bytes: usize,
    /// Outbox of webhook events. `None`: no events are stored.
    pub outbox: Option<OutboxOptions>,
    /// Receives the store's conditions. Default: a new one.
    pub health: Arc<Health>,
    /// Intervals and bounds, for tests.
    pub tuning: Tuning,
    /// Milliseconds added to the store's clock, for tests of long periods.
    #[doc(hidden)]
    pub ahead_ms: Arc<AtomicU64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: None,
            durability: Durability::Always,
            queue: 10_000,
            limits: Limits::default(),
            record_cache_bytes: 32 << 20,
            outbox: None,
            health: Arc::default(),
            tuning: Tuning::default(),
            ahead_ms: Arc::default(),
        }
    }
}

/// Sets intervals and bounds of background work. Tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Age at which a WAL record is flushed. Most entries of online users are acknowledged before, and are never
    /// flushed.
    pub flush_delay: Duration,
    /// Bytes above which the WAL is flushed from its oldest record. Bounds the time to open the store. At twice as many,
    /// appends wait.
    pub wal_bytes_max: usize,
    /// The same for the memory that entries in the WAL take, in bytes. Above it, unused logs leave memory at once.
    pub memory_bytes_max: usize,
    /// Time for which an operation waits while the WAL or its memory is at twice these bounds. Then it is rejected as busy.
    pub busy_timeout: Duration,
    /// Seconds after which an unused log leaves memory, if the tables hold all of it. After a flush of the log, a
    /// twelfth of that time suffices.
    pub idle_seconds: u32,
    /// Interval of expiry steps, each of which checks at most 256 users.
    pub expiry_interval: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            flush_delay: if failpoints::enabled(Failpoint::EarlyFlush) {
                Duration::from_millis(100)
            } else {
                Duration::from_secs(10)
            },
            wal_bytes_max: 64 << 20,
            memory_bytes_max: 64 << 20,
            busy_timeout: Duration::from_secs(5),
            idle_seconds: 60,
            expiry_interval: Duration::from_secs(1),
        }
    }
}
