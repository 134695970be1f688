//! Reserves disk space for records, and begins segments.

use std::{
    fs::{self, File},
    io,
    sync::Arc,
};

use super::{layout::Segment, prepared::PREPARED_NAME, segment::WalFiles};
use crate::embedded::{
    file_io,
    framing::HEADER_BYTES,
    tables::{contract::Cause, space::extend},
};

/// Length at which a segment is full, in bytes. It grows further only if no other segment can be begun.
pub(super) const SEGMENT_BYTES: u64 = 8 << 20;

/// Length at which a segment never grows further, in bytes: offsets have 32 bits.
const SEGMENT_BYTES_MAX: u64 = 1 << 31;

/// Bytes of a frame without its record.
const FRAME_BYTES: u64 = HEADER_BYTES as u64 + 16;

impl WalFiles {
    /// Prepares the next segment, if it is not prepared. Call this periodically.
    pub fn prepare(&self) {
        self.prepared.lock().prepare(&self.directory);
    }

    /// Returns the bytes of all segments, with the space allocated to them.
    pub fn bytes(&self) -> u64 {
        self.state.read().segments.iter().map(|segment| segment.length.max(segment.allocated)).sum()
    }

    /// Reserves disk space for `bytes` of records, the first of which will be `number`.
    ///
    /// # Errors
    /// Fails if there is no space, or no segment and no descriptor for one. Then nothing has changed.
    pub fn reserve(&self, number: u64, bytes: u64) -> io::Result<()> {
        let is_full = match self.state.read().segments.back() {
            Some(last) if last.length < SEGMENT_BYTES && last.length + bytes <= last.allocated => return Ok(()),
            last => last.is_none_or(|last| last.length >= SEGMENT_BYTES),
        };
        if is_full {
            self.begin_segment(number)?;
        }
        let Segment { file, length, allocated, .. } = self.state.read().last_segment()?.clone();
        let mut end = length + bytes;
        if end <= allocated {
            return Ok(());
        }
        // A file system without preallocation counts as having the space, so a write may fail.
        if end < SEGMENT_BYTES && extend(&file, SEGMENT_BYTES).is_ok() {
            end = SEGMENT_BYTES;
        } else {
            extend(&file, end)?;
        }
        if let Some(last) = self.state.write().segments.back_mut() {
            last.allocated = end;
        }
        Ok(())
    }

    /// Returns the disk space that `bytes` of records need beyond what is reserved.
    pub fn bytes_required(&self, bytes: u64) -> u64 {
        match self.state.read().segments.back() {
            None => SEGMENT_BYTES.max(bytes),
            // If no segment can be begun, the last one grows.
            Some(last) => (last.length + bytes).saturating_sub(last.allocated.max(last.length)),
        }
    }

    /// Begins a new segment for a record of `bytes`, if the last is full and has no reserved space.
    pub(super) fn begin_segment_if_full(&self, number: u64, bytes: u64) -> io::Result<()> {
        let state = self.state.read();
        let fits = state
            .segments
            .back()
            .is_some_and(|last| last.length < SEGMENT_BYTES || last.length + bytes + FRAME_BYTES <= last.allocated);
        drop(state);
        if fits { Ok(()) } else { self.begin_segment(number) }
    }

    /// Begins a new segment if possible, or keeps the last.
    ///
    /// Does not hold the lock during disk access, so that readers do not wait. There is only one writer.
    fn begin_segment(&self, number: u64) -> io::Result<()> {
        let last = self.state.read().segments.back().map(|segment| (segment.file.clone(), segment.length));
        let file = match self.open_next(number) {
            Err(error) if Cause::of(&error) != Cause::Failed => {
                return if last.is_some_and(|(_, length)| length < SEGMENT_BYTES_MAX) { Ok(()) } else { Err(error) };
            }
            file => Arc::new(file?),
        };
        self.directory_handle.sync_all().map_err(io::Error::other)?;
        let synced = last.map(|(file, _)| file.sync_data()).transpose().map_err(io::Error::other)?.map(|()| number - 1);
        let mut state = self.state.write();
        state.synced = state.synced.max(synced.unwrap_or(0));
        state.segments.push_back(Segment { first: number, file, length: 0, allocated: SEGMENT_BYTES });
        Ok(())
    }

    /// Creates the file of a segment, with its full length.
    fn open_next(&self, number: u64) -> io::Result<File> {
        let mut prepared = self.prepared.lock();
        prepared.failed = None;
        prepared.prepare(&self.directory);
        let Some(file) = &prepared.file else {
            // Opened again, to return the error.
            let file = file_io::create(&self.directory, &file_io::file_name(number))?;
            return extend(&file, SEGMENT_BYTES).map(|()| file);
        };
        extend(file, SEGMENT_BYTES)?;
        fs::rename(self.directory.join(PREPARED_NAME), self.directory.join(file_io::file_name(number)))?;
        prepared.file.take().ok_or_else(|| io::Error::other("the prepared segment is missing"))
    }
}
