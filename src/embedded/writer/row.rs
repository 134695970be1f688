//! Writes the rows of users.

use super::{queue::Batch, state::Committer};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::StoredLog,
        },
        user_log::UserLog,
    },
    message::UserId,
    store::EventKind,
};

/// Attempts to write a row between two acknowledgements of its user.
const ATTEMPTS_MAX: usize = 4;

impl Committer {
    /// Writes a user's row, and queues a trim if necessary. Returns false if the user acknowledges too often just now:
    /// then a later call must follow.
    pub(super) fn flush_row(&mut self, user: &UserId) -> Result<bool, EngineError> {
        let is_put = self.put_reported_row(user)?;
        self.with_log(user, |log| self.shared.release(user, log))?;
        Ok(is_put)
    }

    /// Writes a user's row, if there is one, with acknowledgements only that the WAL has, and so the outbox.
    ///
    /// A report puts its webhook event and then waits for the next commit, which writes both. A row with the
    /// acknowledgement would overtake that commit, and a power cut could keep it without the event. So the commit is
    /// made first. While the WAL has no space for reports, the row is written nevertheless: it frees space.
    pub(super) fn put_reported_row(&mut self, user: &UserId) -> Result<bool, EngineError> {
        for _ in 0..ATTEMPTS_MAX {
            let has_events = self.shared.outbox_for(EventKind::Delivered).is_some() && self.is_written();
            let row = self.with_log(user, |log| {
                // Without this number, the user was erased, and has no row.
                let has_row = log.row_lossy_restarts.is_some();
                if has_row && log.dirty && has_events { Err(()) } else { Ok(has_row.then(|| self.next_row(log))) }
            })?;
            if let Ok(row) = row {
                return row.map_or(Ok(()), |row| self.put_stored(user, row)).map(|()| true);
            }
            self.commit(Batch { dirty: vec![user.clone()], ..Batch::default() })?;
        }
        Ok(false)
    }

    /// Writes a user's row, unless the WAL has items of this user. Then the next flush writes it.
    ///
    /// Without a row the user is erased or unknown, and stays so.
    pub(super) fn put_row_if_flushed(&self, user: &UserId) -> Result<(), EngineError> {
        let first = self.records.front().map_or(self.next_record, |record| record.number);
        let is_flushed = self.with_log(user, |log| {
            let has_row = log.row_lossy_restarts.is_some();
            has_row && log.last_record < first && !log.dirty && log.assigned == log.head
        })?;
        if is_flushed {
            self.put_row(user)?;
        }
        Ok(())
    }

    /// Writes a user's row.
    pub(super) fn put_row(&self, user: &UserId) -> Result<(), EngineError> {
        let row = self.with_log(user, |log| self.next_row(log))?;
        self.put_stored(user, row)
    }

    /// Returns the row of a log, which is about to be written, and whether it is the first one.
    fn next_row(&self, log: &mut UserLog) -> (StoredLog, bool) {
        let row = log.row(self.shared.logs.lossy_restarts().count);
        if log.row_lossy_restarts.replace(row.lossy_restarts) != Some(row.lossy_restarts) {
            log.row_before_entry = Some(self.next_record);
        }
        (row, std::mem::take(&mut log.lacks_row))
    }

    fn put_stored(&self, user: &UserId, (row, lacked_row): (StoredLog, bool)) -> Result<(), EngineError> {
        if self.blocks_not_durable.replace(false) {
            // The row may refer to one of the blocks that are not durable.
            self.shared.engine.barrier()?;
        }
        self.shared.engine.put(Table::Users, user.as_str().as_bytes(), &row.encode())?;
        if lacked_row {
            // After the put, so that a list of users never lacks this user.
            self.shared.logs.set_row_written(user);
        }
        Ok(())
    }
}
