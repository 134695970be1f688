//! What is to be told to the outside world and was not yet: events in the order in which they happened, on disk, bounded.
//!
//! Events are put in from anywhere without waiting. The commit thread writes what was put in before it writes the commit
//! that it may belong to, some 20 ms later at most, and makes it as durable as everything; from then on it can be read,
//! and stays until it is removed. What is put in while there is no room is not kept but counted, by kind, and as soon as
//! there is room again an event that tells the count is put in where the others are missing.
//!
//! Beside the events stands, for each user, up to where messages were told of as undelivered.
//!
//! - `format`: what stands in the table
//! - `commit`: what the commit thread does, and opening
//! - `store_events`: what the store itself puts in

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

/// Events that may wait for the commit thread. One more is lost, and counted.
const WAITING_EVENTS_MAX: usize = 16_384;

/// Bytes of those; likewise, but for a single event that is larger.
const WAITING_BYTES_MAX: u64 = 8 << 20;

/// Once something was lost, it takes until this part of the bound is free for anything to be taken again, so that what is
/// missing is told of once and not between every two events.
const ROOM_SHARE: u64 = 8;

/// Events on their way out. See the module.
pub struct Outbox {
    engine: Arc<dyn Engine>,
    queue: Arc<Queue>,
    clock: Clock,
    options: OutboxOptions,
    /// Of this start: names the events that are put in from here on.
    start: u64,
    inside: Mutex<Inside>,
    /// Rises with every change of what can be read, or of the room there is.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inside {
    /// Put in and not written, with when.
    waiting: Vec<(u64, OutboxEvent)>,
    waiting_bytes: u64,
    /// Set and not written: up to where a user's messages were told of, or that this is to be forgotten.
    reported: HashMap<UserId, Option<Seq>>,
    /// What can be read, rising.
    batches: VecDeque<Written>,
    /// The number of the next event to be written.
    next: u64,
    /// Events in all, written or not, and their bytes.
    events: u64,
    bytes: u64,
    /// Those of them that can be read.
    written: u64,
    written_bytes: u64,
    /// Everything up to this is to be removed.
    remove: u64,
    removed: u64,
    lost: Lost,
    /// Events lost since the store was opened.
    lost_total: u64,
    /// Bytes of events that the disk has space for, as the commit thread found it last, less what it wrote since.
    space: u64,
}

/// What was lost, and not told of yet.
#[derive(Default)]
struct Lost {
    since_ms: u64,
    /// By kind.
    counts: [u64; 9],
    /// A crash has cut the count short.
    at_least: bool,
    /// There is more than the table says.
    unwritten: bool,
    /// The table says something.
    stored: bool,
    /// When that was last written, by the clock.
    stored_ms: u64,
}

impl Lost {
    fn any(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }

    fn list(&self) -> Vec<(u8, u64)> {
        (0_u8..).zip(self.counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// A batch that can be read.
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
        if !self.make_room(&mut inside, bytes, now_ms) {
            let kind = event.kind();
            if !inside.lost.any() {
                inside.lost.since_ms = now_ms;
                tracing::error!(
                    kind = kind.as_str(),
                    "the outbox of the webhook is full: events are lost from here on, and counted"
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
            // It looks at the disk again.
            self.queue.nudge();
            return false;
        }
        if !self.make_room(&mut inside, event.bytes(), now_ms) {
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
            // One that cannot be read is told of when that user is asked for.
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

    /// Whether one more event of so many bytes may come in. Where something was lost before, and there is room again, that
    /// is put in first.
    fn make_room(&self, inside: &mut Inside, bytes: u64, now_ms: u64) -> bool {
        if inside.lost.any() && !self.tell_lost(inside, now_ms) {
            return false;
        }
        let waiting = inside.waiting.len() < WAITING_EVENTS_MAX
            && (inside.waiting.is_empty() || inside.waiting_bytes + bytes <= WAITING_BYTES_MAX);
        waiting && inside.events < self.options.events && inside.bytes + bytes <= self.options.bytes
    }

    /// Puts in what was lost, if there is enough room again. The event itself may go over the bound.
    fn tell_lost(&self, inside: &mut Inside, now_ms: u64) -> bool {
        let most = |bound: u64| bound - bound / ROOM_SHARE;
        // Rounded so that also a bound of a few has some room.
        let room = inside.events < most(self.options.events).max(1) && inside.bytes <= most(self.options.bytes);
        if !room || !inside.waiting.is_empty() {
            return false;
        }
        let Lost { since_ms, at_least, stored, stored_ms, .. } = inside.lost;
        let lost = inside.lost.list();
        tracing::warn!(
            events = lost.iter().map(|(_, count)| count).sum::<u64>(),
            "the outbox of the webhook has room again; what was lost is told in it"
        );
        inside.push(now_ms, OutboxEvent::Overflow { since_ms, lost, at_least });
        inside.lost = Lost { stored, stored_ms, unwritten: stored, ..Lost::default() };
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
