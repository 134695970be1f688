//! Implements the outbox: webhook events on disk, in order and bounded, until a backend has accepted them.
//!
//! Any thread puts events without waiting. About 20 ms later at most, the commit thread writes them, before a commit
//! that depends on them, and makes them as durable as configured. Then they can be read until they are removed.
//!
//! Events above the capacity are dropped, and counted by kind. When there is capacity again, an `overflow` event
//! reports the counts at this point of the order.
//!
//! For each user, the outbox also stores the sequence up to which messages were reported as undelivered.
//!
//! - `format`: encoding of keys and values · `step`: what one step writes
//! - `commit`: writes on the commit thread, and opens the outbox · `replay`: events that only the write-ahead log has
//! - `store_events`: events of the store itself · `snapshot`: the content of a backup · `erase`: removal of a user

mod commit;
pub(super) mod erase;
pub(super) mod format;
pub(super) mod replay;
pub(super) mod snapshot;
mod step;
mod store_events;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    tables::contract::{Table, Tables},
    unreadable,
    user_log::cache::LogCache,
    writer::queue::Queue,
};
use crate::{
    message::{Seq, UserId},
    store::{EventKind, Outbox as _, OutboxEvent, OutboxOptions, OutboxStatus, QueuedEvent, StoreError, clock::Clock},
};
pub(super) use commit::{STEPS_MAX, stored_through};
pub use format::key_label;
use format::{Batch, Pieces};
pub(super) use step::{OutboxSpace, StepWrites};

/// Limit of events that wait for the commit thread. Further events are dropped and counted.
const WAITING_EVENTS_MAX: usize = 16_384;

/// Limit of the waiting events, in bytes. Further events are dropped and counted; a single larger event is accepted.
const WAITING_BYTES_MAX: u64 = 8 << 20;

/// Divisor of the bound: after a drop, events are accepted again when this part is free.
///
/// Otherwise an `overflow` event could follow each single drop.
const FREE_SHARE: u64 = 8;

/// Stores webhook events. See the module docs.
pub struct Outbox {
    tables: Arc<dyn Tables>,
    queue: Arc<Queue>,
    logs: Arc<LogCache>,
    clock: Clock,
    options: OutboxOptions,
    /// Random number of this start. It is part of the ids of the events that this start writes.
    start: u64,
    state: Mutex<OutboxState>,
    /// Number of changes of the readable events or of the capacity.
    changed: watch::Sender<u64>,
}

/// Holds the waiting events, and describes the stored ones.
#[derive(Default)]
struct OutboxState {
    /// Events that are not written yet, each with its time in milliseconds of the Unix epoch.
    waiting: Vec<(u64, OutboxEvent)>,
    waiting_bytes: u64,
    /// Reported sequences that are not written yet. `None` removes the stored sequence.
    reported: HashMap<UserId, Option<Seq>>,
    /// Batches that can be read, by number.
    batches: VecDeque<BatchInfo>,
    /// Number that the next written event gets.
    next_number: u64,
    /// Steps of the commit thread with events that are neither waiting nor readable.
    steps_in_progress: usize,
    /// The batches of these steps, each with the number of its first event.
    in_progress: VecDeque<(u64, Batch)>,
    /// Count of all events, written or waiting.
    events: u64,
    bytes: u64,
    /// Count of the events that can be read.
    written: u64,
    written_bytes: u64,
    /// Events up to this number must be removed.
    remove_through: u64,
    /// Events up to this number have been removed.
    removed_through: u64,
    lost: DropCounters,
    /// Events dropped since the store was opened.
    lost_total: u64,
    /// Bytes of events that fit on the disk: the last measurement, minus the events that were written since.
    space: u64,
}

/// Counts dropped events that were not reported yet.
#[derive(Default)]
struct DropCounters {
    /// Time of the first drop, in milliseconds of the Unix epoch.
    since_ms: u64,
    /// Dropped events by kind.
    counts: [u64; 9],
    /// A crash may have made the counts too low.
    at_least: bool,
    /// The counts differ from the stored ones.
    unwritten: bool,
    /// The table has counts.
    stored: bool,
    /// Time at which the counts were last stored, in milliseconds of the Unix epoch.
    stored_ms: u64,
}

impl DropCounters {
    fn any(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }

    /// Returns the counts above 0, each with the number of its kind.
    fn list(&self) -> Vec<(u8, u64)> {
        (0_u8..).zip(self.counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// Describes a batch that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchInfo {
    /// Number of the first event.
    first: u64,
    /// Number of events.
    count: u64,
    /// Number of the last event that is not erased; 0 = all are.
    ///
    /// The batch is removed when this event is accepted: an erased one is never sent.
    last_live: u64,
    /// Number of values that store the batch.
    pieces: usize,
    /// Bytes of the events.
    bytes: u64,
}

impl BatchInfo {
    fn last(&self) -> u64 {
        self.first + self.count - 1
    }
}

/// Returns the number of the last event that is not erased; 0 = there is none.
fn last_live(first: u64, events: &[(u64, Option<OutboxEvent>)]) -> u64 {
    events.iter().rposition(|(_, event)| event.is_some()).map_or(0, |at| first + at as u64)
}

impl crate::store::Outbox for Outbox {
    fn start_id(&self) -> String {
        format!("{:016x}", self.start)
    }

    fn is_enabled(&self, kind: EventKind) -> bool {
        self.options.kinds.contains(&kind)
    }

    fn put(&self, event: OutboxEvent) {
        if !self.is_enabled(event.kind()) {
            return;
        }
        let (now_ms, bytes) = (self.clock.now_ms(), event.bytes());
        let mut state = self.state.lock();
        if !self.has_capacity(&mut state, bytes, now_ms) {
            let kind = event.kind();
            if !state.lost.any() {
                state.lost.since_ms = now_ms;
                tracing::error!(
                    kind = kind.as_str(),
                    "the webhook outbox is full: events are dropped and counted. Check that the webhook endpoint accepts events"
                );
            }
            state.lost.counts[kind as usize] += 1;
            state.lost.unwritten = true;
            state.lost_total += 1;
            drop(state);
            self.queue.notify_outbox();
            return;
        }
        state.push(now_ms, event);
        drop(state);
        self.queue.notify_outbox();
    }

    fn put_undelivered(&self, user: &UserId, seq: Seq, event: OutboxEvent) -> bool {
        // Under the lock of the log: the user may be erased meanwhile, and no event with an erased message may follow.
        let put = self.logs.peek(user, |log| {
            !log.is_erasing && !log.cursors.is_acknowledged(seq) && self.put_pending(user, seq, event)
        });
        // The caller reads the log again, and gets the error.
        put.unwrap_or(false)
    }

    fn reported(&self, user: &UserId) -> Result<Seq, StoreError> {
        if let Some(reported) = self.state.lock().reported.get(user) {
            return Ok(reported.unwrap_or(0));
        }
        let stored = self.tables.get(Table::Outbox, &format::reported_key(user.as_str()))?;
        stored.map_or(Ok(0), |stored| format::decode_reported(&stored).map_err(damaged))
    }

    fn all_reported(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, Seq)>, StoreError> {
        let mut from = format::reported_key(after.map_or("", UserId::as_str));
        if after.is_some() {
            from.push(0);
        }
        let mut all = Vec::new();
        if limit == 0 {
            return Ok(all);
        }
        self.tables.scan(Table::Outbox, &from, &mut |key, value| {
            let Some(user) = format::reported_user(key) else { return false };
            let seq = match self.state.lock().reported.get(&user) {
                // Not written yet.
                Some(reported) => *reported,
                // An unreadable value is skipped here; `reported` returns its error.
                None => format::decode_reported(&value).ok(),
            };
            all.extend(seq.map(|seq| (user, seq)));
            all.len() < limit
        })?;
        Ok(all)
    }

    fn remove_reported(&self, user: &UserId) {
        self.state.lock().reported.insert(user.clone(), None);
        self.queue.notify_outbox();
    }

    fn read(&self, after: u64, events: usize, bytes: u64) -> Result<Vec<QueuedEvent>, StoreError> {
        let mut result = Vec::new();
        let (mut after, mut size) = (after, 0);
        while result.len() < events {
            let batch = {
                let state = self.state.lock();
                let at = state.batches.partition_point(|batch| batch.last() <= after);
                state.batches.get(at).copied()
            };
            let Some(batch) = batch else { break };
            // Removed meanwhile: the next batch follows.
            let Some(Batch::V1 { start, events: all }) = self.read_stored(batch)? else { continue };
            for (number, (at_ms, event)) in (batch.first..).zip(all).filter(|(number, _)| *number > after) {
                let Some(event) = event else { continue };
                size += event.bytes();
                if result.len() >= events || !result.is_empty() && size > bytes {
                    return Ok(result);
                }
                result.push(QueuedEvent { number, id: format!("{start:016x}-{number}"), at_ms, event });
            }
            after = batch.last();
        }
        Ok(result)
    }

    fn remove(&self, through: u64) {
        let mut state = self.state.lock();
        state.remove_through = state.remove_through.max(through);
        drop(state);
        self.queue.notify_outbox();
    }

    fn status(&self) -> OutboxStatus {
        let state = self.state.lock();
        OutboxStatus {
            events: state.written,
            bytes: state.written_bytes,
            lost: state.lost_total,
            losing: state.lost.any(),
            removed: state.removed_through,
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Outbox {
    /// Puts the event of a message that is pending. See [`put_undelivered`](crate::store::Outbox::put_undelivered).
    fn put_pending(&self, user: &UserId, seq: Seq, event: OutboxEvent) -> bool {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        if state.waiting_bytes.saturating_add(event.bytes()) > state.space {
            drop(state);
            // The commit thread then measures the disk again.
            self.queue.notify_outbox();
            return false;
        }
        if !self.has_capacity(&mut state, event.bytes(), now_ms) {
            return false;
        }
        state.push(now_ms, event);
        state.reported.insert(user.clone(), Some(seq));
        drop(state);
        self.queue.notify_outbox();
        true
    }

    /// Returns the number of the last event, written or waiting.
    pub(in crate::embedded) fn last_number(&self) -> u64 {
        let state = self.state.lock();
        state.next_number + state.waiting.len() as u64 - 1
    }

    /// Returns whether all events up to a number are written. Called by the commit thread only.
    pub(in crate::embedded) fn is_written(&self, number: u64) -> bool {
        let state = self.state.lock();
        state.steps_in_progress == 0 && state.next_number > number
    }

    /// Returns the number of the last removed event.
    pub(in crate::embedded) fn removed_through(&self) -> u64 {
        self.state.lock().removed_through
    }

    /// Records that no event may be put into the table at present.
    pub(in crate::embedded) fn set_no_space(&self) {
        self.state.lock().space = 0;
    }

    /// Returns an upper bound of the bytes that the waiting events take in the WAL.
    pub(in crate::embedded) fn waiting_wal_bytes(&self) -> u64 {
        let state = self.state.lock();
        // A piece has its record, and each event its lengths.
        state.waiting_bytes + state.waiting_bytes / 64 + 64 * state.waiting.len() as u64
    }

    /// Reads a batch. Returns `None` if it was removed meanwhile.
    fn read_stored(&self, mut batch: BatchInfo) -> Result<Option<Batch>, StoreError> {
        loop {
            let error = match read_batch(&*self.tables, batch) {
                Ok(read) => return Ok(Some(read)),
                Err(error) => error,
            };
            // The commit thread may have removed the batch or erased its event. It changes the state before that.
            match self.state.lock().batches.iter().find(|one| one.first == batch.first) {
                None => return Ok(None),
                Some(now) if *now != batch => batch = *now,
                Some(_) => return Err(error),
            }
        }
    }

    /// Returns whether an event of `bytes` fits. After drops, puts the `overflow` event before it.
    fn has_capacity(&self, state: &mut OutboxState, bytes: u64, now_ms: u64) -> bool {
        if state.lost.any() && !self.report_drops(state, now_ms) {
            return false;
        }
        let fits_in_memory = state.waiting.len() < WAITING_EVENTS_MAX
            && (state.waiting.is_empty() || state.waiting_bytes + bytes <= WAITING_BYTES_MAX);
        fits_in_memory && state.events < self.options.events && state.bytes + bytes <= self.options.bytes
    }

    /// Puts the `overflow` event if there is enough capacity, and resets the counts. This event may exceed the bound.
    fn report_drops(&self, state: &mut OutboxState, now_ms: u64) -> bool {
        let reduced = |bound: u64| bound - bound / FREE_SHARE;
        // At least 1, so that an empty outbox with a bound of one event has capacity.
        let has_capacity =
            state.events < reduced(self.options.events).max(1) && state.bytes <= reduced(self.options.bytes);
        if !has_capacity || !state.waiting.is_empty() {
            return false;
        }
        let DropCounters { since_ms, at_least, stored, stored_ms, .. } = state.lost;
        let lost = state.lost.list();
        tracing::warn!(
            events = lost.iter().map(|(_, count)| count).sum::<u64>(),
            "the webhook outbox has capacity again: an overflow event reports the dropped events"
        );
        state.push(now_ms, OutboxEvent::Overflow { since_ms, lost, at_least });
        state.lost = DropCounters { stored, stored_ms, unwritten: stored, ..DropCounters::default() };
        true
    }
}

impl OutboxState {
    fn push(&mut self, at_ms: u64, event: OutboxEvent) {
        let bytes = event.bytes();
        self.events += 1;
        self.bytes += bytes;
        self.waiting_bytes += bytes;
        self.waiting.push((at_ms, event));
    }
}

/// Reads and decodes a batch.
///
/// The erasure of its event may replace the first piece meanwhile, and then remove the others. So a damaged batch is read
/// once more: the first piece then is the complete batch.
fn read_batch(tables: &dyn Tables, batch: BatchInfo) -> Result<Batch, StoreError> {
    match read_pieces(tables, batch) {
        Err(StoreError::Damaged(_)) => read_pieces(tables, batch),
        read => read,
    }
}

fn read_pieces(tables: &dyn Tables, batch: BatchInfo) -> Result<Batch, StoreError> {
    let mut pieces = Pieces::default();
    for piece in 0..batch.pieces {
        let value = tables.get(Table::Outbox, &format::event_key(batch.first, piece))?;
        let value = value.ok_or_else(|| damaged(format!("event {} is missing", batch.first)))?;
        if let Some(batch) = pieces.push(&value).map_err(damaged)? {
            return Ok(batch);
        }
    }
    Err(damaged(format!("event {} has no end", batch.first)))
}

fn damaged(what: impl fmt::Display) -> StoreError {
    unreadable::damaged(format!("the outbox: {what}"))
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("status", &self.status()).finish_non_exhaustive()
    }
}
