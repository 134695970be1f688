//! Rejects a directory that holds other files than a store.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    files::{DB, LOCK, LOG, MAKING, PORTALS, REBUILT, UNFINISHED, VALUE_LOG, WAL},
    watermark::SyncWatermark,
};
use crate::store::StoreError;

/// Files that mesa writes before, or without, a store.
///
/// They are the tables while they are created, the marker of an unfinished store, and the portal ids of a server with its
/// logs in Redis. The lock file also counts, if its content is that of a mesa lock.
const OURS: &[&str] = &[MAKING, UNFINISHED, PORTALS];

/// Files of otherwise empty directories: of new file systems and of version control.
const OF_EMPTY_DIRECTORIES: &[&str] = &["lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store"];

/// Files that only a store has. A directory with any of them is a store, damaged or not.
const OF_STORES: &[&[&str]] = &[&[LOG, DB], &[REBUILT, DB]];

/// Largest size of a mesa lock file, in bytes.
const LOCK_BYTES_MAX: u64 = 32;

/// Names that the error lists; further ones are counted.
const NAMED_MAX: usize = 3;

/// Accepts a store, an empty directory, and a path that does not exist. Changes nothing.
///
/// # Errors
/// When the directory has other files, because nothing may be written among them.
pub fn check_foreign_files(path: &Path) -> Result<(), StoreError> {
    // A directory that cannot be read fails when it is opened, with the reason.
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
        // A power cut in the first start of a server may leave the empty directory alone.
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

/// Returns whether a directory holds a store, damaged or not.
fn is_store(path: &Path) -> bool {
    let has = |names: &&[&str]| path.join(names.iter().collect::<PathBuf>()).exists();
    // Other programs may have a file named `mark`, or one of the directories.
    OF_STORES.iter().any(has)
        || SyncWatermark::read(path).is_some()
        || [WAL, VALUE_LOG].iter().all(|name| path.join(name).is_dir())
}

/// Returns whether a lock file is one of mesa: empty, or with a process id.
fn is_lock(file: &Path) -> bool {
    if !fs::metadata(file).is_ok_and(|lock| lock.is_file() && lock.len() <= LOCK_BYTES_MAX) {
        return false;
    }
    // A lock that cannot be read fails when it is opened, with the reason.
    let Ok(text) = fs::read(file) else { return true };
    text.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace())
}

/// Returns whether a directory exists and is empty.
pub(in crate::embedded) fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut files| files.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::{DiskOptions, files::WATERMARK, open};

    #[test]
    fn empty_log_directory_is_accepted_and_foreign_log_is_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG);
        fs::create_dir(&log).unwrap();
        assert!(check_foreign_files(directory.path()).is_ok());
        drop(open(DiskOptions::new(directory.path())).expect("a store is created in it"));
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG);
        fs::create_dir(&log).unwrap();
        fs::write(log.join("syslog"), "a line").unwrap();
        assert!(check_foreign_files(directory.path()).is_err());
    }

    #[test]
    fn foreign_file_with_name_of_store_file_is_left_unchanged() {
        for (name, text) in
            [(WATERMARK, "x"), (WATERMARK, "a longer text, of more than 28 bytes"), (LOCK, "x"), (LOCK, "12 monkeys")]
        {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(name), text).unwrap();
            let rejected = open(DiskOptions::new(directory.path())).map(drop).unwrap_err().to_string();
            assert!(rejected.contains("no store is in it") && rejected.contains(name), "{rejected}");
            assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), text);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        for text in ["", "12345", "123  "] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(LOCK), text).unwrap();
            drop(open(DiskOptions::new(directory.path())).expect("a store is created next to the lock of a server"));
        }
    }

    #[test]
    fn store_with_watermark_only_is_rejected_for_missing_tables() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(DiskOptions::new(directory.path())).unwrap());
        let left = tempfile::tempdir().unwrap();
        fs::copy(directory.path().join(WATERMARK), left.path().join(WATERMARK)).unwrap();
        let rejected = open(DiskOptions::new(left.path())).map(drop).unwrap_err().to_string();
        assert!(rejected.contains("`log/db` is missing") && !rejected.contains("os error"), "{rejected}");
    }
}
