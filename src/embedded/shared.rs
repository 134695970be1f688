//! Options of the embedded store, and the state that the commit thread and callers share.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, UNIX_EPOCH},
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    outbox::Outbox,
    tables::contract::Engine,
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

/// How a store is to behave, whatever it stands on.
#[derive(Clone, Debug)]
pub struct Options {
    /// A store belongs to one namespace for good.
    pub namespace: Option<String>,
    /// When an append is answered.
    pub durability: Durability,
    /// Ops that may wait for the commit thread.
    pub queue: usize,
    /// What is kept at most.
    pub limits: Limits,
    /// Memory for the newest records of the journal, in bytes.
    pub record_cache_bytes: usize,
    /// What is to be told to the outside world, if anything is.
    pub outbox: Option<OutboxOptions>,
    /// Where the store reports its condition. Default: one of its own.
    pub health: Arc<Health>,
    /// For tests.
    pub tuning: Tuning,
    /// Milliseconds by which the store's clock is ahead of what it would be: for tests of what takes days.
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

/// When what is in the journal is settled in the inboxes. Tests make it sooner.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Records older than this are settled: most of what is online is confirmed long before, and never is.
    pub flush_delay: Duration,
    /// A journal larger than this is settled from its old end: bounds the time to open.
    pub wal_bytes_max: usize,
    /// Logs unused for this many seconds may leave memory.
    pub idle_seconds: u32,
    /// How often a few users are looked at who have something that expires.
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

/// What the commit thread and the callers share.
pub(super) struct Shared {
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
    /// What is to be told to the outside world, if anything is.
    pub outbox: Option<Arc<Outbox>>,
    pub health: Arc<Health>,
    /// Why nothing is taken for now, if nothing is.
    pub full: RwLock<Option<Arc<str>>>,
    /// Where the store was opened from, if that was a runtime.
    pub runtime: Option<tokio::runtime::Handle>,
}

impl Shared {
    /// Lets the commit thread know of a log that was just marked as changed (`dirty`), or as one to be trimmed.
    ///
    /// To be called while the log is still locked. A caller that finds the mark relies on it and announces nothing: if the user
    /// were not in the queue by then, a dispatch that comes later could be committed without what that caller has changed.
    pub fn announce(&self, user: &UserId, dirty: bool, trim: bool) {
        if dirty {
            self.queue.dirty(user.clone());
        }
        if trim {
            self.queue.trim(user.clone());
        }
    }

    /// Fails the store for good: refuses what waits and what comes, and has the server stop.
    pub fn fail(&self, error: StoreError) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.queue.fail(&error);
        let reason = format!("the thread that writes the store has ended ({error}); start the server again");
        self.failed.send_replace(Some(error.clone()));
        // The log last: nothing about it keeps anybody waiting.
        tracing::error!(%error, "the commit thread has stopped");
        self.health.not_ready_logged("commit_thread", reason.into());
    }
}

pub(super) fn state(log: &mut UserLog, now_s: u32) -> UserState {
    let time = |ms: u64| (ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(ms));
    let (received, pending) = log.pending(log.head, now_s);
    let device = |(device, cursor): &(DeviceId, Cursor)| DeviceState {
        device: device.clone(),
        pending: log.pending_for(&cursor.received, log.head, now_s).entries,
        seen: time(cursor.seen_ms),
    };
    UserState {
        known: log.row_lapses.is_some() || log.dirty,
        head: log.head,
        received,
        pending: pending.entries,
        pending_bytes: pending.bytes,
        damaged: log.damaged,
        seen: time(log.seen_ms),
        devices: log.cursors.devices().iter().map(device).collect(),
    }
}
