//! Puts events into the table that a crash has left in the write-ahead log only.
//!
//! Events are written into the log first, as pieces of batches, and are put into the table right after. The table is
//! synced before the flush removes their records. So the log has every event that a crash takes from the table.

use super::{
    commit::{removed_through, stored_through},
    format::{self, Batch, Pieces},
};
use crate::{
    embedded::tables::contract::{Table, Tables},
    store::{OutboxEvent, StoreError},
};

/// Collects the events of the log that the table lacks.
pub(in crate::embedded) struct ReplayedEvents {
    /// Events up to this number are in the table, or were removed from it.
    through: u64,
    /// Events up to this number were removed.
    removed: u64,
    /// Number of the first event of a batch, number of the piece, and the piece.
    pieces: Vec<(u64, usize, Vec<u8>)>,
}

impl ReplayedEvents {
    /// Finds the last event in the table, before the log is read.
    pub fn after_stored(tables: &dyn Tables) -> Result<Self, StoreError> {
        Ok(Self { through: stored_through(tables)?, removed: 0, pieces: Vec::new() })
    }

    /// Adds a piece of the batch whose first event is `first`, in the order of the log.
    pub fn push(&mut self, first: u64, piece: u32, bytes: &[u8]) {
        if first > self.through {
            self.pieces.push((first, piece as usize, bytes.to_vec()));
        }
    }

    /// Removes events up to a number, whole batches.
    pub fn remove(&mut self, through: u64) {
        self.removed = self.removed.max(through);
        self.pieces.retain(|(first, ..)| *first > through);
    }

    /// Puts the collected events into the table, with the values that belong to them, and repeats the removals.
    ///
    /// A crash in between repeats this: the log still has the events.
    pub fn put(self, tables: &dyn Tables) -> Result<(), StoreError> {
        let stored = removed_through(tables)?;
        // Also those that the table itself names: a crash may have taken an earlier removal, and kept a later one.
        let removed = self.removed.max(stored);
        if removed > stored {
            tables.put(Table::Outbox, format::REMOVED_KEY, &removed.to_be_bytes())?;
        }
        let mut keys = Vec::new();
        tables.keys(Table::Outbox, &format::event_key(0, 0), &mut |key| {
            let is_removed = format::decode_event_key(key).is_some_and(|(first, _)| first <= removed);
            keys.extend(is_removed.then(|| key.to_vec()));
            is_removed
        })?;
        keys.iter().rev().try_for_each(|key| tables.remove(Table::Outbox, key))?;
        let mut batch = Pieces::default();
        for (first, piece, bytes) in self.pieces {
            tables.put(Table::Outbox, &format::event_key(first, piece), &bytes)?;
            if let Some(Batch::V1 { events, .. }) = batch.push(&bytes).map_err(super::damaged)? {
                events.iter().flat_map(|(_, event)| event).try_for_each(|event| put_effect(tables, event))?;
            }
        }
        Ok(())
    }
}

/// Puts what is stored together with an event.
fn put_effect(tables: &dyn Tables, event: &OutboxEvent) -> Result<(), StoreError> {
    match event {
        OutboxEvent::Undelivered { user, seq, .. } => {
            tables.put(Table::Outbox, &format::reported_key(user), &format::encode_reported(*seq))?;
        }
        // It reports the stored counts.
        OutboxEvent::Overflow { .. } => tables.remove(Table::Outbox, format::LOST_KEY)?,
        _ => {}
    }
    Ok(())
}
