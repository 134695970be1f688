//! Reserves disk space and file descriptors in advance, so that required work does not meet a full disk.
//!
//! - [`allocate`] preallocates blocks behind the end of a file. No other process can take them.
//! - [`Runway`] preallocates for sled's file, because a write that fails inside sled stops sled for good.
//! - [`Ballast`] is a file that is removed to open sled on a full disk, because sled writes a snapshot when it opens.
//! - [`SpareDescriptors`] are descriptors that are closed to open a file when the process has no descriptor left.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use super::files::{BALLAST, SEGMENT_BYTES};
use crate::embedded::tables::contract::{Cause, TableSpace};

/// Segments of sled that are preallocated: the one that sled fills in memory, and one more.
const RUNWAY_SEGMENTS: u64 = 2;

/// With fewer preallocated bytes, nothing more is written to sled: the segment in memory may need all of them.
const RUNWAY_BYTES_MIN: u64 = SEGMENT_BYTES as u64 + (1 << 20);

/// Free disk bytes below which sled gets only removals (`ENOUGH`) or nothing (`MIN`), on file systems without `fallocate`.
///
/// Another process may take free space at any time. These bounds leave time to notice it. Writing zeros ahead instead is
/// unsound, because a thread of sled writes to the same places.
const FREE_BYTES_ENOUGH: u64 = 64 << 20;
const FREE_BYTES_MIN: u64 = 32 << 20;

/// Bytes of the ballast, plus one for each 64 bytes of sled's file, because a snapshot is a list of pages.
const BALLAST_BYTES: u64 = 2 << 20;
const BALLAST_SHARE: u64 = 64;

/// Bytes that are allocated to the ballast at once.
const BALLAST_STEP: usize = 128 << 10;

/// Number of spare descriptors.
const SPARE_DESCRIPTORS: usize = 4;

/// Preallocates the blocks of a file for bytes `from..to`, without changing its length.
///
/// Returns false if the file system does not support that.
///
/// # Errors
/// When the disk is full ([`Cause::NoSpace`]), or the system is out of memory. Nothing has changed then.
pub fn allocate(file: &File, from: u64, to: u64) -> io::Result<bool> {
    if from >= to {
        return Ok(true);
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, from, to - from) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return if Cause::of(&error) == Cause::Failed { Ok(false) } else { Err(error) };
            }
        }
    }
}

/// Returns the bytes that this process can use on the disk of a file.
pub fn free(file: &File) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(file)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes that may be put into sled between two checks of its file.
///
/// sled writes up to four times as much. At least 16 MiB are preallocated, of which data in memory may need 8 MiB.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes that sled may hold in memory when the length of its file is checked.
const UNFLUSHED_BYTES: u64 = 256 << 10;

/// Overhead of sled for each value, in bytes.
const HEAD_BYTES: u64 = 64;

/// Counts the bytes of keys and values that were put into sled.
#[derive(Debug, Default)]
pub struct WriteCounter {
    since_check: u64,
    since_flush: u64,
}

impl WriteCounter {
    /// Counts bytes that are about to be put. Returns true if the file must be checked before.
    pub fn count(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64 + HEAD_BYTES;
        let is_step = self.since_check > 0 && self.since_check + bytes > STEP_BYTES;
        self.since_check += bytes;
        self.since_flush += bytes;
        is_step
    }

    /// Begins a check of the file's length. Returns true if sled must be flushed before.
    pub fn begin_check(&mut self) -> bool {
        self.since_check = 0;
        self.since_flush > UNFLUSHED_BYTES
    }

    /// Records that sled is being flushed.
    pub fn flushed(&mut self) {
        self.since_flush = 0;
    }
}

/// Preallocates blocks behind the end of sled's file.
#[derive(Debug, Default)]
pub struct Runway {
    /// The file has blocks up to this byte.
    end: u64,
    /// Number of blocks at that time. With fewer now, the file was truncated.
    blocks: u64,
    /// The last result on a file system without `fallocate`.
    last: Option<TableSpace>,
    is_shrinking: bool,
}

impl Runway {
    /// Extends the preallocation to its full length, if possible. Returns how much sled may write.
    pub fn extend(&mut self, file: &File) -> io::Result<TableSpace> {
        let (length, blocks) = length_and_blocks(file)?;
        let end = length.next_multiple_of(SEGMENT_BYTES as u64) + RUNWAY_SEGMENTS * SEGMENT_BYTES as u64;
        if self.end >= end && blocks >= self.blocks {
            return Ok(TableSpace::Enough);
        }
        let left = if blocks < self.blocks { 0 } else { self.end.saturating_sub(length) };
        match allocate(file, length, end) {
            Ok(true) => {
                (self.end, self.blocks) = (end, length_and_blocks(file)?.1);
                Ok(TableSpace::Enough)
            }
            // Without preallocation only free space counts, and other processes may take it.
            Ok(false) => Ok(self.unreserved(free(file)?)),
            Err(_) if left >= RUNWAY_BYTES_MIN => Ok(TableSpace::Little),
            Err(_) => Ok(TableSpace::None),
        }
    }

    fn unreserved(&mut self, free: u64) -> TableSpace {
        let space = match free {
            FREE_BYTES_ENOUGH.. => TableSpace::Enough,
            FREE_BYTES_MIN.. => TableSpace::Little,
            _ => TableSpace::None,
        };
        self.is_shrinking |= self.last.is_some_and(|before| space < before);
        self.last = Some(space);
        space
    }

    /// Returns, once per change, whether free space shrank on a file system without `fallocate`.
    ///
    /// Then sled's data in memory must be written while there is space for it.
    pub fn take_shrinking(&mut self) -> bool {
        std::mem::take(&mut self.is_shrinking)
    }
}

fn length_and_blocks(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.blocks()))
}

/// Occupies disk space that is released to open sled on a full disk.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    /// Returns the ballast of the store in `directory`, whether its file exists or not.
    pub fn of(directory: &Path) -> Self {
        Self(directory.join(BALLAST))
    }

    /// Creates or grows the ballast for a sled file of `sled_bytes`, as far as there is space.
    pub fn make(&self, sled_bytes: u64) -> io::Result<()> {
        let bytes = BALLAST_BYTES + sled_bytes / BALLAST_SHARE;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.0)?;
        if length_and_blocks(&file)?.1 * 512 >= bytes {
            return Ok(());
        }
        // In steps, so that on a full disk it takes back whatever space is left.
        for from in (0..bytes).step_by(BALLAST_STEP) {
            match allocate(&file, from, bytes.min(from + BALLAST_STEP as u64)) {
                Ok(true) => {}
                Err(error) if Cause::of(&error) == Cause::Exhausted => return Err(error),
                _ => break,
            }
        }
        Ok(())
    }

    /// Preallocates the blocks that sled needs to open its file, and removes the ballast if too little space is free.
    ///
    /// # Errors
    /// When the disk is full even without the ballast.
    pub fn drop_for(&self, db: &Path) -> Result<(), BallastError> {
        let file = match File::options().read(true).write(true).open(db) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let (length, blocks) = length_and_blocks(&file)?;
        if free(&file)? < BALLAST_BYTES + length / BALLAST_SHARE {
            match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) => {}
                Ok(()) => tracing::warn!("the disk is full: the ballast was removed to open the store"),
            }
        }
        // sled fills its current segment before it does anything else.
        let end = length.next_multiple_of(SEGMENT_BYTES as u64) + SEGMENT_BYTES as u64;
        match allocate(&file, 0, end) {
            Err(error) if Cause::of(&error) == Cause::NoSpace => {
                // A copied file has no preallocated blocks, and none for zeros.
                let snapshot = BALLAST_BYTES + length / BALLAST_SHARE;
                Err(BallastError::NoSpace { wanted: end.saturating_sub(blocks * 512) + snapshot, free: free(&file)? })
            }
            allocated => Ok(allocated.map(drop)?),
        }
    }
}

/// Reports why sled's file did not get the blocks that it needs.
#[derive(Debug)]
pub enum BallastError {
    /// The disk has fewer free bytes than needed.
    NoSpace {
        wanted: u64,
        free: u64,
    },
    Io(io::Error),
}

impl From<io::Error> for BallastError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Holds descriptors that can be closed to open a file.
#[derive(Debug, Default)]
pub struct SpareDescriptors(Mutex<Vec<File>>);

impl SpareDescriptors {
    /// Refills the spare descriptors with copies of an open one, as far as the system has any.
    pub fn refill(&self, of: &File) {
        let mut spares = self.0.lock();
        while spares.len() < SPARE_DESCRIPTORS {
            let Ok(copy) = of.try_clone() else { return };
            spares.push(copy);
        }
    }

    /// Opens a file, and closes spare descriptors if the process has none left.
    pub fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                // Another thread may take a closed descriptor first, so this retries while there are spares.
                Err(error) if Cause::of(&error) == Cause::Exhausted && self.0.lock().pop().is_some() => {}
                opened => return opened,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::{
        contract::{Table, Tables},
        open::create,
        unfinished::Operation,
    };

    #[test]
    fn runway_of_truncated_file_is_allocated_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(3).unwrap();
        if !allocate(&file, 0, 1).unwrap() {
            return;
        }
        let mut runway = Runway::default();
        assert_eq!(runway.extend(&file).unwrap(), TableSpace::Enough);
        let blocks = || length_and_blocks(&file).unwrap().1 * 512;
        let wanted = (1 + RUNWAY_SEGMENTS) * SEGMENT_BYTES as u64;
        assert!(blocks() >= wanted - 4096, "{}", blocks());
        assert_eq!(file.metadata().unwrap().len(), 3);
        file.set_len(0).unwrap();
        assert_eq!(blocks(), 0);
        assert_eq!(runway.extend(&file).unwrap(), TableSpace::Enough);
        assert!(blocks() >= wanted - SEGMENT_BYTES as u64, "{}", blocks());
    }

    /// Another process may take free space at any time, and a write that fails inside sled stops it.
    #[test]
    fn sled_file_is_preallocated_before_sled_writes_to_it() {
        let home = tempfile::tempdir().unwrap();
        let disk = create(&home.path().join("store"), Operation::Restore).unwrap();
        if !allocate(&disk.file, 0, 1).unwrap() {
            return;
        }
        let value = vec![7; 40_000];
        let (mut least, mut length) = (u64::MAX, 0);
        for n in 0_u64..1000 {
            disk.put(Table::Outbox, &n.to_be_bytes(), &value).unwrap();
            length = disk.file.metadata().unwrap().len();
            least = least.min(disk.runway.lock().end.saturating_sub(length));
        }
        assert!(length > 5 * SEGMENT_BYTES as u64, "{length}");
        assert!(least >= SEGMENT_BYTES as u64, "{least} bytes were set aside");
    }

    #[test]
    fn shrinking_space_is_noticed_in_time_without_fallocate() {
        let mut runway = Runway::default();
        let mib = |free: u64| free << 20;
        for (free, space, is_shrinking) in [
            (mib(100), TableSpace::Enough, false),
            (mib(63), TableSpace::Little, true),
            (mib(40), TableSpace::Little, false),
            (mib(31), TableSpace::None, true),
            (mib(33), TableSpace::Little, false),
            (mib(64), TableSpace::Enough, false),
            (0, TableSpace::None, true),
        ] {
            assert_eq!((runway.unreserved(free), runway.take_shrinking()), (space, is_shrinking), "{free}");
            assert!(!runway.take_shrinking());
        }
    }

    #[test]
    fn spare_descriptors_are_closed_one_by_one() {
        let home = tempfile::tempdir().unwrap();
        let spares = SpareDescriptors::default();
        let of = File::open(home.path()).unwrap();
        spares.refill(&of);
        let mut tries = 0;
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!(tries, SPARE_DESCRIPTORS + 1);
        spares.refill(&of);
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!((tries, spares.0.lock().len()), (SPARE_DESCRIPTORS + 2, SPARE_DESCRIPTORS));
    }
}
