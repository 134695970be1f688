//! Estimates the disk space that appends need: in the WAL now, and in the value log after the flush.

use crate::{
    embedded::value_log::bodies::{SAVED_BYTES_MIN, SHARED_BYTES_MIN},
    message::UserId,
    store::Append,
};

/// Overhead of an entry in the value log, in bytes, besides three times its user's id.
///
/// It includes the headers of the entry, of its block, and of the row that refers to the block. A block may have one
/// entry.
const ENTRY_BYTES: u64 = 128;

/// Bytes of a reference to a shared body, in a block and in its row.
const REFERENCE_BYTES: u64 = 32;

/// Bytes of a record without its items.
const RECORD_BYTES: u64 = 512;

/// Lower bound of the bytes that a record has for recipients after the message.
const RECIPIENTS_BYTES: u64 = 24 << 10;

/// Bytes of a recipient and of the gap of a replaced entry, without the user's id.
const RECIPIENT_BYTES: u64 = 48;

/// Bytes of an idempotency id and its result.
const ID_BYTES: u64 = 1024;

/// Returns the bytes of the user ids of an append, and of its recipients and its result in the WAL.
fn recipient_items(append: &Append) -> (u64, u64) {
    let count = append.recipients.len() as u64;
    let ids: u64 = append.recipients.iter().map(|user| user.as_str().len() as u64).sum();
    let mut items = 2 * ids + count * RECIPIENT_BYTES;
    if let Some(idempotency) = &append.idempotency {
        let rejected: u64 =
            idempotency.rejected.iter().map(|rejected| rejected.user.len() as u64 + RECIPIENT_BYTES).sum();
        // Each recipient may be rejected.
        items += ID_BYTES + rejected + ids + count * RECIPIENT_BYTES;
    }
    (ids, items)
}

/// Returns how many records have the message, at most.
fn records(recipient_items: u64) -> u64 {
    1 + recipient_items / RECIPIENTS_BYTES
}

/// Returns an upper bound of the bytes of payload in the value log after the flush.
fn payload_bytes(append: &Append) -> u64 {
    let (bytes, count) = (append.payload.as_bytes().len() as u64, append.recipients.len() as u64);
    let (_, recipient_items) = recipient_items(append);
    payload_bytes_in(records(recipient_items), bytes, count)
}

/// Returns the same for a payload of `bytes` in `records` records, with `count` recipients in all.
///
/// In each record, the payload is a shared body, or its copies are fewer than those that a shared body saves.
fn payload_bytes_in(records: u64, bytes: u64, count: u64) -> u64 {
    let copies = bytes * count;
    if bytes < SHARED_BYTES_MIN as u64 {
        return copies;
    }
    copies.min(records * (bytes + SAVED_BYTES_MIN as u64) + count * REFERENCE_BYTES)
}

/// Divides bytes by the recipients, of which there is at least one.
fn share_of(bytes: u64, count: u64) -> u32 {
    u32::try_from(bytes.div_ceil(count.max(1))).unwrap_or(u32::MAX)
}

/// States an upper bound of the disk space that appends need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of records in the WAL.
    pub wal: u64,
    /// Bytes on the disk after the flush.
    pub flushed: u64,
}

impl Cost {
    /// Returns the cost of these appends for all of their recipients.
    pub fn of(appends: &[Append]) -> Self {
        let mut cost = Self::default();
        for append in appends {
            let bytes = append.payload.as_bytes().len() as u64;
            let count = append.recipients.len() as u64;
            let (ids, recipient_items) = recipient_items(append);
            cost.wal += recipient_items + records(recipient_items) * (bytes + RECORD_BYTES);
            cost.flushed += payload_bytes(append) + ENTRY_BYTES * count + 3 * ids;
        }
        cost
    }

    /// Returns the bytes of payload in the value log after the flush, divided by the recipients.
    ///
    /// Once some recipients have acknowledged, the shares of the others are less than a shared body by at most its size.
    /// The WAL has this body once until the flush.
    pub fn payload_share(append: &Append) -> u32 {
        share_of(payload_bytes(append), append.recipients.len() as u64)
    }

    /// Returns the same for a message of one record, with a payload of `bytes` and `count` recipients in that record.
    pub fn payload_share_in_record(bytes: u32, count: usize) -> u32 {
        let count = count as u64;
        share_of(payload_bytes_in(1, u64::from(bytes), count), count)
    }

    /// Returns the bytes on the disk that `count` entries of a user take after the flush.
    ///
    /// `bytes` is their payload.
    pub fn of_entries(user: &UserId, count: u64, bytes: u64) -> u64 {
        bytes + count * (ENTRY_BYTES + 3 * user.as_str().len() as u64)
    }
}
