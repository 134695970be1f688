//! Refuses to make a store in a directory that holds other files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::directory::{DB, LOCK, LOG, MAKING, MARK, PORTALS, REBUILT, UNFINISHED};
use crate::store::StoreError;

/// Files of ours that are in a directory before, or without, a store: its lock, its tables while they are made, the marker of
/// a store that is being made, and the portals of a server whose logs are elsewhere.
const OURS: &[&str] = &[LOCK, MAKING, UNFINISHED, PORTALS];

/// Files that are in directories nobody has put anything into: of fresh file systems and of version control.
const OF_EMPTY_DIRECTORIES: &[&str] = &["lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store"];

/// Files that only a store has; with any of them the directory is one, damaged or not.
const OF_STORES: &[&[&str]] = &[&[MARK], &[LOG, DB], &[REBUILT, DB]];

/// Names in the error; more are counted.
const NAMED_MAX: usize = 3;

/// Accepts a store, an empty directory, and a place where nothing is. Changes nothing.
///
/// # Errors
/// When other files are there: nothing is to be written among them.
pub fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    // What cannot be read here fails where it is opened, with the reason.
    let Ok(files) = fs::read_dir(path) else { return Ok(()) };
    if OF_STORES.iter().any(|names| path.join(names.iter().collect::<PathBuf>()).exists()) {
        return Ok(());
    }
    let (mut named, mut more) = (Vec::new(), 0_usize);
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if OURS.contains(&name.as_str()) || OF_EMPTY_DIRECTORIES.contains(&name.as_str()) {
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

/// Whether a directory is there with nothing in it.
pub(super) fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut files| files.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::{DiskOptions, open};

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
}
