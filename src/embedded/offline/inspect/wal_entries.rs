//! Decodes the WAL records into entries of each user.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    embedded::{
        tables::schema::{StoredCursor, StoredId},
        wal::record::{Header, Item, RecordReader},
    },
    message::Seq,
};

/// Holds one entry of a WAL record that concerns a user.
#[derive(Clone, Debug)]
pub enum WalEntry {
    Entry { seq: Seq, expires_s: u32, payload: Bytes, collapse: String },
    Seen(u64),
    Cursor { device: String, cursor: StoredCursor },
    CursorRemoved { device: String },
    Gap { from: Seq, to: Seq, reason: u8 },
}

/// Holds the decoded entries of all records.
#[derive(Debug, Default)]
pub struct WalEntries {
    /// Entries of each user, in the order of the WAL.
    pub users: BTreeMap<String, Vec<WalEntry>>,
    /// Idempotency ids and their results.
    pub ids: Vec<StoredId>,
    rejected: Vec<(String, u8)>,
}

/// Describes a decoded record.
#[derive(Clone, Copy, Debug)]
pub struct RecordFacts {
    pub namespace: u32,
}

/// Returns whether the commit of a record continues in the next. Returns `None` if the record cannot be decoded.
pub fn is_continued(value: &Bytes) -> Option<bool> {
    let mut reader = RecordReader::new(value).ok()?;
    let mut last = false;
    while let Some(item) = reader.next_item() {
        last = matches!(item.ok()?.1, Item::More);
    }
    Some(last)
}

impl WalEntries {
    /// Decodes a record as far as possible. Returns a description of what cannot be decoded.
    pub fn take(&mut self, value: &Bytes) -> Result<RecordFacts, (Option<RecordFacts>, String)> {
        let mut reader = RecordReader::new(value).map_err(|error| (None, error.to_string()))?;
        let Header::V1 { namespace, at_ms } = reader.header;
        let read = RecordFacts { namespace };
        let mut message: Option<(Bytes, u32, String)> = None;
        while let Some(item) = reader.next_item() {
            let (at, item) = item.map_err(|error| (Some(read), format!("what follows is unreadable: {error}")))?;
            let (user, entry) = match item {
                Item::Message { payload, expires_s, collapse } => {
                    message = Some((value.slice_ref(payload), expires_s, collapse.to_owned()));
                    continue;
                }
                Item::To { user, seq } => {
                    let (payload, expires_s, collapse) = message
                        .clone()
                        .ok_or_else(|| (Some(read), format!("a recipient without a message at {at}")))?;
                    (user, WalEntry::Entry { seq, expires_s, payload, collapse })
                }
                Item::Seen { user, at_ms } => (user, WalEntry::Seen(at_ms)),
                Item::Cursor { user, device, cursor } => (user, WalEntry::Cursor { device: device.to_owned(), cursor }),
                Item::CursorRemoved { user, device } => (user, WalEntry::CursorRemoved { device: device.to_owned() }),
                Item::Gap { user, from, to, reason } => (user, WalEntry::Gap { from, to, reason }),
                Item::Rejected { user, reason } => {
                    self.rejected.push((user.to_owned(), reason));
                    continue;
                }
                Item::Summary { id, recipients, online, offline, stored } => {
                    let rejected = std::mem::take(&mut self.rejected);
                    self.ids.push(StoredId {
                        id: id.to_owned(),
                        at_ms,
                        recipients,
                        online,
                        offline,
                        stored,
                        rejected,
                        more: false,
                    });
                    continue;
                }
                Item::More => continue,
            };
            match self.users.get_mut(user) {
                Some(known) => known.push(entry),
                None => _ = self.users.insert(user.to_owned(), vec![entry]),
            }
        }
        Ok(read)
    }
}
