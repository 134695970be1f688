//! Opens the outbox, and writes its events on the commit thread, after `writer::events` has written them into the WAL.
//!
//! The number of the last removed event is put before the removal, so that recovery repeats no removed event, and no
//! number is used twice.
//!
//! A batch is stored as one or more values, its pieces. A crash may leave a batch without its last piece, which is
//! ignored.
//!
//! Counts of dropped events are stored at the first drop, and then once a second. So a crash can make them too low, but
//! does not lose them. They are removed after the `overflow` event that reports them is written.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    BatchInfo, DropCounters, Outbox, OutboxEvent, OutboxOptions, OutboxState, WAITING_BYTES_MAX, WAITING_EVENTS_MAX,
    damaged,
    format::{self, Batch, Pieces, StoredLost},
    last_live,
    step::{OutboxSpace, StepWrites},
};
use crate::{
    embedded::{
        tables::contract::{EngineError, Table, TableSpace, Tables},
        user_log::cache::LogCache,
        writer::{queue::Queue, state::Committer},
    },
    store::{StoreError, clock::Clock},
};

/// Limit of events in one batch, in bytes; at least one event. A batch is usually one value.
const BATCH_BYTES_MAX: u64 = 48 << 10;

/// Interval at which counts of dropped events are stored, in milliseconds.
const LOST_INTERVAL_MS: u64 = 1000;

/// Upper bound of the bytes by which sled's file grows for each byte of an event, including its removal.
///
/// sled rewrites a value with each change of its neighbours. Measured: 2.2 for events of 50 kB and 2.3 for 300 bytes;
/// with their removal 2.5 and 3.4.
const SPACE_FACTOR: u64 = 4;

/// Upper bound of the bytes by which sled's file and its preallocation grow at a time.
const GROWTH_BYTES: u64 = 8 << 20;

/// Spare bytes on the disk above which the space inside sled's file is ignored.
const SLACK_SPARE_MAX: u64 = 4 * GROWTH_BYTES;

/// Bytes of disk space that each byte of written events leaves to messages.
///
/// Removed events leave their space to later events, not to the value log. So the outbox takes about half of the space.
const LEFT_FACTOR: u64 = 2;

/// Limit of events written in one step, in bytes; at least one event.
///
/// Table space is checked before each step. The preallocated space is several times the growth of one step.
const STEP_BYTES_MAX: u64 = 512 << 10;

/// Limit of pieces removed in one step; at least one batch. sled may rewrite the neighbours of each piece.
const STEP_REMOVED_PIECES_MAX: usize = 128;

/// The same limit while the tables have little space.
const LITTLE_SPACE_REMOVED_PIECES_MAX: usize = 64;

/// Limit of users whose reported sequences are written in one step.
const STEP_REPORTED_MAX: usize = 1000;

/// Limit of steps in a row: twice as many as the waiting events can need. Further ones follow the next commit.
pub(in crate::embedded) const STEPS_MAX: usize =
    2 * (WAITING_BYTES_MAX / STEP_BYTES_MAX + WAITING_EVENTS_MAX as u64 / STEP_REPORTED_MAX as u64) as usize;

impl Outbox {
    /// Opens the outbox of a store, with the events of earlier starts.
    pub(in crate::embedded) fn open(
        tables: Arc<dyn Tables>,
        queue: Arc<Queue>,
        logs: Arc<LogCache>,
        clock: Clock,
        options: OutboxOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let mut start = [0; 8];
        getrandom::fill(&mut start).map_err(|error| StoreError::Failed(error.to_string().into()))?;
        let mut state = OutboxState { next_number: 1, ..OutboxState::default() };
        let incomplete = read_all(&*tables, &mut state)?;
        // A crash interrupted the write or the removal of these batches.
        incomplete.iter().try_for_each(|key| tables.remove(Table::Outbox, key))?;
        state.next_number = state.next_number.max(removed_through(&*tables)? + 1);
        state.removed_through = state.batches.front().map_or(state.next_number, |batch| batch.first) - 1;
        state.remove_through = state.removed_through;
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
        Ok(Arc::new(Self { tables, queue, logs, clock, options, start, state: state.into(), changed }))
    }

    /// Collects the writes of the next step. Returns `None` if there are none.
    pub(in crate::embedded) fn collect_step(&self, space: OutboxSpace) -> Option<StepWrites> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        state.update_space(space);
        if state.lost.any() {
            self.report_drops(&mut state, now_ms);
        }
        let waiting = state.take_waiting();
        // Counts are removed, and reported sequences written, only together with the events that report them.
        let all_taken = state.waiting.is_empty();
        let is_due = !state.lost.stored || now_ms.saturating_sub(state.lost.stored_ms) >= LOST_INTERVAL_MS;
        let (mut lost, mut lost_reported) = (None, false);
        if !all_taken || space.little {
            // A later step stores or removes the counts.
        } else if state.lost.unwritten && !state.lost.any() {
            (state.lost.unwritten, state.lost.stored, lost_reported) = (false, false, true);
        } else if state.lost.unwritten && is_due {
            lost = Some(StoredLost::V1 { since_ms: state.lost.since_ms, lost: state.lost.list() });
            (state.lost.unwritten, state.lost.stored, state.lost.stored_ms) = (false, true, now_ms);
        }
        let (mut remove, mut pieces) = (Vec::new(), 0);
        let pieces_max = if space.little { LITTLE_SPACE_REMOVED_PIECES_MAX } else { STEP_REMOVED_PIECES_MAX };
        let mut more = state.fits_next();
        while let Some(batch) = state.batches.front().copied().filter(|batch| batch.last_live <= state.remove_through) {
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
        let batches = self.split_into_batches(&mut state.next_number, waiting);
        let reported: Vec<_> = if all_taken && !space.little {
            more |= state.reported.len() > STEP_REPORTED_MAX;
            state.reported.iter().take(STEP_REPORTED_MAX).map(|(user, seq)| (user.clone(), *seq)).collect()
        } else {
            Vec::new()
        };
        let writes = StepWrites { batches, lost, lost_reported, reported, remove, more };
        let StepWrites { batches, lost, lost_reported, reported, remove, .. } = &writes;
        let any = !batches.is_empty() || lost.is_some() || *lost_reported || !reported.is_empty() || !remove.is_empty();
        state.steps_in_progress += usize::from(any);
        state.in_progress.extend(batches.iter().map(|(info, batch)| (info.first, batch.clone())));
        any.then_some(writes)
    }

    /// Packs events into batches, and numbers them.
    pub(super) fn split_into_batches(
        &self,
        next_number: &mut u64,
        waiting: Vec<(u64, OutboxEvent)>,
    ) -> Vec<(BatchInfo, Batch)> {
        let mut batches = Vec::new();
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut waiting = waiting.into_iter().peekable();
        while let Some((at_ms, event)) = waiting.next() {
            bytes += event.bytes();
            events.push((at_ms, Some(event)));
            if waiting.peek().is_none_or(|(_, next)| bytes + next.bytes() > BATCH_BYTES_MAX) {
                let (first, count) = (*next_number, events.len() as u64);
                *next_number += count;
                let batch = Batch::V1 { start: self.start, events: std::mem::take(&mut events) };
                let info = BatchInfo {
                    first,
                    count,
                    last_live: first + count - 1,
                    pieces: 0,
                    bytes: std::mem::take(&mut bytes),
                };
                batches.push((info, batch));
            }
        }
        batches
    }

    /// Takes back steps that could not be written, the first ones first. No later step was collected.
    pub(in crate::embedded) fn take_back(&self, steps: Vec<StepWrites>) {
        let mut state = self.state.lock();
        for step in steps.into_iter().rev() {
            let StepWrites { batches, lost, lost_reported, remove, .. } = step;
            let mut waiting = Vec::new();
            for (info, Batch::V1 { events, .. }) in batches {
                state.next_number -= info.count;
                state.waiting_bytes += info.bytes;
                state.in_progress.pop_back();
                waiting.extend(events.into_iter().filter_map(|(at_ms, event)| Some((at_ms, event?))));
            }
            waiting.append(&mut state.waiting);
            state.waiting = waiting;
            if lost.is_some() || lost_reported {
                (state.lost.unwritten, state.lost.stored) = (true, true);
            }
            for batch in remove.into_iter().rev() {
                state.events += batch.count;
                state.bytes += batch.bytes;
                state.written += batch.count;
                state.written_bytes += batch.bytes;
                state.batches.push_front(batch);
            }
            state.steps_in_progress -= 1;
        }
    }

    /// Writes one step into the table.
    pub(in crate::embedded) fn write(&self, writes: &mut StepWrites) -> Result<(), EngineError> {
        for (written, batch) in &mut writes.batches {
            let pieces = batch.pieces();
            written.pieces = pieces.len();
            for (at, piece) in pieces.iter().enumerate() {
                self.tables.put(Table::Outbox, &format::event_key(written.first, at), piece)?;
            }
        }
        if let Some(lost) = &writes.lost {
            self.tables.put(Table::Outbox, format::LOST_KEY, &lost.encode())?;
        }
        if writes.lost_reported {
            self.tables.remove(Table::Outbox, format::LOST_KEY)?;
        }
        for (user, seq) in &writes.reported {
            let key = format::reported_key(user.as_str());
            match seq {
                Some(seq) => self.tables.put(Table::Outbox, &key, &format::encode_reported(*seq))?,
                None => self.tables.remove(Table::Outbox, &key)?,
            }
        }
        if let Some(last) = writes.remove.last() {
            let through = last.last().max(self.state.lock().removed_through);
            self.tables.put(Table::Outbox, format::REMOVED_KEY, &through.to_be_bytes())?;
        }
        for batch in &writes.remove {
            // From the end, so that a crash leaves an incomplete batch, which is ignored.
            for piece in (0..batch.pieces).rev() {
                self.tables.remove(Table::Outbox, &format::event_key(batch.first, piece))?;
            }
        }
        Ok(())
    }

    /// Makes the written events readable. They are as durable as configured.
    pub(in crate::embedded) fn publish(&self, writes: StepWrites) {
        let mut state = self.state.lock();
        for (written, _) in writes.batches {
            state.in_progress.pop_front();
            state.written += written.count;
            state.written_bytes += written.bytes;
            state.batches.push_back(written);
        }
        for (user, seq) in writes.reported {
            // A sequence that was set meanwhile is not written yet.
            if state.reported.get(&user) == Some(&seq) {
                state.reported.remove(&user);
            }
        }
        state.steps_in_progress -= 1;
        if let Some(last) = writes.remove.last() {
            // A step that only removes may have overtaken this one.
            state.removed_through = state.removed_through.max(last.last());
        }
        drop(state);
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl OutboxState {
    /// Computes how many bytes of new events fit on the disk.
    fn update_space(&mut self, OutboxSpace { spare, slack, .. }: OutboxSpace) {
        let left = spare.saturating_sub(LEFT_FACTOR * self.written_bytes);
        let growing = left.saturating_sub(GROWTH_BYTES);
        // Events that fit into the file without growth take no disk space. Half of this space is left to other tables.
        self.space = growing.max(left.min(slack / 2)) / SPACE_FACTOR;
    }

    /// Drops and counts the waiting events, except `Undelivered`, which the logs can provide again. Returns true if any
    /// was counted.
    fn drop_waiting(&mut self) -> bool {
        self.waiting_bytes = 0;
        let mut any = false;
        for (at_ms, event) in std::mem::take(&mut self.waiting) {
            self.events -= 1;
            self.bytes -= event.bytes();
            let (since_ms, lost) = match event {
                OutboxEvent::Undelivered { .. } => continue,
                // Its drops are in `lost_total` already.
                OutboxEvent::Overflow { since_ms, lost, .. } => (since_ms, lost),
                event => {
                    self.lost_total += 1;
                    (at_ms, vec![(event.kind() as u8, 1)])
                }
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

    /// Returns whether the oldest waiting event exists and fits on the disk.
    fn fits_next(&self) -> bool {
        self.waiting.first().is_some_and(|(_, event)| event.bytes() <= self.space)
    }

    /// Takes the waiting events that fit on the disk, up to the limit of one step.
    fn take_waiting(&mut self) -> Vec<(u64, OutboxEvent)> {
        let (mut bytes, mut count) = (0, 0);
        for (_, event) in &self.waiting {
            if bytes + event.bytes() > self.space || count > 0 && bytes + event.bytes() > STEP_BYTES_MAX {
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
    /// Computes the disk space of the outbox, before the first event is put.
    pub(in crate::embedded) fn refresh_outbox_space(&mut self) {
        if let (Some(outbox), Some(space)) = (self.shared.outbox.clone(), self.space_for_events()) {
            outbox.state.lock().update_space(space);
        }
    }

    /// Returns the disk space of the outbox. `None`: nothing may be written.
    pub(in crate::embedded) fn space_for_events(&mut self) -> Option<OutboxSpace> {
        match self.table_space() {
            TableSpace::None => None,
            TableSpace::Little => Some(OutboxSpace::REMOVALS),
            TableSpace::Enough => {
                let spare = self.spare_space();
                let is_close = (1..SLACK_SPARE_MAX).contains(&spare);
                let slack = if is_close { self.shared.engine.table_slack().unwrap_or(0) } else { 0 };
                Some(OutboxSpace { spare, slack, little: false })
            }
        }
    }

    /// Drops and counts the events that still wait for disk space when the store closes.
    ///
    /// Returns the counts, which the caller stores if the disk has space for them.
    pub(in crate::embedded) fn drop_waiting_events(&self) -> Option<StoredLost> {
        let outbox = self.shared.outbox.as_ref()?;
        let mut state = outbox.state.lock();
        let before = state.lost_total;
        if !state.drop_waiting() {
            return None;
        }
        let (events, lost) = (state.lost_total - before, state.lost.list());
        tracing::warn!(
            events,
            "the disk has no space for the waiting webhook events: they are dropped and counted. Free some space"
        );
        Some(StoredLost::V1 { since_ms: state.lost.since_ms, lost })
    }

    /// Drops the waiting events, and stores their counts.
    pub(in crate::embedded) fn discard_waiting_events(&self) -> Result<(), EngineError> {
        let Some(lost) = self.drop_waiting_events() else { return Ok(()) };
        self.shared.engine.put(Table::Outbox, format::LOST_KEY, &lost.encode())
    }
}

/// Reads all batches of the table. Returns the keys of incomplete batches.
///
/// A crash may have interrupted the removal of the first batch, and the write of the last.
pub(super) fn read_all(tables: &dyn Tables, state: &mut OutboxState) -> Result<Vec<Vec<u8>>, StoreError> {
    let (mut pieces, mut keys, mut incomplete) = (Pieces::default(), Vec::new(), Vec::new());
    let mut damage = None;
    let scanned = tables.scan(Table::Outbox, &[format::EVENT_PREFIX], &mut |key, value| {
        let Some((first, piece)) = format::decode_event_key(key) else { return false };
        if piece > 0 && keys.is_empty() && state.batches.back().is_some_and(|batch| batch.first == first) {
            // A crash interrupted the erasure of the event in this batch.
            incomplete.push(key.to_vec());
            return true;
        }
        if piece == 0 && state.batches.is_empty() {
            pieces = Pieces::default();
            incomplete.append(&mut keys);
        }
        if piece != keys.len() || !state.batches.is_empty() && first != state.next_number {
            damage = Some(format!("the events before event {first} are missing"));
            return false;
        }
        keys.push(key.to_vec());
        match pieces.push(&value) {
            Ok(None) => true,
            Ok(Some(Batch::V1 { events, .. })) => {
                let (count, bytes) =
                    (events.len() as u64, events.iter().flat_map(|(_, event)| event).map(OutboxEvent::bytes).sum());
                let last_live = last_live(first, &events);
                state.batches.push_back(BatchInfo { first, count, last_live, pieces: keys.len(), bytes });
                (state.events, state.bytes) = (state.events + count, state.bytes + bytes);
                state.next_number = first + count;
                keys.clear();
                true
            }
            Err(error) => {
                damage = Some(format!("event {first}: {error}"));
                false
            }
        }
    });
    scanned?;
    match damage {
        Some(damage) => Err(damaged(damage)),
        None => {
            incomplete.extend(keys);
            Ok(incomplete)
        }
    }
}

/// Returns the number of the last event that was removed; 0 = none.
pub(super) fn removed_through(tables: &dyn Tables) -> Result<u64, StoreError> {
    let Some(stored) = tables.get(Table::Outbox, format::REMOVED_KEY)? else { return Ok(0) };
    let number = stored[..].try_into().map(u64::from_be_bytes);
    number.map_err(|_| damaged("the number of the last removed event cannot be read"))
}

/// Returns the number of the last event that is in the table with all pieces, or was removed from it.
///
/// Removes a batch without its last piece: a crash has interrupted its write, so the WAL has it.
pub(in crate::embedded) fn stored_through(tables: &dyn Tables) -> Result<u64, StoreError> {
    let removed = removed_through(tables)?;
    loop {
        let key = tables.last_key_at_or_before(Table::Outbox, &format::event_key(u64::MAX, usize::MAX))?;
        let Some((first, last_piece)) = key.and_then(|key| format::decode_event_key(&key)) else { return Ok(removed) };
        let mut pieces = Pieces::default();
        for piece in 0..=last_piece {
            let value = tables.get(Table::Outbox, &format::event_key(first, piece))?;
            let Some(value) = value else { break };
            if let Some(Batch::V1 { events, .. }) = pieces.push(&value).map_err(damaged)? {
                return Ok(removed.max(first + events.len() as u64 - 1));
            }
        }
        for piece in (0..=last_piece).rev() {
            tables.remove(Table::Outbox, &format::event_key(first, piece))?;
        }
    }
}
