//! Results of an inspection: damage, and properties of the store.

use std::fmt;

use crate::embedded::tables::schema::{StoredId, StoredLog};

/// Describes one damaged part of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The damaged file or table.
    pub place: &'static str,
    /// The damaged part of the file or table, or empty if unknown.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// The affected user, if known.
    pub user: Option<String>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if !self.key.is_empty() {
            write!(f, ", {}", self.key)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// States how the store was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseState {
    /// The server closed the store.
    Clean,
    /// The server was killed, or the system crashed. No answered message is lost.
    Unclean,
    /// As `Unclean`, with a durability other than `always`. The last answered messages may be lost.
    UncleanLossy,
    /// The store does not have a valid state.
    Unknown,
}

impl CloseState {
    /// Returns a description for operators.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Unclean => "not closed",
            Self::UncleanLossy => "not closed, and the last answers may not have been on disk",
            Self::Unknown => "unknown",
        }
    }
}

/// Holds the properties of a store.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Format version of the tables.
    pub format: Option<String>,
    /// Namespace of the store. `None` if it cannot be read.
    pub namespace: Option<String>,
    /// How the store was closed.
    pub close_state: CloseState,
    /// Number of lossy restarts. At each, logs skipped sequences that may have been assigned and lost.
    pub lossy_restarts: u32,
    /// Sequence at which the log of a new user starts. Erased users had at most this head.
    pub floor: u64,
    /// First and last unflushed record of the WAL, and the number of records.
    pub records: Option<(u64, u64, u64)>,
    /// Bytes of the unflushed records.
    pub wal_bytes: u64,
    /// Record up to which the WAL is flushed.
    pub flushed: u64,
    /// The last synced record, by the sync watermark.
    pub synced_record: Option<u64>,
    /// Number of stored idempotency ids.
    pub ids: u64,
    /// Bytes of all files of the store.
    pub file_bytes: u64,
    /// Names of the sled trees, and their numbers of entries.
    pub trees: Vec<(&'static str, u64)>,
    /// Users with connections when the server ended, as recorded about a second before. None after a clean stop.
    pub connected: Vec<ConnectedUser>,
}

/// Describes the connections of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedUser {
    /// User id.
    pub user: String,
    /// When the first of them was authenticated, in milliseconds of the Unix epoch.
    pub since_ms: u64,
    /// Number of connections.
    pub connections: u32,
}

/// Holds a user's log without its entries, in its stored form.
#[derive(Clone, Debug)]
pub struct StoredUser(pub(in crate::embedded) StoredLog);

/// Holds an idempotency id and its result, in its stored form.
#[derive(Clone, Debug)]
pub struct DedupEntry(pub(in crate::embedded) StoredId);
