//! What a store stands on: ordered tables of small values, written in order.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{embedded::tables::schema::wal_key, logging::system_error, store::StoreError};

/// The tables. In each, keys are ordered as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Write-ahead log: record number → record.
    Wal,
    /// User and first sequence → block of entries.
    Log,
    /// User → row.
    Users,
    /// Facts about the store itself.
    Meta,
    /// Record number → ids of appends that were done once.
    Ids,
    /// What is to be told to the outside world.
    Outbox,
}

/// Why an engine did not do what was asked. It decides what becomes of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The disk is full (ENOSPC, EDQUOT, EFBIG). Nothing of the call counts, and it may be repeated.
    NoSpace,
    /// The system has no file descriptors or memory left (EMFILE, ENFILE, ENOMEM). Likewise.
    Exhausted,
    /// A write or a sync failed, and its outcome is unknown; or a read failed.
    Failed,
}

/// An engine did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct EngineError {
    /// What decides how the store goes on.
    pub cause: Cause,
    /// A sentence.
    pub what: Arc<str>,
}

impl EngineError {
    /// An error after which nothing is promised. To be used for every failed sync, whatever its number.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self { cause: Cause::Failed, what: error.to_string().into() }
    }

    /// The disk is full.
    pub fn no_space(what: impl Into<Arc<str>>) -> Self {
        Self { cause: Cause::NoSpace, what: what.into() }
    }

    /// Whether nothing of the call counts, so that the caller may repeat it.
    pub fn is_transient(&self) -> bool {
        self.cause != Cause::Failed
    }
}

/// Classifies the error of a call of which nothing counts when it fails: an open, a read, an append that is repeated at the
/// same place.
impl From<io::Error> for EngineError {
    fn from(error: io::Error) -> Self {
        let (cause, said) = (Cause::of(&error), system_error(&error));
        let what = match cause {
            Cause::NoSpace if is_file_limit(&error) => {
                "a file of it may not grow: the limit (`ulimit -f`) is reached. Raise it, then start the server again"
                    .into()
            }
            Cause::NoSpace => format!("the disk is full: {said}. Free some: nothing has to be started again"),
            Cause::Exhausted => format!("the system has no file descriptors or no memory left for it: {said}"),
            Cause::Failed => said,
        };
        Self { cause, what: what.into() }
    }
}

/// Whether a file is as large as the system lets any file of this process be.
pub fn is_file_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error())
}

impl Cause {
    /// By the number that the system gave.
    pub fn of(error: &io::Error) -> Self {
        use rustix::io::Errno;
        const NO_SPACE: [Errno; 3] = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        const EXHAUSTED: [Errno; 3] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        let is_one_of = |errors: [Errno; 3]| errors.iter().any(|one| error.raw_os_error() == Some(one.raw_os_error()));
        match () {
            () if is_one_of(NO_SPACE) => Self::NoSpace,
            () if is_one_of(EXHAUSTED) => Self::Exhausted,
            () => Self::Failed,
        }
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        match error.cause {
            Cause::NoSpace => Self::Full(error.what),
            Cause::Exhausted => Self::Unreachable(error.what),
            Cause::Failed => Self::Failed(error.what),
        }
    }
}

/// What a caller of the index makes of its error on the commit thread.
impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(what) => Self { cause: Cause::NoSpace, what },
            StoreError::Unreachable(what) => Self { cause: Cause::Exhausted, what },
            StoreError::Failed(what) => Self { cause: Cause::Failed, what },
            error => Self::new(error),
        }
    }
}

/// How much may be put into the tables other than the journal and the inboxes' values, without meeting a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableSpace {
    /// Nothing.
    None,
    /// Removals, and single rows.
    Little,
    /// As much as a step writes.
    Enough,
}

/// Whether what is needed may be written anew, so that what is dead around it can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// Not now.
    No,
    /// Where most of all is dead.
    Usual,
    /// Where some of a file is dead: the disk has too little space for what is to be stored.
    Eager,
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
/// - A failed write or sync is final, and the caller asks for nothing more; but where the cause is not [`Cause::Failed`],
///   nothing of it counts, and the caller may repeat it.
/// - Tables other than the journal and the inboxes' values are written only while [`table_space`](Self::table_space) allows
///   it: their writes never fail for want of space.
/// - A value of an inbox that is not what was written is given as one that is no chunk and says why
///   ([`Unreadable`](crate::embedded::unreadable::Unreadable)): it concerns one user. A record is given as empty.
pub trait Engine: Send + Sync + 'static {
    /// Sets a value, which is at most [`VALUE_BYTES_MAX`](crate::embedded::tables::schema::VALUE_BYTES_MAX) long.
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// Removes a value, if it is there.
    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError>;
    /// Takes back the last record of the journal, which nobody was answered for: as if it had never been put. Lasts.
    fn rollback_last(&self, number: u64) -> Result<(), EngineError>;
    /// Reads a value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Visits the pairs from `from` on, in order, until `visit` returns false.
    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError>;
    /// The pair with the highest key at or below `key`.
    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;
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

    /// The key that [`last_at_or_before`](Self::last_at_or_before) would find, if nothing is removed meanwhile.
    fn last_key_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.last_at_or_before(table, key)?.map(|(key, _)| key))
    }

    /// Visits these records of the journal, whose numbers rise, until `visit` returns false; with `None` one that is not
    /// there (any more). One that is not what was written is given as empty.
    fn records(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> Result<(), EngineError> {
        for number in numbers {
            let record = self.get(Table::Wal, &wal_key(*number))?;
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
    fn collect_garbage(&self, _copying: Copying) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Sets space aside in the journal for records of `bytes` in all, of which `number` is the first, so that they do not
    /// meet a full disk.
    fn reserve(&self, _number: u64, _bytes: u64) -> Result<(), EngineError> {
        Ok(())
    }

    /// Bytes that have to be free where the tables are, so that [`reserve`](Self::reserve) sets so many aside.
    fn wal_bytes_required(&self, _bytes: u64) -> u64 {
        0
    }

    /// Sets space aside for the tables other than the journal and the inboxes' values; how much there is.
    fn table_space(&self) -> Result<TableSpace, EngineError> {
        Ok(TableSpace::Enough)
    }

    /// Bytes that may be put into the tables other than the journal and the inboxes' values before their file grows.
    fn table_slack(&self) -> Result<u64, EngineError> {
        Ok(0)
    }

    /// Bytes that are free where the tables are, if they are on a disk.
    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }

    /// The highest record that is known to have been synced, apart from what the journal itself has.
    fn synced_watermark(&self) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }
}
