//! Implements the bounded queue of the commit thread. A full queue is backpressure: callers wait.

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
    store::{Append, AppendResult, Erasure, StoreError},
};

/// Limit of operations in one commit.
const COMMIT_OPS_MAX: usize = 4096;

/// Bytes of records above which a commit takes no further operation. The bytes are the upper bounds of [`Cost::wal`].
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// Describes an operation whose caller waits for the reply.
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
    /// Erases a user after the commit of all earlier operations.
    Erase {
        user: UserId,
        done: oneshot::Sender<Result<Erasure, StoreError>>,
    },
    /// Closes the store after the commit of all queued operations.
    Close {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Queues operations and reports for the commit thread.
///
/// Operations are bounded, and further callers wait. Reports are merged by user, so there is at most one for each user
/// with a session.
pub struct Queue {
    permits: Semaphore,
    /// Time for which an operation waits while the WAL or its memory is at its bound.
    busy_timeout: Duration,
    state: Mutex<QueueState>,
    ready: Condvar,
}

#[derive(Default)]
struct QueueState {
    /// Operations, each with the time at which its caller began to wait.
    ops: VecDeque<(Instant, Op)>,
    /// Users with new acknowledgements or presence.
    dirty: Vec<UserId>,
    /// Users whose blocks must be trimmed.
    trim: Vec<UserId>,
    /// Error with which operations are rejected. `None` while the queue is open.
    closed: Option<StoreError>,
    /// The outbox or the table `connected` has something for the commit thread to write.
    has_table_work: bool,
    /// The commit thread waits for `ready`.
    is_waiting: bool,
}

/// Holds the operations and reports that the commit thread takes at once.
#[derive(Default)]
pub struct Batch {
    pub ops: Vec<Op>,
    /// Operations that have waited too long while the WAL or its memory is at its bound.
    pub overdue: Vec<Op>,
    pub dirty: Vec<UserId>,
    pub trim: Vec<UserId>,
}

impl Queue {
    pub fn new(capacity: usize, busy_timeout: Duration) -> Arc<Self> {
        let permits = Semaphore::new(capacity.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { permits, busy_timeout, state: Mutex::default(), ready: Condvar::new() })
    }

    /// Queues an operation. Waits while the queue is full.
    pub async fn put(&self, op: Op) -> Result<(), StoreError> {
        let since = Instant::now();
        match self.permits.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(self.state.lock().closed.clone().unwrap_or(StoreError::Closed)),
        }
        self.push(since, op)
    }

    fn push(&self, since: Instant, op: Op) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if matches!(op, Op::Close { .. }) {
            state.closed = Some(StoreError::Closed);
            self.permits.close();
        }
        state.ops.push_back((since, op));
        self.wake(&mut state);
        Ok(())
    }

    /// Queues the close, even if the queue is full. Earlier operations are committed first.
    pub fn close(&self, done: oneshot::Sender<Result<(), StoreError>>) -> Result<(), StoreError> {
        self.push(Instant::now(), Op::Close { done })
    }

    /// Queues a user whose acknowledgements or presence have changed.
    pub fn push_dirty(&self, user: UserId) {
        let mut state = self.state.lock();
        // The first report starts the delay. Later ones do not wake the thread.
        let first = state.dirty.is_empty() && state.trim.is_empty();
        state.dirty.push(user);
        if first {
            self.wake(&mut state);
        }
    }

    /// Queues a user whose blocks must be trimmed.
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
        self.notify_table_work();
    }

    /// Wakes the commit thread to write the table `connected`.
    pub fn notify_connected(&self) {
        self.notify_table_work();
    }

    fn notify_table_work(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.has_table_work, true) {
            self.wake(&mut state);
        }
    }

    fn wake(&self, state: &mut QueueState) {
        if std::mem::take(&mut state.is_waiting) {
            self.ready.notify_one();
        }
    }

    /// Takes all queued reports, and operations up to the limits of one commit, or up to an erasure.
    ///
    /// Operations are returned at once. Reports without an operation are returned after `delay`. Without either, the
    /// batch is empty and is returned after `idle`.
    ///
    /// While the WAL or its memory is at its bound (`is_congested`), operations stay in the queue, and only overdue ones are
    /// returned. A closed queue returns all of them, so that the store can be closed.
    pub fn take(&self, delay: Duration, idle: Duration, is_congested: bool) -> Batch {
        let mut state = self.state.lock();
        let start = Instant::now();
        while state.ops.is_empty() || is_congested && state.closed.is_none() {
            let has_reports = state.has_table_work || !state.dirty.is_empty() || !state.trim.is_empty();
            let timeout = if has_reports { delay.min(idle) } else { idle };
            let remaining = timeout.saturating_sub(start.elapsed());
            if remaining.is_zero() {
                break;
            }
            state.is_waiting = true;
            self.ready.wait_for(&mut state, remaining);
        }
        (state.is_waiting, state.has_table_work) = (false, false);
        let (dirty, trim) = (std::mem::take(&mut state.dirty), std::mem::take(&mut state.trim));
        let mut batch = Batch { ops: Vec::new(), overdue: Vec::new(), dirty, trim };
        let is_congested = is_congested && state.closed.is_none();
        while is_congested && state.ops.front().is_some_and(|(since, _)| since.elapsed() >= self.busy_timeout) {
            batch.overdue.extend(state.ops.pop_front().map(|(_, op)| op));
        }
        let mut bytes: u64 = 0;
        while !is_congested && batch.ops.len() < COMMIT_OPS_MAX && bytes < COMMIT_BYTES_MAX {
            let Some((_, op)) = state.ops.pop_front() else { break };
            if let Op::Append { cost, .. } = &op {
                bytes += cost.wal;
            }
            let is_last = matches!(op, Op::Erase { .. });
            batch.ops.push(op);
            if is_last {
                break;
            }
        }
        drop(state);
        let taken = batch.ops.iter().chain(&batch.overdue);
        self.permits.add_permits(taken.filter(|op| !matches!(op, Op::Close { .. })).count());
        batch
    }

    /// Closes the queue and rejects queued operations.
    pub fn fail(&self, error: &StoreError) {
        let ops = {
            let mut state = self.state.lock();
            state.closed = Some(error.clone());
            self.permits.close();
            std::mem::take(&mut state.ops)
        };
        ops.into_iter().for_each(|(_, op)| op.reject(error));
    }
}

impl Op {
    /// Replies with an error. The caller may no longer wait.
    pub fn reject(self, error: &StoreError) {
        match self {
            Self::Append { done, .. } => _ = done.send(Err(error.clone())),
            Self::Clear { done, .. } => _ = done.send(Err(error.clone())),
            Self::Erase { done, .. } => _ = done.send(Err(error.clone())),
            Self::Close { done } => _ = done.send(Err(error.clone())),
        }
    }
}
