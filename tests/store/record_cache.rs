//! Tests reads of the write-ahead log: from the record cache, and from the files for older records.

use std::{fs, path::Path, sync::Arc};

use mesa::{
    embedded::tables::{DiskOptions, open},
    message::Payload,
    store::{Append, ReadLimit, Store, StoreError},
};

use crate::support::{ALL, FLUSH_NEVER, user};

const USERS: [&str; 3] = ["a", "b", "c"];
/// Messages per user. Each is one record of a little more than 1 KiB.
const MESSAGES_PER_USER: u64 = 400;

fn open_with_cache(path: &Path, cache_bytes: u64) -> Arc<dyn Store> {
    open(DiskOptions { tuning: FLUSH_NEVER, cache_bytes, ..DiskOptions::new(path) }).unwrap()
}

fn text(owner: &str, n: u64) -> String {
    format!("message {n} of {owner}.{}", "x".repeat(1024))
}

/// Reads a user's log after `after`, and checks each entry; returns the number of entries.
fn read(store: &dyn Store, owner: &str, after: u64, limit: ReadLimit) -> Result<usize, StoreError> {
    let result = store.read(&user(owner), after, limit)?;
    for (at, entry) in result.entries.iter().enumerate() {
        assert_eq!((entry.seq, &entry.owner[..]), (after + 1 + at as u64, owner.as_bytes()));
        let expected = format!("{{\"op\":0,\"d\":{:?}}}", text(owner, entry.seq));
        assert_eq!(String::from_utf8_lossy(entry.payload.as_bytes()), expected);
    }
    Ok(result.entries.len())
}

// covers: G6
#[tokio::test]
async fn records_beyond_the_cache_are_read_from_files_and_damage_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let store = open_with_cache(home.path(), 64 << 20);
    for n in 1..=MESSAGES_PER_USER {
        for owner in USERS {
            let payload = Payload::encode(0, Some(&format!("{:?}", text(owner, n))), None).unwrap();
            store.append(Append::new(payload, vec![user(owner)])).await.unwrap();
        }
    }
    store.close().await.unwrap();
    drop(store);
    let store = open_with_cache(home.path(), 64 << 20);
    assert_eq!(
        store.read_cached(&user("a"), 0, ALL).map(|result| result.entries.len()),
        Some(MESSAGES_PER_USER as usize),
        "all entries are cached after a start"
    );
    store.close().await.unwrap();
    drop(store);

    // The cache holds a third of the records.
    let store = open_with_cache(home.path(), 1 << 20);
    assert!(store.read_cached(&user("a"), 0, ALL).is_none(), "a cache of 1 MiB does not hold all entries");
    assert!(store.read_cached(&user("a"), MESSAGES_PER_USER - 100, ALL).is_some(), "the newest entries are cached");
    for owner in USERS {
        assert_eq!(read(&*store, owner, 0, ALL).unwrap(), MESSAGES_PER_USER as usize);
        assert_eq!(read(&*store, owner, 7, ReadLimit { entries: 10, bytes: usize::MAX }).unwrap(), 10);
    }
    // Flips a bit in the middle of the fifth message for `b`.
    let files: Vec<_> = fs::read_dir(home.path().join("wal")).unwrap().map(|file| file.unwrap().path()).collect();
    let target = text("b", 5);
    for file in files {
        let mut bytes = fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(target.len()).position(|part| part == target.as_bytes()) {
            bytes[at + 500] ^= 4;
            fs::write(&file, bytes).unwrap();
        }
    }
    for owner in ["a", "c"] {
        assert_eq!(
            read(&*store, owner, 0, ALL).unwrap(),
            MESSAGES_PER_USER as usize,
            "damage in a record of b, which is read together with theirs, does not affect them"
        );
    }
    let error = read(&*store, "b", 0, ALL).unwrap_err();
    assert!(matches!(&error, StoreError::Damaged(reason) if reason.contains("\"b\"")), "{error}");
    assert_eq!(read(&*store, "b", 0, ReadLimit { entries: 4, bytes: usize::MAX }).unwrap(), 4);
    assert_eq!(read(&*store, "b", 5, ALL).unwrap(), MESSAGES_PER_USER as usize - 5);
}
