//! Encodings of the keys and values of the tables.
//!
//! Each value begins with its version. `data/golden` has a sample of each. A change of an encoding needs another
//! [`FORMAT`](super::meta::FORMAT). Keys are encoded without bincode, because only big-endian numbers sort as numbers.

use bincode::{Decode, Encode};

use crate::{
    embedded::{encoding::bincode_config, unreadable::Unreadable},
    message::Seq,
};

/// Largest value of the tables, in bytes, except for rows of users. The segment size of sled depends on it.
pub const VALUE_BYTES_MAX: usize = 4 << 10;

/// Largest row of a user, and largest WAL record, in bytes.
pub const ROW_BYTES_MAX: usize = 96 << 10;

/// Stores a cursor, and when its device was last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StoredCursor {
    /// Everything up to this sequence is acknowledged.
    pub through: Seq,
    /// Ranges acknowledged out of order, both ends included.
    pub ranges: Vec<(Seq, Seq)>,
    /// In milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
}

/// Stores a user's log without its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StoredLog {
    /// Last sequence assigned.
    pub head: Seq,
    /// Entries up to this sequence are flushed to the value log; later ones are in the WAL.
    pub flushed: Seq,
    /// Number of lossy restarts that `head` includes (see `recovery`).
    pub lossy_restarts: u32,
    /// When the user was last seen, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// The cursor that clients without a device share, if there is one.
    pub shared: Option<StoredCursor>,
    /// Devices and their cursors.
    pub devices: Vec<(String, StoredCursor)>,
    /// Gaps, rising, both ends included, each with a reason: [`GapReason`](crate::store::GapReason).
    pub gaps: Vec<(Seq, Seq, u8)>,
    /// Collapse keys of pending entries: key, sequence, bytes of payload, expiry in seconds of the Unix epoch (0 =
    /// never).
    pub keys: Vec<(String, Seq, u32, u32)>,
    /// Number of flushed entries that are pending, and their bytes of payload. Excludes entries up to `counted`.
    pub block_usage: (u64, u64),
    /// Flushed entries up to this sequence are no longer counted.
    pub counted: Seq,
    /// When the first flushed entry expires, in seconds of the Unix epoch; 0 = none expires.
    pub expires_s: u32,
}

/// Stores idempotency ids that a flush moved from the WAL.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ids {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// In the order of their dispatches.
        ids: Vec<StoredId>,
    },
}

/// Stores the first result of a dispatch with an idempotency id.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoredId {
    /// The id.
    pub id: String,
    /// When the dispatch was committed, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    pub recipients: u32,
    pub online: u32,
    pub offline: u32,
    /// Number of logs to which the message was appended; 0 if the dispatch stored only its result.
    pub stored: u32,
    /// Recipients that were rejected, each with a reason.
    pub rejected: Vec<(String, u8)>,
    /// Whether `rejected` continues in the next value with the same id.
    pub more: bool,
}

/// Stores the connections of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Connections {
    /// The only version so far.
    V1 {
        /// When the first of them was authenticated, in milliseconds of the Unix epoch.
        since_ms: u64,
        /// Number of authenticated connections.
        count: u32,
    },
}

impl Connections {
    pub fn encode(self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode_config()).expect("writing to a Vec succeeds")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(bincode::decode_from_slice(bytes, bincode_config())?.0)
    }
}

impl Ids {
    pub fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode_config()).expect("writing to a Vec succeeds")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(bincode::decode_from_slice(bytes, bincode_config())?.0)
    }
}

/// Versions of the row of a user.
#[derive(Encode, Decode)]
enum Row {
    /// The only version so far.
    V1(StoredLog),
}

impl StoredLog {
    /// Returns the cursor of clients without a device, if there is one, and those of all devices.
    pub fn cursors(&self) -> impl Iterator<Item = &StoredCursor> {
        self.shared.iter().chain(self.devices.iter().map(|(_, cursor)| cursor))
    }

    /// Returns the sequence up to which every cursor has acknowledged everything.
    pub fn through(&self) -> Seq {
        self.cursors().map(|cursor| cursor.through).min().unwrap_or(0)
    }

    pub fn encode(self) -> Vec<u8> {
        bincode::encode_to_vec(Row::V1(self), bincode_config()).expect("writing to a Vec succeeds")
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (Row::V1(log), _) = bincode::decode_from_slice(bytes, bincode_config())?;
        Ok(log)
    }
}

/// Encodes the number of a WAL record, for keys and values.
pub fn wal_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Decodes the number of a WAL record.
pub fn wal_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// Encodes the key of a part of a row: see `tables::parts`.
///
/// A NUL ends the user id, as in the keys of blocks.
pub fn part_key(user: &[u8], generation: u8, part: u8) -> Vec<u8> {
    [user, &[0, generation, part]].concat()
}

/// Returns whether a key of the table of users is that of a part.
pub fn is_part(key: &[u8]) -> bool {
    key.contains(&0)
}

/// Encodes the key of a block of entries.
///
/// The block has no entry of a lower key, except that of a merge, which has all entries since the block before.
/// A NUL ends the user id. Ids contain no control characters, so the keys of two users never interleave.
pub fn log_key(user: &str, first: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 9);
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Returns whether a block key belongs to this user.
pub fn is_log_key_of(key: &[u8], user: &str) -> bool {
    key.len() == user.len() + 9 && key.starts_with(user.as_bytes()) && key[user.len()] == 0
}
