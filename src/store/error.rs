//! Defines the errors of a store.

use std::{path::PathBuf, sync::Arc};

/// States why an operation of a store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process uses the directory.
    #[error("{path} is in use by another server{holder}. Stop that one, or give this one its own store.path")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// " (process 123)" if that is known, else empty.
        holder: String,
    },
    /// The directory is of another kind, version or namespace.
    #[error("{0}")]
    Incompatible(String),
    /// The directory cannot be opened.
    #[error("cannot open the store at {path}: {reason}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What failed, and what to do.
        reason: String,
    },
    /// A write or a sync failed. Every later call gets this error, and the server must stop.
    ///
    /// After a failed `fsync` the kernel may have dropped unwritten data, so the store can guarantee nothing.
    #[error("the store has failed and accepts nothing more: {0}. Check the disk, then restart the server")]
    Failed(Arc<str>),
    /// Data on disk does not match what was written.
    #[error("the store is damaged: {0}")]
    Damaged(Arc<str>),
    /// The store is full. It accepts messages again, without a restart, when there is space.
    #[error("the store is full: {0}")]
    Full(Arc<str>),
    /// Messages arrive faster than the disk takes them, so this one waited for seconds in vain. Nothing was accepted.
    #[error("the store is busy: {0}. Retry in a second")]
    Busy(Arc<str>),
    /// The disk was full while a commit was written. The commit is kept, and completed when there is space; a crash before
    /// that may lose it.
    #[error("{0}; it is not known yet whether the message will be stored. Retry only with an idempotency id")]
    OutcomeUnknown(Arc<str>),
    /// The user has the maximum number of devices, and all are connected, so another device is rejected.
    #[error("{0} devices of this user are connected, which is the limit (sync.maxDevices)")]
    Devices(usize),
    /// The store cannot be reached, or lacks resources. The outcome of the operation is unknown. No restart is needed.
    #[error("the store cannot be reached: {0}. Retry")]
    Unreachable(Arc<str>),
    /// [`Store::close`](super::Store::close) was called.
    #[error("the store is closed: the server is shutting down")]
    Closed,
}
