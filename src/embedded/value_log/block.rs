//! Encoding of blocks: consecutive entries of one user.

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;

use super::bodies::BodyId;
use crate::{
    embedded::{encoding::bincode_config, unreadable::Unreadable},
    message::{Payload, Seq},
    store::Entry,
};

/// Largest block in bytes, unless a single entry is larger.
pub const BLOCK_BYTES_MAX: usize = 48 << 10;

/// Average bytes of an entry in a block in addition to its payload.
pub const ENTRY_OVERHEAD_BYTES: usize = 16;

/// The payload of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Body<'a> {
    /// The payload itself.
    Inline(&'a [u8]),
    /// A shared body, and its length in bytes.
    Shared(BodyId, u32),
}

impl Body<'_> {
    /// Returns the bytes of payload.
    pub fn len(&self) -> usize {
        match self {
            Self::Inline(payload) => payload.len(),
            Self::Shared(_, length) => *length as usize,
        }
    }
}

/// Sequence, expiry in seconds of the Unix epoch (0 = never), and payload.
pub type BlockEntry<'a> = (Seq, u32, Body<'a>);

/// Lists the shared bodies of entries, each once.
pub fn bodies_of(entries: &[BlockEntry<'_>]) -> Vec<BodyId> {
    let mut bodies: Vec<_> = entries
        .iter()
        .filter_map(|(.., body)| match body {
            Body::Inline(_) => None,
            Body::Shared(id, _) => Some(*id),
        })
        .collect();
    bodies.sort_unstable();
    bodies.dedup();
    bodies
}

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
        if let Some(unreadable) = Unreadable::from_value(bytes) {
            return Err(unreadable);
        }
        Ok(bincode::borrow_decode_from_slice(bytes, bincode_config())?.0)
    }

    pub fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode_config()).expect("writing to a Vec succeeds")
    }
}

/// Splits entries into runs that fit into a block, or hold one large entry. `bytes` returns the payload's size.
pub fn split_entries<T>(entries: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut block = 0;
        let fits = |entry: &&T| {
            block += bytes(entry) + ENTRY_OVERHEAD_BYTES;
            block <= BLOCK_BYTES_MAX
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (part, after) = rest.split_at(count);
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// An entry of a decoded block: the entry, or the sequence and why its shared body cannot be read, and its expiry.
pub type DecodedEntry = (Result<Entry, (Seq, Unreadable)>, u32);

/// Decodes the entries of a block. Returns its namespace, its owner, and the entries.
///
/// `read_body` reads a shared body of this length.
pub fn block_entries(
    bytes: &Bytes,
    read_body: &mut dyn FnMut(BodyId, u32, u32) -> Result<Bytes, Unreadable>,
) -> Result<(u32, Bytes, Vec<DecodedEntry>), Unreadable> {
    let Block::V1 { namespace, user, entries } = Block::decode(bytes)?;
    let owner = bytes.slice_ref(user.as_bytes());
    let entry = |(seq, expires_s, body): BlockEntry<'_>| {
        let payload = match body {
            Body::Inline(payload) => Ok(bytes.slice_ref(payload)),
            Body::Shared(id, length) => read_body(id, namespace, length),
        };
        let entry = |payload| Entry { namespace, owner: owner.clone(), seq, payload: Payload::from_stored(payload) };
        (payload.map(entry).map_err(|error| (seq, error)), expires_s)
    };
    let entries = entries.into_iter().map(entry).collect();
    Ok((namespace, owner, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_entries_are_in_order_and_fit_into_blocks() {
        let sizes = [10_000, 30_000, 20_000, 60_000, 0, 48_000, 1];
        let split: Vec<_> = split_entries(&sizes, |bytes| *bytes).collect();
        assert_eq!(split, [&[10_000, 30_000][..], &[20_000], &[60_000], &[0, 48_000, 1]]);
        assert_eq!(split_entries(&[0; 0], |bytes| *bytes).count(), 0);
    }
}
