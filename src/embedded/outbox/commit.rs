//! Opens the outbox, and writes it on the commit thread.
//!
//! A batch is one value or several, and is complete only with the last one. A crash may leave an incomplete batch, which
//! is ignored. Counts of dropped events are stored at the first drop and once a second. So a crash can make them too low, but
//! never lose them. They are removed after the `overflow` event that reports them.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    BatchInfo, DropCounters, Outbox, OutboxEvent, OutboxOptions, OutboxState, WAITING_BYTES_MAX, WAITING_EVENTS_MAX,
    damaged,
    format::{self, Batch, Pieces, StoredLost},
};
use crate::{
    embedded::{
        tables::contract::{EngineError, Table, TableSpace, Tables},
        writer::{queue::Queue, state::Committer},
    },
    message::{Seq, UserId},
    store::{Durability, StoreError, clock::Clock},
};

/// Bytes of events in one batch, about, and one event at least. Mostly one value.
const BATCH_BYTES: u64 = 48 << 10;

/// Interval at which counts of dropped events are stored, in milliseconds.
const LOST_INTERVAL_MS: u64 = 1000;

/// Bytes by which sled's file grows, at most, for each byte of an event until the event is removed.
///
/// sled writes a value again with each change of its neighbours. Measured: 2.2 for events of 50 kB and 2.3 for 300 bytes;
/// with their removal 2.5 and 3.4.
const SPACE_FACTOR: u64 = 4;

/// Bytes by which sled's file grows at once: one segment.
const GROWTH_BYTES: u64 = 8 << 20;

/// With more spare bytes than this, the space inside sled's file does not matter.
const SLACK_SPARE_MAX: u64 = 4 * GROWTH_BYTES;

/// Bytes left to messages for each byte of written events.
///
/// Removed events leave their space to later events, not to the value log. So the outbox takes about half of the space.
const LEFT_FACTOR: u64 = 2;

/// Bytes of events written in one step, one event at least.
///
/// Table space is checked before each step. The preallocated space is several times the growth of one step.
const STEP_BYTES: u64 = 512 << 10;

/// Pieces removed in one step, about. sled may write the neighbours of each piece again.
const STEP_REMOVED_PIECES: usize = 32;

/// Pieces removed in one step while the tables have little space.
const REMOVED_PIECES: usize = 16;

/// Users whose reported sequence is written in one step.
const STEP_REPORTED: usize = 1000;

/// Steps in a row: twice as many as the events in memory can need. The rest waits for the next commit.
const STEPS_MAX: usize =
    2 * (WAITING_BYTES_MAX / STEP_BYTES + WAITING_EVENTS_MAX as u64 / STEP_REPORTED as u64) as usize;

/// States the space for the outbox.
#[derive(Clone, Copy)]
struct Space {
    /// Bytes of the disk that the outbox may take.
    spare: u64,
    /// Bytes that fit into sled's file before it grows, where that matters.
    slack: u64,
    /// Only removals are allowed.
    little: bool,
}

/// Holds the writes of one step.
struct Work {
    batches: Vec<(BatchInfo, Batch)>,
    lost: Option<StoredLost>,
    lost_reported: bool,
    reported: Vec<(UserId, Option<Seq>)>,
    remove: Vec<BatchInfo>,
    /// More is left for another step.
    more: bool,
}

impl Outbox {
    /// Opens the outbox of a store, with the events of earlier starts.
    pub(in crate::embedded) fn open(
        tables: Arc<dyn Tables>,
        queue: Arc<Queue>,
        clock: Clock,
        options: OutboxOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let mut start = [0; 8];
        getrandom::fill(&mut start).map_err(|error| StoreError::Failed(error.to_string().into()))?;
        let mut state = OutboxState { next: 1, ..OutboxState::default() };
        let unfinished = read_all(&*tables, &mut state)?;
        // An incomplete batch of a write that a crash interrupted.
        unfinished.iter().try_for_each(|key| tables.remove(Table::Outbox, key))?;
        state.removed = state.batches.front().map_or(state.next, |batch| batch.first) - 1;
        state.remove = state.removed;
        (state.written, state.written_bytes) = (state.events, state.bytes);
        if let Some(stored) = tables.get(Table::Outbox, format::LOST_KEY)? {
            let StoredLost::V1 { since_ms, lost } = StoredLost::decode(&stored).map_err(damaged)?;
            state.lost = DropCounters { since_ms, at_least: true, stored: true, ..DropCounters::default() };
            for (kind, count) in lost {
                if let Some(counted) = state.lost.counts.get_mut(usize::from(kind)) {
                    *counted = count;
                }
            }
        }
        if state.events > 0 {
            tracing::info!(
                events = state.events,
                bytes = state.bytes,
                "the webhook outbox has events of an earlier start"
            );
        }
        let (start, changed) = (u64::from_be_bytes(start), watch::Sender::new(0));
        Ok(Arc::new(Self { tables, queue, clock, options, start, state: state.into(), changed }))
    }

    /// Collects the writes of the next step. Returns `None` if there are none.
    fn work(&self, space: Space) -> Option<Work> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        state.update_space(space);
        if state.lost.any() {
            self.report_drops(&mut state, now_ms);
        }
        let waiting = state.take_waiting();
        // The counts are removed, and reported sequences written, only together with the events that report them.
        let all = state.waiting.is_empty();
        let due = !state.lost.stored || now_ms.saturating_sub(state.lost.stored_ms) >= LOST_INTERVAL_MS;
        let (mut lost, mut lost_reported) = (None, false);
        if !all || space.little {
            // Later.
        } else if state.lost.unwritten && !state.lost.any() {
            (state.lost.unwritten, state.lost.stored, lost_reported) = (false, false, true);
        } else if state.lost.unwritten && due {
            lost = Some(StoredLost::V1 { since_ms: state.lost.since_ms, lost: state.lost.list() });
            (state.lost.unwritten, state.lost.stored, state.lost.stored_ms) = (false, true, now_ms);
        }
        let (mut remove, mut pieces) = (Vec::new(), 0);
        let pieces_max = if space.little { REMOVED_PIECES } else { STEP_REMOVED_PIECES };
        let mut more = state.fits_next();
        while let Some(batch) = state.batches.front().copied().filter(|batch| batch.last() <= state.remove) {
            pieces += batch.pieces;
            if !remove.is_empty() && pieces > pieces_max {
                more |= !space.little;
                break;
            }
            state.batches.pop_front();
            state.events -= batch.count;
            state.bytes -= batch.bytes;
            state.written -= batch.count;
            state.written_bytes -= batch.bytes;
            remove.push(batch);
        }
        let batches = self.cut(&mut state, waiting);
        let reported: Vec<_> = if all && !space.little {
            more |= state.reported.len() > STEP_REPORTED;
            state.reported.iter().take(STEP_REPORTED).map(|(user, seq)| (user.clone(), *seq)).collect()
        } else {
            Vec::new()
        };
        let work = Work { batches, lost, lost_reported, reported, remove, more };
        let Work { batches, lost, lost_reported, reported, remove, .. } = &work;
        let any = !batches.is_empty() || lost.is_some() || *lost_reported || !reported.is_empty() || !remove.is_empty();
        any.then_some(work)
    }

    fn cut(&self, state: &mut OutboxState, waiting: Vec<(u64, OutboxEvent)>) -> Vec<(BatchInfo, Batch)> {
        let mut batches = Vec::new();
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut waiting = waiting.into_iter().peekable();
        while let Some((at_ms, event)) = waiting.next() {
            bytes += event.bytes();
            events.push((at_ms, event));
            if waiting.peek().is_none_or(|(_, next)| bytes + next.bytes() > BATCH_BYTES) {
                let (first, count) = (state.next, events.len() as u64);
                state.next += count;
                let batch = Batch::V1 { start: self.start, events: std::mem::take(&mut events) };
                batches.push((BatchInfo { first, count, pieces: 0, bytes: std::mem::take(&mut bytes) }, batch));
            }
        }
        batches
    }

    fn write(&self, work: &mut Work) -> Result<(), EngineError> {
        for (written, batch) in &mut work.batches {
            let pieces = batch.pieces();
            written.pieces = pieces.len();
            for (at, piece) in pieces.iter().enumerate() {
                self.tables.put(Table::Outbox, &format::event_key(written.first, at), piece)?;
            }
        }
        if let Some(lost) = &work.lost {
            self.tables.put(Table::Outbox, format::LOST_KEY, &lost.encode())?;
        }
        if work.lost_reported {
            self.tables.remove(Table::Outbox, format::LOST_KEY)?;
        }
        for (user, seq) in &work.reported {
            let key = format::reported_key(user.as_str());
            match seq {
                Some(seq) => self.tables.put(Table::Outbox, &key, &format::encode_reported(*seq))?,
                None => self.tables.remove(Table::Outbox, &key)?,
            }
        }
        for batch in &work.remove {
            // From the end, so that a crash leaves an incomplete batch, which is ignored.
            for piece in (0..batch.pieces).rev() {
                self.tables.remove(Table::Outbox, &format::event_key(batch.first, piece))?;
            }
        }
        Ok(())
    }

    /// Makes the written events readable. They are as durable as configured.
    fn written(&self, work: Work) {
        let mut state = self.state.lock();
        for (written, _) in work.batches {
            state.written += written.count;
            state.written_bytes += written.bytes;
            state.batches.push_back(written);
        }
        for (user, seq) in work.reported {
            // A sequence that was set meanwhile is still unwritten.
            if state.reported.get(&user) == Some(&seq) {
                state.reported.remove(&user);
            }
        }
        if let Some(last) = work.remove.last() {
            state.removed = last.last();
        }
        drop(state);
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl OutboxState {
    /// Computes how many bytes of new events fit on the disk.
    fn update_space(&mut self, Space { spare, slack, .. }: Space) {
        let left = spare.saturating_sub(LEFT_FACTOR * self.written_bytes);
        let growing = left.saturating_sub(GROWTH_BYTES);
        // Events that fit into the file as it is take no disk space. Half of that is left to other tables.
        self.space = growing.max(left.min(slack / 2)) / SPACE_FACTOR;
    }

    /// Drops and counts the waiting events, except those that the logs can provide again. Returns whether any was counted.
    fn drop_waiting(&mut self) -> bool {
        self.waiting_bytes = 0;
        let mut any = false;
        for (at_ms, event) in std::mem::take(&mut self.waiting) {
            self.events -= 1;
            self.bytes -= event.bytes();
            let (since_ms, lost) = match event {
                OutboxEvent::Undelivered { .. } => continue,
                OutboxEvent::Overflow { since_ms, lost, .. } => (since_ms, lost),
                event => (at_ms, vec![(event.kind() as u8, 1)]),
            };
            if !self.lost.any() || since_ms < self.lost.since_ms {
                self.lost.since_ms = since_ms;
            }
            for (kind, count) in lost {
                self.lost.counts[usize::from(kind)] += count;
            }
            any = true;
        }
        any
    }

    /// Returns whether the oldest waiting event fits on the disk.
    fn fits_next(&self) -> bool {
        self.waiting.first().is_some_and(|(_, event)| event.bytes() <= self.space)
    }

    /// Takes the waiting events that fit on the disk, as many as one step writes.
    fn take_waiting(&mut self) -> Vec<(u64, OutboxEvent)> {
        let (mut bytes, mut count) = (0, 0);
        for (_, event) in &self.waiting {
            if bytes + event.bytes() > self.space || count > 0 && bytes + event.bytes() > STEP_BYTES {
                break;
            }
            (bytes, count) = (bytes + event.bytes(), count + 1);
        }
        let rest = self.waiting.split_off(count);
        self.waiting_bytes -= bytes;
        self.space -= bytes;
        std::mem::replace(&mut self.waiting, rest)
    }
}

impl Committer {
    /// Writes the waiting events of the outbox, and makes them as durable as configured.
    ///
    /// Without disk space for them and for the accepted messages, events wait in memory, up to their bound. Further events are
    /// dropped and counted.
    pub(in crate::embedded) fn write_outbox(&mut self) -> Result<(), EngineError> {
        let Some(outbox) = self.shared.outbox.clone() else { return Ok(()) };
        for _ in 0..STEPS_MAX {
            if !self.write_outbox_step(&outbox)? {
                return Ok(());
            }
        }
        self.shared.queue.notify_outbox();
        Ok(())
    }

    /// Writes one step. Returns true if there is more to write.
    fn write_outbox_step(&mut self, outbox: &Outbox) -> Result<bool, EngineError> {
        let Some(space) = self.space_for_events() else {
            outbox.state.lock().space = 0;
            return Ok(false);
        };
        let Some(mut work) = outbox.work(space) else { return Ok(false) };
        outbox.write(&mut work)?;
        // The last check of the disk is outdated now.
        self.invalidate_disk_state();
        // A removal needs no sync: if it is lost, it is repeated.
        if !work.batches.is_empty() || work.lost.is_some() {
            match self.durability {
                Durability::Always => self.shared.engine.checkpoint()?,
                Durability::Interval(_) | Durability::Never => {
                    self.shared.engine.flush()?;
                    (self.outbox_unsynced, self.unsynced) = (true, self.unsynced + 1);
                }
            }
        }
        let more = work.more;
        outbox.written(work);
        Ok(more)
    }

    /// Computes the space of the outbox, before the first event is put.
    pub(in crate::embedded) fn refresh_outbox_space(&mut self) {
        if let (Some(outbox), Some(space)) = (self.shared.outbox.clone(), self.space_for_events()) {
            outbox.state.lock().update_space(space);
        }
    }

    fn space_for_events(&mut self) -> Option<Space> {
        match self.table_space() {
            TableSpace::None => None,
            TableSpace::Little => Some(Space { spare: 0, slack: 0, little: true }),
            TableSpace::Enough => {
                let spare = self.spare_space();
                let is_close = (1..SLACK_SPARE_MAX).contains(&spare);
                let slack = if is_close { self.shared.engine.table_slack().unwrap_or(0) } else { 0 };
                Some(Space { spare, slack, little: false })
            }
        }
    }

    /// Drops and counts the events that still wait for disk space when the store closes.
    pub(in crate::embedded) fn discard_waiting_events(&mut self) -> Result<(), EngineError> {
        let Some(outbox) = self.shared.outbox.clone() else { return Ok(()) };
        let mut state = outbox.state.lock();
        if !state.drop_waiting() {
            return Ok(());
        }
        let lost = StoredLost::V1 { since_ms: state.lost.since_ms, lost: state.lost.list() };
        drop(state);
        tracing::warn!(
            "the disk has no space for the waiting webhook events: they are dropped and counted. Free some space"
        );
        self.shared.engine.put(Table::Outbox, format::LOST_KEY, &lost.encode())
    }
}

/// Reads all batches of the table. Returns the keys of incomplete batches.
///
/// These are one at the front whose removal was interrupted, and one at the end whose write was interrupted.
fn read_all(tables: &dyn Tables, state: &mut OutboxState) -> Result<Vec<Vec<u8>>, StoreError> {
    let (mut pieces, mut keys, mut unfinished) = (Pieces::default(), Vec::new(), Vec::new());
    let mut wrong = None;
    let scanned = tables.scan(Table::Outbox, &[format::EVENTS], &mut |key, value| {
        let Some((first, piece)) = format::event_number(key) else { return false };
        if piece == 0 && state.batches.is_empty() {
            pieces = Pieces::default();
            unfinished.append(&mut keys);
        }
        if piece != keys.len() || !state.batches.is_empty() && first != state.next {
            wrong = Some(format!("the events before event {first} are missing"));
            return false;
        }
        keys.push(key.to_vec());
        match pieces.push(&value) {
            Ok(None) => true,
            Ok(Some(Batch::V1 { events, .. })) => {
                let (count, bytes) = (events.len() as u64, events.iter().map(|(_, event)| event.bytes()).sum());
                state.batches.push_back(BatchInfo { first, count, pieces: keys.len(), bytes });
                (state.events, state.bytes) = (state.events + count, state.bytes + bytes);
                state.next = first + count;
                keys.clear();
                true
            }
            Err(error) => {
                wrong = Some(format!("event {first}: {error}"));
                false
            }
        }
    });
    scanned?;
    match wrong {
        Some(wrong) => Err(damaged(wrong)),
        None => {
            unfinished.extend(keys);
            Ok(unfinished)
        }
    }
}
