//! Reserves disk space in advance, so that required work does not fail on a full disk.
//!
//! - [`allocate`] preallocates blocks behind the end of a file, and [`extend`] moves its end. No other process can take
//!   the blocks.
//! - [`Runway`] preallocates for sled's file, because a write that fails inside sled stops sled for good.
//! - [`Ballast`] is a file that is removed to open sled on a full disk. sled writes a snapshot when it opens.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

use super::files::{BALLAST, SEGMENT_BYTES};
use crate::embedded::tables::contract::{Cause, TableSpace, is_file_limit};

/// Bytes preallocated behind the end of sled's file. It is rounded up, so that few calls extend it.
const RUNWAY_BYTES: u64 = 8 << 20;
const RUNWAY_STEP_BYTES: u64 = 4 << 20;

/// Preallocated bytes below which nothing is written to sled: what sled writes between two checks, see [`STEP_BYTES`],
/// and the segments that it has in memory.
const RUNWAY_BYTES_MIN: u64 = 4 * STEP_BYTES + 2 * SEGMENT_BYTES as u64;

/// Free disk bytes below which only removals (`ENOUGH`) or nothing (`MIN`) is written to sled.
///
/// They count on file systems without `fallocate`. Another process may take free space at any time, and these bounds
/// leave time to detect that. Writing zeros ahead instead is unsound, because a thread of sled writes to the same
/// offsets.
const FREE_BYTES_ENOUGH: u64 = 64 << 20;
const FREE_BYTES_MIN: u64 = 32 << 20;

/// Bytes of the ballast, plus one byte for each 64 bytes of sled's file, because a snapshot is a list of pages.
const BALLAST_BYTES: u64 = 2 << 20;
const BALLAST_SHARE: u64 = 64;

/// Bytes that are allocated to the ballast per call.
const BALLAST_STEP: usize = 128 << 10;

/// Preallocates the blocks of a file for bytes `from..to`, without changing its length.
///
/// Returns false if the file system does not support that.
///
/// # Errors
/// When the disk is full ([`Cause::NoSpace`]), or the system is out of memory. Then nothing has changed.
pub fn allocate(file: &File, from: u64, to: u64) -> io::Result<bool> {
    preallocate(file, FallocateFlags::KEEP_SIZE, from, to)
}

/// Extends a file with zeros to `to` bytes, whose blocks are preallocated. A longer file keeps its length.
///
/// Without support of the file system, or if the limit of file sizes forbids it, the length stays, and at most the blocks
/// are preallocated.
///
/// # Errors
/// As [`allocate`].
pub fn extend(file: &File, to: u64) -> io::Result<()> {
    match preallocate(file, FallocateFlags::empty(), 0, to) {
        Err(error) if is_file_limit(&error) => allocate(file, 0, to).map(drop),
        extended => extended.map(drop),
    }
}

fn preallocate(file: &File, flags: FallocateFlags, from: u64, to: u64) -> io::Result<bool> {
    if from >= to {
        return Ok(true);
    }
    loop {
        match fallocate(file, flags, from, to - from) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return if Cause::of(&error) == Cause::Failed { Ok(false) } else { Err(error) };
            }
        }
    }
}

/// Returns the free bytes that this process can use on the disk of a file.
pub fn free_bytes(file: &File) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(file)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes that may be put into sled between two checks of its file.
///
/// sled writes up to four times as much. [`RUNWAY_BYTES`] are preallocated for that, and for sled's data in memory.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes that sled may hold in memory when the length of its file is checked.
const UNFLUSHED_BYTES: u64 = 256 << 10;

/// Overhead of sled for each value, in bytes.
const VALUE_OVERHEAD_BYTES: u64 = 64;

/// Counts the bytes of keys and values that were put into sled.
#[derive(Debug, Default)]
pub struct WriteCounter {
    since_check: u64,
    since_flush: u64,
}

impl WriteCounter {
    /// Counts bytes before they are put. Returns true if the file's length must be checked first.
    pub fn count(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64 + VALUE_OVERHEAD_BYTES;
        let is_step = self.since_check > 0 && self.since_check + bytes > STEP_BYTES;
        self.since_check += bytes;
        self.since_flush += bytes;
        is_step
    }

    /// Begins a check of the file's length. Returns true if sled must be flushed first.
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
    /// Bytes of the file that have disk blocks.
    end: u64,
    /// Number of disk blocks at that time. With fewer now, the file was truncated.
    blocks: u64,
    /// The last result on a file system without `fallocate`.
    last: Option<TableSpace>,
    is_shrinking: bool,
}

impl Runway {
    /// Extends the preallocation to its full length, if possible. Returns how much sled may write.
    pub fn extend(&mut self, file: &File) -> io::Result<TableSpace> {
        let (length, blocks) = length_and_blocks(file)?;
        let end = runway_end(length);
        if self.end >= end && blocks >= self.blocks {
            return Ok(TableSpace::Enough);
        }
        let left = if blocks < self.blocks { 0 } else { self.end.saturating_sub(length) };
        match allocate(file, length, end) {
            Ok(true) => {
                (self.end, self.blocks) = (end, length_and_blocks(file)?.1);
                Ok(TableSpace::Enough)
            }
            Ok(false) => Ok(self.space_without_preallocation(free_bytes(file)?)),
            Err(_) if left >= RUNWAY_BYTES_MIN => Ok(TableSpace::Little),
            Err(_) => Ok(TableSpace::None),
        }
    }

    fn space_without_preallocation(&mut self, free: u64) -> TableSpace {
        let space = match free {
            FREE_BYTES_ENOUGH.. => TableSpace::Enough,
            FREE_BYTES_MIN.. => TableSpace::Little,
            _ => TableSpace::None,
        };
        self.is_shrinking |= self.last.is_some_and(|before| space < before);
        self.last = Some(space);
        space
    }

    /// Returns, once per change, whether less may be written on a file system without `fallocate`.
    ///
    /// Then sled's data in memory must be written while there is space for it.
    pub fn take_shrinking(&mut self) -> bool {
        std::mem::take(&mut self.is_shrinking)
    }
}

/// Returns the end of the preallocation for a file of `length` bytes.
fn runway_end(length: u64) -> u64 {
    (length + RUNWAY_BYTES).next_multiple_of(RUNWAY_STEP_BYTES)
}

fn length_and_blocks(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.blocks()))
}

/// Occupies disk space, which is freed to open sled on a full disk.
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
        // In steps, so that on a nearly full disk the ballast takes the remaining space.
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
    pub fn prepare_open(&self, db: &Path) -> Result<(), BallastError> {
        let file = match File::options().read(true).write(true).open(db) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let (length, blocks) = length_and_blocks(&file)?;
        if free_bytes(&file)? < BALLAST_BYTES + length / BALLAST_SHARE {
            match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Err(_) => {}
                Ok(()) => tracing::warn!("the disk is full: the ballast was removed to open the store"),
            }
        }
        // sled first fills its current segment, and its thread may move pages meanwhile.
        let end = runway_end(length);
        match allocate(&file, 0, end) {
            Err(error) if Cause::of(&error) == Cause::NoSpace => {
                // A copied file lacks preallocated blocks, and blocks for zeros.
                let snapshot = BALLAST_BYTES + length / BALLAST_SHARE;
                Err(BallastError::NoSpace {
                    wanted: end.saturating_sub(blocks * 512) + snapshot,
                    free: free_bytes(&file)?,
                })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::{
        contract::{Table, Tables},
        open::create,
        schema::VALUE_BYTES_MAX,
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
        let wanted = RUNWAY_BYTES + RUNWAY_STEP_BYTES;
        assert!(blocks() >= wanted - 4096, "{}", blocks());
        assert_eq!(file.metadata().unwrap().len(), 3);
        file.set_len(0).unwrap();
        assert_eq!(blocks(), 0);
        assert_eq!(runway.extend(&file).unwrap(), TableSpace::Enough);
        assert!(blocks() >= RUNWAY_BYTES, "{}", blocks());
    }

    #[test]
    fn sled_file_is_preallocated_before_sled_writes_to_it() {
        let home = tempfile::tempdir().unwrap();
        let disk = create(&home.path().join("store"), Operation::Restore).unwrap();
        if !allocate(&disk.file, 0, 1).unwrap() {
            return;
        }
        let value = [7; VALUE_BYTES_MAX];
        let (mut least, mut length) = (u64::MAX, 0);
        for n in 0_u64..10_000 {
            disk.put(Table::Outbox, &n.to_be_bytes(), &value).unwrap();
            length = disk.file.metadata().unwrap().len();
            least = least.min(disk.runway.lock().end.saturating_sub(length));
        }
        assert!(length > 5 * SEGMENT_BYTES as u64, "{length}");
        assert!(least >= 2 * SEGMENT_BYTES as u64, "{least} bytes were preallocated");
    }

    #[test]
    fn shrinking_space_without_fallocate_is_reported_once() {
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
            assert_eq!(
                (runway.space_without_preallocation(free), runway.take_shrinking()),
                (space, is_shrinking),
                "{free}"
            );
            assert!(!runway.take_shrinking());
        }
    }
}
