//! The journal is read from memory as far as the cache goes, and from its files beyond that.

use std::{fs, path::Path, sync::Arc};

use mesa::{
    embedded::tables::{DiskOptions, open},
    message::Payload,
    store::{Append, ReadLimit, Store, StoreError},
};

use crate::support::{ALL, NEVER, user};

const USERS: [&str; 3] = ["a", "b", "c"];
/// Messages of each; each is a record of its own, a little longer than a KiB.
const EACH: u64 = 400;

fn opened(path: &Path, cache_bytes: u64) -> Arc<dyn Store> {
    open(DiskOptions { tuning: NEVER, cache_bytes, ..DiskOptions::new(path) }).unwrap()
}

fn text(whose: &str, n: u64) -> String {
    format!("message {n} of {whose}.{}", "x".repeat(1024))
}

/// What a user's log has above `after`, which is what was sent; how much of it there is.
fn read(store: &dyn Store, whose: &str, after: u64, limit: ReadLimit) -> Result<usize, StoreError> {
    let found = store.read(&user(whose), after, limit)?;
    for (at, entry) in found.entries.iter().enumerate() {
        assert_eq!((entry.seq, &entry.owner[..]), (after + 1 + at as u64, whose.as_bytes()));
        let expected = format!("{{\"op\":0,\"d\":{:?}}}", text(whose, entry.seq));
        assert_eq!(String::from_utf8_lossy(entry.payload.as_bytes()), expected);
    }
    Ok(found.entries.len())
}

#[tokio::test]
async fn the_newest_records_are_at_hand_also_after_a_start_and_the_others_are_what_was_written_or_told() {
    let home = tempfile::tempdir().unwrap();
    let store = opened(home.path(), 64 << 20);
    for n in 1..=EACH {
        for whose in USERS {
            let payload = Payload::encode(0, Some(&format!("{:?}", text(whose, n))), None).unwrap();
            store.append(Append::new(payload, vec![user(whose)])).await.unwrap();
        }
    }
    store.close().await.unwrap();
    drop(store);
    let store = opened(home.path(), 64 << 20);
    assert_eq!(
        store.read_cached(&user("a"), 0, ALL).map(|found| found.entries.len()),
        Some(EACH as usize),
        "all is at hand"
    );
    store.close().await.unwrap();
    drop(store);

    // Room for a third of it.
    let store = opened(home.path(), 1 << 20);
    assert!(store.read_cached(&user("a"), 0, ALL).is_none(), "more is kept than there is room for");
    assert!(store.read_cached(&user("a"), EACH - 100, ALL).is_some(), "the newest is not at hand");
    for whose in USERS {
        assert_eq!(read(&*store, whose, 0, ALL).unwrap(), EACH as usize);
        assert_eq!(read(&*store, whose, 7, ReadLimit { entries: 10, bytes: usize::MAX }).unwrap(), 10);
    }
    // The disk gives back something else in the middle of the fifth message for b.
    let files: Vec<_> = fs::read_dir(home.path().join("journal")).unwrap().map(|file| file.unwrap().path()).collect();
    let wanted = text("b", 5);
    for file in files {
        let mut bytes = fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(wanted.len()).position(|part| part == wanted.as_bytes()) {
            bytes[at + 500] ^= 4;
            fs::write(&file, bytes).unwrap();
        }
    }
    for whose in ["a", "c"] {
        assert_eq!(read(&*store, whose, 0, ALL).unwrap(), EACH as usize, "it is read together with theirs");
    }
    let told = read(&*store, "b", 0, ALL).unwrap_err();
    assert!(matches!(&told, StoreError::Damaged(why) if why.contains("\"b\"")), "{told}");
    assert_eq!(read(&*store, "b", 0, ReadLimit { entries: 4, bytes: usize::MAX }).unwrap(), 4);
    assert_eq!(read(&*store, "b", 5, ALL).unwrap(), EACH as usize - 5);
}
