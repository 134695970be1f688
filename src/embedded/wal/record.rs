//! Encoding of records of the write-ahead log.
//!
//! Each record begins with its version. `data/golden` has the bytes of a record. A change of the encoding needs another
//! [`FORMAT`](crate::embedded::tables::meta::FORMAT).

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

/// Size at which a record is closed. Only a single large message makes a longer one.
pub const RECORD_BYTES: usize = 64 << 10;

/// Header of a record.
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

/// Item of a record, in the order of events.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Item<'a> {
    /// A message, and its options: expiry in seconds of the Unix epoch (0 = never), and collapse key ("" = none). The
    /// [`Item::To`]s after it name its recipients.
    Message { payload: &'a [u8], expires_s: u32, collapse: &'a str },
    /// The last message goes into this user's log, at this sequence.
    To { user: &'a str, seq: Seq },
    /// When this user was seen, in milliseconds of the Unix epoch.
    Seen { user: &'a str, at_ms: u64 },
    /// A cursor of this user. The `device` "" stands for the cursor shared by clients without a device.
    Cursor { user: &'a str, device: &'a str, cursor: StoredCursor },
    /// This cursor was removed.
    CursorRemoved { user: &'a str, device: &'a str },
    /// These entries were dropped before all devices acknowledged them; `reason` is a [`GapReason`](crate::store::GapReason). For
    /// expired entries it records that the outbox has the event.
    Gap { user: &'a str, from: Seq, to: Seq, reason: u8 },
    /// The append that the next [`Item::Summary`] names was rejected for this user; `reason` is a
    /// [`Reason`](crate::store::Reason).
    Rejected { user: &'a str, reason: u8 },
    /// End of an append with this idempotency id: its result, with the rejections before it.
    Summary { id: &'a str, recipients: u32, online: u32, offline: u32, stored: u32 },
    /// The commit continues in the next record. Without that record, the commit was never answered.
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

    /// Appends an item; returns its offset.
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
        written.expect("writing to a Vec succeeds");
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

    /// Returns the next item and its offset; `None` at the end.
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
                // After an error there are no further items.
                self.at = self.bytes.len();
                Err(error.into())
            }
        })
    }
}

/// Reads one entry of a record without decoding the rest. Returns `None` if there is no entry at these offsets;
/// `keep` makes the bytes that outlive the record.
pub fn entry_at(record: &[u8], message_at: u32, recipient_at: u32, keep: impl Fn(&[u8]) -> Bytes) -> Option<Entry> {
    let (Header::V1 { namespace, .. }, _) = bincode::decode_from_slice(record, format()).ok()?;
    let item = |at: u32| -> Option<Item<'_>> {
        let (item, _) = bincode::borrow_decode_from_slice(record.get(at as usize..)?, format()).ok()?;
        Some(item)
    };
    match (item(message_at)?, item(recipient_at)?) {
        (Item::Message { payload, .. }, Item::To { user, seq }) => {
            Some(Entry { namespace, owner: keep(user.as_bytes()), seq, payload: Payload::from_stored(keep(payload)) })
        }
        _ => None,
    }
}
