//! What stands in the tables, byte by byte: journal records, inbox chunks, user rows, and keys.
//!
//! Each begins with a byte that is its version. Variants are only ever appended, and a variant that was released never
//! changes; the files in `data/golden` hold that. Keys are made by hand, because only big-endian numbers
//! sort as numbers.

use bincode::{BorrowDecode, Decode, Encode, config, error::EncodeError};
use bytes::Bytes;

use crate::{
    embedded::unreadable::Unreadable,
    message::{Payload, Seq},
    store::Entry,
};

/// Largest value an engine is given. sled keeps values above a share of its segment in files that it never syncs; with
/// segments of 8 MiB, and sixteen values to a leaf, this stays far below that share.
pub const VALUE_BYTES_MAX: usize = 96 << 10;

/// A journal record is closed when it would pass this; only a single large message makes one longer.
pub const RECORD_BYTES: usize = 64 << 10;

/// An inbox chunk is closed when it would pass this.
pub const CHUNK_BYTES: usize = 48 << 10;

/// Bounds what a damaged length can make the decoder reserve.
const DECODE_BYTES_MAX: usize = 1 << 20;

type Format = config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_BYTES_MAX>>;

fn format() -> Format {
    config::standard().with_limit::<DECODE_BYTES_MAX>()
}

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

/// Sequence, when it expires in seconds of the Unix epoch (0 = never), and payload.
pub type ChunkEntry<'a> = (Seq, u32, &'a [u8]);

/// Consecutive entries of one user, with their stamp.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Chunk<'a> {
    /// The first version: nothing in it expires.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// Whose entries these are.
        user: &'a str,
        /// Sequence and payload, rising.
        entries: Vec<(Seq, &'a [u8])>,
    },
    /// Knows when entries expire.
    V2 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// Whose entries these are.
        user: &'a str,
        /// Rising by sequence.
        entries: Vec<ChunkEntry<'a>>,
    },
}

impl<'a> Chunk<'a> {
    /// The fingerprint of the namespace, whose entries these are, and they.
    pub fn parts(self) -> (u32, &'a str, Vec<ChunkEntry<'a>>) {
        match self {
            Chunk::V1 { namespace, user, entries } => {
                (namespace, user, entries.into_iter().map(|(seq, payload)| (seq, 0, payload)).collect())
            }
            Chunk::V2 { namespace, user, entries } => (namespace, user, entries),
        }
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        if let Some(unreadable) = Unreadable::of_value(bytes) {
            return Err(unreadable);
        }
        Ok(bincode::borrow_decode_from_slice(bytes, format())?.0)
    }

    pub fn encode(&self) -> Vec<u8> {
        // As in `RecordWriter::encode`.
        bincode::encode_to_vec(self, format()).expect("a Vec takes everything")
    }
}

/// Reads the entries of a chunk, and when each expires.
pub fn chunk_entries(bytes: &Bytes) -> Result<Vec<(Entry, u32)>, Unreadable> {
    let (namespace, user, entries) = Chunk::decode(bytes)?.parts();
    let owner = bytes.slice_ref(user.as_bytes());
    let entry = |(seq, expires_s, payload): (Seq, u32, &[u8])| {
        let payload = Payload::from_stored(bytes.slice_ref(payload));
        (Entry { namespace, owner: owner.clone(), seq, payload }, expires_s)
    };
    Ok(entries.into_iter().map(entry).collect())
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
pub fn journal_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The record number of a key.
pub fn journal_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// Key of an inbox chunk. Ids have no control characters, so a NUL ends them: no key of one user is among another's.
pub fn inbox_key(user: &str, first: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(user.len() + 9);
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Whether a key of the inbox is this user's.
pub fn is_inbox_key_of(key: &[u8], user: &str) -> bool {
    key.len() == user.len() + 9 && key.starts_with(user.as_bytes()) && key[user.len()] == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Vec<u8> {
        let mut writer = RecordWriter::new(7, 1_700_000_000_000);
        writer.push(&Item::Message(br#"{"op":0,"d":1,"t":"T"}"#));
        writer.push(&Item::To { user: "alice", seq: 1 });
        writer.push(&Item::To { user: "bob", seq: 300 });
        writer.push(&Item::Received { user: "alice", through: 1, islands: vec![(3, 4)] });
        writer.push(&Item::Seen { user: "bob", at_ms: 1_700_000_000_001 });
        writer.finish()
    }

    fn chunk() -> Vec<u8> {
        Chunk::V1 { namespace: 7, user: "alice", entries: vec![(5, br#"{"op":0}"#), (6, br#"{"op":0,"d":2}"#)] }
            .encode()
    }

    fn row() -> Row {
        Row::V1 { head: 9, through: 4, islands: vec![(6, 7)], settled: 5, seen_ms: 1_700_000_000_000, lapses: 1 }
    }

    fn record_with_everything() -> Vec<u8> {
        let mut writer = RecordWriter::new(7, 1_700_000_000_000);
        let cursor = StoredCursor { through: 1, islands: vec![(3, 4)], seen_ms: 1_700_000_000_002 };
        for item in [
            Item::MessageWith { payload: br#"{"op":0}"#, expires_s: 1_700_000_060, collapse: "score" },
            Item::To { user: "alice", seq: 2 },
            Item::Gone { user: "alice", from: 1, to: 1, loss: 3 },
            Item::Cursor { user: "alice", device: "phone", cursor },
            Item::Forgotten { user: "alice", device: "" },
            Item::Rejected { user: "bob", reason: 1 },
            Item::Once { id: "order-7", recipients: 2, online: 1, offline: 0 },
            Item::More,
        ] {
            writer.push(&item);
        }
        writer.finish()
    }

    fn chunk_v2() -> Vec<u8> {
        Chunk::V2 { namespace: 7, user: "alice", entries: vec![(5, 0, br#"{"op":0}"#), (6, 1_700_000_060, b"{}")] }
            .encode()
    }

    fn row_v2() -> Row {
        let cursor = StoredCursor { through: 4, islands: vec![(6, 7)], seen_ms: 1_700_000_000_000 };
        Row::V2(StoredLog {
            head: 9,
            settled: 5,
            lapses: 1,
            seen_ms: 1_700_000_000_001,
            shared: Some(StoredCursor::default()),
            devices: vec![("phone".to_owned(), cursor)],
            gone: vec![(1, 2, 1)],
            keys: vec![("score".to_owned(), 9, 100, 1_700_000_060)],
            inbox: (3, 300),
            counted: 2,
            expires_s: 1_700_000_060,
        })
    }

    fn ids() -> Ids {
        let rejected = vec![("bob".to_owned(), 1)];
        let id = "order-7".to_owned();
        let at_ms = 1_700_000_000_000;
        Ids::V1 {
            namespace: 7,
            ids: vec![StoredId { id, at_ms, recipients: 2, online: 1, offline: 0, rejected, more: false }],
        }
    }

    /// As below, for what came with devices, limits and ids.
    #[test]
    fn released_bytes_of_the_second_version_are_read_for_ever() {
        assert_eq!(record_with_everything(), include_bytes!("../../../data/golden/record-v2.bin"));
        assert_eq!(chunk_v2(), include_bytes!("../../../data/golden/chunk-v2.bin"));
        assert_eq!(row_v2().encode(), include_bytes!("../../../data/golden/row-v2.bin"));
        assert_eq!(Row::decode(include_bytes!("../../../data/golden/row-v2.bin")).unwrap(), row_v2());
        assert_eq!(ids().encode(), include_bytes!("../../../data/golden/ids-v1.bin"));
        assert_eq!(Ids::decode(include_bytes!("../../../data/golden/ids-v1.bin")).unwrap(), ids());
    }

    /// What was written by this version must be read by every later one: these files are never changed.
    #[test]
    fn released_bytes_are_read_for_ever() {
        assert_eq!(record(), include_bytes!("../../../data/golden/record-v1.bin"));
        assert_eq!(chunk(), include_bytes!("../../../data/golden/chunk-v1.bin"));
        assert_eq!(row().encode(), include_bytes!("../../../data/golden/row-v1.bin"));
        assert_eq!(Row::decode(include_bytes!("../../../data/golden/row-v1.bin")).unwrap(), row());
    }

    #[test]
    fn an_entry_is_read_without_the_rest_and_with_its_stamp() {
        let bytes = Bytes::from(record());
        let mut reader = RecordReader::new(&bytes).unwrap();
        let mut at = Vec::new();
        while let Some(item) = reader.next_item() {
            at.push(item.unwrap().0);
        }
        let keep = |part: &[u8]| bytes.slice_ref(part);
        let entry = entry_at(&bytes, at[0], at[2], keep).unwrap();
        assert_eq!((entry.namespace, &entry.owner[..], entry.seq), (7, &b"bob"[..], 300));
        assert_eq!(&entry.payload.as_bytes()[..], br#"{"op":0,"d":1,"t":"T"}"#);
        assert!(entry_at(&bytes, at[1], at[2], keep).is_none());
        assert!(entry_at(&bytes, at[0], 60_000, keep).is_none());
    }

    #[test]
    fn keys_sort_by_user_and_then_by_sequence_and_never_mix_users() {
        let keys = [inbox_key("a", 1), inbox_key("a", 256), inbox_key("a b", 1), inbox_key("ab", 1)];
        assert!(keys.is_sorted());
        for (at, user) in ["a", "a", "a b", "ab"].into_iter().enumerate() {
            for other in ["a", "a b", "ab", "b", ""] {
                assert_eq!(is_inbox_key_of(&keys[at], other), user == other);
            }
        }
        assert_eq!(journal_number(&journal_key(77)), Some(77));
        assert_eq!(journal_number(b"short"), None);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Ok(mut reader) = RecordReader::new(&bytes) {
                while let Some(item) = reader.next_item() {
                    if item.is_err() { break; }
                }
            }
            _ = Row::decode(&bytes);
            let chunk: Result<(Chunk<'_>, usize), _> = bincode::borrow_decode_from_slice(&bytes, format());
            _ = chunk;
        }
    }
}
