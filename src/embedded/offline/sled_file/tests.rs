//! What is read without sled is what sled reads.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;

use super::{RawTables, Tail, check, segment_log::Segments};
use crate::embedded::tables::contract::Table;

/// The smallest that still has every kind of page.
const SEGMENT: usize = 64 << 10;

const NAMES: [(&str, Table); 5] = super::TABLES;

fn config(path: &Path) -> sled::Config {
    sled::Config::new().path(path).segment_size(SEGMENT).flush_every_ms(None)
}

fn open(path: &Path) -> sled::Db {
    let config = config(path);
    // The lock of the one before is let go a moment after that was dropped, by a thread of sled's.
    let mut opened = config.open();
    for _ in 0..500 {
        if opened.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        opened = config.open();
    }
    opened.unwrap()
}

type Pairs = Vec<(Bytes, Bytes)>;

fn by_sled(path: &Path) -> Vec<Pairs> {
    let db = open(path);
    let pair = |pair: sled::Result<(sled::IVec, sled::IVec)>| {
        let (key, value) = pair.unwrap();
        (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))
    };
    NAMES.iter().map(|(name, _)| db.open_tree(name).unwrap().iter().map(pair).collect()).collect()
}

fn raw(path: &Path, behind: bool) -> (RawTables, Vec<Pairs>) {
    let tables = RawTables::open(path, behind).unwrap();
    let pairs = NAMES.map(|(_, table)| tables.pairs(table, &[]).map(Result::unwrap).collect());
    (tables, pairs.to_vec())
}

/// A few thousand changes that split pages, merge them and use segments again.
fn fill(path: &Path, seed: u64) {
    let mut state = seed;
    let mut chance = |of: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % of
    };
    for _ in 0..3 {
        let db = open(path);
        let trees = NAMES.map(|(name, _)| db.open_tree(name).unwrap());
        for n in 0..2_000_u64 {
            let tree = &trees[chance(NAMES.len() as u64) as usize];
            let key = format!("user {}\0{}", chance(200), chance(4));
            if chance(3) == 0 {
                tree.remove(key).unwrap();
            } else {
                tree.insert(key, vec![n as u8; chance(400) as usize]).unwrap();
            }
            if chance(10) == 0 {
                db.flush().unwrap();
            }
        }
        db.flush().unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.path().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn what_is_read_without_sled_is_what_sled_reads() {
    for seed in 1..=6 {
        let (place, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(place.path(), seed);
        assert!(check(place.path(), 0).unwrap().is_none(), "seed {seed}");
        let (tables, mine) = raw(place.path(), false);
        assert!(tables.gaps.is_empty() && tables.broken().is_empty() && !tables.goes_on(), "seed {seed}");
        copy(place.path(), copied.path());
        let theirs = by_sled(copied.path());
        assert_eq!(mine, theirs, "seed {seed}");
        assert!(mine.iter().all(|pairs| !pairs.is_empty()));
        let (from, _) = &mine[0][mine[0].len() / 2];
        let tail: Pairs = tables.pairs(Table::Inbox, from).map(Result::unwrap).collect();
        assert_eq!(tail, mine[0][mine[0].len() / 2..]);
    }
}

#[test]
fn a_flipped_bit_in_the_middle_is_told_and_what_lies_behind_it_is_found() {
    let place = tempfile::tempdir().unwrap();
    fill(place.path(), 7);
    // Without a snapshot everything has to be read again, and sled would take what it cannot read for never written.
    for file in fs::read_dir(place.path()).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    let whole: BTreeMap<Bytes, Bytes> = raw(place.path(), false).1.swap_remove(1).into_iter().collect();
    let bytes = fs::read(place.path().join("db")).unwrap();
    let (mut told, mut tried) = (0, 0);
    for at in (0..bytes.len() - 2 * SEGMENT).step_by(7919) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(place.path().join("db"), &damaged).unwrap();
        tried += 1;
        let found = check(place.path(), 0).unwrap();
        told += usize::from(found.is_some());
        if found.is_some() {
            let (tables, pairs) = raw(place.path(), false);
            assert!(!tables.broken().is_empty() || tables.goes_on(), "what is refused is told, {at}");
            let found: BTreeMap<Bytes, Bytes> = pairs[1].iter().cloned().collect();
            let kept = whole.iter().filter(|(key, value)| found.get(*key) == Some(value)).count();
            assert!(kept * 10 >= whole.len() * 7, "{kept} of {} after a flip at {at}", whole.len());
        }
    }
    // Some bits lie where nothing is written: behind the end of a segment.
    assert!(told * 10 >= tried * 8, "{told} of {tried}");
}

#[test]
fn garbage_is_read_as_nothing() {
    let place = tempfile::tempdir().unwrap();
    for bytes in [
        vec![],
        vec![0; 1 << 20],
        vec![0xAA; (8 << 20) + 5],
        b"garbage".to_vec(),
        (0..=255).cycle().take(1 << 20).collect(),
    ] {
        fs::write(place.path().join("db"), &bytes).unwrap();
        let (_, pairs) = raw(place.path(), true);
        assert!(pairs.iter().all(Vec::is_empty));
        let anything = bytes.iter().any(|byte| *byte != 0);
        assert_eq!(check(place.path(), 0).unwrap().is_some(), anything, "sled would begin anew over it");
    }
}

/// As sled leaves its files when it is killed while it opens them: what it does not need any more it has emptied.
#[test]
fn a_segment_that_sled_has_emptied_while_it_opened_is_not_missed() {
    let (place, mut emptied) = (tempfile::tempdir().unwrap(), 0);
    fs::create_dir_all(place.path()).unwrap();
    for n in 0..200_u64 {
        let db = open(place.path());
        db.flush().unwrap();
        let killed = tempfile::tempdir().unwrap();
        copy(place.path(), killed.path());
        let file = fs::File::open(place.path().join("db")).unwrap();
        let end = Tail::find(place.path()).unwrap().advance(&file).unwrap();
        let bytes = fs::read(place.path().join("db")).unwrap();
        emptied += usize::from(bytes.chunks(SEGMENT).any(|segment| segment.iter().all(|byte| *byte == 0)));
        assert_eq!(check(killed.path(), end).unwrap(), None, "round {n}, which ends at {end}");
        let journal = db.open_tree("journal").unwrap();
        for key in 0..12_u64 {
            journal.insert(key.to_be_bytes(), vec![n as u8; 900]).unwrap();
        }
        db.flush().unwrap();
    }
    assert!(emptied > 0, "nothing was emptied: nothing was tested");
}

fn snapshots(path: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect()
}

/// As a power cut leaves it that takes back the name of the newest snapshot, and nothing of what sled did to its file when it
/// had made it: the snapshot before says that the log is known up to a segment that is not there any more.
#[test]
fn a_segment_that_only_an_older_snapshot_knows_is_not_missed() {
    let (place, mut gone) = (tempfile::tempdir().unwrap(), 0);
    let mut older: Option<(std::path::PathBuf, Vec<u8>)> = None;
    for n in 0..150_u64 {
        let db = open(place.path());
        let tree = db.open_tree("users").unwrap();
        db.flush().unwrap();
        let end = Tail::find(place.path()).unwrap();
        let end = { end }.advance(&fs::File::open(place.path().join("db")).unwrap()).unwrap();
        if let Some((name, bytes)) = &older {
            let cut = tempfile::tempdir().unwrap();
            copy(place.path(), cut.path());
            snapshots(cut.path()).iter().for_each(|snapshot| fs::remove_file(snapshot).unwrap());
            fs::write(cut.path().join(name.file_name().unwrap()), bytes).unwrap();
            let segments = Segments::find(cut.path()).unwrap();
            assert_eq!(check(cut.path(), end).unwrap(), None, "round {n}, which ends at {end}");
            // Of that sled would make a mess: it is read without it, and written anew.
            gone += usize::from(segments.snapshot_misleads());
            let (tables, found) = raw(cut.path(), false);
            assert!(tables.broken().is_empty() && tables.gaps.is_empty(), "round {n}");
            let wanted: Pairs =
                (0..12).map(|key: u64| (key.to_be_bytes().to_vec().into(), vec![n as u8 - 1; 900].into())).collect();
            assert_eq!(found[1], wanted, "round {n}");
        }
        older = snapshots(place.path()).into_iter().max().map(|path| (path.clone(), fs::read(&path).unwrap()));
        for key in 0..12_u64 {
            tree.insert(key.to_be_bytes(), vec![n as u8; 900]).unwrap();
        }
        db.flush().unwrap();
    }
    assert!(gone > 0, "it was always there: nothing was tested");
}

#[test]
fn the_end_of_the_log_is_followed_while_it_is_written() {
    let place = tempfile::tempdir().unwrap();
    fill(place.path(), 3);
    let db = open(place.path());
    db.flush().unwrap();
    let tree = db.open_tree("journal").unwrap();
    let file = fs::File::open(place.path().join("db")).unwrap();
    let mut tail = Tail::find(place.path()).unwrap();
    let mut last = tail.advance(&file).unwrap();
    for n in 0..2_000_u64 {
        tree.insert(n.to_be_bytes(), vec![n as u8; (n * 7 % 900) as usize]).unwrap();
        db.flush().unwrap();
        let end = tail.advance(&file).unwrap();
        assert!(end > last, "{end} after {last}");
        last = end;
    }
    assert_eq!(Tail::find(place.path()).unwrap().advance(&file).unwrap(), last, "found anew");
    assert!(check(place.path(), last).unwrap().is_none());
    assert!(check(place.path(), last + 1).unwrap().is_some(), "what was synced is missed");
}

#[test]
fn a_log_that_was_left_in_the_middle_again_and_again_is_not_taken_for_a_damaged_one() {
    let mut place = tempfile::tempdir().unwrap();
    for round in 0..60_u64 {
        let db = open(place.path());
        let (tree, file) = (db.open_tree("journal").unwrap(), fs::File::open(place.path().join("db")).unwrap());
        let mut tail = Tail::find(place.path()).unwrap();
        // The same few keys over and over, so that segments are free soon and are used again.
        for n in 0..(20 + round * 37 % 400) {
            tree.insert((n % 7).to_be_bytes(), vec![n as u8; 1_500]).unwrap();
            tree.remove(((n + 3) % 7).to_be_bytes()).unwrap();
        }
        db.flush().unwrap();
        let end = tail.advance(&file).unwrap();
        // As a kill leaves it.
        let killed = tempfile::tempdir().unwrap();
        copy(place.path(), killed.path());
        drop(db);
        assert_eq!(check(killed.path(), end).unwrap(), None, "round {round}");
        place = killed;
    }
}

#[test]
fn segments_before_a_snapshot_need_not_be_there() {
    let place = tempfile::tempdir().unwrap();
    fill(place.path(), 1);
    // Opened once more, so that there is a snapshot that knows all of it.
    drop(open(place.path()));
    let end = Tail::find(place.path()).unwrap().advance(&fs::File::open(place.path().join("db")).unwrap()).unwrap();
    let before = end / SEGMENT as u64 * SEGMENT as u64 - SEGMENT as u64;
    let at = Segments::find(place.path()).unwrap().place(before).expect("the last but one") as usize;
    let mut bytes = fs::read(place.path().join("db")).unwrap();
    bytes[at..at + SEGMENT].fill(0);
    fs::write(place.path().join("db"), bytes).unwrap();
    assert_eq!(check(place.path(), end).unwrap(), None);
}
