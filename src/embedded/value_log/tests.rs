//! Tests the files of the value log, and the count of their live bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    file::{BlockRead, FILE_BYTES, SMALL_FILES_MAX, ValueLog},
    location::BlockLocation,
};
use crate::embedded::{
    file_io,
    tables::contract::{CompactionMode, Table},
};

/// Rows of the table that locates blocks.
type Rows = BTreeMap<Vec<u8>, BlockLocation>;

fn open(home: &tempfile::TempDir) -> ValueLog {
    ValueLog::open(home.path(), 0, None).unwrap()
}

/// Counts at most `rows_max` rows. Returns false if the count is complete.
fn count_step(files: &ValueLog, rows: &Rows, rows_max: usize) -> bool {
    let Some(mut step) = files.begin_count() else { return false };
    let (table, from) = step.from();
    let no_bodies = Rows::new();
    let mut left = if table == Table::Log { rows } else { &no_bodies }.range(from.to_vec()..);
    for _ in 0..rows_max {
        match left.next() {
            Some((key, location)) => step.add(key, Some(*location)),
            None => {
                step.end_table();
                break;
            }
        }
    }
    files.end_count(step);
    files.begin_count().is_some()
}

/// Opens the files, and counts their live bytes.
fn open_counted(home: &tempfile::TempDir, rows: &Rows) -> ValueLog {
    let files = open(home);
    while count_step(&files, rows, 7) {}
    files
}

fn read(files: &ValueLog, location: BlockLocation, key: &[u8]) -> Option<Vec<u8>> {
    match files.read(location, key).unwrap() {
        BlockRead::Block(value) => Some(value.to_vec()),
        _ => None,
    }
}

#[test]
fn blocks_of_one_write_are_read_one_by_one() {
    let home = tempfile::tempdir().unwrap();
    let files = open(&home);
    files.append(b"before", b"0").unwrap();
    let locations = files.append_all(&[(b"a", b"one"), (b"b", b""), (b"c", b"three")]).unwrap();
    let found = [b"a", b"b", b"c"].iter().zip(&locations).map(|(key, at)| read(&files, *at, *key).unwrap());
    assert_eq!(found.collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
    assert_eq!(files.append_all(&[]).unwrap(), []);
}

#[test]
fn block_is_read_only_by_its_key_and_file_without_live_blocks_is_removed() {
    let home = tempfile::tempdir().unwrap();
    let files = open(&home);
    let big = vec![7; FILE_BYTES as usize / 10];
    let locations: Vec<_> = (0..25_u8).map(|n| files.append(&[n], &big).unwrap()).collect();
    files.sync().unwrap();
    assert_eq!(read(&files, locations[3], &[3]), Some(big.clone()));
    assert_eq!(read(&files, locations[3], &[4]), None, "the block has another key");
    assert_eq!(file_io::file_numbers(home.path()).unwrap(), [1, 2, 3]);
    locations.iter().filter(|location| location.file == 1).for_each(|location| files.release(*location));
    assert_eq!(files.dead_files(), [1]);
    files.remove(&[1]);
    assert!(matches!(files.read(locations[3], &[3]).unwrap(), BlockRead::Missing));
    drop(files);
    let rows = (0_u8..).map(|n| vec![n]).zip(locations.iter().copied()).filter(|(_, location)| location.file == 3);
    let files = open_counted(&home, &rows.collect());
    assert_eq!(files.dead_files(), [2]);
    files.remove(&files.dead_files());
    assert_eq!(file_io::file_numbers(home.path()).unwrap(), [3, 4]);
    assert_eq!(files.append(b"new", b"value").unwrap().file, 4, "an earlier file is not appended to");
    assert_eq!(read(&files, locations[24], &[24]), Some(big));
}

#[test]
fn small_files_above_limit_are_compacted() {
    let home = tempfile::tempdir().unwrap();
    let mut rows = Rows::new();
    for n in 0..=SMALL_FILES_MAX as u8 + 1 {
        let files = open_counted(&home, &rows);
        assert_eq!(files.emptiest(CompactionMode::Normal), (n as usize > SMALL_FILES_MAX).then_some(1), "{n}");
        rows.insert(vec![n], files.append(&[n], &vec![n; 100 + usize::from(n)]).unwrap());
    }
}

#[test]
fn eager_compaction_selects_file_with_an_eighth_dead() {
    let home = tempfile::tempdir().unwrap();
    let files = open(&home);
    let locations: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 500_000]).unwrap()).collect();
    let of = |file| locations.iter().filter(move |location| location.file == file);
    assert_eq!(files.emptiest(CompactionMode::Eager), None);
    of(1).take(2).for_each(|location| files.release(*location));
    assert_eq!(files.emptiest(CompactionMode::Eager), None, "two of seventeen blocks are dead");
    of(2).take(3).for_each(|location| files.release(*location));
    assert_eq!(files.emptiest(CompactionMode::Eager), Some(2));
    assert_eq!(files.emptiest(CompactionMode::Normal), None);
    let last = locations.last().unwrap().file;
    of(last).for_each(|location| files.release(*location));
    assert_eq!(files.emptiest(CompactionMode::Eager), Some(2), "the current file is not compacted");
}

#[test]
fn compaction_selects_emptiest_file_when_more_is_dead_than_live() {
    let home = tempfile::tempdir().unwrap();
    let files = open(&home);
    let locations: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 1_000_000]).unwrap()).collect();
    let last_of = |file| locations.iter().rposition(|location| location.file == file);
    let mut released = 0;
    for (n, location) in locations.iter().enumerate() {
        assert!(released > 30 || files.emptiest(CompactionMode::Normal).is_none(), "{released} of 60 are dead");
        // One block of the third file stays, and two or three of each other file.
        if n % 4 != 0 && location.file != 3 || location.file == 3 && Some(n) != last_of(3) {
            files.release(*location);
            released += 1;
        }
    }
    assert_eq!(files.emptiest(CompactionMode::Normal), Some(3));
    files.set_compacted(3);
    assert!(
        files.emptiest(CompactionMode::Normal).is_some_and(|other| other != 3),
        "a file that cannot be emptied is not compacted again"
    );
}
#[test]
fn number_of_lost_file_is_not_used_again() {
    let home = tempfile::tempdir().unwrap();
    let lost = open(&home).append(b"lost", b"block").unwrap();
    std::fs::remove_file(home.path().join(file_io::file_name(lost.file))).unwrap();
    let files = ValueLog::open(home.path(), lost.file, None).unwrap();
    let other = files.append(b"other", b"block").unwrap();
    assert_ne!(other.file, lost.file);
    files.release_row(Table::Log, b"lost", lost);
    assert_eq!(files.live_bytes(), u64::from(other.length));
}

/// One operation on the rows while the live bytes are counted.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Adds or replaces a row.
    Put(u8),
    Remove(u8),
    /// Counts so many rows.
    Count(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let key = || 0..24_u8;
    prop_oneof![key().prop_map(Change::Put), key().prop_map(Change::Remove), (0..6_u8).prop_map(Change::Count)]
}

proptest! {
    #[test]
    fn live_bytes_are_exact_after_any_changes_during_the_count(
        earlier in prop::collection::vec((0..24_u8, 0..3_u8), 0..40),
        changes in prop::collection::vec(change(), 0..60),
    ) {
        let home = tempfile::tempdir().unwrap();
        let mut rows = Rows::new();
        let put = |files: &ValueLog, rows: &mut Rows, key: u8| {
            let location = files.append(&[key], &vec![key; 10 + usize::from(key)]).unwrap();
            if let Some(before) = rows.insert(vec![key], location) {
                files.release_row(Table::Log, &[key], before);
            }
        };
        for process in 0..3 {
            let files = open(&home);
            earlier.iter().filter(|(_, by)| *by == process).for_each(|(key, _)| put(&files, &mut rows, *key));
        }
        let files = open(&home);
        for change in changes {
            match change {
                Change::Put(key) => put(&files, &mut rows, key),
                Change::Remove(key) => {
                    if let Some(before) = rows.remove(&[key][..]) {
                        files.release_row(Table::Log, &[key], before);
                    }
                }
                Change::Count(count) => _ = count_step(&files, &rows, count.into()),
            }
            let is_used = |file: &u64| rows.values().any(|location| location.file == *file);
            prop_assert!(!files.dead_files().iter().any(is_used), "{:?} are used", files.dead_files());
            prop_assert!(files.begin_count().is_none() || files.emptiest(CompactionMode::Eager).is_none());
        }
        while count_step(&files, &rows, 3) {}
        let mut live: BTreeMap<_, u64> = file_io::file_numbers(home.path()).unwrap().into_iter().map(|n| (n, 0)).collect();
        for location in rows.values() {
            *live.entry(location.file).or_default() += u64::from(location.length);
        }
        prop_assert_eq!(files.live_bytes(), live.values().sum::<u64>());
        prop_assert_eq!(files.live_by_file(), live);
    }
}
