//! Copies of a store that lack a part: each shows everything, or is refused by the name of what is missing.

use std::{fs, path::Path};

use mesa::{
    embedded::{
        offline::inspect::Inspection,
        tables::{DiskOptions, open},
    },
    store::{ReadLimit, StoreError},
};

use crate::{
    disk::{Unread, copy},
    support::{ALL, AT_ONCE, NEVER, Place, append, receive, until, user},
};

/// What a store is made of, and what a copy may do without.
const NEEDED: [&str; 4] = ["log", "mark", "journal", "inbox"];
const SPARED: [&str; 2] = ["lock", "ballast"];

/// Messages of each user, half of them in the inbox and half in the journal.
const MESSAGES: u64 = 20;

/// A store that was closed and one that was not.
async fn stores() -> [Place; 2] {
    let closed = Place::disk();
    let store = closed.open(AT_ONCE);
    for n in 1..=MESSAGES / 2 {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    until("the journal to be settled", || {
        store.read_cached(&user("b"), 0, ReadLimit { entries: 1, bytes: 1 }).is_none()
    })
    .await;
    store.close().await.unwrap();
    drop(store);
    let store = closed.open(NEVER);
    for n in MESSAGES / 2 + 1..=MESSAGES {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    receive(&*store, "b", 1, 1);
    let killed = Place::disk();
    copy(closed.path(), killed.path());
    store.close().await.unwrap();
    [closed, killed]
}

/// Opens a copy; the sequences that user `a` has in it.
fn opened(path: &Path) -> Result<Vec<u64>, StoreError> {
    let store = open(DiskOptions { tuning: NEVER, ..DiskOptions::new(path) })?;
    Ok(store.read(&user("a"), 0, ALL)?.entries.iter().map(|entry| entry.seq).collect())
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

// covers: G6
#[tokio::test]
async fn copy_that_lacks_parts_is_refused_by_the_name_of_one_of_them() {
    for place in stores().await {
        for present in 0..1_u32 << NEEDED.len() {
            let copied = tempfile::tempdir().unwrap();
            copy(place.path(), copied.path());
            let missing: Vec<_> = (0..NEEDED.len()).filter(|n| present & 1 << n == 0).map(|n| NEEDED[n]).collect();
            missing.iter().chain(&SPARED).for_each(|part| remove(&copied.path().join(part)));
            let opened = opened(copied.path());
            if missing.is_empty() {
                assert_eq!(opened.unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
                continue;
            }
            if missing == NEEDED {
                // Then there is no store.
                assert_eq!(opened.unwrap(), [0; 0]);
                continue;
            }
            let told = opened.expect_err(&format!("{missing:?} are missing")).to_string();
            // Where `journal` or `inbox` alone are there, nothing tells that they are a store's.
            let is_foreign = told.contains("it is not empty and no store is in it");
            let named = missing.iter().any(|part| told.contains(&format!("`{part}` is missing")))
                || missing.contains(&"log") && told.contains("`log/db` is missing");
            let has_no_tables = missing.starts_with(&["log", "mark"]);
            assert!(named || is_foreign && has_no_tables, "{missing:?}: {told}");
            let inspected = Inspection::open(copied.path());
            assert!(!inspected.expect("what is there is read").is_whole(), "{missing:?} are missing");
        }
    }
}

// covers: G6
#[tokio::test]
async fn copy_that_lacks_a_single_file_shows_everything_or_is_refused() {
    for place in stores().await {
        let files = ["log", "journal", "inbox", "."].map(|directory| {
            let files = fs::read_dir(place.path().join(directory)).unwrap().map(|file| file.unwrap().path());
            files.filter(|path| path.is_file()).collect::<Vec<_>>()
        });
        for file in files.concat() {
            let copied = tempfile::tempdir().unwrap();
            copy(place.path(), copied.path());
            let file = file.strip_prefix(place.path()).unwrap();
            remove(&copied.path().join(file));
            match opened(copied.path()) {
                Ok(sequences) => assert_eq!(sequences, (1..=MESSAGES).collect::<Vec<_>>(), "without {file:?}"),
                Err(StoreError::Damaged(_)) => {}
                Err(error) => panic!("without {file:?}: {error}"),
            }
        }
    }
}

// covers: G6
#[tokio::test]
async fn store_whose_mark_alone_was_lost_opens_with_an_empty_one_in_its_place() {
    let [place, _] = stores().await;
    fs::remove_file(place.path().join("mark")).unwrap();
    let told = opened(place.path()).expect_err("it is missing").to_string();
    assert!(told.contains("make an empty one in its place"), "{told}");
    fs::write(place.path().join("mark"), "").unwrap();
    assert_eq!(opened(place.path()).unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
}

/// Words of the system, of sled and of a decoder for those who program.
const TERMS: [&str; 6] = ["os error", "Os {", "kind: ", "IO error", "UnexpectedEnd", "additional"];

type Harm = fn(&Path);

/// What may happen to a file of inboxes, and what is told of it. All of the file, for a part of it may be dead.
const HARMS: [(Harm, &str); 5] = [
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
async fn damaged_inbox_is_told_by_its_file_and_what_is_wrong_with_it() {
    let [place, _] = stores().await;
    for (harm, wanted) in HARMS {
        let copied = tempfile::tempdir().unwrap();
        copy(place.path(), copied.path());
        let files = fs::read_dir(copied.path().join("inbox")).unwrap().map(|file| file.unwrap().path());
        let file = files.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
        harm(&file);
        let name = format!("`inbox/{}`", file.file_name().unwrap().to_str().unwrap());
        let store = open(DiskOptions { tuning: NEVER, ..DiskOptions::new(copied.path()) }).unwrap();
        let mut told: Vec<_> = ["a", "b"].map(|id| store.read(&user(id), 0, ALL).err()).into_iter().flatten().collect();
        let told = told.pop().expect("one of both is damaged").to_string();
        store.close().await.unwrap();
        drop(store);
        let mut inspected = Inspection::open(copied.path()).unwrap();
        inspected.visit(&mut Unread).unwrap();
        let damage: Vec<_> = inspected.damage().iter().map(|damage| damage.what.clone()).collect();
        for told in damage.iter().chain([&told]) {
            assert!(told.contains(wanted) && told.contains(&name), "{wanted}: {told}");
            assert!(!TERMS.iter().any(|term| told.contains(term)), "{told}");
        }
        assert!(!damage.is_empty() && told.contains("mesa inspect --salvage"), "{wanted}: {told}");
    }
}

/// Tables that were written anew, and did not get their place before the server ended: they are whole, and a start puts them there.
// covers: G6
#[tokio::test]
async fn store_whose_new_tables_wait_for_their_place_is_not_taken_for_a_damaged_one() {
    let [place, _] = stores().await;
    fs::rename(place.path().join("log"), place.path().join("rebuilt")).unwrap();
    let why = Inspection::open(place.path()).err().expect("it is refused").to_string();
    assert!(why.contains("Start its server once"), "{why}");
    assert_eq!(opened(place.path()).unwrap(), (1..=MESSAGES).collect::<Vec<_>>());
    Inspection::open(place.path()).unwrap();
}
