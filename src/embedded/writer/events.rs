//! Writes webhook events as part of commits, and then puts them into the table of the outbox.
//!
//! Events are items of the commit that depends on them, or of one of their own. So a crash cannot keep a record without
//! its events, and events cost no sync of the tables. Once the records are as durable as configured, the events are put
//! into the table, from which they are read. A crash may take them from the table; then recovery puts them again (see
//! `outbox::replay`).

use super::state::{Commit, Committer};
use crate::{
    embedded::{
        outbox::{Outbox, OutboxSpace, STEPS_MAX, StepWrites},
        tables::contract::{EngineError, TableSpace},
        wal::record::Item,
    },
    store::Durability,
};

/// Bytes of an item with a piece of a batch, besides the piece.
const PIECE_ITEM_BYTES: usize = 32;

/// Bytes of an item with the number of the last removed event.
const REMOVED_ITEM_BYTES: usize = 16;

impl Committer {
    /// Writes the waiting events of the outbox, and makes them as durable as configured.
    ///
    /// If the disk has no space for them besides the accepted messages, events wait in memory, up to their bound.
    /// Further events are dropped and counted. They also wait while a commit is stuck, because it has the next number.
    ///
    /// Must not run during a commit.
    pub(in crate::embedded) fn write_outbox(&mut self) -> Result<(), EngineError> {
        if self.shared.outbox.is_none() || self.suspended.stuck.is_some() {
            return Ok(());
        }
        self.put_events()?;
        for _ in 0..STEPS_MAX {
            let mut commit = Commit::new(self.next_record);
            let more = self.add_events_step(&mut commit)?;
            match self.write_records(&mut commit) {
                Ok(()) if commit.records.is_empty() => {}
                Ok(()) => self.finish(commit)?,
                Err(error) => {
                    // Not kept as a stuck commit: nothing else depends on it.
                    self.take_back(commit);
                    return self.suspend(error);
                }
            }
            if !more {
                return Ok(());
            }
        }
        self.shared.queue.notify_outbox();
        Ok(())
    }

    /// Adds the waiting events to a commit that may depend on them.
    pub(in crate::embedded) fn add_events(&mut self, commit: &mut Commit) -> Result<(), EngineError> {
        for _ in 0..STEPS_MAX {
            if !self.add_events_step(commit)? {
                return Ok(());
            }
        }
        self.shared.queue.notify_outbox();
        Ok(())
    }

    /// Adds the events of one step to a commit. Returns true if there are writes for another step.
    ///
    /// A step without events is written at once.
    fn add_events_step(&mut self, commit: &mut Commit) -> Result<bool, EngineError> {
        let Some(outbox) = self.shared.outbox.clone() else { return Ok(false) };
        let Some(mut space) = self.space_for_events() else {
            outbox.set_no_space();
            return Ok(false);
        };
        // Before the events are taken, because an append that fails would delay the commit.
        let bytes = outbox.waiting_wal_bytes();
        if bytes > 0 {
            match self.shared.engine.reserve(self.next_record, commit.all_bytes() + bytes) {
                Err(error) if error.is_transient() => space = OutboxSpace::REMOVALS,
                reserved => reserved?,
            }
        }
        let Some(writes) = outbox.collect_step(space) else { return Ok(false) };
        if writes.has_events() {
            // Otherwise a kill, which may take the removal from the table, would repeat events that were accepted long
            // before these.
            commit.ensure_capacity(REMOVED_ITEM_BYTES);
            commit.push(&self.shared, &Item::EventsRemoved { through: outbox.removed_through() });
        }
        for (first, pieces) in writes.batches() {
            for (piece, bytes) in (0..).zip(&pieces) {
                commit.ensure_capacity(bytes.len() + PIECE_ITEM_BYTES);
                commit.push(&self.shared, &Item::Events { first, piece, bytes });
            }
        }
        let more = writes.more;
        if writes.has_only_removals()
            || commit.events.is_empty() && self.unput_events.is_empty() && !writes.has_events()
        {
            self.put_step(&outbox, writes)?;
        } else {
            commit.events.push(writes);
        }
        Ok(more)
    }

    /// Returns the events of a commit that cannot be written to the outbox, so that a later one has them.
    pub(super) fn take_back(&self, commit: Commit) {
        if let Some(outbox) = &self.shared.outbox {
            outbox.take_back(commit.events);
        }
    }

    /// Puts events into the table whose records are in the WAL. Returns false if the tables have no space for some.
    pub(in crate::embedded) fn put_events(&mut self) -> Result<bool, EngineError> {
        let Some(outbox) = self.shared.outbox.clone() else { return Ok(true) };
        while !self.unput_events.is_empty() {
            if self.table_space() < TableSpace::Enough {
                return Ok(false);
            }
            let Some(writes) = self.unput_events.pop_front() else { break };
            self.put_step(&outbox, writes)?;
        }
        Ok(true)
    }

    /// Puts one step into the table, and publishes it.
    fn put_step(&mut self, outbox: &Outbox, mut writes: StepWrites) -> Result<(), EngineError> {
        outbox.write(&mut writes)?;
        // The last measurement of the disk is outdated.
        self.invalidate_disk_state();
        // Nothing in the WAL has the counts. A lost removal is repeated.
        if writes.has_counts() {
            match self.durability {
                Durability::Always => self.shared.engine.checkpoint()?,
                Durability::Interval(_) | Durability::Never => self.shared.engine.write_through()?,
            }
        }
        outbox.publish(writes);
        Ok(())
    }
}
