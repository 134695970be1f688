//! The directory of a store: creates it, locks it, and finishes interrupted replacements of sled's files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    files::{LOCK, LOCK_BYTES_MAX, REBUILT, SET_ASIDE, SLED_CONF, SLED_DIR, SLED_FILE, STAGING},
    foreign::check_foreign_files,
    open_error::io_reason,
};
use crate::{embedded::tables::contract::Cause, logging::system_error, store::StoreError};

/// Timeout for the lock of a killed process, or of a closed store, to be released. Then the store does not open.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Holds the lock of a store's directory until dropped.
pub(in crate::embedded) struct StoreDir {
    path: PathBuf,
    lock: File,
}

impl Drop for StoreDir {
    /// Unlocks the directory explicitly.
    ///
    /// Closing the handle may not unlock it: a child process holds a copy of the handle between fork and exec.
    fn drop(&mut self) {
        _ = self.lock.unlock();
    }
}

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
                return Err(cannot_open("it is not a directory. Name another path, or move that file".into()));
            }
        }
        check_foreign_files(path)?;
        create_private_dir(path).map_err(failed)?;
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
        // Overwrites the old content before truncating: its disk blocks are allocated, so this works on a full disk.
        let pid = std::process::id().to_string();
        // One write as long as the old content, so that another process never reads new digits followed by old ones.
        let width = lock.metadata().map_or(0, |file| file.len().min(LOCK_BYTES_MAX)) as usize;
        let padded = format!("{pid:<width$}");
        let write = lock.rewind().and_then(|()| lock.write_all(padded.as_bytes()));
        match write.and_then(|()| lock.set_len(pid.len() as u64)) {
            Err(error) if Cause::of(&error) == Cause::Failed => return Err(failed(error)),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Records that the lock is released soon, so that an opener waits for it.
    ///
    /// A task that ends after its store was closed may still hold it, and with it the lock.
    pub(in crate::embedded) fn set_closed(&self) {
        // Whitespace names no holder: see `try_lock`. If this fails, an opener does not wait.
        let length = self.lock.metadata().map_or(0, |file| file.len().min(LOCK_BYTES_MAX)) as usize;
        _ = self.lock.write_all_at(&vec![b' '; length], 0);
    }

    /// Returns the path of sled's directory.
    pub(in crate::embedded) fn sled_dir(&self) -> PathBuf {
        self.path.join(SLED_DIR)
    }

    /// Returns the path at which sled's files are created, after removing those of an interrupted attempt.
    pub(in crate::embedded) fn staging_dir(&self) -> io::Result<PathBuf> {
        let staging = self.path.join(STAGING);
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(staging),
        }
    }

    /// Renames `staging` to sled's directory, durably. A power cut leaves all files or none.
    pub(in crate::embedded) fn install(&self, staging: &Path) -> io::Result<()> {
        for file in fs::read_dir(staging)? {
            File::open(file?.path())?.sync_all()?;
        }
        // The names in the directory before its own name: otherwise a power cut may leave an empty directory.
        File::open(staging)?.sync_all()?;
        fs::rename(staging, self.sled_dir())?;
        File::open(&self.path)?.sync_all()
    }

    /// Replaces sled's directory by `staging`, durably. A crash leaves the old or the new files.
    pub(in crate::embedded) fn replace(&self, staging: &Path) -> io::Result<()> {
        for file in fs::read_dir(staging)? {
            File::open(file?.path())?.sync_all()?;
        }
        File::open(staging)?.sync_all()?;
        fs::rename(staging, self.path.join(REBUILT))?;
        File::open(&self.path)?.sync_all()?;
        self.finish_replacement()
    }

    /// Finishes a replacement of sled's files that a crash interrupted.
    pub(super) fn finish_replacement(&self) -> io::Result<()> {
        let rebuilt = self.path.join(REBUILT);
        if !rebuilt.exists() {
            return Ok(());
        }
        if self.sled_dir().exists() {
            let aside = self.set_aside_dir()?.join(format!("{}-log", timestamp_ms()));
            fs::rename(self.sled_dir(), aside)?;
        }
        fs::rename(rebuilt, self.sled_dir())?;
        File::open(&self.path)?.sync_all()
    }

    /// Makes the names of sled's files durable. Call it before sled's data file is synced: see `rebuild`.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        File::open(self.sled_dir())?.sync_all()
    }

    fn set_aside_dir(&self) -> io::Result<PathBuf> {
        let aside = self.path.join(SET_ASIDE);
        create_private_dir(&aside)?;
        Ok(aside)
    }

    /// Moves sled's incomplete snapshots, or all of them, out of its directory.
    ///
    /// sled opens without a snapshot too, but reads its log from the beginning.
    pub(super) fn set_snapshots_aside(&self, all: bool) -> io::Result<Vec<PathBuf>> {
        let Ok(files) = fs::read_dir(self.sled_dir()) else { return Ok(Vec::new()) };
        let mut moved = Vec::new();
        for file in files {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && (all || name.ends_with(".generating")) {
                fs::rename(file.path(), self.set_aside_dir()?.join(format!("{}-{name}", timestamp_ms())))?;
                moved.push(file.path());
            }
        }
        Ok(moved)
    }

    /// Makes the names of new files durable, including that of the store in its parent directory.
    pub(in crate::embedded) fn sync(&self) -> io::Result<()> {
        let sled_dir = self.sled_dir();
        for name in [SLED_FILE, SLED_CONF] {
            File::open(sled_dir.join(name))?.sync_all()?;
        }
        File::open(&sled_dir)?.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        let parent = fs::canonicalize(&self.path)?;
        parent.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }
}

/// Returns the time in milliseconds, as a unique prefix of files that are set aside.
fn timestamp_ms() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis())
}

#[cfg(unix)]
fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// Locks a store. Returns the process id in the lock file if another process holds the lock.
pub(in crate::embedded) fn try_lock(mut lock: &File) -> io::Result<Option<String>> {
    match lock.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The content is used only in the error message. The holder may not have replaced zero bytes that a power
            // cut left.
            _ = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
            Ok(Some(holder.trim_matches(|char: char| char.is_whitespace() || char == '\0').to_owned()))
        }
    }
}

/// Creates the error of a store that another process has open. `holder` is its process id, or empty if unknown.
pub(in crate::embedded) fn in_use(path: &Path, holder: &str) -> StoreError {
    let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
    StoreError::InUse { path: path.to_owned(), holder }
}

/// Returns whether the process with this id is running. Without `/proc` that is unknown, and the result is true.
fn is_running(holder: &str) -> bool {
    let proc = Path::new("/proc");
    !proc.join("self").exists() || holder.parse::<u32>().is_ok_and(|pid| proc.join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::DiskOptions;

    #[test]
    fn opener_of_closed_store_waits_for_its_last_user() {
        let home = tempfile::tempdir().unwrap();
        let open = || crate::embedded::tables::open(DiskOptions::new(home.path()));
        let store = open().unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(store.close()).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                // Longer than an opener needs to find the lock. If it is not, this test shows nothing.
                thread::sleep(Duration::from_millis(300));
                drop(store);
            });
            open().unwrap();
        });
    }

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
