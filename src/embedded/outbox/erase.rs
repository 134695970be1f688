//! Removes the events about a user who is erased.
//!
//! An erased event keeps its number, so that the numbers of the others stay contiguous.

use super::{
    BatchInfo, Outbox, OutboxState,
    commit::read_all,
    format::{self, Batch},
    read_batch,
};
use crate::{
    embedded::tables::contract::{EngineError, Table, Tables},
    store::OutboxEvent,
};

impl Outbox {
    /// Returns whether events about a user wait for disk space. Their numbers are known already, so they must stay.
    pub(in crate::embedded) fn has_waiting(&self, user: &str) -> bool {
        self.state.lock().waiting.iter().any(|(_, event)| event.user() == Some(user))
    }

    /// Erases a user's events in the first batch above number `after`.
    ///
    /// Returns the last number of the batch, and whether it had such events. Returns `None` after the last batch.
    pub(in crate::embedded) fn erase_next(&self, user: &str, after: u64) -> Result<Option<(u64, bool)>, EngineError> {
        let info = {
            let state = self.state.lock();
            let at = state.batches.partition_point(|batch| batch.last() <= after);
            state.batches.get(at).copied()
        };
        let Some(info) = info else { return Ok(None) };
        let (now, is_empty) = erase_in_batch(&*self.tables, info, &|of| of == user)?;
        let found = now.bytes < info.bytes;
        let mut state = self.state.lock();
        let saved = info.bytes - now.bytes;
        state.bytes -= saved;
        state.written_bytes -= saved;
        if let Some(batch) = state.batches.iter_mut().find(|batch| batch.first == info.first) {
            *batch = now;
        }
        // Otherwise the last events would stay until a backend accepts a later one.
        let is_front = state.batches.front().is_some_and(|front| front.first == info.first);
        if is_empty && (is_front || info.first == state.remove_through + 1) {
            state.remove_through = state.remove_through.max(info.last());
        }
        Ok(Some((info.last(), found)))
    }
}

/// Erases the events of some users in a batch. Returns the new description of the batch, and whether no event is left in it.
fn erase_in_batch(
    tables: &dyn Tables,
    info: BatchInfo,
    is_erased: &dyn Fn(&str) -> bool,
) -> Result<(BatchInfo, bool), EngineError> {
    let Batch::V1 { start, mut events } = read_batch(tables, info)?;
    let mut found = false;
    for (_, event) in &mut events {
        if event.as_ref().and_then(OutboxEvent::user).is_some_and(is_erased) {
            (*event, found) = (None, true);
        }
    }
    let is_empty = events.iter().all(|(_, event)| event.is_none());
    if !found {
        return Ok((info, is_empty));
    }
    let bytes = events.iter().flat_map(|(_, event)| event).map(OutboxEvent::bytes).sum();
    let pieces = Batch::V1 { start, events }.pieces();
    // A batch of several pieces has one large event. So the new batch is one value, which replaces the first piece
    // atomically. Pieces that remain after a crash are ignored, and removed when the outbox opens.
    for (at, piece) in pieces.iter().enumerate() {
        tables.put(Table::Outbox, &format::event_key(info.first, at), piece)?;
    }
    for at in (pieces.len()..info.pieces).rev() {
        tables.remove(Table::Outbox, &format::event_key(info.first, at))?;
    }
    Ok((BatchInfo { pieces: pieces.len(), bytes, ..info }, is_empty))
}

/// Returns the number of the first event in the last stored batch; 0 = there is none.
pub(in crate::embedded) fn last_batch(tables: &dyn Tables) -> Result<u64, EngineError> {
    let last = tables.last_key_at_or_before(Table::Outbox, &format::event_key(u64::MAX, usize::MAX))?;
    Ok(last.and_then(|key| format::decode_event_key(&key)).map_or(0, |(first, _)| first))
}

/// Erases events in the table. `is_erased` gets the user of an event, and the number of the first event in its batch.
///
/// Nothing else may write the table meanwhile. Returns true if there were any such events.
pub(in crate::embedded) fn erase_stored(
    tables: &dyn Tables,
    is_erased: &dyn Fn(&str, u64) -> bool,
) -> Result<bool, EngineError> {
    let mut state = OutboxState::default();
    let incomplete = read_all(tables, &mut state)?;
    incomplete.iter().try_for_each(|key| tables.remove(Table::Outbox, key))?;
    let mut found = false;
    for info in state.batches {
        let (now, _) = erase_in_batch(tables, info, &|user| is_erased(user, info.first))?;
        found |= now.bytes < info.bytes;
    }
    Ok(found)
}
