//! Defines the state that the commit thread and its callers share.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    connected::ConnectedUsers,
    engine::Engine,
    figures::Figures,
    outbox::Outbox,
    progress::Progress,
    user_log::{UserLog, cache::LogCache},
    value_log::bodies::BodyCache,
    wal::cache::RecordCache,
    writer::queue::Queue,
};
use crate::{
    health::Health,
    message::UserId,
    metrics::StoreFigures,
    store::{CommitListener, StoreError, clock::Clock},
};

/// Holds the state that the commit thread and its callers share.
pub(super) struct StoreState {
    pub engine: Arc<dyn Engine>,
    pub namespace: u32,
    pub logs: Arc<LogCache>,
    pub record_cache: RecordCache,
    /// Shared bodies that readers have read.
    pub bodies: BodyCache,
    pub queue: Arc<Queue>,
    pub listener: RwLock<Option<CommitListener>>,
    pub failed: watch::Sender<Option<StoreError>>,
    /// True once the commit thread has ended.
    pub ended: watch::Sender<bool>,
    /// What the commit thread is doing.
    pub progress: Progress,
    /// Figures for monitoring.
    pub figures: Figures,
    pub clock: Clock,
    pub devices_max: usize,
    /// The outbox of webhook events, if there is one.
    pub outbox: Option<Arc<Outbox>>,
    /// Users with connections.
    pub connected: Arc<ConnectedUsers>,
    pub health: Arc<Health>,
    /// Why appends are rejected at present, if they are.
    pub full_reason: RwLock<Option<Arc<str>>>,
    /// The runtime in which the store was opened, if any. It runs the notifications of large commits.
    pub runtime: Option<tokio::runtime::Handle>,
}

impl StoreState {
    /// Marks a log with changed acknowledgements or presence, and queues it for the commit thread.
    ///
    /// Call this while the log is locked. Another caller that finds the mark relies on the log being queued. Otherwise
    /// a later dispatch could be committed without the change of that caller.
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

    /// Returns the figures for monitoring. Reads no message and no user.
    pub fn figures(&self) -> StoreFigures {
        let (flushed, unflushed) = (self.engine.stored_entries(), self.logs.unflushed());
        StoreFigures {
            pending_messages: flushed.entries + unflushed.entries,
            pending_bytes: flushed.bytes + unflushed.bytes,
            wal_bytes: self.figures.wal_bytes(),
            memory_bytes: self.logs.pinned_bytes(),
            disk: self.figures.disk(),
            flush_lag: self.figures.flush_lag(),
            commit_latency: self.figures.commit_latency.clone(),
        }
    }

    /// Fails if appends are rejected at present, because the store is full.
    pub fn check_capacity(&self) -> Result<(), StoreError> {
        self.full_reason.read().clone().map_or(Ok(()), |why| Err(StoreError::Full(why)))
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
