//! Defines the contents of a backup, and the errors of reading and writing one.

use std::{io, path::PathBuf};

/// States why a backup cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A read or write failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is not a backup.
    #[error("the file is not a backup of a mesa store. Pass a file that `mesa backup` wrote")]
    Foreign,
    /// The file has another format version.
    #[error(
        "the backup is from another version of mesa, which this one cannot read. Restore it with that version, or a newer one"
    )]
    OtherVersion,
    /// The file is truncated.
    #[error("the backup is incomplete: its end is missing. Make the backup again, or use another")]
    CutOff,
    /// The content does not match its checksum.
    #[error("block {block} of the backup is damaged: {what}. Use another backup")]
    Damaged {
        /// Number of the block, from 0.
        block: u64,
        /// Kind of damage.
        what: String,
    },
    /// The server could not complete the backup.
    #[error("the server could not complete the backup: {0}")]
    Failed(String),
    /// The backup is valid, but no store could be created from it.
    #[error("{path}: {reason}")]
    Target {
        /// Directory of the store.
        path: PathBuf,
        /// What failed, and what to do.
        reason: String,
    },
}

/// Counts what a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Number of users.
    pub users: u64,
    /// Number of messages.
    pub entries: u64,
    /// Bytes of payload of the messages.
    pub bytes: u64,
    /// Number of webhook events in the outbox.
    pub events: u64,
}
