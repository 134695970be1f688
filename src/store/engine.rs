//! What a store stands on: ordered tables of small values, written in order.

use std::sync::Arc;

use bytes::Bytes;

use super::record::journal_key;

/// The tables. In each, keys are ordered as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Record number → record.
    Journal,
    /// User and first sequence → chunk.
    Inbox,
    /// User → row.
    Users,
    /// Facts about the store itself.
    Meta,
    /// Record number → ids of appends that were done once.
    Ids,
    /// What is to be told to the outside world.
    Outbox,
}

/// An engine did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub Arc<str>);

impl EngineError {
    /// From anything that can be told.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string().into())
    }
}

/// Ordered tables of small values.
///
/// # Contract
/// - *One writer.* Only the commit thread puts, removes and syncs; anybody reads.
/// - *A killed process* takes back nothing of the journal and of inboxes' values, and of the other tables nothing that was
///   put before the last flush.
/// - *A power cut* leaves of the journal all that was synced, and any prefix of what was put behind that. It leaves of the
///   other tables a prefix of what was put and removed, over all of them, with all up to the last checkpoint. What is new
///   in an inbox may be there by its key and unreadable, unless a barrier stood behind it; what replaces a value never is.
/// - *Between* the journal and the other tables there is no order but by barriers and checkpoints: so what counts on the
///   journal or on a new value of an inbox is put behind a barrier, and what the other tables make superfluous in the
///   journal is removed from it behind a checkpoint.
/// - The journal is put in the order of its numbers, without a gap, and removed from its beginning.
/// - A failed write or sync is final: the caller asks for nothing more.
/// - A value of an inbox that is not what was written is given as empty, which is no chunk: it concerns one user.
pub trait Engine: Send + Sync + 'static {
    /// Sets a value, which is at most [`VALUE_BYTES_MAX`](super::record::VALUE_BYTES_MAX) long.
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// Removes a value, if it is there.
    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError>;
    /// Takes back the last record of the journal, which nobody was answered for: as if it had never been put. Lasts.
    fn take_back(&self, number: u64) -> Result<(), EngineError>;
    /// Reads a value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Visits the pairs from `from` on, in order, until `visit` returns false.
    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError>;
    /// The pair with the highest key at or below `key`.
    fn floor(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;
    /// Hands what was put into the other tables to the system: a killed process does not take that back.
    fn flush(&self) -> Result<(), EngineError>;
    /// Makes the journal survive a power cut, up to its last record.
    fn sync(&self) -> Result<(), EngineError>;
    /// Makes the journal and the inboxes' values survive a power cut.
    fn barrier(&self) -> Result<(), EngineError>;
    /// Makes all of it survive a power cut.
    fn checkpoint(&self) -> Result<(), EngineError>;

    /// Visits the keys from `from` on, in order, until `visit` returns false, without reading what they lead to.
    fn keys(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), EngineError> {
        self.scan(table, from, &mut |key, _| visit(key))
    }

    /// The key that [`floor`](Self::floor) would find, if nothing is removed meanwhile.
    fn floor_key(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.floor(table, key)?.map(|(key, _)| key))
    }

    /// Visits these records of the journal, whose numbers rise, until `visit` returns false; with `None` one that is not
    /// there (any more). As with an inbox's values, one that is not what was written is given as empty.
    fn records(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> Result<(), EngineError> {
        for number in numbers {
            let record = self.get(Table::Journal, &journal_key(*number))?;
            if !visit(*number, record.as_deref()) {
                break;
            }
        }
        Ok(())
    }

    /// Sets values that replace others, in one go.
    fn replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        pairs.iter().try_for_each(|(key, value)| self.put(table, key, value))
    }

    /// Gives back room that nothing needs, a little of it; true if there is more to do at once.
    fn tidy(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Bytes that are free where the tables are, if they are on a disk.
    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }

    /// The highest record that is known to have been synced, apart from what the journal itself has.
    fn marked(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }
}
