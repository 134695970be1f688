//! Encodes the keys and values of the outbox.
//!
//! As in [`record`](super::super::wal::record), `data/golden` has the bytes of each encoding.

use bincode::{Decode, Encode, config, error::DecodeError};

use crate::{
    embedded::{tables::schema::VALUE_BYTES_MAX, unreadable::Unreadable},
    message::{Seq, UserId},
    store::OutboxEvent,
};

/// Limit of the bytes of a batch in one value. Its encoding adds up to 5 bytes.
pub const PIECE_BYTES_MAX: usize = VALUE_BYTES_MAX - 64;

/// Limit of memory that a damaged length can make the decoder allocate, in bytes: twice the largest frame of a client.
const DECODE_BYTES_MAX: usize = 32 << 20;

type BincodeConfig = config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_BYTES_MAX>>;

fn bincode_config() -> BincodeConfig {
    config::standard().with_limit::<DECODE_BYTES_MAX>()
}

/// Holds events that were written together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Batch {
    /// The only version so far.
    V1 {
        /// Random number of the start that wrote the batch.
        start: u64,
        /// Events, each with its time in milliseconds of the Unix epoch. `None`: its user was erased.
        events: Vec<(u64, Option<OutboxEvent>)>,
    },
}

/// Holds a part of a batch: one value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Piece {
    /// The only version so far.
    V1 {
        /// This is the last piece. No event of a batch without its last piece was ever read.
        last: bool,
        bytes: Vec<u8>,
    },
}

/// Stores counts of dropped events that no event has reported yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StoredLost {
    /// The only version so far.
    V1 {
        /// Time of the first drop, in milliseconds of the Unix epoch.
        since_ms: u64,
        /// Number of dropped events for each kind, by its number.
        lost: Vec<(u8, u64)>,
    },
}

/// Stores the sequence up to which a user's messages were reported as undelivered.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Reported {
    /// The only version so far.
    V1 { through: Seq },
}

fn encode(value: &impl Encode) -> Vec<u8> {
    // As in `RecordWriter::encode`.
    bincode::encode_to_vec(value, bincode_config()).expect("writing to a Vec succeeds")
}

impl Batch {
    /// Encodes the batch as values.
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        let bytes = encode(self);
        let chunks: Vec<_> = bytes.chunks(PIECE_BYTES_MAX).collect();
        let count = chunks.len();
        let piece = |(at, bytes): (usize, &&[u8])| encode(&Piece::V1 { last: at + 1 == count, bytes: bytes.to_vec() });
        chunks.iter().enumerate().map(piece).collect()
    }
}

/// Decodes a batch from its pieces.
#[derive(Debug, Default)]
pub struct Pieces(Vec<u8>);

impl Pieces {
    /// Adds the next piece. Returns the batch after the last one.
    pub fn push(&mut self, value: &[u8]) -> Result<Option<Batch>, Unreadable> {
        let (Piece::V1 { last, bytes }, _) = bincode::decode_from_slice(value, bincode_config())?;
        self.0.extend_from_slice(&bytes);
        if self.0.len() > DECODE_BYTES_MAX {
            return Err(DecodeError::LimitExceeded.into());
        }
        if !last {
            return Ok(None);
        }
        let (batch, _) = bincode::decode_from_slice(&std::mem::take(&mut self.0), bincode_config())?;
        Ok(Some(batch))
    }
}

impl StoredLost {
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(bincode::decode_from_slice(bytes, bincode_config())?.0)
    }
}

pub fn encode_reported(through: Seq) -> Vec<u8> {
    encode(&Reported::V1 { through })
}

pub fn decode_reported(bytes: &[u8]) -> Result<Seq, Unreadable> {
    let (Reported::V1 { through }, _) = bincode::decode_from_slice(bytes, bincode_config())?;
    Ok(through)
}

/// Prefix of the keys of events.
pub const EVENT_PREFIX: u8 = b'e';
/// Key of the counts of dropped events.
pub const LOST_KEY: &[u8] = b"lost";
/// Key of the number of the last event that was removed.
pub const REMOVED_KEY: &[u8] = b"removed";
/// Prefix of the keys of reported sequences.
const REPORTED_PREFIX: u8 = b'w';

/// Encodes the key of a piece of the batch whose first event has number `first`.
pub fn event_key(first: u64, piece: usize) -> [u8; 11] {
    let mut key = [EVENT_PREFIX; 11];
    key[1..9].copy_from_slice(&first.to_be_bytes());
    // The largest event has about 270 pieces.
    key[9..].copy_from_slice(&u16::try_from(piece).unwrap_or(u16::MAX).to_be_bytes());
    key
}

/// Decodes the number of the first event and of the piece from a key.
pub fn decode_event_key(key: &[u8]) -> Option<(u64, usize)> {
    let key: &[u8; 11] = key.try_into().ok().filter(|key: &&[u8; 11]| key[0] == EVENT_PREFIX)?;
    let first = u64::from_be_bytes(key[1..9].try_into().ok()?);
    Some((first, usize::from(u16::from_be_bytes(key[9..].try_into().ok()?))))
}

/// Encodes the key of a user's reported sequence.
pub fn reported_key(user: &str) -> Vec<u8> {
    [&[REPORTED_PREFIX], user.as_bytes()].concat()
}

/// Decodes the user from the key of a reported sequence.
pub fn reported_user(key: &[u8]) -> Option<UserId> {
    let (first, user) = key.split_first()?;
    (*first == REPORTED_PREFIX).then(|| UserId::new(std::str::from_utf8(user).ok()?).ok())?
}

/// Names what a key stores, for operators. A key that separates two pages may be truncated.
pub fn key_label(key: &[u8]) -> String {
    match key.split_first() {
        Some((&EVENT_PREFIX, rest)) => {
            let mut number = [0; 8];
            let length = rest.len().min(8);
            number[..length].copy_from_slice(&rest[..length]);
            format!("event {}", u64::from_be_bytes(number))
        }
        Some((&REPORTED_PREFIX, user)) => {
            format!("the sequence reported as undelivered of user {:?}", String::from_utf8_lossy(user))
        }
        _ if LOST_KEY.starts_with(key) => "the counts of dropped events".into(),
        _ if REMOVED_KEY.starts_with(key) => "the number of the last removed event".into(),
        _ => format!("key {:?}", String::from_utf8_lossy(key)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embedded::tests::golden::golden;

    fn batch_of_each_kind() -> Batch {
        let (connection, alice) = (|| "c0ffee-7".to_owned(), || "alice".to_owned());
        let events = vec![
            OutboxEvent::Connection { connection: connection() },
            OutboxEvent::Authentication { connection: connection(), user: alice() },
            OutboxEvent::Message {
                connection: connection(),
                user: Some(alice()),
                op: 0,
                data: Some(r#"{"x":1}"#.to_owned()),
                kind: Some("T".to_owned()),
            },
            OutboxEvent::Disconnection { connection: connection(), user: None },
            OutboxEvent::Undelivered {
                user: alice(),
                seq: 300,
                devices: vec![None, Some("phone".to_owned())],
                payload: r#"{"op":0}"#.to_owned(),
            },
            OutboxEvent::Delivered { user: alice(), device: Some("phone".to_owned()), from: 1, to: 2 },
            OutboxEvent::Expired { user: alice(), from: 3, to: 4 },
            OutboxEvent::Dropped { user: alice(), from: 5, to: 9, count: 4 },
            OutboxEvent::Overflow { since_ms: 1_700_000_000_000, lost: vec![(2, 70_000)], at_least: true },
        ];
        let at = |(at, event): (u64, OutboxEvent)| (1_700_000_000_000 + at, Some(event));
        let erased = (1_700_000_000_000 + events.len() as u64, None);
        Batch::V1 { start: 0x00C0_FFEE, events: (0..).zip(events).map(at).chain([erased]).collect() }
    }

    fn raw_type() -> Batch {
        let event = OutboxEvent::RawTypeMessage {
            connection: "c0ffee-7".to_owned(),
            user: Some("alice".to_owned()),
            op: 0,
            data: Some(r#"{"x":1}"#.to_owned()),
            kind_json: r#""T\ud83d""#.to_owned(),
        };
        Batch::V1 { start: 0x00C0_FFEE, events: vec![(1_700_000_000_000, Some(event))] }
    }

    fn restart_disconnection() -> Batch {
        let event = OutboxEvent::RestartDisconnection { user: "alice".to_owned() };
        Batch::V1 { start: 0x00C0_FFEE, events: vec![(1_700_000_000_000, Some(event))] }
    }

    fn lost() -> StoredLost {
        StoredLost::V1 { since_ms: 1_700_000_000_000, lost: vec![(0, 1), (5, 700)] }
    }

    #[test]
    fn outbox_encoding_equals_its_golden_file() {
        for (name, batch) in [
            ("outbox", batch_of_each_kind()),
            ("outbox-raw-type", raw_type()),
            ("outbox-restart-disconnection", restart_disconnection()),
        ] {
            let pieces = batch.pieces();
            assert_eq!(pieces.len(), 1);
            assert_eq!(Pieces::default().push(&golden(name, &pieces[0])).unwrap(), Some(batch));
        }
        assert_eq!(StoredLost::decode(&golden("outbox-lost", &lost().encode())).unwrap(), lost());
        assert_eq!(decode_reported(&golden("outbox-reported", &encode_reported(300))).unwrap(), 300);
    }

    #[test]
    fn batch_larger_than_a_value_decodes_from_all_its_pieces_only() {
        let data = Some("x".repeat(5 * PIECE_BYTES_MAX / 2));
        let event = OutboxEvent::Message { connection: String::new(), user: None, op: 0, data, kind: None };
        let batch = Batch::V1 { start: 1, events: vec![(1, Some(event))] };
        let values = batch.pieces();
        assert_eq!(values.len(), 3);
        let mut pieces = Pieces::default();
        assert_eq!(pieces.push(&values[0]).unwrap(), None);
        assert_eq!(pieces.push(&values[1]).unwrap(), None);
        assert_eq!(pieces.push(&values[2]).unwrap(), Some(batch));
    }

    #[test]
    fn outbox_keys_sort_by_number_and_decode() {
        let keys = [event_key(1, 0), event_key(1, 1), event_key(255, 0), event_key(256, 0)];
        assert!(keys.is_sorted());
        assert_eq!(decode_event_key(&keys[1]), Some((1, 1)));
        assert!(keys[3].as_slice() < LOST_KEY && LOST_KEY < REMOVED_KEY && REMOVED_KEY < &reported_key("a")[..]);
        assert_eq!(decode_event_key(LOST_KEY), None);
        assert_eq!(reported_user(&reported_key("älice")).unwrap().as_str(), "älice");
        assert_eq!(reported_user(&event_key(1, 0)), None);
    }

    proptest! {
        #[test]
        fn outbox_garbage_returns_error_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = Pieces::default().push(&bytes);
            _ = StoredLost::decode(&bytes);
            _ = decode_reported(&bytes);
            _ = (decode_event_key(&bytes), reported_user(&bytes));
        }
    }
}
