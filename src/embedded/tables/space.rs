//! Space and descriptors set aside in good time, so that what has to go on does not meet a full disk.
//!
//! - [`allocate`] gives a file blocks behind its end, which no other process can take.
//! - [`Runway`] does that for sled's file: a write that fails inside sled ends sled for good.
//! - [`Ballast`] is a file that is removed when sled has to be opened on a full disk: sled writes a snapshot then.
//! - [`Spares`] are descriptors that are closed when a file has to be opened and the process has none left.

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

/// sled's segments that have their blocks before sled begins them: the one it fills in memory, and one more.
const RUNWAY_SEGMENTS: u64 = 2;

/// With less than this of it sled's file gets nothing more: the segment that is filled in memory may need all of it.
const RUNWAY_BYTES_MIN: u64 = SEGMENT_BYTES as u64 + (1 << 20);

/// Free bytes of the disk with which sled's file gets no more, and nothing at all, where the file system cannot set space aside.
/// Another process may take what is free at any time: this is what it has to take before it is noticed. To write zeros ahead
/// instead is unsound, because sled writes to the same places from a thread of its own.
const FREE_BYTES_ENOUGH: u64 = 64 << 20;
const FREE_BYTES_MIN: u64 = 32 << 20;

/// Bytes of the ballast, and of each 64 of sled's file one more: a snapshot is a list of pages.
const BALLAST_BYTES: u64 = 2 << 20;
const BALLAST_SHARE: u64 = 64;

/// Bytes by which it grows.
const BALLAST_STEP: usize = 128 << 10;

/// Descriptors kept for files that have to be opened.
const SPARES: usize = 4;

/// Gives a file blocks for its bytes `from..to`, without changing its length. False where the file system cannot do that.
///
/// # Errors
/// When the disk is full ([`Cause::NoSpace`]), or the system out of memory. Nothing has changed then.
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

/// Bytes that are free for this process where a file is.
pub fn free(file: &File) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(file)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes that sled may be given while its file is not looked at. It writes up to four times that, and its runway is 16 MiB at
/// least; 8 MiB of it may be for what it has in memory.
const STEP_BYTES: u64 = 1 << 20;

/// Bytes that sled may have in memory when it is looked at how long its file is.
const UNFLUSHED_BYTES: u64 = 256 << 10;

/// What sled writes besides with a value.
const HEAD_BYTES: u64 = 64;

/// What was put into sled, in bytes of keys and values.
#[derive(Debug, Default)]
pub struct Written {
    since_look: u64,
    since_flush: u64,
}

impl Written {
    /// Counts what is about to be put. True if it is more than may be without a look.
    pub fn count(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64 + HEAD_BYTES;
        let is_step = self.since_look > 0 && self.since_look + bytes > STEP_BYTES;
        self.since_look += bytes;
        self.since_flush += bytes;
        is_step
    }

    /// How long the file is, is looked at now. True if sled has to be flushed before.
    pub fn look(&mut self) -> bool {
        self.since_look = 0;
        self.since_flush > UNFLUSHED_BYTES
    }

    /// What was put so far is in the file soon.
    pub fn flushed(&mut self) {
        self.since_flush = 0;
    }
}

/// Blocks of sled's file behind its end.
#[derive(Debug, Default)]
pub struct Runway {
    /// The file has blocks up to here.
    end: u64,
    /// So many blocks it had then: with fewer it was cut.
    blocks: u64,
    /// How much sled could write last, where nothing can be set aside.
    last: Option<TableSpace>,
    is_shrinking: bool,
}

impl Runway {
    /// Makes the runway as long as it should be, if it can be; how much sled may write.
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
            // Then it is what is free, and other processes may take it.
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

    /// Whether less may be written than before although nothing was set aside. Then what sled still has in memory has to be
    /// written, while there is space for it. True once for each time.
    pub fn take_shrinking(&mut self) -> bool {
        std::mem::take(&mut self.is_shrinking)
    }
}

fn length_and_blocks(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.blocks()))
}

/// A file of which nothing is needed but its place.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    /// The ballast of the store in `directory`, whether it is there or not.
    pub fn of(directory: &Path) -> Self {
        Self(directory.join(BALLAST))
    }

    /// Makes it, or makes it larger, for a file of sled's of so many bytes: as large as there is space for.
    pub fn make(&self, sled_bytes: u64) -> io::Result<()> {
        let bytes = BALLAST_BYTES + sled_bytes / BALLAST_SHARE;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.0)?;
        if length_and_blocks(&file)?.1 * 512 >= bytes {
            return Ok(());
        }
        // In steps: where the disk is full it gets back what it was removed for, without what that took.
        for from in (0..bytes).step_by(BALLAST_STEP) {
            match allocate(&file, from, bytes.min(from + BALLAST_STEP as u64)) {
                Ok(true) => {}
                Err(error) if Cause::of(&error) == Cause::Exhausted => return Err(error),
                _ => break,
            }
        }
        Ok(())
    }

    /// Removes it where there is less free than sled may need to open its file; gives that file the blocks that it needs.
    ///
    /// # Errors
    /// When the disk is full all the same.
    pub fn drop_for(&self, db: &Path) -> Result<(), Dropped> {
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
        // sled fills the segment that it goes on with before it does anything else.
        let end = length.next_multiple_of(SEGMENT_BYTES as u64) + SEGMENT_BYTES as u64;
        match allocate(&file, 0, end) {
            Err(error) if Cause::of(&error) == Cause::NoSpace => {
                // A copy lacks what was set aside, and what was zeros.
                let snapshot = BALLAST_BYTES + length / BALLAST_SHARE;
                Err(Dropped::NoSpace { wanted: end.saturating_sub(blocks * 512) + snapshot, free: free(&file)? })
            }
            allocated => Ok(allocated.map(drop)?),
        }
    }
}

/// Why sled's file did not get the blocks that it needs.
#[derive(Debug)]
pub enum Dropped {
    /// The disk has not as many bytes as are wanted.
    NoSpace {
        wanted: u64,
        free: u64,
    },
    Io(io::Error),
}

impl From<io::Error> for Dropped {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Descriptors that can be closed.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<File>>);

impl Spares {
    /// As many as there may be, copies of a descriptor that is open anyway; fewer where the system has no more.
    pub fn refill(&self, of: &File) {
        let mut spares = self.0.lock();
        while spares.len() < SPARES {
            let Ok(copy) = of.try_clone() else { return };
            spares.push(copy);
        }
    }

    /// Opens something, closing descriptors for it where there is none left.
    pub fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                // Another thread may take what was closed: as often as there is something to close.
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
        contract::{Engine, Table},
        open::create,
        unfinished::Operation,
    };

    #[test]
    fn runway_of_a_file_that_was_cut_is_made_again() {
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

    /// Another process may take what is free at any time, and a write that fails inside sled ends it.
    #[test]
    fn file_of_sled_has_its_blocks_before_sled_writes_them_whatever_is_put_without_a_look() {
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
    fn less_space_is_noticed_long_before_there_is_none_where_nothing_can_be_set_aside() {
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
    fn spares_are_closed_one_after_the_other() {
        let home = tempfile::tempdir().unwrap();
        let spares = Spares::default();
        let of = File::open(home.path()).unwrap();
        spares.refill(&of);
        let mut tries = 0;
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!(tries, SPARES + 1);
        spares.refill(&of);
        let opened = spares.open(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
        });
        assert!(opened.is_err());
        assert_eq!((tries, spares.0.lock().len()), (SPARES + 2, SPARES));
    }
}
