//! The bounded queue of the commit thread.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use super::cost::Cost;
use crate::{
    message::UserId,
    store::{Append, AppendResult, StoreError},
};

/// Limit of operations in one commit.
const COMMIT_APPENDS_MAX: usize = 4096;

/// Limit of a commit's records in bytes, by the upper bound of their cost. One append is always allowed.
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// An operation that a caller waits for.
pub enum Op {
    Append {
        appends: Vec<Append>,
        cost: Cost,
        done: oneshot::Sender<Result<Vec<AppendResult>, StoreError>>,
    },
    Clear {
        user: UserId,
        done: oneshot::Sender<Result<u64, StoreError>>,
    },
    /// Commits everything queued, and closes the store.
    Close {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Queues operations and reports for the commit thread. Operations are bounded; further callers wait. Reports are merged
/// by user, so there is at most one for each user with a session.
pub struct Queue {
    slots: Semaphore,
    state: Mutex<QueueState>,
    ready: Condvar,
}

#[derive(Default)]
struct QueueState {
    ops: VecDeque<Op>,
    /// Users with new acknowledgements or presence.
    dirty: Vec<UserId>,
    /// Users whose blocks must be trimmed.
    trim: Vec<UserId>,
    /// Operations are rejected with this error.
    closed: Option<StoreError>,
    /// The outbox has events for the commit thread to write.
    outbox_waiting: bool,
    waiting: bool,
}

/// Operations and reports that the commit thread takes at once.
#[derive(Default)]
pub struct Batch {
    pub ops: Vec<Op>,
    pub dirty: Vec<UserId>,
    pub trim: Vec<UserId>,
}

impl Queue {
    pub fn new(capacity: usize) -> Arc<Self> {
        let slots = Semaphore::new(capacity.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { slots, state: Mutex::default(), ready: Condvar::new() })
    }

    /// Queues an operation. Waits while the queue is full.
    pub async fn put(&self, op: Op) -> Result<(), StoreError> {
        match self.slots.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(self.state.lock().closed.clone().unwrap_or(StoreError::Closed)),
        }
        self.push(op)
    }

    fn push(&self, op: Op) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if matches!(op, Op::Close { .. }) {
            state.closed = Some(StoreError::Closed);
            self.slots.close();
        }
        state.ops.push_back(op);
        self.wake(&mut state);
        Ok(())
    }

    /// Queues the close, even if the queue is full. Earlier operations are committed first.
    pub fn close(&self, done: oneshot::Sender<Result<(), StoreError>>) -> Result<(), StoreError> {
        self.push(Op::Close { done })
    }

    pub fn push_dirty(&self, user: UserId) {
        let mut state = self.state.lock();
        // The first report starts the delay. Later ones do not wake the thread.
        let first = state.dirty.is_empty() && state.trim.is_empty();
        state.dirty.push(user);
        if first {
            self.wake(&mut state);
        }
    }

    pub fn push_trim(&self, user: UserId) {
        let mut state = self.state.lock();
        let first = state.dirty.is_empty() && state.trim.is_empty();
        state.trim.push(user);
        if first {
            self.wake(&mut state);
        }
    }

    /// Wakes the commit thread to write the outbox.
    pub fn notify_outbox(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.outbox_waiting, true) {
            self.wake(&mut state);
        }
    }

    fn wake(&self, state: &mut QueueState) {
        if std::mem::take(&mut state.waiting) {
            self.ready.notify_one();
        }
    }

    /// Takes everything queued, and waits for it if necessary. Operations return at once; reports alone wait up to `delay` for
    /// more. Returns an empty batch after `idle`.
    pub fn take(&self, delay: Duration, idle: Duration) -> Batch {
        let mut state = self.state.lock();
        let start = Instant::now();
        while state.ops.is_empty() {
            let has_reports = state.outbox_waiting || !state.dirty.is_empty() || !state.trim.is_empty();
            let timeout = if has_reports { delay.min(idle) } else { idle };
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state.waiting = true;
            self.ready.wait_for(&mut state, left);
        }
        (state.waiting, state.outbox_waiting) = (false, false);
        let mut batch =
            Batch { ops: Vec::new(), dirty: std::mem::take(&mut state.dirty), trim: std::mem::take(&mut state.trim) };
        let mut bytes: u64 = 0;
        while batch.ops.len() < COMMIT_APPENDS_MAX && bytes < COMMIT_BYTES_MAX {
            let Some(op) = state.ops.pop_front() else { break };
            if let Op::Append { cost, .. } = &op {
                bytes += cost.wal;
            }
            batch.ops.push(op);
        }
        drop(state);
        self.slots.add_permits(batch.ops.iter().filter(|op| !matches!(op, Op::Close { .. })).count());
        batch
    }

    /// Closes the queue and rejects queued operations.
    pub fn fail(&self, error: &StoreError) {
        let ops = {
            let mut state = self.state.lock();
            state.closed = Some(error.clone());
            self.slots.close();
            std::mem::take(&mut state.ops)
        };
        ops.into_iter().for_each(|op| op.reject(error));
    }
}

impl Op {
    /// Replies with an error. The caller may no longer wait.
    pub fn reject(self, error: &StoreError) {
        match self {
            Self::Append { done, .. } => _ = done.send(Err(error.clone())),
            Self::Clear { done, .. } => _ = done.send(Err(error.clone())),
            Self::Close { done } => _ = done.send(Err(error.clone())),
        }
    }
}
