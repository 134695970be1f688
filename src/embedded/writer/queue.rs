//! Bounded queue of the commit thread.

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

/// Operations in one commit.
const COMMIT_APPENDS_MAX: usize = 4096;

/// Bytes of records in one commit, by their upper bound. One append is always allowed.
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

/// Queue between callers and the commit thread. Its operations are bounded; further callers wait. Reports are
/// coalesced by user, so there is at most one for each user with a session.
pub struct Queue {
    room: Semaphore,
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    /// Users with new acknowledgements or presence.
    dirty: Vec<UserId>,
    /// Users whose blocks may be trimmed.
    trim: Vec<UserId>,
    /// Operations are rejected with this error.
    closed: Option<StoreError>,
    /// The outbox has events to write.
    nudged: bool,
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
    pub fn new(room: usize) -> Arc<Self> {
        let room = Semaphore::new(room.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { room, state: Mutex::default(), ready: Condvar::new() })
    }

    /// Queues an operation; waits while the queue is full.
    pub async fn put(&self, op: Op) -> Result<(), StoreError> {
        match self.room.acquire().await {
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
            self.room.close();
        }
        state.ops.push_back(op);
        self.wake(&mut state);
        Ok(())
    }

    /// Queues the close, also if the queue is full. Queued operations are committed first.
    pub fn close(&self, done: oneshot::Sender<Result<(), StoreError>>) -> Result<(), StoreError> {
        self.push(Op::Close { done })
    }

    pub fn dirty(&self, user: UserId) {
        let mut state = self.state.lock();
        // The first report starts the delay. Later ones need not wake the thread.
        let first = state.dirty.is_empty() && state.trim.is_empty();
        state.dirty.push(user);
        if first {
            self.wake(&mut state);
        }
    }

    pub fn trim(&self, user: UserId) {
        let mut state = self.state.lock();
        let first = state.dirty.is_empty() && state.trim.is_empty();
        state.trim.push(user);
        if first {
            self.wake(&mut state);
        }
    }

    /// The outbox has something to write.
    pub fn nudge(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.nudged, true) {
            self.wake(&mut state);
        }
    }

    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.waiting) {
            self.ready.notify_one();
        }
    }

    /// Takes everything queued. Operations return at once; reports alone wait up to `linger` for more. Returns an
    /// empty batch after `idle`.
    pub fn take(&self, linger: Duration, idle: Duration) -> Batch {
        let mut state = self.state.lock();
        let start = Instant::now();
        while state.ops.is_empty() {
            let notes = state.nudged || !state.dirty.is_empty() || !state.trim.is_empty();
            let patience = if notes { linger.min(idle) } else { idle };
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state.waiting = true;
            self.ready.wait_for(&mut state, left);
        }
        (state.waiting, state.nudged) = (false, false);
        let mut taken =
            Batch { ops: Vec::new(), dirty: std::mem::take(&mut state.dirty), trim: std::mem::take(&mut state.trim) };
        let mut bytes: u64 = 0;
        while taken.ops.len() < COMMIT_APPENDS_MAX && bytes < COMMIT_BYTES_MAX {
            let Some(op) = state.ops.pop_front() else { break };
            if let Op::Append { cost, .. } = &op {
                bytes += cost.wal;
            }
            taken.ops.push(op);
        }
        drop(state);
        self.room.add_permits(taken.ops.iter().filter(|op| !matches!(op, Op::Close { .. })).count());
        taken
    }

    /// Closes the queue and rejects queued operations.
    pub fn fail(&self, error: &StoreError) {
        let ops = {
            let mut state = self.state.lock();
            state.closed = Some(error.clone());
            self.room.close();
            std::mem::take(&mut state.ops)
        };
        ops.into_iter().for_each(|op| op.reject(error));
    }
}

impl Op {
    /// Replies that it was not done. Whoever asked may be gone.
    pub fn reject(self, error: &StoreError) {
        match self {
            Self::Append { done, .. } => _ = done.send(Err(error.clone())),
            Self::Clear { done, .. } => _ = done.send(Err(error.clone())),
            Self::Close { done } => _ = done.send(Err(error.clone())),
        }
    }
}
