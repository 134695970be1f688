//! The directory of a store: creates it, locks it, and cleans up after a kill at start-up.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    files::{CONF, DB, LOCK, LOG, MAKING, REBUILT, SET_ASIDE},
    foreign::check_foreign_files,
    open_error::io_reason,
};
use crate::{embedded::tables::contract::Cause, logging::system_error, store::StoreError};

/// How long to wait until the system has released the lock of a killed process.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes that are read at once when a whole file is read.
const READ_BYTES: usize = 1 << 20;

/// Holds the lock of a store's directory until dropped.
pub(in crate::embedded) struct StoreDir {
    path: PathBuf,
    lock: File,
}

impl Drop for StoreDir {
    /// Unlocks explicitly, because closing the handle may not: a child process that is being started at this moment holds a copy
    /// of it until it executes its program.
    fn drop(&mut self) {
        _ = self.lock.unlock();
    }
}

/// Bytes of the lock file that are overwritten at most. A process id has up to ten.
const LOCK_BYTES_MAX: u64 = 32;

impl StoreDir {
    /// Creates the directory if it does not exist, readable by its owner only, and locks it.
    pub(in crate::embedded) fn new(path: &Path) -> Result<Self, StoreError> {
        let cannot_open = |reason: String| StoreError::Open { path: path.to_owned(), reason };
        let failed = |error: io::Error| match Cause::of(&error) {
            Cause::Failed => {
                cannot_open(format!("{}. Check that store.path is right and may be written to", system_error(&error)))
            }
            _ => cannot_open(io_reason("the directory itself", &error)),
        };
        if let Ok(found) = fs::symlink_metadata(path) {
            if found.file_type().is_symlink() {
                return Err(cannot_open("it is a symbolic link. Name the directory itself".into()));
            }
            if !found.is_dir() {
                return Err(cannot_open("it is not a directory. Name another place, or move that file".into()));
            }
        }
        check_foreign_files(path)?;
        make(path).map_err(failed)?;
        let lock_path = path.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
        let mut lock = open.map_err(failed)?;
        let since = Instant::now();
        while let Some(holder) = try_lock(&lock).map_err(failed)? {
            if is_running(&holder) || since.elapsed() > LOCK_TIMEOUT {
                return Err(in_use(path, &holder));
            }
            thread::sleep(Duration::from_millis(50));
        }
        // Overwrites the old content, which has its blocks, and truncates then, so that a full disk does not matter.
        let pid = std::process::id().to_string();
        // As long as the old content, in one write, so that another process never reads new digits followed by old ones.
        let width = lock.metadata().map_or(0, |file| file.len().min(LOCK_BYTES_MAX)) as usize;
        let padded = format!("{pid:<width$}");
        let write = lock.rewind().and_then(|()| lock.write_all(padded.as_bytes()));
        match write.and_then(|()| lock.set_len(pid.len() as u64)) {
            Err(error) if Cause::of(&error) == Cause::Failed => return Err(failed(error)),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Returns the directory of sled's files.
    pub(in crate::embedded) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Returns the directory in which sled's files are created, and removes the files of an interrupted attempt.
    pub(in crate::embedded) fn staging_dir(&self) -> io::Result<PathBuf> {
        let staging = self.path.join(MAKING);
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(staging),
        }
    }

    /// Moves the files in `staging` to their place, durably. A power cut leaves all of them or none.
    pub(in crate::embedded) fn install(&self, staging: &Path) -> io::Result<()> {
        for file in fs::read_dir(staging)? {
            File::open(file?.path())?.sync_all()?;
        }
        // Syncs the names in the directory before its own name, or a power cut may leave an empty directory.
        File::open(staging)?.sync_all()?;
        fs::rename(staging, self.log())?;
        File::open(&self.path)?.sync_all()
    }

    /// Replaces sled's files by those in `staging`, durably. A crash leaves the old or the new ones.
    pub(in crate::embedded) fn replace(&self, staging: &Path) -> io::Result<()> {
        for file in fs::read_dir(staging)? {
            File::open(file?.path())?.sync_all()?;
        }
        File::open(staging)?.sync_all()?;
        fs::rename(staging, self.path.join(REBUILT))?;
        File::open(&self.path)?.sync_all()?;
        self.finish_replacement()
    }

    /// Finishes a replacement of sled's files that a power cut interrupted.
    pub(super) fn finish_replacement(&self) -> io::Result<()> {
        let rebuilt = self.path.join(REBUILT);
        if !rebuilt.exists() {
            return Ok(());
        }
        if self.log().exists() {
            let aside = self.set_aside_dir()?.join(format!("{}-log", stamp()));
            fs::rename(self.log(), aside)?;
        }
        fs::rename(rebuilt, self.log())?;
        File::open(&self.path)?.sync_all()
    }

    /// Makes the names of sled's files durable. Call it before its file is synced: see `rebuild`.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        File::open(self.log())?.sync_all()
    }

    fn set_aside_dir(&self) -> io::Result<PathBuf> {
        let aside = self.path.join(SET_ASIDE);
        make(&aside)?;
        Ok(aside)
    }

    /// Moves sled's incomplete snapshots, or all of them, out of its directory.
    ///
    /// A snapshot only makes opening faster. Without it sled reads its log from the beginning.
    pub(super) fn set_snapshots_aside(&self, all: bool) -> io::Result<Vec<PathBuf>> {
        let Ok(files) = fs::read_dir(self.log()) else { return Ok(Vec::new()) };
        let mut moved = Vec::new();
        for file in files {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && (all || name.ends_with(".generating")) {
                fs::rename(file.path(), self.set_aside_dir()?.join(format!("{}-{name}", stamp())))?;
                moved.push(file.path());
            }
        }
        Ok(moved)
    }

    /// Reads all of sled's log once, to detect a disk error before sled does.
    ///
    /// sled treats an unreadable part as the end of its log, and *overwrites* what follows. Reading also warms the page cache.
    pub(super) fn read_through(&self) -> io::Result<()> {
        let mut log = match File::open(self.log().join(DB)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let mut buffer = vec![0; READ_BYTES];
        while log.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Makes the names of new files durable, including the store's own name in its parent directory.
    pub(in crate::embedded) fn sync(&self) -> io::Result<()> {
        let log = self.log();
        for name in [DB, CONF] {
            File::open(log.join(name))?.sync_all()?;
        }
        File::open(&log)?.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        let parent = fs::canonicalize(&self.path)?;
        parent.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }
}

/// Returns the time in milliseconds, as a unique prefix for files that are set aside.
fn stamp() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis())
}

#[cfg(unix)]
fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// Takes the lock of a store. Returns the process that the file names if another one holds it.
pub(in crate::embedded) fn try_lock(mut lock: &File) -> io::Result<Option<String>> {
    match lock.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The content only helps the user who reads the error.
            _ = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
            Ok(Some(holder.trim().to_owned()))
        }
    }
}

/// Makes the error of a store that another process has open. `holder` is its id, or empty if it is unknown.
pub(in crate::embedded) fn in_use(path: &Path, holder: &str) -> StoreError {
    let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
    StoreError::InUse { path: path.to_owned(), holder }
}

/// Returns whether the process named in a lock is running, or true if that is unknown.
fn is_running(holder: &str) -> bool {
    let proc = Path::new("/proc");
    !proc.join("self").exists() || holder.parse::<u32>().is_ok_and(|pid| proc.join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_directory_is_unlocked_despite_copied_handle() {
        let home = tempfile::tempdir().unwrap();
        let dir = StoreDir::new(home.path()).unwrap();
        let copy = dir.lock.try_clone().unwrap();
        assert!(matches!(StoreDir::new(home.path()), Err(StoreError::InUse { .. })));
        drop(dir);
        StoreDir::new(home.path()).unwrap();
        drop(copy);
    }
}
