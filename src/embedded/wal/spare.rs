//! The journal's file that is written to: beginning the next one, and setting space aside in it.
//!
//! The next file is open before it is needed, because clients may have all descriptors then. It gets its blocks when it is
//! begun. Where there is no descriptor or no space for another file, the file that is open is gone on with.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::segment::{RecordFile, RecordFiles};
use crate::embedded::{
    tables::{contract::Cause, space::allocate},
    value_log::framing::{self, HEAD_BYTES},
};

/// A file that is longer is not gone on with, where another can be begun.
const FILE_BYTES: u64 = 8 << 20;

/// A file that is longer is never gone on with: places in it have 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// Bytes of a frame that are not the record's own.
const FRAME_BYTES: u64 = HEAD_BYTES as u64 + 16;

/// The name of the file that is begun next, before those of files with records, which are numbers.
const NAME: &str = ".next";

/// How long after a failure the next file is not made.
const PAUSE: Duration = Duration::from_secs(1);

/// The file that is begun next.
#[derive(Debug, Default)]
pub struct Spare {
    file: Option<File>,
    failed: Option<Instant>,
}

impl Spare {
    /// Opens it in a directory, if that can be done.
    pub fn new(directory: &Path) -> Self {
        let mut spare = Self::default();
        spare.prepare(directory);
        spare
    }

    fn prepare(&mut self, directory: &Path) {
        if self.file.is_some() || self.failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
            return;
        }
        let open = File::options().read(true).write(true).create(true).truncate(true).open(directory.join(NAME));
        self.failed = open.is_err().then(Instant::now);
        self.file = open.ok();
    }
}

impl RecordFiles {
    /// Opens the file that is begun next, if it is not open. To be called now and then.
    pub fn prepare(&self) {
        self.spare.lock().prepare(&self.directory);
    }

    /// Sets space aside for records of `bytes` in all, the first of which will be `number`.
    ///
    /// # Errors
    /// When there is none, or no file and no descriptor for one. Nothing has changed then.
    pub fn reserve(&self, number: u64, bytes: u64) -> io::Result<()> {
        let is_full = match self.inside.read().files.back() {
            Some(last) if last.length < FILE_BYTES && last.length + bytes <= last.allocated => return Ok(()),
            last => last.is_none_or(|last| last.length >= FILE_BYTES),
        };
        if is_full {
            self.begin_file(number)?;
        }
        let (file, length, allocated) = {
            let inside = self.inside.read();
            let last = inside.files.back().ok_or_else(|| io::Error::other("there is no file to write to"))?;
            (last.file.clone(), last.length, last.allocated)
        };
        let mut end = length + bytes;
        if end <= allocated {
            return Ok(());
        }
        // Where the file system has no such thing the space is taken for granted, and a write may fail.
        if end < FILE_BYTES && allocate(&file, length, FILE_BYTES).is_ok() {
            end = FILE_BYTES;
        } else {
            allocate(&file, length, end)?;
        }
        if let Some(last) = self.inside.write().files.back_mut() {
            last.allocated = end;
        }
        Ok(())
    }

    /// Bytes of the disk that records of `bytes` in all take besides what is set aside.
    pub fn wants(&self, bytes: u64) -> u64 {
        match self.inside.read().files.back() {
            None => FILE_BYTES.max(bytes),
            // Where no file can be begun it goes on with the last.
            Some(last) => (last.length + bytes).saturating_sub(last.allocated.max(last.length)),
        }
    }

    /// Begins a new file for a record of `bytes`, where there is none or the last is long enough and has no space set
    /// aside for it.
    pub(in crate::embedded) fn begin_file_if_full(&self, number: u64, bytes: u64) -> io::Result<()> {
        let inside = self.inside.read();
        let goes_on = inside
            .files
            .back()
            .is_some_and(|last| last.length < FILE_BYTES || last.length + bytes + FRAME_BYTES <= last.allocated);
        drop(inside);
        if goes_on { Ok(()) } else { self.begin_file(number) }
    }

    /// Begins a new file, if that can be done, or goes on with the last. Without the lock: readers need not wait for a disk,
    /// and nobody else writes.
    fn begin_file(&self, number: u64) -> io::Result<()> {
        let last = self.inside.read().files.back().map(|file| (file.file.clone(), file.length));
        let file = match self.open_next(number) {
            Err(error) if Cause::of(&error) != Cause::Failed => {
                return if last.is_some_and(|(_, length)| length < FILE_BYTES_MAX) { Ok(()) } else { Err(error) };
            }
            file => Arc::new(file?),
        };
        self.names.sync_all().map_err(io::Error::other)?;
        let synced = last.map(|(file, _)| file.sync_data()).transpose().map_err(io::Error::other)?.map(|()| number - 1);
        let mut inside = self.inside.write();
        inside.synced = inside.synced.max(synced.unwrap_or(0));
        inside.files.push_back(RecordFile { first: number, file, length: 0, allocated: FILE_BYTES });
        Ok(())
    }

    /// A file of this name with its blocks.
    fn open_next(&self, number: u64) -> io::Result<File> {
        let mut spare = self.spare.lock();
        spare.failed = None;
        spare.prepare(&self.directory);
        let Some(file) = &spare.file else {
            // Once more, for the reason.
            return framing::create(&self.directory, &framing::name(number));
        };
        allocate(file, 0, FILE_BYTES)?;
        fs::rename(self.directory.join(NAME), self.directory.join(framing::name(number)))?;
        spare.file.take().ok_or_else(|| io::Error::other("the next file is gone"))
    }
}
