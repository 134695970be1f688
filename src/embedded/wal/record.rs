//! Encoding of records of the write-ahead log.
//!
//! Each record begins with its version. Variants are only appended, and a released variant never changes: `data/golden` holds
//! them.

use bincode::{BorrowDecode, Decode, Encode, error::EncodeError};
use bytes::Bytes;

use crate::{
    embedded::{
        encoding::format,
        tables::schema::{StoredCursor, VALUE_BYTES_MAX},
        unreadable::Unreadable,
    },
    message::{Payload, Seq},
    store::Entry,
};

/// A journal record is closed when it would pass this; only a single large message makes one longer.
pub const RECORD_BYTES: usize = 64 << 10;

/// How a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Header {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// When it was committed, in milliseconds of the Unix epoch.
        at_ms: u64,
    },
}

/// What a record is made of, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Item<'a> {
    /// A message; the [`Item::To`]s behind it say whose it is.
    Message(&'a [u8]),
    /// The last message goes into this user's log at this place.
    To { user: &'a str, seq: Seq },
    /// What this user has received, all of it.
    Received { user: &'a str, through: Seq, islands: Vec<(Seq, Seq)> },
    /// When this user was seen, in milliseconds of the Unix epoch.
    Seen { user: &'a str, at_ms: u64 },
    /// As [`Item::Message`], with what was asked for: when it expires, in seconds of the Unix epoch (0 = never), and its
    /// key ("" = none).
    MessageWith { payload: &'a [u8], expires_s: u32, collapse: &'a str },
    /// A cursor of this user as it stands now; `device` "" is the one that clients without a device share.
    Cursor { user: &'a str, device: &'a str, cursor: StoredCursor },
    /// This cursor is not there any more.
    Forgotten { user: &'a str, device: &'a str },
    /// These entries are not there any more although nobody received them; `loss` is a [`Loss`](crate::store::Loss). Of those
    /// that have expired it says that this was reported to the outbox.
    Gone { user: &'a str, from: Seq, to: Seq, loss: u8 },
    /// For this one the append that is about to be named was not taken; `reason` is a [`Reason`](crate::store::Reason).
    Rejected { user: &'a str, reason: u8 },
    /// The append that was to be done once under this id ends here: what was answered, with what was rejected before it.
    Once { id: &'a str, recipients: u32, online: u32, offline: u32 },
    /// The commit goes on in the next record. Without that one, none of it was ever answered.
    More,
}

/// A record being written.
#[derive(Debug)]
pub struct RecordWriter {
    bytes: Vec<u8>,
}

impl RecordWriter {
    pub fn new(namespace: u32, at_ms: u64) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(4096) };
        writer.encode(&Header::V1 { namespace, at_ms });
        writer
    }

    /// Appends an item; returns where it stands.
    pub fn push(&mut self, item: &Item<'_>) -> u32 {
        let at = self.bytes.len();
        self.encode(item);
        // A record is at most VALUE_BYTES_MAX long.
        at as u32
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn finish(self) -> Vec<u8> {
        debug_assert!(self.bytes.len() <= VALUE_BYTES_MAX, "a record of {} bytes", self.bytes.len());
        self.bytes
    }

    fn encode(&mut self, value: &impl Encode) {
        let written: Result<usize, EncodeError> = bincode::encode_into_std_write(value, &mut self.bytes, format());
        // Writing to a Vec cannot fail, and nothing here has a length that is not known.
        written.expect("a Vec takes everything");
    }
}

/// Reads a record from its beginning.
#[derive(Debug)]
pub struct RecordReader<'a> {
    bytes: &'a [u8],
    at: usize,
    pub header: Header,
}

impl<'a> RecordReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (header, at) = bincode::decode_from_slice(bytes, format())?;
        Ok(Self { bytes, at, header })
    }

    /// The next item and where it stands; `None` at the end.
    pub fn next_item(&mut self) -> Option<Result<(u32, Item<'a>), Unreadable>> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let at = self.at;
        Some(match bincode::borrow_decode_from_slice(&self.bytes[at..], format()) {
            Ok((item, length)) => {
                self.at += length;
                Ok((at as u32, item))
            }
            Err(error) => {
                // What failed stays failed.
                self.at = self.bytes.len();
                Err(error.into())
            }
        })
    }
}

/// Reads one entry out of a record without reading the rest; `keep` takes what is to stay. `None` if there is none at that
/// place.
pub fn entry_at(record: &[u8], message_at: u32, stamp_at: u32, keep: impl Fn(&[u8]) -> Bytes) -> Option<Entry> {
    let (Header::V1 { namespace, .. }, _) = bincode::decode_from_slice(record, format()).ok()?;
    let item = |at: u32| -> Option<Item<'_>> {
        let (item, _) = bincode::borrow_decode_from_slice(record.get(at as usize..)?, format()).ok()?;
        Some(item)
    };
    match (item(message_at)?, item(stamp_at)?) {
        (Item::Message(payload) | Item::MessageWith { payload, .. }, Item::To { user, seq }) => {
            Some(Entry { namespace, owner: keep(user.as_bytes()), seq, payload: Payload::from_stored(keep(payload)) })
        }
        _ => None,
    }
}
