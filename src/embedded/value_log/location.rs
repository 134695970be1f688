//! Location of a block in the value log, and the errors that name it.

use std::io;

use bincode::{Decode, Encode};

use super::{
    block::{Block, bodies_of},
    bodies::BodyId,
    summary::BlockSummary,
};
use crate::{
    embedded::{encoding::bincode_config, file_io, tables::files::VALUE_LOG, unreadable::Unreadable},
    logging::system_error,
    message::Seq,
};

/// Locates a block.
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

/// Describes a block in the table: its location, the summary of its entries, and the shared bodies they reference.
///
/// The row of a shared body has the location only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    pub location: BlockLocation,
    /// `None`: the block must be read.
    pub summary: Option<BlockSummary>,
    /// Shared bodies, rising, each once. Empty without a summary.
    pub bodies: Vec<BodyId>,
}

/// Encoding of a row, which is part of the on-disk format.
///
/// Numbers have as few bytes as they need. So nearly every row has at most 22 bytes, which sled stores without an
/// allocation of their own. The shared bodies follow the row, if there are any.
#[derive(Encode, Decode)]
enum StoredRow {
    /// A row without a summary.
    Bare { file: u64, offset: u32, length: u32 },
    /// A row with a summary. `span` is the last sequence minus the first.
    Summarized {
        file: u64,
        offset: u32,
        length: u32,
        first: Seq,
        span: u64,
        entries: u32,
        bytes: u32,
        first_expiry_s: u32,
        last_expiry_s: u32,
    },
}

impl BlockRow {
    /// Describes an encoded block.
    pub fn of(location: BlockLocation, block: &[u8]) -> Self {
        let Ok(Block::V1 { entries, .. }) = Block::decode(block) else { return Self::of_body(location) };
        Self { location, summary: BlockSummary::of_entries(&entries), bodies: bodies_of(&entries) }
    }

    /// Describes a shared body.
    pub fn of_body(location: BlockLocation) -> Self {
        Self { location, summary: None, bodies: Vec::new() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let BlockLocation { file, offset, length } = self.location;
        let row = match self.summary {
            None => StoredRow::Bare { file, offset, length },
            Some(BlockSummary { first, last, entries, bytes, first_expiry_s, last_expiry_s }) => {
                let span = last.saturating_sub(first);
                StoredRow::Summarized {
                    file,
                    offset,
                    length,
                    first,
                    span,
                    entries,
                    bytes,
                    first_expiry_s,
                    last_expiry_s,
                }
            }
        };
        let encoded = if self.bodies.is_empty() {
            bincode::encode_to_vec(row, bincode_config())
        } else {
            bincode::encode_to_vec((row, &self.bodies), bincode_config())
        };
        encoded.expect("writing to a Vec succeeds")
    }

    pub fn decode(encoded: &[u8]) -> Option<Self> {
        let (stored, read) = bincode::decode_from_slice(encoded, bincode_config()).ok()?;
        let (bodies, end): (Vec<BodyId>, usize) = match encoded.get(read..)? {
            [] => (Vec::new(), read),
            rest => {
                let (bodies, length) = bincode::decode_from_slice(rest, bincode_config()).ok()?;
                (bodies, read + length)
            }
        };
        if end > read && bodies.is_empty() {
            return None;
        }
        let row = match stored {
            StoredRow::Bare { file, offset, length } => {
                Self { location: BlockLocation { file, offset, length }, summary: None, bodies }
            }
            StoredRow::Summarized {
                file,
                offset,
                length,
                first,
                span,
                entries,
                bytes,
                first_expiry_s,
                last_expiry_s,
            } => {
                let last = first.checked_add(span)?;
                let summary = BlockSummary { first, last, entries, bytes, first_expiry_s, last_expiry_s };
                Self { location: BlockLocation { file, offset, length }, summary: Some(summary), bodies }
            }
        };
        (end == encoded.len()).then_some(row)
    }
}

/// States that the table has no valid location.
pub fn invalid_location() -> Unreadable {
    Unreadable::new("its location in the table is not valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_small_block_has_few_bytes_and_is_decoded_only_as_a_whole() {
        let location = BlockLocation { file: 5_000, offset: 8 << 20, length: 330 };
        let summary =
            BlockSummary { first: 200, last: 201, entries: 2, bytes: 300, first_expiry_s: 0, last_expiry_s: 0 };
        let row = |summary, bodies| BlockRow { location, summary, bodies };
        for row in [row(Some(summary), Vec::new()), BlockRow::of_body(location)] {
            let encoded = row.encode();
            assert!(encoded.len() <= 22, "{encoded:?}");
            assert_eq!(BlockRow::decode(&encoded), Some(row));
            assert_eq!(BlockRow::decode(&encoded[..encoded.len() - 1]), None);
            assert_eq!(BlockRow::decode(&[&encoded[..], &[0]].concat()), None);
        }
        let far = BlockSummary { first: u64::MAX - 1, last: u64::MAX, first_expiry_s: 7, last_expiry_s: 9, ..summary };
        let bodies = vec![BodyId { record: 5, at: 70 }, BodyId { record: u64::MAX, at: 0 }];
        for row in [row(Some(far), Vec::new()), row(Some(far), bodies)] {
            assert_eq!(BlockRow::decode(&row.encode()), Some(row));
        }
    }
}
