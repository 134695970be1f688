//! What waits for the commit thread, bounded.

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
    store::{Append, Appended, StoreError},
};

/// Appends taken into one commit.
const COMMIT_APPENDS_MAX: usize = 4096;

/// Bytes of records that are taken into one commit at most, by what they may cost (one append at least).
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// What a user of the store waits for.
pub enum Op {
    Append {
        appends: Vec<Append>,
        cost: Cost,
        done: oneshot::Sender<Result<Vec<Appended>, StoreError>>,
    },
    Clear {
        user: UserId,
        done: oneshot::Sender<Result<u64, StoreError>>,
    },
    /// Write everything, and leave the store closed.
    Close {
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Between those who use the store and the thread that commits. Holds at most as many ops as it has room for, and
/// whoever comes then waits; notes are coalesced by user, so there are never more than users with sessions.
pub struct Queue {
    room: Semaphore,
    inside: Mutex<Inside>,
    ready: Condvar,
}

#[derive(Default)]
struct Inside {
    ops: VecDeque<Op>,
    /// Users whose receipts or presence changed.
    dirty: Vec<UserId>,
    /// Users whose inbox may be trimmed.
    trim: Vec<UserId>,
    /// Nothing more is taken, for this reason.
    closed: Option<StoreError>,
    /// The outbox has something to write.
    nudged: bool,
    waiting: bool,
}

/// What the commit thread takes at once.
#[derive(Default)]
pub struct Taken {
    pub ops: Vec<Op>,
    pub dirty: Vec<UserId>,
    pub trim: Vec<UserId>,
}

impl Queue {
    pub fn new(room: usize) -> Arc<Self> {
        let room = Semaphore::new(room.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { room, inside: Mutex::default(), ready: Condvar::new() })
    }

    /// Puts in an op, waiting for room first.
    pub async fn put(&self, op: Op) -> Result<(), StoreError> {
        match self.room.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(self.inside.lock().closed.clone().unwrap_or(StoreError::Closed)),
        }
        self.push(op)
    }

    fn push(&self, op: Op) -> Result<(), StoreError> {
        let mut inside = self.inside.lock();
        if let Some(error) = &inside.closed {
            return Err(error.clone());
        }
        if matches!(op, Op::Close { .. }) {
            inside.closed = Some(StoreError::Closed);
            self.room.close();
        }
        inside.ops.push_back(op);
        self.wake(&mut inside);
        Ok(())
    }

    /// Asks for the end, without waiting for room: what is in the queue goes first.
    pub fn close(&self, done: oneshot::Sender<Result<(), StoreError>>) -> Result<(), StoreError> {
        self.push(Op::Close { done })
    }

    pub fn dirty(&self, user: UserId) {
        let mut inside = self.inside.lock();
        // The first note starts the lingering; those that join it need not wake anybody.
        let first = inside.dirty.is_empty() && inside.trim.is_empty();
        inside.dirty.push(user);
        if first {
            self.wake(&mut inside);
        }
    }

    pub fn trim(&self, user: UserId) {
        let mut inside = self.inside.lock();
        let first = inside.dirty.is_empty() && inside.trim.is_empty();
        inside.trim.push(user);
        if first {
            self.wake(&mut inside);
        }
    }

    /// The outbox has something to write.
    pub fn nudge(&self) {
        let mut inside = self.inside.lock();
        if !std::mem::replace(&mut inside.nudged, true) {
            self.wake(&mut inside);
        }
    }

    fn wake(&self, inside: &mut Inside) {
        if std::mem::take(&mut inside.waiting) {
            self.ready.notify_one();
        }
    }

    /// Takes what waits. Ops end the waiting at once; notes alone wait up to `linger` for company; after `idle` without
    /// anything it returns empty-handed.
    pub fn take(&self, linger: Duration, idle: Duration) -> Taken {
        let mut inside = self.inside.lock();
        let start = Instant::now();
        while inside.ops.is_empty() {
            let notes = inside.nudged || !inside.dirty.is_empty() || !inside.trim.is_empty();
            let patience = if notes { linger.min(idle) } else { idle };
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            inside.waiting = true;
            self.ready.wait_for(&mut inside, left);
        }
        (inside.waiting, inside.nudged) = (false, false);
        let mut taken =
            Taken { ops: Vec::new(), dirty: std::mem::take(&mut inside.dirty), trim: std::mem::take(&mut inside.trim) };
        let mut bytes: u64 = 0;
        while taken.ops.len() < COMMIT_APPENDS_MAX && bytes < COMMIT_BYTES_MAX {
            let Some(op) = inside.ops.pop_front() else { break };
            if let Op::Append { cost, .. } = &op {
                bytes += cost.journal;
            }
            taken.ops.push(op);
        }
        drop(inside);
        self.room.add_permits(taken.ops.iter().filter(|op| !matches!(op, Op::Close { .. })).count());
        taken
    }

    /// Takes nothing more, and refuses what waits.
    pub fn fail(&self, error: &StoreError) {
        let ops = {
            let mut inside = self.inside.lock();
            inside.closed = Some(error.clone());
            self.room.close();
            std::mem::take(&mut inside.ops)
        };
        ops.into_iter().for_each(|op| op.refuse(error));
    }
}

impl Op {
    /// Answers that it was not done. Whoever asked may be gone.
    pub fn refuse(self, error: &StoreError) {
        match self {
            Self::Append { done, .. } => _ = done.send(Err(error.clone())),
            Self::Clear { done, .. } => _ = done.send(Err(error.clone())),
            Self::Close { done } => _ = done.send(Err(error.clone())),
        }
    }
}
