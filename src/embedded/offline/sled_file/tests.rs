//! Tests that this reader and sled read the same from undamaged files, and of damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use bytes::Bytes;

use super::{
    RawTables, Tail,
    page::Node,
    segment::{self, Kind},
    segment_log::{self, DamagedRange, Segments, SledLog},
};
use crate::embedded::tables::contract::Table;

/// The smallest segment size that still produces every kind of page.
const SEGMENT: usize = 64 << 10;

const NAMES: [(&str, Table); 7] = super::TABLES;

fn config(path: &Path) -> sled::Config {
    sled::Config::new().path(path).segment_size(SEGMENT).flush_every_ms(None)
}

fn open(path: &Path) -> sled::Db {
    let config = config(path);
    // A thread of sled releases the previous lock with a delay.
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

fn check(path: &Path, synced: u64) -> std::io::Result<Option<DamagedRange>> {
    let segments = Segments::find(path)?;
    Ok(segment_log::check(&segments, &SledLog::read(&segments, false)?, synced))
}

type Pairs = Vec<(Bytes, Bytes)>;

fn read_by_sled(path: &Path) -> Vec<Pairs> {
    let db = open(path);
    let pair = |pair: sled::Result<(sled::IVec, sled::IVec)>| {
        let (key, value) = pair.unwrap();
        (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))
    };
    NAMES.iter().map(|(name, _)| db.open_tree(name).unwrap().iter().map(pair).collect()).collect()
}

fn raw(path: &Path, past_end: bool) -> (RawTables, Vec<Pairs>) {
    let tables = RawTables::open(path, past_end).unwrap();
    let pairs: Vec<Pairs> =
        NAMES.iter().map(|(_, table)| tables.pairs(*table, &[]).map(Result::unwrap).collect()).collect();
    (tables, pairs)
}

/// Makes a few thousand changes that split pages, merge them and reuse segments.
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
                // Without zeros, which a test with a cleared block could not tell from it.
                tree.insert(key, vec![(n % 255) as u8 + 1; chance(400) as usize]).unwrap();
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
fn table_of_an_undamaged_log_that_is_read_alone_has_the_same_pairs() {
    for seed in 0..3 {
        let home = tempfile::tempdir().unwrap();
        fill(home.path(), seed);
        let (_, all) = raw(home.path(), false);
        for ((_, table), pairs) in NAMES.iter().zip(&all) {
            let one = RawTables::open_one(&Segments::find(home.path()).unwrap(), *table, 0).unwrap().unwrap();
            assert!(one.pairs(*table, &[]).map(Result::unwrap).eq(pairs.iter().cloned()), "{table:?}");
        }
    }
}

#[test]
fn raw_tables_equal_what_sled_reads() {
    for seed in 1..=6 {
        let (home, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(home.path(), seed);
        assert!(check(home.path(), 0).unwrap().is_none(), "seed {seed}");
        let (tables, read) = raw(home.path(), false);
        assert!(
            tables.lost_keys.is_empty() && tables.damaged().is_empty() && !tables.has_data_past_end(),
            "seed {seed}"
        );
        copy(home.path(), copied.path());
        let expected = read_by_sled(copied.path());
        assert_eq!(read, expected, "seed {seed}");
        assert!(read.iter().all(|pairs| !pairs.is_empty()));
        let (from, _) = &read[0][read[0].len() / 2];
        let tail: Pairs = tables.pairs(Table::Log, from).map(Result::unwrap).collect();
        assert_eq!(tail, read[0][read[0].len() / 2..]);
    }
}

#[test]
fn flipped_bit_is_reported_and_later_data_is_found() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), 7);
    // Without a snapshot, sled reads everything again, and treats what it cannot read as never written.
    for file in fs::read_dir(home.path()).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    let whole: BTreeMap<Bytes, Bytes> = raw(home.path(), false).1.swap_remove(1).into_iter().collect();
    let bytes = fs::read(home.path().join("db")).unwrap();
    let (mut reported, mut tried) = (0, 0);
    for at in (0..bytes.len() - 2 * SEGMENT).step_by(7919) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(home.path().join("db"), &damaged).unwrap();
        tried += 1;
        let found = check(home.path(), 0).unwrap();
        reported += usize::from(found.is_some());
        if found.is_some() {
            let (tables, pairs) = raw(home.path(), false);
            assert!(!tables.damaged().is_empty() || tables.has_data_past_end(), "the damage at {at} is reported");
            let found: BTreeMap<Bytes, Bytes> = pairs[1].iter().cloned().collect();
            let found_again = whole.iter().filter(|(key, value)| found.get(*key) == Some(value)).count();
            assert!(found_again * 10 >= whole.len() * 7, "{found_again} of {} after a flip at {at}", whole.len());
        }
    }
    // Some bits are in unused bytes at the end of a segment.
    assert!(reported * 10 >= tried * 8, "{reported} of {tried}");
}

#[test]
fn garbage_reads_as_empty() {
    let home = tempfile::tempdir().unwrap();
    for bytes in [
        vec![],
        vec![0; 1 << 20],
        vec![0xAA; (8 << 20) + 5],
        b"garbage".to_vec(),
        (0..=255).cycle().take(1 << 20).collect(),
    ] {
        fs::write(home.path().join("db"), &bytes).unwrap();
        let (_, pairs) = raw(home.path(), true);
        assert!(pairs.iter().all(Vec::is_empty));
        let anything = bytes.iter().any(|byte| *byte != 0);
        assert_eq!(check(home.path(), 0).unwrap().is_some(), anything, "sled would start anew and overwrite it");
    }
}

/// Prepares sled's files as a kill during opening leaves them: sled has cleared the segments that it no longer needs.
#[test]
fn segment_cleared_by_sled_while_opening_is_not_missing() {
    let (home, mut emptied) = (tempfile::tempdir().unwrap(), 0);
    fs::create_dir_all(home.path()).unwrap();
    for n in 0..200_u64 {
        let db = open(home.path());
        db.flush().unwrap();
        let killed = tempfile::tempdir().unwrap();
        copy(home.path(), killed.path());
        let file = fs::File::open(home.path().join("db")).unwrap();
        let end = Tail::find(home.path()).unwrap().advance(&file).unwrap();
        let bytes = fs::read(home.path().join("db")).unwrap();
        emptied += usize::from(bytes.chunks(SEGMENT).any(|segment| segment.iter().all(|byte| *byte == 0)));
        assert_eq!(check(killed.path(), end).unwrap(), None, "round {n}, which ends at {end}");
        let tree = db.open_tree("other").unwrap();
        for key in 0..12_u64 {
            tree.insert(key.to_be_bytes(), vec![n as u8; 900]).unwrap();
        }
        db.flush().unwrap();
    }
    assert!(emptied > 0, "at least one segment was cleared");
}

fn snapshots(path: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect()
}

/// A power cut loses the name of the newest snapshot, but not the later changes of sled's file. The previous snapshot
/// refers to a segment that sled has cleared.
#[test]
fn segment_of_older_snapshot_only_is_not_missing() {
    let (home, mut stale) = (tempfile::tempdir().unwrap(), 0);
    let mut older: Option<(std::path::PathBuf, Vec<u8>)> = None;
    for n in 0..150_u64 {
        let db = open(home.path());
        let tree = db.open_tree("users").unwrap();
        db.flush().unwrap();
        let end = Tail::find(home.path()).unwrap();
        let end = { end }.advance(&fs::File::open(home.path().join("db")).unwrap()).unwrap();
        if let Some((name, bytes)) = &older {
            let cut = tempfile::tempdir().unwrap();
            copy(home.path(), cut.path());
            snapshots(cut.path()).iter().for_each(|snapshot| fs::remove_file(snapshot).unwrap());
            fs::write(cut.path().join(name.file_name().unwrap()), bytes).unwrap();
            let segments = Segments::find(cut.path()).unwrap();
            assert_eq!(check(cut.path(), end).unwrap(), None, "round {n}, which ends at {end}");
            // sled fails on such files. They are read without sled, and rebuilt.
            stale += usize::from(segments.snapshot_is_stale());
            let (tables, found) = raw(cut.path(), false);
            assert!(tables.damaged().is_empty() && tables.lost_keys.is_empty(), "round {n}");
            let wanted: Pairs =
                (0..12).map(|key: u64| (key.to_be_bytes().to_vec().into(), vec![n as u8 - 1; 900].into())).collect();
            assert_eq!(found[1], wanted, "round {n}");
        }
        older = snapshots(home.path()).into_iter().max().map(|path| (path.clone(), fs::read(&path).unwrap()));
        for key in 0..12_u64 {
            tree.insert(key.to_be_bytes(), vec![n as u8; 900]).unwrap();
        }
        db.flush().unwrap();
    }
    assert!(stale > 0, "at least one snapshot refers to a cleared segment");
}

#[test]
fn tail_follows_log_while_it_is_written() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), 3);
    let db = open(home.path());
    db.flush().unwrap();
    let tree = db.open_tree("other").unwrap();
    let file = fs::File::open(home.path().join("db")).unwrap();
    let mut tail = Tail::find(home.path()).unwrap();
    let mut last = tail.advance(&file).unwrap();
    for n in 0..2_000_u64 {
        tree.insert(n.to_be_bytes(), vec![n as u8; (n * 7 % 900) as usize]).unwrap();
        db.flush().unwrap();
        let end = tail.advance(&file).unwrap();
        assert!(end > last, "{end} after {last}");
        last = end;
    }
    assert_eq!(Tail::find(home.path()).unwrap().advance(&file).unwrap(), last, "a new tail finds the same end");
    assert!(check(home.path(), last).unwrap().is_none());
    assert!(check(home.path(), last + 1).unwrap().is_some(), "missing synced data is detected");
}

#[test]
fn log_after_repeated_kills_is_not_damaged() {
    let mut home = tempfile::tempdir().unwrap();
    for round in 0..60_u64 {
        let db = open(home.path());
        let (tree, file) = (db.open_tree("other").unwrap(), fs::File::open(home.path().join("db")).unwrap());
        let mut tail = Tail::find(home.path()).unwrap();
        // The same few keys repeatedly, so that segments are soon free and reused.
        for n in 0..(20 + round * 37 % 400) {
            tree.insert((n % 7).to_be_bytes(), vec![n as u8; 1_500]).unwrap();
            tree.remove(((n + 3) % 7).to_be_bytes()).unwrap();
        }
        db.flush().unwrap();
        let end = tail.advance(&file).unwrap();
        // A kill leaves the files as they are.
        let killed = tempfile::tempdir().unwrap();
        copy(home.path(), killed.path());
        drop(db);
        assert_eq!(check(killed.path(), end).unwrap(), None, "round {round}");
        home = killed;
    }
}

#[test]
fn segments_before_a_snapshot_may_be_missing() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), 1);
    // Opened once more, so that a snapshot covers everything.
    drop(open(home.path()));
    let end = Tail::find(home.path()).unwrap().advance(&fs::File::open(home.path().join("db")).unwrap()).unwrap();
    let before = end / SEGMENT as u64 * SEGMENT as u64 - SEGMENT as u64;
    let at = Segments::find(home.path()).unwrap().offset_of(before).expect("the segment before the last one") as usize;
    let mut bytes = fs::read(home.path().join("db")).unwrap();
    bytes[at..at + SEGMENT].fill(0);
    fs::write(home.path().join("db"), bytes).unwrap();
    assert_eq!(check(home.path(), end).unwrap(), None);
}

fn remove_snapshots(path: &Path) {
    snapshots(path).iter().for_each(|snapshot| fs::remove_file(snapshot).unwrap());
}

/// Size of a disk block, in bytes. A disk misdirects writes by whole blocks.
const BLOCK: usize = 4 << 10;

/// The messages of the overwritten block are lost. Those of the copy are older, or occur again later. They must not be
/// replayed.
// covers: G6
#[test]
fn log_with_misdirected_write_reads_as_if_that_block_were_zero() {
    let (home, mut copies) = (tempfile::tempdir().unwrap(), 0);
    // When sled reuses segments differs, so one fill creates more segments or fewer. Each but the last has six copies.
    for seed in 5..15 {
        fill(home.path(), seed);
        if fs::metadata(home.path().join("db")).unwrap().len() >= 18 * SEGMENT as u64 {
            break;
        }
    }
    remove_snapshots(home.path());
    let bytes = fs::read(home.path().join("db")).unwrap();
    for (n, segment) in (0..bytes.len() - SEGMENT).step_by(SEGMENT).enumerate() {
        for step in [1, 3, 7] {
            let (one, other) = (segment + n % 8 * BLOCK, segment + (n % 8 + step) * BLOCK);
            for (from, to) in [(one, other), (other, one)] {
                let read = |change: &dyn Fn(&mut Vec<u8>)| {
                    let mut damaged = bytes.clone();
                    change(&mut damaged);
                    fs::write(home.path().join("db"), &damaged).unwrap();
                    raw(home.path(), true).1
                };
                let zeroed = read(&|bytes| bytes[to..to + BLOCK].fill(0));
                let copied = read(&|bytes| bytes.copy_within(from..from + BLOCK, to));
                assert!(copied == zeroed, "block at {from} copied to {to}");
                copies += 1;
            }
        }
    }
    assert!(copies > 100, "{copies} copies");
}

/// A small store has all of its tables in one segment.
// covers: G6
#[test]
fn log_whose_last_segment_lost_its_header_is_read_past_its_end() {
    let home = tempfile::tempdir().unwrap();
    let db = open(home.path());
    let users = db.open_tree("users").unwrap();
    (0..99_u64).for_each(|n| _ = users.insert(n.to_be_bytes(), vec![n as u8; 99]).unwrap());
    db.flush().unwrap();
    drop(db);
    remove_snapshots(home.path());
    let whole = raw(home.path(), false).1;
    assert_eq!(whole[1].len(), 99);
    let mut bytes = fs::read(home.path().join("db")).unwrap();
    bytes[7] ^= 1;
    fs::write(home.path().join("db"), &bytes).unwrap();
    assert!(RawTables::open(home.path(), false).unwrap().has_data_past_end());
    let (tables, found) = raw(home.path(), true);
    assert_eq!(found, whole);
    assert!(tables.lost_keys.is_empty());
}

/// Keys of changes are stored without the prefix that all keys of their page share. The prefix depends on the page's
/// bounds, which a split or a merge changes.
// covers: G6
#[test]
fn log_that_lost_a_split_or_merged_page_has_only_pairs_that_were_written() {
    let home = tempfile::tempdir().unwrap();
    let mut written = BTreeSet::new();
    let db = open(home.path());
    for (round, step) in [(0_u64, 1_u64), (1, 4), (2, 1)] {
        let tree = db.open_tree("users").unwrap();
        for n in 0..900_u64 {
            let id = n * 7919 % 900;
            let key = format!("{}", 1_000 + id * 11);
            if !id.is_multiple_of(step) {
                tree.remove(key).unwrap();
                continue;
            }
            let value = format!("{key} in round {round} {}", "x".repeat((id % 200) as usize));
            tree.insert(&key, value.as_bytes()).unwrap();
            written.insert((Bytes::from(key), Bytes::from(value)));
        }
        db.flush().unwrap();
    }
    drop(db);
    remove_snapshots(home.path());
    let bytes = fs::read(home.path().join("db")).unwrap();
    // Every message: its log position, its end in the file, its kind and page, and the page's bounds if it is an image.
    let (mut segments, mut messages) = (BTreeMap::new(), Vec::new());
    for at in (0..bytes.len()).step_by(SEGMENT) {
        let Some(header) = segment::Header::read(&bytes[at..]) else { continue };
        segments.insert(header.lsn, at);
        let (part, number) = (&bytes[at..bytes.len().min(at + SEGMENT)], header.lsn / SEGMENT as u64);
        segment::visit_messages(part, SEGMENT, segment::HEADER_BYTES, number, |message| {
            let image =
                (message.kind == Kind::Node).then(|| Node::decode(Bytes::copy_from_slice(message.body)).unwrap().0);
            let bounds = image.map(|node| (node.lo, node.hi));
            messages.push((header.lsn + message.at as u64, at + message.end, message.kind, message.page, bounds));
        });
    }
    messages.sort_by_key(|(lsn, ..)| *lsn);
    let (mut bounds_of, mut cases, mut invented) = (BTreeMap::new(), 0, Vec::new());
    for (n, (_, image, _, page, bounds)) in messages.iter().enumerate() {
        let Some(bounds) = bounds else { continue };
        let resized = bounds_of.insert(*page, bounds.clone()).is_some_and(|before| before != *bounds);
        let next = messages[n + 1..].iter().take_while(|(_, _, kind, other, _)| other != page || *kind == Kind::Link);
        let changes: Vec<_> = next.filter(|(_, _, kind, other, _)| other == page && *kind == Kind::Link).collect();
        let Some((lsn, end, ..)) = changes.last().filter(|_| resized) else { continue };
        // The image is damaged, and the log ends after the last change to it.
        let mut damaged = bytes.clone();
        damaged[image - 1] ^= 1;
        damaged[*end..end.next_multiple_of(SEGMENT).min(bytes.len())].fill(0);
        for (_, at) in segments.range(lsn..) {
            damaged[*at..bytes.len().min(at + SEGMENT)].fill(0);
        }
        fs::write(home.path().join("db"), &damaged).unwrap();
        let (tables, found) = raw(home.path(), true);
        assert!(!tables.damaged().is_empty() || tables.has_data_past_end());
        let pairs = found.into_iter().flatten().chain(tables.orphan_pairs().flat_map(Result::unwrap));
        invented.extend(pairs.filter(|pair| !written.contains(pair)));
        cases += 1;
    }
    assert!(cases > 20, "{cases} images");
    assert!(invented.is_empty(), "{} pairs of {cases} images, first {:?}", invented.len(), invented[0]);
}
