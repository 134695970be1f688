//! Defines the trait `Wal`: the write-ahead log that makes a commit durable.

use bytes::Bytes;

use crate::embedded::tables::contract::EngineError;

/// Stores records in the order of their numbers.
///
/// # Contract
/// - *One writer.* Only the commit thread appends, removes and syncs. Any thread reads.
/// - Records are appended in the order of their numbers, without a gap, and removed from the beginning.
/// - *A killed process* loses nothing.
/// - *A power cut* keeps all that was synced, and any prefix of the records after that.
/// - A failed write or sync with [`Cause::Failed`](crate::embedded::tables::contract::Cause::Failed) is final: the caller
///   makes no further call. With any other cause the call had no effect, and the caller may retry it.
/// - A damaged record is returned empty.
pub trait Wal: Send + Sync + 'static {
    /// Appends a record of at most [`ROW_BYTES_MAX`](crate::embedded::tables::schema::ROW_BYTES_MAX) bytes.
    fn append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError>;
    /// Removes the first record.
    fn remove_record(&self, number: u64) -> Result<(), EngineError>;
    /// Removes the last record, as if it had never been appended. Durable on return.
    ///
    /// No dispatch in that record may have been answered.
    fn rollback_last(&self, number: u64) -> Result<(), EngineError>;
    /// Returns the numbers of the first and the last record.
    fn record_numbers(&self) -> Option<(u64, u64)>;
    /// Reads a record. Returns `None` if it does not exist, or no longer.
    fn record(&self, number: u64) -> Result<Option<Bytes>, EngineError>;
    /// Visits all records, in order, until `visit` returns false.
    fn scan_records(&self, visit: &mut dyn FnMut(u64, Bytes) -> bool) -> Result<(), EngineError>;
    /// Makes all records durable against a power cut.
    fn sync(&self) -> Result<(), EngineError>;

    /// Visits records with ascending numbers, until `visit` returns false.
    ///
    /// A missing record is passed as `None`.
    fn records(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> Result<(), EngineError> {
        for number in numbers {
            if !visit(*number, self.record(*number)?.as_deref()) {
                break;
            }
        }
        Ok(())
    }

    /// Preallocates space for records of `bytes` in total, so that they do not meet a full disk.
    ///
    /// `number` is the first of these records.
    fn reserve(&self, _number: u64, _bytes: u64) -> Result<(), EngineError> {
        Ok(())
    }

    /// Returns the free disk bytes that [`reserve`](Self::reserve) needs to preallocate `bytes`.
    fn wal_bytes_required(&self, _bytes: u64) -> u64 {
        0
    }
}
