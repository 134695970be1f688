//! Contents of a backup, and why one cannot be used.

use std::{io, path::PathBuf};

/// Why a file is not a backup that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortableError {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no backup of a mesa store. Name a file that `mesa backup` made")]
    Foreign,
    /// Another version made it.
    #[error(
        "it is a backup of another version of mesa than this one knows. Restore it with the version that made it, or a newer one"
    )]
    OtherVersion,
    /// It was cut off.
    #[error("it is not whole: its end is missing. Make the backup again, or take another")]
    CutOff,
    /// It is not what was written.
    #[error("block {block} is not what was written: {what}. Take another backup")]
    Damaged {
        /// Which, from 0.
        block: u64,
        /// In words.
        what: String,
    },
    /// The server could not go on while it was written.
    #[error("the server could not finish it: {0}")]
    Failed(String),
    /// It is whole, and a store could not be made of it.
    #[error("{path}: {reason}")]
    Place {
        /// Where.
        path: PathBuf,
        /// What failed, and what to do about it.
        reason: String,
    },
}

/// How much is in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Users.
    pub users: u64,
    /// Their messages.
    pub entries: u64,
    /// Bytes of payload of those.
    pub bytes: u64,
}
