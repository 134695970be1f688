//! Decodes the WAL records into entries of each user.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    embedded::{
        tables::schema::{StoredCursor, StoredId},
        wal::events::{Event, Message, RecordDecoder, RecordError},
    },
    message::{CollapseKey, DeviceId, Seq},
    store::Gap,
};

/// Holds one entry of a WAL record that concerns a user.
#[derive(Clone, Debug)]
pub enum WalEntry {
    Entry { seq: Seq, expires_s: u32, payload: Bytes, collapse: Option<CollapseKey> },
    Seen(u64),
    Cursor { device: Option<DeviceId>, cursor: StoredCursor },
    CursorRemoved { device: Option<DeviceId> },
    Gap(Gap),
}

/// Holds the decoded entries of all records.
#[derive(Debug, Default)]
pub struct WalEntries {
    /// Entries of each user, in the order of the WAL.
    pub users: BTreeMap<String, Vec<WalEntry>>,
    /// Idempotency ids and their results.
    pub ids: Vec<StoredId>,
    decoder: RecordDecoder,
}

impl WalEntries {
    /// Decodes a record as far as possible. Returns the fingerprint of its namespace, if it can be read, and a description
    /// of what cannot be decoded.
    pub fn take(&mut self, value: &Bytes) -> (Option<u32>, Result<(), String>) {
        let events = match self.decoder.events(value) {
            Ok(events) => events,
            Err(error) => return (None, Err(error.to_string())),
        };
        let namespace = Some(events.namespace);
        for event in events {
            let (user, entry) = match event {
                Ok(Event::Entry { user, seq, message, .. }) => {
                    let Message { payload, expires_s, collapse, .. } = message;
                    (user, WalEntry::Entry { seq, expires_s, payload: value.slice_ref(payload), collapse })
                }
                Ok(Event::Seen { user, at_ms }) => (user, WalEntry::Seen(at_ms)),
                Ok(Event::Cursor { user, device, cursor }) => (user, WalEntry::Cursor { device, cursor }),
                Ok(Event::CursorRemoved { user, device }) => (user, WalEntry::CursorRemoved { device }),
                Ok(Event::Gap { user, from, to, reason }) => (user, WalEntry::Gap(Gap { from, to, reason })),
                Ok(Event::Summary(id)) => {
                    self.ids.push(id);
                    continue;
                }
                Err(RecordError::Unreadable(error)) => {
                    return (namespace, Err(format!("what follows is unreadable: {error}")));
                }
                Err(error) => return (namespace, Err(error.to_string())),
            };
            match self.users.get_mut(user) {
                Some(known) => known.push(entry),
                None => _ = self.users.insert(user.to_owned(), vec![entry]),
            }
        }
        (namespace, Ok(()))
    }
}
