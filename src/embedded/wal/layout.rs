//! Records and files of the write-ahead log, and their positions.

use std::{collections::VecDeque, fs::File, io, path::Path, sync::Arc};

use crate::embedded::{
    file_io,
    value_log::framing::{self, HEADER_BYTES, Kind},
};

/// A record in a file.
#[derive(Debug)]
pub struct Record<'a> {
    pub number: u64,
    /// Records up to this one were synced when it was written.
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

/// Location of a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordLocation {
    /// The first record of its file.
    pub file: u64,
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

#[derive(Debug)]
pub struct Segment {
    pub first: u64,
    pub file: Arc<File>,
    pub length: u64,
    /// Disk space is allocated up to this offset.
    pub allocated: u64,
}

#[derive(Debug, Default)]
pub struct WalState {
    /// Oldest first. The last is written to.
    pub files: VecDeque<Segment>,
    /// Locations of record `first` and its successors.
    pub(super) locations: VecDeque<RecordLocation>,
    pub(super) first: u64,
    /// Records up to this one are synced.
    pub synced: u64,
}

impl WalState {
    /// Returns the location of a record, and its file.
    pub fn location(&self, number: u64) -> Option<(&Segment, RecordLocation)> {
        let at = number.checked_sub(self.first)?;
        let location = *self.locations.get(usize::try_from(at).ok()?)?;
        // Files are named by their first record, and are never many.
        Some((self.files.iter().rev().find(|file| file.first == location.file)?, location))
    }

    pub fn last(&self) -> Option<u64> {
        Some(self.first + self.locations.len() as u64 - 1).filter(|_| !self.locations.is_empty())
    }
}

/// Result of opening the files.
pub type Opened<T> = Result<T, OpenError>;

pub(super) fn file_name_of(directory: &Path, first: u64) -> String {
    let own = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("{own}/{}", file_io::file_name(first))
}

/// A damaged part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRecord {
    /// The file, relative to the store's directory.
    pub file: String,
    /// Offset in the file.
    pub at: u64,
    /// The record that should be there.
    pub number: u64,
    /// The last record that is known to have been synced.
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

/// Reason why the files cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The files are damaged.
    Damage(DamagedRecord),
    /// Reading or writing failed.
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
