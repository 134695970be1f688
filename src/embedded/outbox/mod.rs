//! The outbox: webhook events on disk, in order and bounded, until a backend has taken them.
//!
//! Any thread puts events without waiting. The commit thread writes them at most about 20 ms later, before the commit that
//! they may belong to, and makes them as durable as configured. From then on an event can be read, until it is removed.
//! Events beyond the capacity are dropped and counted by kind. When there is capacity again, an `overflow` event with the
//! counts takes their place in the order.
//!
//! For each user, the outbox also stores up to which sequence messages were reported as undelivered.
//!
//! - `format`: encoding of keys and values
//! - `commit`: the commit thread's part, and opening
//! - `store_events`: events of the store itself

mod commit;
mod format;
mod store_events;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    tables::contract::{Engine, EngineError, Table},
    writer::queue::Queue,
};
use crate::{
    message::{Seq, UserId},
    store::{EventKind, Outbox as _, OutboxEvent, OutboxOptions, OutboxStatus, QueuedEvent, StoreError, clock::Clock},
};
use format::{Batch, Pieces};

/// Events that may wait for the commit thread. Further events are dropped and counted.
const WAITING_EVENTS_MAX: usize = 16_384;

/// Bytes of the waiting events. Further events are dropped and counted; a single larger event is accepted.
const WAITING_BYTES_MAX: u64 = 8 << 20;

/// After a drop, events are accepted again when one part in this many of the bound is free.
///
/// So drops are reported once, and not between every two events.
const FREE_SHARE: u64 = 8;

/// Stores webhook events. See the module.
pub struct Outbox {
    engine: Arc<dyn Engine>,
    queue: Arc<Queue>,
    clock: Clock,
    options: OutboxOptions,
    /// Random number of this start. Part of the ids of the events that it writes.
    start: u64,
    inside: Mutex<Inside>,
    /// Rises with every change of the readable events or of the capacity.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inside {
    /// Events that are not written yet, each with its time in milliseconds of the Unix epoch.
    waiting: Vec<(u64, OutboxEvent)>,
    waiting_bytes: u64,
    /// Reported sequences that are not written yet. `None` removes the stored one.
    reported: HashMap<UserId, Option<Seq>>,
    /// Batches that can be read, rising.
    batches: VecDeque<Written>,
    /// Number of the next event that is written.
    next: u64,
    /// Number of all events, written or not, and their bytes.
    events: u64,
    bytes: u64,
    /// Number of the events that can be read, and their bytes.
    written: u64,
    written_bytes: u64,
    /// Events up to this number are to be removed.
    remove: u64,
    removed: u64,
    lost: DropCounters,
    /// Events dropped since the store was opened.
    lost_total: u64,
    /// Bytes of events that fit on the disk: the last finding of the commit thread, less what it wrote since.
    space: u64,
}

/// Counts dropped events that were not reported yet.
#[derive(Default)]
struct DropCounters {
    since_ms: u64,
    /// Dropped events by kind.
    counts: [u64; 9],
    /// A crash may have made the counts too low.
    at_least: bool,
    /// The counts are higher than the stored ones.
    unwritten: bool,
    /// Counts are stored in the table.
    stored: bool,
    /// When the counts were last stored, in milliseconds of the Unix epoch.
    stored_ms: u64,
}

impl DropCounters {
    fn any(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }

    fn list(&self) -> Vec<(u8, u64)> {
        (0_u8..).zip(self.counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// Describes a batch that can be read.
#[derive(Clone, Copy, Debug)]
struct Written {
    first: u64,
    count: u64,
    pieces: usize,
    bytes: u64,
}

impl Written {
    fn last(&self) -> u64 {
        self.first + self.count - 1
    }
}

impl crate::store::Outbox for Outbox {
    fn start(&self) -> String {
        format!("{:016x}", self.start)
    }

    fn wants(&self, kind: EventKind) -> bool {
        self.options.kinds.contains(&kind)
    }

    fn put(&self, event: OutboxEvent) {
        if !self.wants(event.kind()) {
            return;
        }
        let (now_ms, bytes) = (self.clock.now_ms(), event.bytes());
        let mut inside = self.inside.lock();
        if !self.has_capacity(&mut inside, bytes, now_ms) {
            let kind = event.kind();
            if !inside.lost.any() {
                inside.lost.since_ms = now_ms;
                tracing::error!(
                    kind = kind.as_str(),
                    "the webhook outbox is full: events are dropped and counted. Check that the webhook endpoint accepts events"
                );
            }
            inside.lost.counts[kind as usize] += 1;
            inside.lost.unwritten = true;
            inside.lost_total += 1;
            drop(inside);
            self.queue.nudge();
            return;
        }
        inside.push(now_ms, event);
        drop(inside);
        self.queue.nudge();
    }

    fn put_undelivered(&self, user: &UserId, seq: Seq, event: OutboxEvent) -> bool {
        let now_ms = self.clock.now_ms();
        let mut inside = self.inside.lock();
        if inside.waiting_bytes.saturating_add(event.bytes()) > inside.space {
            drop(inside);
            // Makes the commit thread check the disk again.
            self.queue.nudge();
            return false;
        }
        if !self.has_capacity(&mut inside, event.bytes(), now_ms) {
            return false;
        }
        inside.push(now_ms, event);
        inside.reported.insert(user.clone(), Some(seq));
        drop(inside);
        self.queue.nudge();
        true
    }

    fn reported(&self, user: &UserId) -> Result<Seq, StoreError> {
        if let Some(reported) = self.inside.lock().reported.get(user) {
            return Ok(reported.unwrap_or(0));
        }
        let stored = self.engine.get(Table::Outbox, &format::reported_key(user.as_str())).map_err(failed)?;
        stored.map_or(Ok(0), |stored| format::decode_reported(&stored).map_err(damaged))
    }

    fn all_reported(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, Seq)>, StoreError> {
        let mut from = format::reported_key(after.map_or("", UserId::as_str));
        if after.is_some() {
            from.push(0);
        }
        let mut all = Vec::new();
        let scanned = self.engine.scan(Table::Outbox, &from, &mut |key, value| {
            let Some(user) = format::reported_user(key) else { return false };
            // `reported` returns the error of a value that cannot be read.
            all.extend(format::decode_reported(&value).ok().map(|seq| (user, seq)));
            all.len() < limit
        });
        scanned.map_err(failed).map(|()| all)
    }

    fn forget_reported(&self, user: &UserId) {
        self.inside.lock().reported.insert(user.clone(), None);
        self.queue.nudge();
    }

    fn read(&self, after: u64, events: usize, bytes: u64) -> Result<Vec<QueuedEvent>, StoreError> {
        let mut kept = Vec::new();
        let (mut after, mut size) = (after, 0);
        while kept.len() < events {
            let batch = {
                let inside = self.inside.lock();
                let at = inside.batches.partition_point(|batch| batch.last() <= after);
                inside.batches.get(at).copied()
            };
            let Some(batch) = batch else { break };
            let Batch::V1 { start, events: all } = self.read_batch(batch)?;
            for (number, (at_ms, event)) in (batch.first..).zip(all).filter(|(number, _)| *number > after) {
                size += event.bytes();
                if kept.len() >= events || !kept.is_empty() && size > bytes {
                    return Ok(kept);
                }
                kept.push(QueuedEvent { number, id: format!("{start:016x}-{number}"), at_ms, event });
            }
            after = batch.last();
        }
        Ok(kept)
    }

    fn remove(&self, through: u64) {
        let mut inside = self.inside.lock();
        inside.remove = inside.remove.max(through);
        drop(inside);
        self.queue.nudge();
    }

    fn status(&self) -> OutboxStatus {
        let inside = self.inside.lock();
        OutboxStatus {
            events: inside.written,
            bytes: inside.written_bytes,
            lost: inside.lost_total,
            losing: inside.lost.any(),
            removed: inside.removed,
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Outbox {
    fn read_batch(&self, batch: Written) -> Result<Batch, StoreError> {
        let mut pieces = Pieces::default();
        for piece in 0..batch.pieces {
            let value = self.engine.get(Table::Outbox, &format::event_key(batch.first, piece)).map_err(failed)?;
            let value = value.ok_or_else(|| damaged(format!("event {} is missing", batch.first)))?;
            if let Some(batch) = pieces.push(&value).map_err(damaged)? {
                return Ok(batch);
            }
        }
        Err(damaged(format!("event {} has no end", batch.first)))
    }

    /// Returns whether an event of `bytes` fits. After drops, puts the `overflow` event first.
    fn has_capacity(&self, inside: &mut Inside, bytes: u64, now_ms: u64) -> bool {
        if inside.lost.any() && !self.report_drops(inside, now_ms) {
            return false;
        }
        let waiting = inside.waiting.len() < WAITING_EVENTS_MAX
            && (inside.waiting.is_empty() || inside.waiting_bytes + bytes <= WAITING_BYTES_MAX);
        waiting && inside.events < self.options.events && inside.bytes + bytes <= self.options.bytes
    }

    /// Puts the `overflow` event if there is enough capacity. This event may exceed the bound.
    fn report_drops(&self, inside: &mut Inside, now_ms: u64) -> bool {
        let most = |bound: u64| bound - bound / FREE_SHARE;
        // Rounded so that a bound of a few events has capacity too.
        let has_capacity = inside.events < most(self.options.events).max(1) && inside.bytes <= most(self.options.bytes);
        if !has_capacity || !inside.waiting.is_empty() {
            return false;
        }
        let DropCounters { since_ms, at_least, stored, stored_ms, .. } = inside.lost;
        let lost = inside.lost.list();
        tracing::warn!(
            events = lost.iter().map(|(_, count)| count).sum::<u64>(),
            "the webhook outbox has capacity again: an overflow event reports the dropped events"
        );
        inside.push(now_ms, OutboxEvent::Overflow { since_ms, lost, at_least });
        inside.lost = DropCounters { stored, stored_ms, unwritten: stored, ..DropCounters::default() };
        true
    }
}

impl Inside {
    fn push(&mut self, at_ms: u64, event: OutboxEvent) {
        let bytes = event.bytes();
        self.events += 1;
        self.bytes += bytes;
        self.waiting_bytes += bytes;
        self.waiting.push((at_ms, event));
    }
}

fn failed(error: EngineError) -> StoreError {
    StoreError::from(error)
}

fn damaged(what: impl fmt::Display) -> StoreError {
    StoreError::Damaged(format!("the outbox: {what}").into())
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("status", &self.status()).finish_non_exhaustive()
    }
}
