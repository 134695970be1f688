//! Encoding of keys and rows of the tables.
//!
//! Each row begins with its version. Variants are only appended, and a released variant never changes: `data/golden` holds them.
//! Keys are built by hand, because only big-endian numbers sort as numbers.

use bincode::{Decode, Encode};

use crate::{
    embedded::{encoding::format, unreadable::Unreadable},
    message::Seq,
};

/// Largest value an engine is given. sled keeps values above a share of its segment in files that it never syncs; with
/// segments of 8 MiB, and sixteen values to a leaf, this stays far below that share.
pub const VALUE_BYTES_MAX: usize = 96 << 10;

/// What a cursor has received, and when who it belongs to was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StoredCursor {
    /// Everything up to this was received.
    pub through: Seq,
    /// What was received beyond that, both ends included.
    pub islands: Vec<(Seq, Seq)>,
    /// In milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
}

/// What is kept of a user beside the entries.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Row {
    /// The first version: one cursor, and nothing ever gone but what was received.
    V1 {
        /// Last sequence handed out.
        head: Seq,
        /// Everything up to this was received.
        through: Seq,
        /// What was received beyond that, both ends included.
        islands: Vec<(Seq, Seq)>,
        /// Entries up to this are in the inbox, those above it in the journal.
        settled: Seq,
        /// When the user was seen, in milliseconds of the Unix epoch; 0 = never.
        seen_ms: u64,
        /// How many lapses of the store `head` takes into account (see `recovery`).
        lapses: u32,
    },
    /// All that is kept of a log beside its entries.
    V2(StoredLog),
}

/// All that is kept of a log beside its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StoredLog {
    /// Last sequence handed out.
    pub head: Seq,
    /// Entries up to this are in the inbox, those above it in the journal.
    pub settled: Seq,
    /// How many lapses of the store `head` takes into account (see `recovery`).
    pub lapses: u32,
    /// When the user was seen, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// The cursor that clients without a device share, if there is one.
    pub shared: Option<StoredCursor>,
    /// Devices and their cursors.
    pub devices: Vec<(String, StoredCursor)>,
    /// Ranges that are gone, rising, both ends included, each with a [`Loss`](crate::store::Loss).
    pub gone: Vec<(Seq, Seq, u8)>,
    /// Keys of pending entries: with their sequence, their bytes of payload, and when they expire (0 = never).
    pub keys: Vec<(String, Seq, u32, u32)>,
    /// Entries in the inbox that are still needed, and their bytes of payload, without those up to `counted`.
    pub inbox: (u64, u64),
    /// Up to here entries of the inbox are not counted any more.
    pub counted: Seq,
    /// When the first entry in the inbox expires, in seconds of the Unix epoch; 0 = none does.
    pub expires_s: u32,
}

/// Ids of appends that were done once, moved out of the journal when it was settled.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ids {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// In the order in which they were done.
        ids: Vec<StoredId>,
    },
}

/// What was answered under an id.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoredId {
    /// The id.
    pub id: String,
    /// When it was done, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    pub recipients: u32,
    pub online: u32,
    pub offline: u32,
    /// For whom it was not taken.
    pub rejected: Vec<(String, u8)>,
    /// That is a part of them: the same id follows with more.
    pub more: bool,
}

impl Ids {
    pub fn encode(&self) -> Vec<u8> {
        // As in `RecordWriter::encode`.
        bincode::encode_to_vec(self, format()).expect("a Vec takes everything")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(bincode::decode_from_slice(bytes, format())?.0)
    }
}

impl Row {
    pub fn encode(&self) -> Vec<u8> {
        // As in `RecordWriter::encode`.
        bincode::encode_to_vec(self, format()).expect("a Vec takes everything")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(bincode::decode_from_slice(bytes, format())?.0)
    }

    /// Up to this sequence the inbox is counted on.
    pub fn settled(&self) -> Seq {
        match self {
            Self::V1 { settled, .. } => *settled,
            Self::V2(log) => log.settled,
        }
    }
}

/// Key of a journal record.
pub fn wal_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The record number of a key.
pub fn wal_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// Key of an inbox chunk. Ids have no control characters, so a NUL ends them: no key of one user is among another's.
pub fn log_key(user: &str, first: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 9);
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Whether a key of the inbox is this user's.
pub fn is_log_key_of(key: &[u8], user: &str) -> bool {
    key.len() == user.len() + 9 && key.starts_with(user.as_bytes()) && key[user.len()] == 0
}
