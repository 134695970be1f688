//! Encodes the records of the write-ahead log.
//!
//! Each record begins with its version. `data/golden` has the bytes of a record. A change of the encoding needs another
//! [`FORMAT`](crate::embedded::tables::meta::FORMAT).

use bincode::{BorrowDecode, Decode, Encode, error::EncodeError};
use bytes::Bytes;

use crate::{
    embedded::{
        encoding::bincode_config,
        tables::schema::{ROW_BYTES_MAX, StoredCursor},
        unreadable::Unreadable,
    },
    message::{Payload, Seq},
    store::Entry,
};

/// Size at which a record is closed. Only a single large message makes a longer one.
pub const RECORD_BYTES: usize = 64 << 10;

/// Represents the header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Header {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// Time of the commit, in milliseconds of the Unix epoch.
        at_ms: u64,
    },
}

/// Represents an item of a record. Items are in the order of events.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Item<'a> {
    /// A message with its expiry in seconds of the Unix epoch (0 = never), and collapse key ("" = none). The following
    /// [`Item::To`] items name its recipients.
    Message { payload: &'a [u8], expires_s: u32, collapse: &'a str },
    /// The last message is appended to this user's log, with this sequence.
    To { user: &'a str, seq: Seq },
    /// The user connected or disconnected at this time, in milliseconds of the Unix epoch.
    Seen { user: &'a str, at_ms: u64 },
    /// The state of a cursor. The `device` "" is the cursor shared by clients without a device.
    Cursor { user: &'a str, device: &'a str, cursor: StoredCursor },
    /// A cursor was removed.
    CursorRemoved { user: &'a str, device: &'a str },
    /// Entries were dropped before all devices acknowledged them. `reason` is a [`GapReason`](crate::store::GapReason).
    /// For expired entries, the item records that the outbox has the event.
    Gap { user: &'a str, from: Seq, to: Seq, reason: u8 },
    /// The append of the next [`Item::Summary`] was rejected for this user. `reason` is a
    /// [`RejectionReason`](crate::store::RejectionReason).
    Rejected { user: &'a str, reason: u8 },
    /// The result of an append with this idempotency id. The rejections before it are part of it.
    Summary { id: &'a str, recipients: u32, online: u32, offline: u32, stored: u32 },
    /// The commit continues in the next record. Without that record, the commit was never answered.
    More,
    /// The user was erased. A later log of this user starts at `floor` or above. `events` is the number of the last
    /// event of the outbox at that time; 0 = none.
    Erased { user: &'a str, floor: Seq, events: u64 },
    /// A piece of a batch of webhook events. `first` is the number of its first event. The pieces of a batch are in one
    /// commit, in order.
    Events { first: u64, piece: u32, bytes: &'a [u8] },
    /// Webhook events up to this number were removed before the next ones were written.
    EventsRemoved { through: u64 },
}

/// Encodes a record item by item.
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

    /// Appends an item. Returns its offset.
    pub fn push(&mut self, item: &Item<'_>) -> u32 {
        let at = self.bytes.len();
        self.encode(item);
        u32::try_from(at).expect("a record is at most ROW_BYTES_MAX long")
    }

    /// Returns the bytes written so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn finish(self) -> Vec<u8> {
        debug_assert!(self.bytes.len() <= ROW_BYTES_MAX, "a record of {} bytes", self.bytes.len());
        self.bytes
    }

    fn encode(&mut self, value: &impl Encode) {
        let written: Result<usize, EncodeError> =
            bincode::encode_into_std_write(value, &mut self.bytes, bincode_config());
        // Writing to a Vec cannot fail, and no value has an unknown length.
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
        let (header, at) = bincode::decode_from_slice(bytes, bincode_config())?;
        Ok(Self { bytes, at, header })
    }

    /// Returns the next item and its offset; `None` at the end.
    pub fn next_item(&mut self) -> Option<Result<(u32, Item<'a>), Unreadable>> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let at = self.at;
        Some(match bincode::borrow_decode_from_slice(&self.bytes[at..], bincode_config()) {
            Ok((item, length)) => {
                self.at += length;
                // A frame of the WAL has at most 1 MiB.
                Ok((u32::try_from(at).unwrap_or(u32::MAX), item))
            }
            Err(error) => {
                // After an error there are no further items.
                self.at = self.bytes.len();
                Err(error.into())
            }
        })
    }
}

/// Reads one entry of a record without decoding the other items. Returns `None` if there is no entry at these offsets.
///
/// `to_bytes` converts borrowed parts of the record to owned ones.
pub fn entry_at(record: &[u8], message_at: u32, recipient_at: u32, to_bytes: impl Fn(&[u8]) -> Bytes) -> Option<Entry> {
    let (Header::V1 { namespace, .. }, _) = bincode::decode_from_slice(record, bincode_config()).ok()?;
    let item = |at: u32| -> Option<Item<'_>> {
        let (item, _) = bincode::borrow_decode_from_slice(record.get(at as usize..)?, bincode_config()).ok()?;
        Some(item)
    };
    match (item(message_at)?, item(recipient_at)?) {
        (Item::Message { payload, .. }, Item::To { user, seq }) => {
            let (owner, payload) = (to_bytes(user.as_bytes()), Payload::from_stored(to_bytes(payload)));
            Some(Entry { namespace, owner, seq, payload })
        }
        _ => None,
    }
}
