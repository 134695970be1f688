//! What appends cost on the disk: now, in the journal, and later, in the inboxes of all their recipients.

use crate::{message::UserId, store::Append};

/// Bytes that an entry takes in an inbox, without its payload and three times its user's id: its head, and those of a chunk and
/// of the row that leads there, because a chunk may have one entry.
const ENTRY_BYTES: u64 = 128;

/// Bytes of a record without its items.
const RECORD_BYTES: u64 = 512;

/// Bytes of stamps that fit into a record behind the message that they are for, at least.
const STAMPS_BYTES: u64 = 24 << 10;

/// Bytes of a stamp and of what it may replace, without the user's id.
const STAMP_BYTES: u64 = 48;

/// Bytes of an id and its answer.
const ONCE_BYTES: u64 = 1024;

/// What some appends cost at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of records, in the journal.
    pub wal: u64,
    /// Bytes of payload, once for each recipient.
    pub payload: u64,
    /// Bytes on the disk when all of it has been settled.
    pub flushed: u64,
}

impl Cost {
    /// Of all of these, for all of their recipients.
    pub fn of(appends: &[Append]) -> Self {
        let mut cost = Self::default();
        for append in appends {
            let bytes = append.payload.as_bytes().len() as u64;
            let count = append.recipients.len() as u64;
            let ids: u64 = append.recipients.iter().map(|user| user.as_str().len() as u64).sum();
            let mut stamps = 2 * ids + count * STAMP_BYTES;
            if let Some(once) = &append.once {
                let refused: u64 = once.refused.iter().map(|one| one.user.len() as u64 + STAMP_BYTES).sum();
                // Each recipient may be refused.
                stamps += ONCE_BYTES + refused + ids + count * STAMP_BYTES;
            }
            cost.wal += stamps + (1 + stamps / STAMPS_BYTES) * (bytes + RECORD_BYTES);
            cost.payload += bytes * count;
            cost.flushed += (bytes + ENTRY_BYTES) * count + 3 * ids;
        }
        cost
    }

    /// Bytes on the disk of so many entries of a user, of `bytes` in all, when they have been settled.
    pub fn of_entries(user: &UserId, count: u64, bytes: u64) -> u64 {
        bytes + count * (ENTRY_BYTES + 3 * user.as_str().len() as u64)
    }
}
