//! What a store stands on: ordered tables of small values, written in order.

use std::sync::Arc;

use bytes::Bytes;

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

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DiskRoom {
    /// Nobody's yet.
    pub free: u64,
    /// Taken by the tables, in use or not: they never give back what they have.
    pub taken: u64,
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
/// - *One writer.* Only the commit thread puts, removes, flushes and syncs; anybody reads.
/// - *Order.* What a crash leaves of the writes, over all tables, is a prefix of them.
/// - *Flush* hands all writes so far to the system: a killed process does not take them back.
/// - *Sync* makes all that was flushed survive a power cut.
/// - A failed write, flush or sync is final: the caller asks for nothing more.
pub trait Engine: Send + Sync + 'static {
    /// Sets a value, which is at most [`VALUE_BYTES_MAX`](super::record::VALUE_BYTES_MAX) long.
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// Removes a value, if it is there.
    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError>;
    /// Reads a value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Visits the pairs from `from` on, in order, until `visit` returns false.
    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError>;
    /// The pair with the highest key at or below `key`.
    fn floor(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;
    /// See the contract.
    fn flush(&self) -> Result<(), EngineError>;
    /// See the contract.
    fn sync(&self) -> Result<(), EngineError>;

    /// How much room there is where the tables are, if they are on a disk.
    fn disk_room(&self) -> Result<Option<DiskRoom>, EngineError> {
        Ok(None)
    }

    /// Remembers, apart from the tables, that the record of this number has been synced. Not synced itself: what a
    /// crash leaves may be older, and never newer.
    fn mark(&self, _record: u64) -> Result<(), EngineError> {
        Ok(())
    }

    /// What was last remembered, where it can be.
    fn marked(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }
}
