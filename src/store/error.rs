//! Why a store did not do what was asked.

use std::{path::PathBuf, sync::Arc};

/// Why the store did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory.
    #[error("{path} is in use by another server{holder}. Stop that one, or give this one its own store.path")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// " (process 123)" where that is known.
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
        /// What failed, and what to do about it.
        reason: String,
    },
    /// A write or a sync failed. From here on nothing is promised: every later call gets this too, and the server
    /// must stop (after a failed `fsync` the kernel may have dropped what it could not write).
    #[error("the store has failed and takes nothing more: {0}. Check the disk, then start the server again")]
    Failed(Arc<str>),
    /// What was read is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(Arc<str>),
    /// There is no room. It is taken again when there is: nothing has to be started anew.
    #[error("the store is full: {0}")]
    Full(Arc<str>),
    /// A user has as many devices as are remembered, and all of them are connected.
    #[error("{0} devices of this user are connected, and that is as many as are allowed (sync.maxDevices)")]
    Devices(usize),
    /// What keeps the logs is on the other side of a network and cannot be reached. Whether what was asked was done is not
    /// known. It is tried again: nothing has to be started anew.
    #[error("the store cannot be reached: {0}. Try again")]
    Unreachable(Arc<str>),
    /// [`Store::close`](super::Store::close) was called.
    #[error("the store is closed: the server is shutting down")]
    Closed,
}
