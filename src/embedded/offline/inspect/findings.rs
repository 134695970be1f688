//! Findings of an inspection.

use std::fmt;

use crate::embedded::tables::schema::{StoredId, StoredLog};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where: a file or a table.
    pub place: &'static str,
    /// Which part of it, as well as that can be said.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// Whose it is, where that is known.
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

/// How the store was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server was stopped in order.
    Clean,
    /// It was not: it was killed, or the machine went down. Nothing that was answered is missing for that.
    Unclean,
    /// The same, where answers did not wait for the disk: the last of them may be missing.
    UncleanLossy,
    /// It does not say.
    Unknown,
}

impl Ending {
    /// In a few words.
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

/// What a store says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Version of what is in the tables.
    pub format: Option<String>,
    /// Whose store it is; `None` where that cannot be read.
    pub namespace: Option<String>,
    /// How it was left.
    pub ending: Ending,
    /// How often sequences were passed over, because some may have been given out and forgotten.
    pub lapses: u32,
    /// First and last record of the journal, and how many there are.
    pub records: Option<(u64, u64, u64)>,
    /// Bytes of those.
    pub journal_bytes: u64,
    /// Up to this record all is in the inboxes.
    pub settled: u64,
    /// This record was synced, as the file `mark` says.
    pub marked: Option<u64>,
    /// Ids of dispatches that are remembered.
    pub ids: u64,
    /// Bytes of all files of the store.
    pub file_bytes: u64,
}

/// A user's log without its entries, as it would be stored. For those who store it.
#[derive(Clone, Debug)]
pub struct StoredUser(pub(in crate::embedded) StoredLog);

/// A dispatch that was done once. For those who store it.
#[derive(Clone, Debug)]
pub struct DedupEntry(pub(in crate::embedded) StoredId);
