//! Compares encodings with their files in `data/golden`.

use std::{env, fs, path::Path};

use proptest::prelude::*;

use bytes::Bytes;

use crate::embedded::{
    encoding::bincode_config,
    tables::schema::{
        Connections, Ids, StoredCursor, StoredId, StoredLog, is_log_key_of, log_key, wal_key, wal_number,
    },
    value_log::{
        block::{Block, Body},
        bodies::{BodyId, SharedBody},
        location::{BlockLocation, BlockRow},
    },
    wal::record::{Item, RecordReader, RecordWriter, entry_at},
};

/// Returns the bytes of `data/golden/NAME.bin`, which must equal `encoded`.
///
/// With `UPDATE_GOLDEN` in the environment, writes the file first. The name of the format then has to change.
pub(in crate::embedded) fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden").join(format!("{name}.bin"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, encoded).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    assert_eq!(encoded, bytes, "{name}");
    bytes
}

/// Makes a record with two recipients of a message, and every other kind of item once.
fn record() -> Vec<u8> {
    let mut writer = RecordWriter::new(7, 1_700_000_000_000);
    let cursor = StoredCursor { through: 1, ranges: vec![(3, 4)], seen_ms: 1_700_000_000_002 };
    for item in [
        Item::Message { payload: br#"{"op":0,"d":1,"t":"T"}"#, expires_s: 1_700_000_060, collapse: "score" },
        Item::To { user: "alice", seq: 2 },
        Item::To { user: "bob", seq: 300 },
        Item::Seen { user: "bob", at_ms: 1_700_000_000_001 },
        Item::Cursor { user: "alice", device: "phone", cursor },
        Item::CursorRemoved { user: "alice", device: "" },
        Item::Gap { user: "alice", from: 1, to: 1, reason: 3 },
        Item::Rejected { user: "bob", reason: 1 },
        Item::Summary { id: "order-7", recipients: 2, online: 1, offline: 0, stored: 1 },
        Item::More,
        Item::Erased { user: "bob", floor: 300, events: 7 },
    ] {
        writer.push(&item);
    }
    writer.finish()
}

fn row() -> StoredLog {
    let cursor = StoredCursor { through: 4, ranges: vec![(6, 7)], seen_ms: 1_700_000_000_000 };
    StoredLog {
        head: 9,
        flushed: 5,
        lossy_restarts: 1,
        seen_ms: 1_700_000_000_001,
        shared: Some(StoredCursor::default()),
        devices: vec![("phone".to_owned(), cursor)],
        gaps: vec![(1, 2, 1)],
        keys: vec![("score".to_owned(), 9, 100, 1_700_000_060)],
        block_usage: (3, 300),
        counted: 2,
        expires_s: 1_700_000_060,
    }
}

fn ids() -> Ids {
    let rejected = vec![("bob".to_owned(), 1)];
    let id = "order-7".to_owned();
    let at_ms = 1_700_000_000_000;
    Ids::V1 {
        namespace: 7,
        ids: vec![StoredId { id, at_ms, recipients: 2, online: 1, offline: 0, stored: 1, rejected, more: false }],
    }
}

#[test]
fn encoding_equals_its_golden_file() {
    golden("record", &record());
    let block = Block::V1 {
        namespace: 7,
        user: "alice",
        entries: vec![
            (5, 0, Body::Inline(br#"{"op":0}"#)),
            (6, 1_700_000_060, Body::Shared(BodyId { record: 300, at: 70 }, 5000)),
        ],
    };
    assert_eq!(Block::decode(&golden("block", &block.encode())).unwrap(), block);
    let row_of_block = BlockRow::of(BlockLocation { file: 3, offset: 4096, length: 300 }, &block.encode());
    assert_eq!((row_of_block.summary.is_some(), row_of_block.bodies.len()), (true, 1));
    assert_eq!(BlockRow::decode(&golden("location", &row_of_block.encode())), Some(row_of_block));
    let body = SharedBody::V1 { namespace: 7, payload: br#"{"op":0}"# };
    assert_eq!(SharedBody::decode(&golden("body", &body.encode())).unwrap(), body);
    assert_eq!(StoredLog::decode(&golden("row", &row().encode())).unwrap(), row());
    assert_eq!(Ids::decode(&golden("ids", &ids().encode())).unwrap(), ids());
    let connections = Connections::V1 { since_ms: 1_700_000_000_000, count: 2 };
    assert_eq!(Connections::decode(&golden("connected", &connections.encode())).unwrap(), connections);
}

#[test]
fn entry_is_read_alone_with_its_owner_and_sequence() {
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
fn log_keys_sort_by_user_then_sequence() {
    let keys = [log_key("a", 1), log_key("a", 256), log_key("a b", 1), log_key("ab", 1)];
    assert!(keys.is_sorted());
    for (at, user) in ["a", "a", "a b", "ab"].into_iter().enumerate() {
        for other in ["a", "a b", "ab", "b", ""] {
            assert_eq!(is_log_key_of(&keys[at], other), user == other);
        }
    }
    assert_eq!(wal_number(&wal_key(77)), Some(77));
    assert_eq!(wal_number(b"short"), None);
}

proptest! {
    #[test]
    fn garbage_returns_error_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        if let Ok(mut reader) = RecordReader::new(&bytes) {
            while let Some(item) = reader.next_item() {
                if item.is_err() { break; }
            }
        }
        _ = StoredLog::decode(&bytes);
        _ = Connections::decode(&bytes);
        let block: Result<(Block<'_>, usize), _> = bincode::borrow_decode_from_slice(&bytes, bincode_config());
        _ = block;
    }
}
