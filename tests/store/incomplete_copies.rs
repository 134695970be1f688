//! Tests incomplete copies of a store: each opens with every entry, or is rejected with the name of a missing part.

use std::{fs, path::Path};

use mesa::{
    embedded::{
        offline::inspect::Inspection,
        tables::{DiskOptions, open},
    },
    store::StoreError,
};

use crate::{
    disk::{DiscardingSink, copy, copy_with_watermark},
    support::{ALL, FLUSH_AT_ONCE, FLUSH_NEVER, Location, acknowledge, append, user, wait_until_flushed},
};

/// Parts that a copy of a store needs.
const NEEDED: [&str; 4] = ["log", "mark", "wal", "value-log"];
/// Parts that a copy may lack.
const OPTIONAL: [&str; 2] = ["lock", "ballast"];

/// Messages per user: half of them in the value log, and half in the write-ahead log.
const MESSAGES: u64 = 20;

/// Creates a store that was closed and one that was not.
async fn stores() -> [Location; 2] {
    let closed = Location::disk();
    let store = closed.open(FLUSH_AT_ONCE);
    for n in 1..=MESSAGES / 2 {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    wait_until_flushed(&*store, "b").await;
    store.close().await.unwrap();
    drop(store);
    let store = closed.open(FLUSH_NEVER);
    for n in MESSAGES / 2 + 1..=MESSAGES {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    acknowledge(&*store, "b", 1, 1);
    let killed = Location::disk();
    copy(copy_with_watermark(closed.path()).path(), killed.path());
    store.close().await.unwrap();
    [closed, killed]
}

/// Opens a copy; returns the sequences of user `a` in it.
fn open_and_read(path: &Path) -> Result<Vec<u64>, StoreError> {
    let store = open(DiskOptions { tuning: FLUSH_NEVER, ..DiskOptions::new(path) })?;
    Ok(store.read(&user("a"), 0, ALL)?.entries.iter().map(|entry| entry.seq).collect())
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

// covers: G6
#[tokio::test]
async fn copy_without_some_parts_is_rejected_with_the_name_of_one() {
    for location in stores().await {
        for present in 0..1_u32 << NEEDED.len() {
            let copied = tempfile::tempdir().unwrap();
            copy(location.path(), copied.path());
            let missing: Vec<_> = (0..NEEDED.len()).filter(|n| present & 1 << n == 0).map(|n| NEEDED[n]).collect();
            missing.iter().chain(&OPTIONAL).for_each(|part| remove(&copied.path().join(part)));
            let sequences = open_and_read(copied.path());
            if missing.is_empty() {
                assert_eq!(sequences.unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
                continue;
            }
            if missing == NEEDED {
                // Without any part there is no store, so a new one is created.
                assert_eq!(sequences.unwrap(), [0; 0]);
                continue;
            }
            let error = sequences.expect_err(&format!("{missing:?} are missing")).to_string();
            // Without `log` and `mark`, nothing shows that `wal` and `value-log` belong to a store.
            let is_foreign = error.contains("it is not empty and no store is in it");
            let named = missing.iter().any(|part| error.contains(&format!("`{part}` is missing")))
                || missing.contains(&"log") && error.contains("`log/db` is missing");
            let has_no_tables = missing.starts_with(&["log", "mark"]);
            assert!(named || is_foreign && has_no_tables, "{missing:?}: {error}");
            let inspected = Inspection::open(copied.path());
            assert!(!inspected.expect("the parts present are read").is_undamaged(), "{missing:?} are missing");
        }
    }
}

// covers: G6
#[tokio::test]
async fn copy_without_one_file_opens_with_every_entry_or_is_rejected() {
    for location in stores().await {
        let files = ["log", "wal", "value-log", "."].map(|directory| {
            let files = fs::read_dir(location.path().join(directory)).unwrap().map(|file| file.unwrap().path());
            files.filter(|path| path.is_file()).collect::<Vec<_>>()
        });
        for file in files.concat() {
            let copied = tempfile::tempdir().unwrap();
            copy(location.path(), copied.path());
            let file = file.strip_prefix(location.path()).unwrap();
            remove(&copied.path().join(file));
            match open_and_read(copied.path()) {
                Ok(sequences) => assert_eq!(sequences, (1..=MESSAGES).collect::<Vec<_>>(), "without {file:?}"),
                Err(StoreError::Damaged(_)) => {}
                Err(error) => panic!("without {file:?}: {error}"),
            }
        }
    }
}

// covers: G6
#[tokio::test]
async fn store_without_its_sync_watermark_opens_after_an_empty_file_is_created() {
    let [location, _] = stores().await;
    fs::remove_file(location.path().join("mark")).unwrap();
    let error = open_and_read(location.path()).expect_err("the file `mark` is missing").to_string();
    assert!(error.contains("create an empty one in its place"), "{error}");
    fs::write(location.path().join("mark"), "").unwrap();
    assert_eq!(open_and_read(location.path()).unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
}

/// Terms of the operating system, of sled and of the decoder, which an error for an operator must not have.
const TERMS: [&str; 6] = ["os error", "Os {", "kind: ", "IO error", "UnexpectedEnd", "additional"];

type Damage = fn(&Path);

/// Damage to a value log file, and the expected error. The whole file is damaged, as a part of it may be garbage.
const DAMAGES: [(Damage, &str); 5] = [
    (|file| change(file, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1)), "a checksum does not match"),
    (|file| change(file, |bytes| bytes.fill(0)), "a checksum does not match"),
    (|file| change(file, |bytes| bytes.truncate(40)), "ends early"),
    (|file| fs::remove_file(file).unwrap(), "is missing"),
    (
        |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
        "cannot be read: is a directory",
    ),
];

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

// covers: G6
#[tokio::test]
async fn damaged_value_log_file_is_reported_with_its_name_and_cause() {
    let [location, _] = stores().await;
    for (damage_file, expected) in DAMAGES {
        let copied = tempfile::tempdir().unwrap();
        copy(location.path(), copied.path());
        let files = fs::read_dir(copied.path().join("value-log")).unwrap().map(|file| file.unwrap().path());
        let file = files.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
        damage_file(&file);
        let name = format!("`value-log/{}`", file.file_name().unwrap().to_str().unwrap());
        let store = open(DiskOptions { tuning: FLUSH_NEVER, ..DiskOptions::new(copied.path()) }).unwrap();
        let mut errors: Vec<_> =
            ["a", "b"].map(|id| store.read(&user(id), 0, ALL).err()).into_iter().flatten().collect();
        let error = errors.pop().expect("a read of one of both users fails").to_string();
        store.close().await.unwrap();
        drop(store);
        let mut inspected = Inspection::open(copied.path()).unwrap();
        inspected.visit(&mut DiscardingSink).unwrap();
        let damage: Vec<_> = inspected.damage().iter().map(|damage| damage.what.clone()).collect();
        for text in damage.iter().chain([&error]) {
            assert!(text.contains(expected) && text.contains(&name), "expected {expected:?} and {name:?} in {text:?}");
            assert!(!TERMS.iter().any(|term| text.contains(term)), "{text}");
        }
        assert!(!damage.is_empty() && error.contains("mesa inspect --salvage"), "{expected}: {error}");
    }
}

/// The server ended after it had rebuilt the tables, and before it renamed them. They are complete, and the next start
/// renames them.
// covers: G6
#[tokio::test]
async fn store_with_rebuilt_tables_not_yet_renamed_opens_completely() {
    let [location, _] = stores().await;
    fs::rename(location.path().join("log"), location.path().join("rebuilt")).unwrap();
    let error = Inspection::open(location.path()).err().expect("the inspection is rejected").to_string();
    assert!(error.contains("Start its server once"), "{error}");
    assert_eq!(open_and_read(location.path()).unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
    Inspection::open(location.path()).unwrap();
}
