//! The directory of a store: made, locked against other processes, and rid of what a kill at start-up leaves behind.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    files::{CONF, DB, LOCK, LOG, MAKING, REBUILT, SET_ASIDE},
    foreign::refuse_foreign,
    refusal::why,
};
use crate::{embedded::tables::contract::Cause, logging::system_error, store::StoreError};

/// How long to wait for a process that has just been killed to let go of its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes read at once where a file is read through.
const READ_BYTES: usize = 1 << 20;

/// A directory that is ours until this is dropped.
pub(in crate::embedded) struct StoreDir {
    path: PathBuf,
    lock: File,
}

impl Drop for StoreDir {
    /// Said rather than left to the end of the handle: a process that is being started at this moment has a copy of it until it
    /// has become another program.
    fn drop(&mut self) {
        _ = self.lock.unlock();
    }
}

/// Bytes of the lock file that are written over at most: a process id has ten.
const LOCK_BYTES_MAX: u64 = 32;

impl StoreDir {
    /// Makes the directory if it is not there, readable by its owner alone, and locks it.
    pub(in crate::embedded) fn new(path: &Path) -> Result<Self, StoreError> {
        let refuse = |reason: String| StoreError::Open { path: path.to_owned(), reason };
        let told = |error: io::Error| match Cause::of(&error) {
            Cause::Failed => {
                refuse(format!("{}. Check that store.path is right and may be written to", system_error(&error)))
            }
            _ => refuse(why("the directory itself", &error)),
        };
        if let Ok(found) = fs::symlink_metadata(path) {
            if found.file_type().is_symlink() {
                return Err(refuse("it is a symbolic link. Name the directory itself".into()));
            }
            if !found.is_dir() {
                return Err(refuse("it is not a directory. Name another place, or move that file".into()));
            }
        }
        refuse_foreign(path)?;
        make(path).map_err(told)?;
        let lock_path = path.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
        let mut lock = open.map_err(told)?;
        let since = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(told(error)),
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // What it says is a help to people, nothing hangs on it.
                    _ = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
                    let holder = holder.trim();
                    if is_running(holder) || since.elapsed() > LOCK_PATIENCE {
                        let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
                        return Err(StoreError::InUse { path: path.to_owned(), holder });
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        // Over what is there, which has its place on the disk, and cut then: a disk that is full does not matter.
        let pid = std::process::id().to_string();
        // As long as what was there, in one write: another process must not read our first digits and older ones behind them.
        let width = lock.metadata().map_or(0, |file| file.len().min(LOCK_BYTES_MAX)) as usize;
        let padded = format!("{pid:<width$}");
        let write = lock.rewind().and_then(|()| lock.write_all(padded.as_bytes()));
        match write.and_then(|()| lock.set_len(pid.len() as u64)) {
            Err(error) if Cause::of(&error) == Cause::Failed => return Err(told(error)),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Where sled keeps its files.
    pub(in crate::embedded) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Where sled's files are made. What a process that died while making some has left there is gone.
    pub(in crate::embedded) fn making(&self) -> io::Result<PathBuf> {
        let making = self.path.join(MAKING);
        match fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(making),
        }
    }

    /// Gives the files in `making` their place, for good: either all of them are there after a power cut, or none.
    pub(in crate::embedded) fn made(&self, making: &Path) -> io::Result<()> {
        for file in fs::read_dir(making)? {
            File::open(file?.path())?.sync_all()?;
        }
        // Their names before its own, or a power cut may leave an empty log.
        File::open(making)?.sync_all()?;
        fs::rename(making, self.log())?;
        File::open(&self.path)?.sync_all()
    }

    /// Puts the files in `making` in the place of the log, for good: a crash leaves the one or the other.
    pub(in crate::embedded) fn rebuilt(&self, making: &Path) -> io::Result<()> {
        for file in fs::read_dir(making)? {
            File::open(file?.path())?.sync_all()?;
        }
        File::open(making)?.sync_all()?;
        fs::rename(making, self.path.join(REBUILT))?;
        File::open(&self.path)?.sync_all()?;
        self.finish_rebuilding()
    }

    /// Does what is left to do where the power went while the log was being replaced by another that is whole.
    pub(super) fn finish_rebuilding(&self) -> io::Result<()> {
        let rebuilt = self.path.join(REBUILT);
        if !rebuilt.exists() {
            return Ok(());
        }
        if self.log().exists() {
            let aside = self.aside()?.join(format!("{}-log", stamp()));
            fs::rename(self.log(), aside)?;
        }
        fs::rename(rebuilt, self.log())?;
        File::open(&self.path)?.sync_all()
    }

    /// Makes the names of sled's files durable. Before its file is: see `rebuild`.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        File::open(self.log())?.sync_all()
    }

    fn aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.join(SET_ASIDE);
        make(&aside)?;
        Ok(aside)
    }

    /// Moves snapshots of sled out of its way: those that were being written when the process was killed, or all.
    /// A snapshot only makes opening faster; without it sled reads its log from the beginning.
    pub(super) fn set_snapshots_aside(&self, all: bool) -> io::Result<Vec<PathBuf>> {
        let Ok(files) = fs::read_dir(self.log()) else { return Ok(Vec::new()) };
        let mut moved = Vec::new();
        for file in files {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snap.") && (all || name.ends_with(".generating")) {
                fs::rename(file.path(), self.aside()?.join(format!("{}-{name}", stamp())))?;
                moved.push(file.path());
            }
        }
        Ok(moved)
    }

    /// Reads all of sled's log once. Where sled cannot read its log it takes it to end there, and *overwrites* what follows;
    /// so a disk that gives no answer has to be met by us first. And what was read now is at hand when sled asks.
    pub(super) fn read_through(&self) -> io::Result<()> {
        let mut log = match File::open(self.log().join(DB)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let mut buffer = vec![0; READ_BYTES];
        while log.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Makes the names of new files durable, up to the directory that holds ours.
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

/// Milliseconds, so that what is set aside has a name of its own.
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

/// Whether the process named in a lock is there. Where that cannot be told, it is taken to be.
fn is_running(holder: &str) -> bool {
    let proc = Path::new("/proc");
    !proc.join("self").exists() || holder.parse::<u32>().is_ok_and(|pid| proc.join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_free_once_it_is_let_go_whoever_has_a_copy_of_the_handle() {
        let home = tempfile::tempdir().unwrap();
        let locked = StoreDir::new(home.path()).unwrap();
        let copy = locked.lock.try_clone().unwrap();
        assert!(matches!(StoreDir::new(home.path()), Err(StoreError::InUse { .. })));
        drop(locked);
        StoreDir::new(home.path()).unwrap();
        drop(copy);
    }
}
