//! The trait `Tables`: the ordered tables that the store writes to.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    embedded::value_log::{bodies::BodyId, location::BlockLocation, summary::BlockSummary},
    logging::system_error,
    store::StoreError,
};

/// Names a table. Keys are ordered as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// User and sequence → block of entries. The sequence is that of the first entry, or of a later one in a merged block.
    Log,
    /// User → row.
    Users,
    /// Properties of the store itself.
    Meta,
    /// Record number → idempotency ids and their results.
    Ids,
    /// Webhook events that no backend has accepted yet.
    Outbox,
    /// User → since when the user has connections, and how many.
    Connected,
    /// Id of a shared body → the body.
    Bodies,
}

impl Table {
    /// Returns whether its values are in the value log, and its tree has their locations.
    pub fn is_in_value_log(self) -> bool {
        matches!(self, Self::Log | Self::Bodies)
    }
}

/// Classifies engine errors. The class decides whether the store continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The disk is full (ENOSPC, EDQUOT, EFBIG). The call had no effect and may be retried.
    NoSpace,
    /// The system has no file descriptors or memory left (EMFILE, ENFILE, ENOMEM). The call had no effect and may be
    /// retried.
    Exhausted,
    /// A write or a sync failed with an unknown outcome, or a read failed. A failed write or sync stops the store.
    Failed,
}

/// Reports a failed engine call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct EngineError {
    /// Decides whether the store continues.
    pub cause: Cause,
    /// The reason, as a sentence.
    pub what: Arc<str>,
}

impl EngineError {
    /// Creates an error of class [`Cause::Failed`]. Use it for every failed sync, whatever its error number.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self { cause: Cause::Failed, what: error.to_string().into() }
    }

    /// Creates the error of a full disk.
    pub fn no_space(what: impl Into<Arc<str>>) -> Self {
        Self { cause: Cause::NoSpace, what: what.into() }
    }

    /// Returns whether the call had no effect, so that the caller may retry it.
    pub fn is_transient(&self) -> bool {
        self.cause != Cause::Failed
    }
}

/// Classifies the error of a call without effect: an open, a read, or an append.
///
/// A retry of a failed append writes at the same offset.
impl From<io::Error> for EngineError {
    fn from(error: io::Error) -> Self {
        let (cause, reason) = (Cause::of(&error), system_error(&error));
        let what = match cause {
            Cause::NoSpace if is_file_limit(&error) => {
                "a file of the store has reached the size limit (`ulimit -f`). Raise the limit, then start the server again"
                    .into()
            }
            Cause::NoSpace => format!("the disk is full: {reason}. Free some space; the store then continues without a restart"),
            Cause::Exhausted => format!("the system has no file descriptors or memory left: {reason}"),
            Cause::Failed => reason,
        };
        Self { cause, what: what.into() }
    }
}

/// Returns whether a file has reached the size limit of this process (EFBIG).
pub fn is_file_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error())
}

impl Cause {
    /// Classifies an error by its error number.
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

/// Converts an error of the log cache, on the commit thread.
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

/// States how much may be written to sled before the disk may be full.
///
/// Excludes the WAL and the value log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableSpace {
    /// Nothing may be written.
    None,
    /// Removals and single rows may be written.
    Little,
    /// One step may be written.
    Enough,
}

/// Selects how much must be dead before compaction copies live blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionMode {
    /// Never copy.
    Off,
    /// Copy when most of the value log is dead.
    Normal,
    /// Copy when part of a file is dead: the disk has too little space for new entries.
    Eager,
}

/// A block that is added to the value log.
#[derive(Clone, Debug)]
pub struct NewBlock {
    /// Key in [`Table::Log`].
    pub key: Vec<u8>,
    /// The encoded block.
    pub value: Vec<u8>,
    /// Summary of its entries. `None`: the block has none.
    pub summary: Option<BlockSummary>,
    /// Shared bodies that the entries reference, rising, each once.
    pub bodies: Vec<BodyId>,
}

/// A block that is written and has no key.
#[derive(Clone, Debug)]
pub struct BlockCopy {
    /// The block. With a location, its value is empty.
    pub block: NewBlock,
    /// Where the engine has written it, if it has a value log.
    pub location: Option<BlockLocation>,
}

/// Ordered tables of small values.
///
/// # Contract
/// In this contract, *the tables* exclude the values of [`Table::Log`] and [`Table::Bodies`], which are blocks of the value
/// log.
///
/// - *One writer.* Only the commit thread puts and removes. Any thread reads.
/// - *A killed process* loses no block of the value log, and no value that was put into the tables before the last
///   `write_through`.
/// - *A power cut* keeps a prefix of the puts and removals, in order over all tables. The prefix includes
///   everything before the last checkpoint. The key of a new block may exist while its block is unreadable, unless a barrier
///   followed it. A block that replaces another block is always readable.
/// - After a write fails with [`Cause::Failed`], the caller makes no further call. With any other cause the write had no
///   effect, and the caller may retry it.
/// - The tables are written only while [`table_space`](Self::table_space) allows it, so their writes never fail for lack
///   of space.
/// - A damaged block is returned as a placeholder with the reason, which does not decode
///   ([`Unreadable`](crate::embedded::unreadable::Unreadable)). It affects one user.
///
/// [`Engine`](crate::embedded::engine::Engine) defines barriers and checkpoints.
pub trait Tables: Send + Sync + 'static {
    /// Sets a value of at most [`VALUE_BYTES_MAX`](crate::embedded::tables::schema::VALUE_BYTES_MAX) bytes, or a row of a
    /// user of at most [`ROW_BYTES_MAX`](crate::embedded::tables::schema::ROW_BYTES_MAX). Blocks may be larger.
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// Removes a value, if it exists.
    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError>;
    /// Reads a value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Visits the pairs from `from` on, in order, until `visit` returns false.
    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError>;
    /// Visits the keys of [`Table::Log`] from `from` on, in order, with the summaries of their blocks, until `visit`
    /// returns false. Reads no block.
    ///
    /// A block without a summary must be read.
    fn summaries(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError>;
    /// As [`summaries`](Self::summaries), but visits the keys from `from` on in descending order.
    fn summaries_before(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError>;
    /// Returns the pair with the highest key at or below `key`.
    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;
    /// Passes all writes to the system, so that a killed process does not lose them.
    fn write_through(&self) -> Result<(), EngineError>;

    /// Visits the keys from `from` on, in order, until `visit` returns false. Reads no values.
    fn keys(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), EngineError> {
        self.scan(table, from, &mut |key, _| visit(key))
    }

    /// Returns the key that [`last_at_or_before`](Self::last_at_or_before) finds, unless a concurrent removal
    /// intervenes.
    fn last_key_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.last_at_or_before(table, key)?.map(|(key, _)| key))
    }

    /// Removes a block of an erased user. Its bytes are to leave the disk soon.
    fn remove_erased(&self, key: &[u8]) -> Result<(), EngineError> {
        self.remove(Table::Log, key)
    }

    /// Adds blocks whose keys do not exist yet. All blocks are written before the first key exists.
    ///
    /// An error that may be retried means that no block was added.
    fn put_blocks(&self, blocks: &[NewBlock]) -> Result<(), EngineError> {
        blocks.iter().try_for_each(|block| self.put(Table::Log, &block.key, &block.value))
    }

    /// Writes a block that is to replace others. No key refers to it yet.
    ///
    /// [`set_copy`](Self::set_copy) follows after a barrier, or [`discard_copy`](Self::discard_copy).
    fn write_copy(&self, block: NewBlock) -> Result<BlockCopy, EngineError> {
        Ok(BlockCopy { block, location: None })
    }

    /// Replaces the block of an existing key by a copy.
    fn set_copy(&self, copy: BlockCopy) -> Result<(), EngineError> {
        self.put(Table::Log, &copy.block.key, &copy.block.value)
    }

    /// Discards a copy. If `is_erased`, its user was erased, and its bytes are to leave the disk soon.
    fn discard_copy(&self, _copy: BlockCopy, _is_erased: bool) -> Result<(), EngineError> {
        Ok(())
    }

    /// Puts shared bodies. Those whose keys exist are replaced, and the new ones are then always readable.
    ///
    /// An error that may be retried means that no body was put.
    fn put_bodies(&self, bodies: &[(BodyId, Vec<u8>)]) -> Result<(), EngineError> {
        bodies.iter().try_for_each(|(id, body)| self.put(Table::Bodies, &id.key(), body))
    }

    /// Records that an erased user needs these bodies no longer, which the flush under way puts or has put for others too.
    ///
    /// If no block ever references one, its bytes are to leave the disk soon.
    fn forget_bodies(&self, _ids: &[BodyId]) {}

    /// Lists shared bodies that no block references, of records before `record`, at most `limit`.
    fn unreferenced_bodies(&self, record: u64, limit: usize) -> Result<Vec<BodyId>, EngineError>;

    /// Replaces values in one batch.
    fn replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        pairs.iter().try_for_each(|(key, value)| self.put(table, key, value))
    }

    /// Preallocates disk space, and returns how much may be written.
    fn table_space(&self) -> Result<TableSpace, EngineError> {
        Ok(TableSpace::Enough)
    }

    /// Returns the bytes that may be put before the file of the tables grows.
    fn table_slack(&self) -> Result<u64, EngineError> {
        Ok(0)
    }
}
