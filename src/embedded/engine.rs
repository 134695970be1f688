//! Defines the trait `Engine`: a WAL and tables, and the order between them.

use crate::embedded::{
    tables::contract::{CompactionMode, EngineError, Tables},
    user_log::Usage,
    wal::contract::Wal,
};

/// Combines a WAL and tables, and orders their writes.
///
/// # Contract
/// Only barriers and checkpoints order writes between the WAL and the tables. A put that relies on the WAL or on a new
/// block follows a barrier. A WAL record that the tables replace is removed after a checkpoint.
pub trait Engine: Wal + Tables {
    /// Makes the WAL and the value log durable against a power cut.
    fn barrier(&self) -> Result<(), EngineError>;
    /// Makes everything durable against a power cut.
    fn checkpoint(&self) -> Result<(), EngineError>;

    /// Reclaims a little unused space. Returns true if there is more to do at once.
    fn collect_garbage(&self, _mode: CompactionMode) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Returns the bytes of the blocks in [`Table::Log`](crate::embedded::tables::contract::Table::Log), with their
    /// overhead. Right after opening it may be an estimate.
    fn live_bytes(&self) -> u64;

    /// Returns the number of entries in these blocks, and their bytes of payload. After opening, those of earlier
    /// processes are added in steps.
    fn stored_entries(&self) -> Usage;

    /// Returns the bytes of the store's files; `None` in memory, or if they cannot be measured now.
    fn disk_bytes(&self) -> Option<u64> {
        None
    }

    /// Records that the store is closed. Whoever opens it next waits until nothing refers to this engine any more.
    fn set_closed(&self) {}

    /// Returns the free bytes of the disk that holds the store; `None` in memory.
    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }
}
