//! Refuses to make a store in a directory that holds other files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    files::{DB, LOCK, LOG, MAKING, PORTALS, REBUILT, UNFINISHED, VALUE_LOG, WAL},
    watermark::SyncWatermark,
};
use crate::store::StoreError;

/// Files of ours that are in a directory before, or without, a store: its tables while they are made, the marker of a store
/// that is being made, and the portals of a server whose logs are elsewhere. And its lock, if it says what ours says.
const OURS: &[&str] = &[MAKING, UNFINISHED, PORTALS];

/// Files that are in directories nobody has put anything into: of fresh file systems and of version control.
const OF_EMPTY_DIRECTORIES: &[&str] = &["lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store"];

/// Files that only a store has; with any of them the directory is one, damaged or not.
const OF_STORES: &[&[&str]] = &[&[LOG, DB], &[REBUILT, DB]];

/// Bytes of a lock of ours at most.
const LOCK_BYTES_MAX: u64 = 32;

/// Names in the error; more are counted.
const NAMED_MAX: usize = 3;

/// Accepts a store, an empty directory, and a place where nothing is. Changes nothing.
///
/// # Errors
/// When other files are there: nothing is to be written among them.
pub fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    // What cannot be read here fails where it is opened, with the reason.
    let Ok(files) = fs::read_dir(path) else { return Ok(()) };
    if is_store(path) {
        return Ok(());
    }
    let (mut named, mut more) = (Vec::new(), 0_usize);
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if OURS.contains(&name.as_str()) || OF_EMPTY_DIRECTORIES.contains(&name.as_str()) {
            continue;
        }
        if name == LOCK && is_lock(&file.path()) {
            continue;
        }
        // A power cut in the first start of a server may leave its name alone.
        if name == LOG && is_empty(&file.path()) {
            continue;
        }
        if named.len() < NAMED_MAX {
            named.push(format!("`{}`", name.escape_debug()));
        } else {
            more += 1;
        }
    }
    if named.is_empty() {
        return Ok(());
    }
    named.sort_unstable();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let reason = format!(
        "it is not empty and no store is in it (it has {}{more}). Nothing was changed. Name an empty directory, or one that \
         does not exist yet",
        named.join(", ")
    );
    Err(StoreError::Open { path: path.to_owned(), reason })
}

/// Whether a store is in a directory, damaged or not.
fn is_store(path: &Path) -> bool {
    let has = |names: &&[&str]| path.join(names.iter().collect::<PathBuf>()).exists();
    // Others may have a file of the name `mark`, or one of the directories.
    OF_STORES.iter().any(has)
        || SyncWatermark::read(path).is_some()
        || [WAL, VALUE_LOG].iter().all(|name| path.join(name).is_dir())
}

/// Whether a lock is ours: empty, or with the id of a process.
fn is_lock(file: &Path) -> bool {
    if !fs::metadata(file).is_ok_and(|lock| lock.is_file() && lock.len() <= LOCK_BYTES_MAX) {
        return false;
    }
    // One that cannot be read fails where it is opened, with the reason.
    let Ok(text) = fs::read(file) else { return true };
    text.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace())
}

/// Whether a directory is there with nothing in it.
pub(in crate::embedded) fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut files| files.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::{DiskOptions, files::WATERMARK, open};

    #[test]
    fn empty_log_that_a_power_cut_left_is_no_foreign_file_and_another_log_is() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG);
        fs::create_dir(&log).unwrap();
        assert!(refuse_foreign(directory.path()).is_ok());
        drop(open(DiskOptions::new(directory.path())).expect("a store is made in its place"));
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG);
        fs::create_dir(&log).unwrap();
        fs::write(log.join("syslog"), "a line").unwrap();
        assert!(refuse_foreign(directory.path()).is_err());
    }

    #[test]
    fn foreign_file_with_a_name_of_ours_is_left_as_it_is() {
        for (name, text) in
            [(WATERMARK, "x"), (WATERMARK, "a longer text, of more than 28 bytes"), (LOCK, "x"), (LOCK, "12 monkeys")]
        {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(name), text).unwrap();
            let refused = open(DiskOptions::new(directory.path())).map(drop).unwrap_err().to_string();
            assert!(refused.contains("no store is in it") && refused.contains(name), "{refused}");
            assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), text);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        for text in ["", "12345", "123  "] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(LOCK), text).unwrap();
            drop(open(DiskOptions::new(directory.path())).expect("a store is made where a server has left its lock"));
        }
    }

    #[test]
    fn store_of_which_only_the_mark_is_left_is_told_to_lack_its_tables() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(DiskOptions::new(directory.path())).unwrap());
        let left = tempfile::tempdir().unwrap();
        fs::copy(directory.path().join(WATERMARK), left.path().join(WATERMARK)).unwrap();
        let refused = open(DiskOptions::new(left.path())).map(drop).unwrap_err().to_string();
        assert!(refused.contains("`log/db` is missing") && !refused.contains("os error"), "{refused}");
    }
}
