//! Defines the layout of the write-ahead log: records, segments, and their damage.
//!
//! A record has three layers:
//!
//! - frame (`embedded::framing`): magic number, length, checksum
//! - numbers (here): its own number, and that of the last synced record, each a u64
//! - value (`record`): namespace, time and items; `events` decodes the items

use std::{collections::VecDeque, fs::File, io, path::Path, sync::Arc};

use crate::embedded::{
    file_io,
    framing::{self, HEADER_BYTES, Kind},
    tables::space::extend,
};

/// Represents a record in a segment.
#[derive(Debug)]
pub struct Record<'a> {
    pub number: u64,
    /// Number of the last synced record at the time this record was written.
    pub synced: u64,
    pub value: &'a [u8],
    /// Offset of the next record.
    pub end: usize,
}

/// Decodes the record at offset `at`, if there is one.
pub fn record_at(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    let body = framing::body(Kind::Record, bytes.get(at..)?)?;
    let (number, rest) = body.split_first_chunk()?;
    let (synced, value) = rest.split_first_chunk()?;
    let (number, synced) = (u64::from_be_bytes(*number), u64::from_be_bytes(*synced));
    Some(Record { number, synced, value, end: at + HEADER_BYTES + body.len() })
}

/// Locates a record in a segment.
#[derive(Clone, Copy, Debug)]
pub struct RecordLocation {
    /// First record of its segment.
    pub segment: u64,
    /// Offset of the frame.
    pub at: u32,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl RecordLocation {
    /// Returns the offset of the end of its frame.
    pub fn end(self) -> u32 {
        self.at + self.length
    }
}

/// Holds an open segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Number of its first record, which is also its file name.
    pub first: u64,
    pub file: Arc<File>,
    /// Offset of the end of the last record, in bytes.
    pub length: u64,
    /// Disk space is allocated up to this offset. The file is zero from `length` on.
    pub allocated: u64,
}

impl Segment {
    /// Removes everything from offset `at` on, and allocates the space again if possible.
    pub(super) fn cut(&mut self, at: u64) -> io::Result<()> {
        self.file.set_len(at)?;
        let allocated = std::mem::replace(&mut self.allocated, at);
        (self.length, self.allocated) = (at, extend(&self.file, allocated).map_or(at, |()| allocated));
        Ok(())
    }
}

/// Holds the segments, and the locations of their records.
#[derive(Debug, Default)]
pub struct WalState {
    /// Oldest first. Records are appended to the last.
    pub segments: VecDeque<Segment>,
    /// Locations of record `first` and its successors.
    pub(super) locations: VecDeque<RecordLocation>,
    pub(super) first: u64,
    /// Records up to this one are synced.
    pub synced: u64,
}

impl WalState {
    /// Returns the location of a record, and its segment.
    pub fn location(&self, number: u64) -> Option<(&Segment, RecordLocation)> {
        let at = number.checked_sub(self.first)?;
        let location = *self.locations.get(usize::try_from(at).ok()?)?;
        // There are few segments, so a linear search is fast.
        Some((self.segments.iter().rev().find(|segment| segment.first == location.segment)?, location))
    }

    /// Returns the segment to which records are appended.
    pub(super) fn last_segment(&self) -> io::Result<&Segment> {
        self.segments.back().ok_or_else(|| io::Error::other("the WAL has no segment to write to"))
    }

    /// Replaces the state of the last segment. Call this only on the commit thread.
    pub(super) fn set_last_segment(&mut self, segment: Segment) {
        if let Some(last) = self.segments.back_mut() {
            *last = segment;
        }
    }

    /// Returns the number of the last record.
    pub fn last(&self) -> Option<u64> {
        Some(self.first + self.locations.len() as u64 - 1).filter(|_| !self.locations.is_empty())
    }
}

/// Result of opening the segments.
pub type Opened<T> = Result<T, OpenError>;

/// Returns the name of a segment, relative to the store's directory.
pub(super) fn file_name_of(directory: &Path, first: u64) -> String {
    let directory = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("{directory}/{}", file_io::file_name(first))
}

/// Describes a damaged part of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRecord {
    /// The file, relative to the store's directory.
    pub file: String,
    /// Offset in the file.
    pub at: u64,
    /// The record expected at this offset.
    pub number: u64,
    /// The last record that is known to be synced.
    pub synced: u64,
}

impl std::fmt::Display for DamagedRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, at, number, synced } = self;
        write!(
            f,
            "`{file}` cannot be read from byte {at} on, where record {number} should be: all up to record {synced} was synced"
        )
    }
}

/// States why the segments cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// A segment is damaged.
    Damage(DamagedRecord),
    /// Reading or writing failed.
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
