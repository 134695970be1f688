//! Removes the events about a user who is erased.
//!
//! An erased event keeps its number, so that the numbers of the others stay contiguous.

use super::{
    BatchInfo, Outbox, OutboxState,
    commit::read_all,
    format::{self, Batch},
    last_live, read_batch,
};
use crate::{
    embedded::tables::contract::{EngineError, Table, Tables},
    message::UserId,
    store::OutboxEvent,
};

impl Outbox {
    /// Returns whether events about a user wait for disk space. Their numbers are known already, so they must stay.
    pub(in crate::embedded) fn has_waiting(&self, user: &str) -> bool {
        self.state.lock().waiting.iter().any(|(_, event)| event.user() == Some(user))
    }

    /// Removes the reported sequence of a user who is erased, even if the disk has no space for events.
    pub(in crate::embedded) fn erase_reported(&self, user: &UserId) -> Result<(), EngineError> {
        if self.state.lock().reported.get(user) == Some(&None) {
            self.tables.remove(Table::Outbox, &format::reported_key(user.as_str()))?;
        }
        Ok(())
    }

    /// Erases a user's events in the first batch above number `after`, if it begins at or below `through`.
    ///
    /// Returns the last number of the batch, and whether it had such events. Returns `None` after the last batch.
    pub(in crate::embedded) fn erase_next(
        &self,
        user: &str,
        after: u64,
        through: u64,
    ) -> Result<Option<(u64, bool)>, EngineError> {
        let info = {
            let state = self.state.lock();
            let at = state.batches.partition_point(|batch| batch.last() <= after);
            state.batches.get(at).copied()
        };
        let Some(info) = info.filter(|info| info.first <= through) else { return Ok(None) };
        let (now, unneeded) = erase_in_batch(&*self.tables, info, &|of| of == user)?;
        let saved = info.bytes - now.bytes;
        {
            let mut state = self.state.lock();
            state.bytes -= saved;
            state.written_bytes -= saved;
            if let Some(batch) = state.batches.iter_mut().find(|batch| batch.first == info.first) {
                *batch = now;
            }
        }
        // After the state is changed: a reader that misses a piece reads the batch again.
        unneeded.iter().try_for_each(|key| self.tables.remove(Table::Outbox, key))?;
        Ok(Some((info.last(), saved > 0)))
    }
}

/// Erases the events of some users in a batch.
///
/// Returns the new description of the batch, and the keys of pieces that the caller must remove.
fn erase_in_batch(
    tables: &dyn Tables,
    info: BatchInfo,
    is_erased: &dyn Fn(&str) -> bool,
) -> Result<(BatchInfo, Vec<[u8; 11]>), EngineError> {
    let Batch::V1 { start, mut events } = read_batch(tables, info)?;
    let mut found = false;
    for (_, event) in &mut events {
        if event.as_ref().and_then(OutboxEvent::user).is_some_and(is_erased) {
            (*event, found) = (None, true);
        }
    }
    // With more pieces, an earlier attempt may have failed to remove those that are not needed any more.
    if !found && info.pieces == 1 {
        return Ok((info, Vec::new()));
    }
    let bytes = events.iter().flat_map(|(_, event)| event).map(OutboxEvent::bytes).sum();
    let last_live = last_live(info.first, &events);
    let pieces = Batch::V1 { start, events }.pieces();
    // A batch of several pieces has one large event. So the new batch is one value, which replaces the first piece
    // atomically. Pieces that remain after a crash are ignored, and removed when the outbox opens.
    for (at, piece) in pieces.iter().enumerate().filter(|_| found) {
        tables.put(Table::Outbox, &format::event_key(info.first, at), piece)?;
    }
    let unneeded = (pieces.len()..info.pieces).rev().map(|at| format::event_key(info.first, at)).collect();
    // The number of pieces stays, so that the removal of the batch also removes pieces that could not be removed now.
    Ok((BatchInfo { last_live, bytes, ..info }, unneeded))
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
        let (now, unneeded) = erase_in_batch(tables, info, &|user| is_erased(user, info.first))?;
        unneeded.iter().try_for_each(|key| tables.remove(Table::Outbox, key))?;
        found |= now.bytes < info.bytes;
    }
    Ok(found)
}
