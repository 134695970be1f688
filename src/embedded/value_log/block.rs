//! Encoding of blocks: consecutive entries of one user.

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;

use crate::{
    embedded::{encoding::format, unreadable::Unreadable},
    message::{Payload, Seq},
    store::Entry,
};

/// Size at which a block is closed.
pub const BLOCK_BYTES_MAX: usize = 48 << 10;

/// Sequence, expiry in seconds of the Unix epoch (0 = never), and payload.
pub type BlockEntry<'a> = (Seq, u32, &'a [u8]);

/// Consecutive entries of one user, with their owner.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Block<'a> {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        /// The owner of the entries.
        user: &'a str,
        /// Ascending by sequence.
        entries: Vec<BlockEntry<'a>>,
    },
}

impl<'a> Block<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        if let Some(unreadable) = Unreadable::of_value(bytes) {
            return Err(unreadable);
        }
        Ok(bincode::borrow_decode_from_slice(bytes, format())?.0)
    }

    pub fn encode(&self) -> Vec<u8> {
        // As in `RecordWriter::encode`.
        bincode::encode_to_vec(self, format()).expect("writing to a Vec succeeds")
    }
}

/// Decodes the entries of a block, with their expiry.
pub fn block_entries(bytes: &Bytes) -> Result<Vec<(Entry, u32)>, Unreadable> {
    let Block::V1 { namespace, user, entries } = Block::decode(bytes)?;
    let owner = bytes.slice_ref(user.as_bytes());
    let entry = |(seq, expires_s, payload): (Seq, u32, &[u8])| {
        let payload = Payload::from_stored(bytes.slice_ref(payload));
        (Entry { namespace, owner: owner.clone(), seq, payload }, expires_s)
    };
    Ok(entries.into_iter().map(entry).collect())
}
