//! Rejects a directory that holds files of other programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    files::{
        DEV_KEY, LOCK, LOCK_BYTES_MAX, PORTALS, REBUILT, SLED_DIR, SLED_FILE, STAGING, UNFINISHED, VALUE_LOG, WAL,
    },
    watermark::SyncWatermark,
};
use crate::store::StoreError;

/// Files that mesa writes before, or without, a store.
///
/// They are the staging directory of the tables, the marker of an unfinished store, the portal ids of a server whose logs
/// are in Redis, and the API key of `--dev`, which may be left of a removed store. A lock file counts too, but only with the content of a mesa lock.
const OWN_FILES: &[&str] = &[STAGING, UNFINISHED, PORTALS, DEV_KEY];

/// Files that do not count: those of new file systems, version control and desktops.
const IGNORED_FILES: &[&str] = &["lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store"];

/// Paths that only a store has. A directory with any of them is a store, damaged or not.
const STORE_FILES: &[&[&str]] = &[&[SLED_DIR, SLED_FILE], &[REBUILT, SLED_FILE]];

/// Number of file names that the error lists. Further files are counted.
const LISTED_MAX: usize = 3;

/// Checks that a path is a store, an empty directory, or missing. Changes nothing.
///
/// # Errors
/// When the directory holds files of other programs. mesa must not write among them.
pub fn check_foreign_files(path: &Path) -> Result<(), StoreError> {
    // An unreadable directory fails later, when it is opened, with the reason.
    let Ok(files) = fs::read_dir(path) else { return Ok(()) };
    if is_store(path) {
        return Ok(());
    }
    let (mut named, mut more) = (Vec::new(), 0_usize);
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if OWN_FILES.contains(&name.as_str()) || IGNORED_FILES.contains(&name.as_str()) {
            continue;
        }
        if name == LOCK && is_mesa_lock(&file.path()) {
            continue;
        }
        // A power cut during the first start of a server may leave only this empty directory.
        if name == SLED_DIR && is_empty(&file.path()) {
            continue;
        }
        if named.len() < LISTED_MAX {
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
    // Other programs may have a file named `mark`, or one of the two directories.
    STORE_FILES.iter().any(has)
        || SyncWatermark::read(path).is_some()
        || [WAL, VALUE_LOG].iter().all(|name| path.join(name).is_dir())
}

/// Returns whether a lock file may be one of mesa: it has only digits, white space and zero bytes.
///
/// A lock file holds a process id. It is not synced, so a power cut can leave zero bytes in its place.
fn is_mesa_lock(file: &Path) -> bool {
    if !fs::metadata(file).is_ok_and(|lock| lock.is_file() && lock.len() <= LOCK_BYTES_MAX) {
        return false;
    }
    // An unreadable lock file fails later, when it is opened, with the reason.
    let Ok(text) = fs::read(file) else { return true };
    text.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace() || *byte == 0)
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
        let log = directory.path().join(SLED_DIR);
        fs::create_dir(&log).unwrap();
        assert!(check_foreign_files(directory.path()).is_ok());
        drop(open(DiskOptions::new(directory.path())).expect("a store is created in it"));
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(SLED_DIR);
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
        for text in ["", "12345", "123  ", "\0\0\0\0\0", "12\0\0\0"] {
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
