//! Location of a block in the value log, and the errors that name it.

use std::io;

use super::summary::BlockSummary;
use crate::{
    embedded::{file_io, tables::files::VALUE_LOG, unreadable::Unreadable},
    logging::system_error,
};

/// Bytes of an encoded location.
const LOCATION_BYTES: usize = 16;

/// Locates a block. Its encoding is part of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLocation {
    /// Number of the file.
    pub file: u64,
    /// Offset of the frame in the file, in bytes.
    pub offset: u32,
    /// Length of the frame, in bytes.
    pub length: u32,
}

impl BlockLocation {
    pub fn encode(self) -> [u8; LOCATION_BYTES] {
        let mut bytes = [0; LOCATION_BYTES];
        bytes[..8].copy_from_slice(&self.file.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.offset.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let number = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
        Some(Self { file: u64::from_be_bytes(*file), offset: number(*offset), length: number(rest.try_into().ok()?) })
    }

    /// Returns the path of its file in the store's directory.
    fn file_path(self) -> String {
        format!("{VALUE_LOG}/{}", file_io::file_name(self.file))
    }

    /// States that the file is missing.
    pub fn missing(self) -> Unreadable {
        Unreadable::new(format!("its file `{}` is missing", self.file_path()))
    }

    /// States that the system cannot read the file.
    pub fn unreadable(self, error: &io::Error) -> Unreadable {
        Unreadable::new(format!("its file `{}` cannot be read: {}", self.file_path(), system_error(error)))
    }

    /// States that the bytes do not match their checksum, or end after `read` bytes.
    pub fn mismatch(self, read: usize) -> Unreadable {
        let (file, offset, length) = (self.file_path(), self.offset, self.length);
        Unreadable::new(if read < length as usize {
            format!(
                "its file `{file}` ends early, at byte {}, where {length} bytes from byte {offset} on should be",
                offset as usize + read
            )
        } else {
            format!("in its file `{file}` a checksum does not match for the {length} bytes from byte {offset} on")
        })
    }
}

/// Describes a block in the table: its location, and the summary of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRow {
    pub location: BlockLocation,
    /// `None`: the block must be read.
    pub summary: Option<BlockSummary>,
}

impl BlockRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.location.encode().to_vec();
        bytes.extend(self.summary.iter().flat_map(BlockSummary::encode));
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (location, summary) = bytes.split_at_checked(LOCATION_BYTES)?;
        let location = BlockLocation::decode(location)?;
        if summary.is_empty() {
            return Some(Self { location, summary: None });
        }
        BlockSummary::decode(summary).map(|summary| Self { location, summary: Some(summary) })
    }
}

/// States that the table has no valid location.
pub fn invalid_location() -> Unreadable {
    Unreadable::new("its location in the table is not valid")
}
