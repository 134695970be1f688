//! Writes the table `connected`, in steps between commits, and reports the users that a kill has disconnected.

use std::time::{Duration, Instant};

use super::state::Committer;
use crate::{
    embedded::{
        connected::RowChange,
        tables::contract::{EngineError, Table, TableSpace},
    },
    store::{Durability, EventKind, Outbox as _, OutboxEvent},
};

/// Limit of rows that are written or removed between two commits. A step of 1 ms may write fewer.
pub(in crate::embedded) const STEP_ROWS_MAX: usize = 256;

/// Time limit of a step, and so the delay that a storm of connections adds to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(1);

/// Limit of users whose disconnection is put into the outbox in one step between commits, of some milliseconds.
///
/// Such steps are needed only after a start on a full disk.
const INTERRUPTED_STEP_MAX: usize = 512;

/// The same limit while no commit waits: when the store opens or closes. Each step costs a few syncs.
///
/// Half of the events that the outbox holds in memory, and with the longest ids less than a third of their bytes.
const INTERRUPTED_OPEN_MAX: usize = 8192;

impl Committer {
    /// Writes changed rows, as far as the bounds of one step and the disk allow.
    ///
    /// While the disk is full nothing is written: the changes stay in memory, merged by user.
    pub(super) fn write_connected(&mut self) -> Result<(), EngineError> {
        self.has_connected_rows = false;
        let connected = self.shared.connected.clone();
        let interrupted = connected.interrupted_count();
        if connected.changes() == 0 && interrupted == 0 || self.table_space() < TableSpace::Enough {
            return Ok(());
        }
        if !self.report_interrupted(INTERRUPTED_STEP_MAX)? {
            self.has_connected_rows = connected.interrupted_count() < interrupted;
            return Ok(());
        }
        let until = Instant::now() + STEP_TIMEOUT;
        for _ in 0..STEP_ROWS_MAX {
            if Instant::now() >= until || !self.write_row()? {
                break;
            }
        }
        // The table has grown, so the measurement of the disk is outdated.
        self.invalidate_disk_state();
        self.has_connected_rows = connected.changes() > 0;
        Ok(())
    }

    /// Writes all changes before the store is closed, as far as the disk allows.
    ///
    /// Most of them are removals. Rows that stay are reported at the next start, as after a kill.
    pub(super) fn write_all_connected(&mut self) -> Result<(), EngineError> {
        let connected = self.shared.connected.clone();
        if !self.report_all_interrupted()? {
            return Ok(());
        }
        // Later changes come from connections that outlive the server, and are not waited for.
        for at in 0..connected.changes() {
            if at % STEP_ROWS_MAX == 0 {
                self.invalidate_disk_state();
                if self.table_space() < TableSpace::Little {
                    break;
                }
            }
            self.write_row()?;
        }
        Ok(())
    }

    /// Writes the oldest change. Returns false if there is none.
    fn write_row(&self) -> Result<bool, EngineError> {
        match self.shared.connected.take_change() {
            Some(RowChange::Put(user, row)) => {
                self.shared.engine.put(Table::Connected, user.as_str().as_bytes(), &row.encode())?;
            }
            Some(RowChange::Remove(user)) => {
                self.shared.engine.remove(Table::Connected, user.as_str().as_bytes())?;
            }
            Some(RowChange::Nothing) => {}
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Reports all users whom the previous start had connected, as far as the disk allows. The rest follows later.
    pub(in crate::embedded) fn report_all_interrupted(&mut self) -> Result<bool, EngineError> {
        loop {
            let before = self.shared.connected.interrupted_count();
            let is_done = self.report_interrupted(INTERRUPTED_OPEN_MAX)?;
            if is_done || self.shared.connected.interrupted_count() == before {
                return Ok(is_done);
            }
        }
    }

    /// Puts the disconnections of some users whom the previous start had connected into the outbox, and removes their
    /// rows. Returns true when none is left. `limit` bounds the users.
    ///
    /// The order is: the events, which are made as durable as configured, then the removals. A crash keeps a prefix of
    /// both. So it may repeat an event under another id, and never loses one. New rows are written only after all of
    /// that, so that none of them replaces the row of an earlier start.
    fn report_interrupted(&mut self, limit: usize) -> Result<bool, EngineError> {
        let connected = self.shared.connected.clone();
        if connected.interrupted_count() == 0 {
            return Ok(true);
        }
        if self.table_space() < TableSpace::Enough {
            return Ok(false);
        }
        let (users, is_new) = connected.report_next(limit);
        if let Some(outbox) = self.shared.outbox.clone().filter(|outbox| outbox.is_enabled(EventKind::Disconnection)) {
            if is_new {
                for user in &users {
                    outbox.put(OutboxEvent::RestartDisconnection { user: user.as_str().to_owned() });
                }
                self.interrupted_event = outbox.last_number();
            }
            self.write_outbox()?;
            if !outbox.is_written(self.interrupted_event) {
                // The disk has no space for the events, which wait in memory. A later call continues here.
                return Ok(false);
            }
        }
        for user in &users {
            self.shared.engine.remove(Table::Connected, user.as_str().as_bytes())?;
        }
        connected.forget_reported(users.len());
        self.invalidate_disk_state();
        let is_done = connected.interrupted_count() == 0;
        if is_done {
            // A kill from now on repeats no event that a backend has accepted.
            match self.durability {
                Durability::Always => self.shared.engine.checkpoint()?,
                Durability::Interval(_) | Durability::Never => self.shared.engine.write_through()?,
            }
        }
        Ok(is_done)
    }
}
