//! Options of the embedded store, and the state that the commit thread and callers share.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, UNIX_EPOCH},
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    engine::Engine,
    outbox::Outbox,
    user_log::{UserLog, cache::LogCache, cursors::Cursor},
    wal::cache::RecordCache,
    writer::queue::Queue,
};
use crate::{
    failpoints::{self, Failpoint},
    health::Health,
    message::{DeviceId, UserId},
    store::{CommitListener, DeviceState, Durability, Limits, OutboxOptions, StoreError, UserState, clock::Clock},
};

/// Options of an embedded store, on disk or in memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the store. It never changes.
    pub namespace: Option<String>,
    /// Durability that an append has when it is answered.
    pub durability: Durability,
    /// Operations that may be queued for the commit thread. Further callers wait.
    pub queue: usize,
    /// Quotas and capacity.
    pub limits: Limits,
    /// Memory for the newest records of the WAL, in bytes.
    pub record_cache_bytes: usize,
    /// Webhook events to store, if any.
    pub outbox: Option<OutboxOptions>,
    /// Receives the store's health. Default: a new one.
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

/// Sets when records of the WAL are flushed, and other intervals. Tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Records older than this are flushed. Most entries of online users are acknowledged before, and are never
    /// flushed.
    pub flush_delay: Duration,
    /// A WAL larger than this is flushed from its oldest record. Bounds the time to open the store.
    pub wal_bytes_max: usize,
    /// Logs that were unused for this many seconds may leave memory.
    pub idle_seconds: u32,
    /// Interval of expiry, which checks a few users each time.
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
            idle_seconds: super::user_log::cache::IDLE_SECONDS,
            expiry_interval: Duration::from_secs(1),
        }
    }
}

/// State that the commit thread and its callers share.
pub(super) struct StoreState {
    pub engine: Arc<dyn Engine>,
    pub namespace: u32,
    pub logs: LogCache,
    pub record_cache: RecordCache,
    pub queue: Arc<Queue>,
    pub listener: RwLock<Option<CommitListener>>,
    pub failed: watch::Sender<Option<StoreError>>,
    /// The commit thread has ended.
    pub ended: watch::Sender<bool>,
    /// When the running commit began, in milliseconds since `opened`, plus one; 0 = none is running.
    pub committing: AtomicU64,
    pub opened: Instant,
    pub clock: Clock,
    pub devices_max: usize,
    /// The outbox of webhook events, if there is one.
    pub outbox: Option<Arc<Outbox>>,
    pub health: Arc<Health>,
    /// Why appends are rejected at present, if they are.
    pub full: RwLock<Option<Arc<str>>>,
    /// The runtime that opened the store, if one did.
    pub runtime: Option<tokio::runtime::Handle>,
}

impl StoreState {
    /// Marks a log with changed acknowledgements or presence, and queues it for the commit thread.
    ///
    /// Call this while the log is locked. A caller that finds the log marked does not queue it again. If the log were not
    /// queued at that time, a later dispatch could be committed without that caller's change.
    pub fn mark_dirty(&self, user: &UserId, log: &mut UserLog) {
        if !std::mem::replace(&mut log.dirty, true) {
            self.queue.push_dirty(user.clone());
        }
    }

    /// Releases acknowledged entries of a log, and queues its blocks for a trim if necessary.
    ///
    /// Call this while the log is locked, and after [`mark_dirty`](Self::mark_dirty): the acknowledgements are written
    /// before the blocks are removed.
    pub fn release(&self, user: &UserId, log: &mut UserLog) {
        if log.release() {
            log.trimming = true;
            self.queue.push_trim(user.clone());
        }
    }

    /// Fails the store permanently: rejects queued and later operations, and makes the server stop.
    pub fn fail(&self, error: StoreError) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.queue.fail(&error);
        let reason = format!("the commit thread has stopped ({error}); restart the server");
        self.failed.send_replace(Some(error.clone()));
        // Logged last, so that a slow log output delays no caller.
        tracing::error!(%error, "the commit thread has stopped");
        self.health.not_ready_logged("commit_thread", reason.into());
    }
}

pub(super) fn state(log: &mut UserLog, now_s: u32) -> UserState {
    let time = |ms: u64| (ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(ms));
    let (acknowledged, pending) = log.pending(log.head, now_s);
    let device = |(device, cursor): &(DeviceId, Cursor)| DeviceState {
        device: device.clone(),
        pending: log.pending_for(&cursor.acknowledged, log.head, now_s).entries,
        seen: time(cursor.seen_ms),
    };
    UserState {
        known: log.row_lossy_restarts.is_some() || log.dirty,
        head: log.head,
        acknowledged,
        pending: pending.entries,
        pending_bytes: pending.bytes,
        damaged: log.damaged,
        seen: time(log.seen_ms),
        devices: log.cursors.devices().iter().map(device).collect(),
    }
}
