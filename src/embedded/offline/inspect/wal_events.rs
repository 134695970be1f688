//! Decodes the WAL records into the events of each user.

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

/// An event of a WAL record that concerns one user.
#[derive(Clone, Debug)]
pub enum WalEvent {
    /// An appended entry. `expires_s` is in seconds of the Unix epoch; 0 = never.
    Entry {
        seq: Seq,
        expires_s: u32,
        payload: Bytes,
        collapse: Option<CollapseKey>,
    },
    /// When the user was seen, in milliseconds of the Unix epoch.
    Seen(u64),
    Cursor {
        device: Option<DeviceId>,
        cursor: StoredCursor,
    },
    CursorRemoved {
        device: Option<DeviceId>,
    },
    Gap(Gap),
    /// The user was erased. All earlier events are dropped.
    Erased {
        floor: Seq,
    },
}

/// Holds the decoded events of all records.
#[derive(Debug, Default)]
pub struct WalEvents {
    /// Events of each user, in the order of the WAL.
    pub users: BTreeMap<String, Vec<WalEvent>>,
    /// Idempotency ids and their results.
    pub ids: Vec<StoredId>,
    /// Highest sequence floor of the erasures.
    pub floor: Seq,
    /// Erased users, each with the time of the erasure in milliseconds of the Unix epoch.
    erased: Vec<(String, u64)>,
    decoder: RecordDecoder,
}

impl WalEvents {
    /// Adds the events of a record, as far as it can be decoded.
    ///
    /// Returns the fingerprint of its namespace, if readable, and an error if events cannot be decoded.
    pub fn add_record(&mut self, value: &Bytes) -> (Option<u32>, Result<(), String>) {
        let events = match self.decoder.events(value) {
            Ok(events) => events,
            Err(error) => return (None, Err(error.to_string())),
        };
        let (namespace, at_ms) = (Some(events.namespace), events.at_ms);
        for event in events {
            let (user, entry) = match event {
                Ok(Event::Entry { user, seq, message, .. }) => {
                    let Message { payload, expires_s, collapse, .. } = message;
                    (user, WalEvent::Entry { seq, expires_s, payload: value.slice_ref(payload), collapse })
                }
                Ok(Event::Seen { user, at_ms }) => (user, WalEvent::Seen(at_ms)),
                Ok(Event::Cursor { user, device, cursor }) => (user, WalEvent::Cursor { device, cursor }),
                Ok(Event::CursorRemoved { user, device }) => (user, WalEvent::CursorRemoved { device }),
                Ok(Event::Gap { user, from, to, reason }) => (user, WalEvent::Gap(Gap { from, to, reason })),
                Ok(Event::Summary(id)) => {
                    self.ids.push(id);
                    continue;
                }
                Ok(Event::Erased { user, floor, .. }) => {
                    self.floor = self.floor.max(floor);
                    let ids = self.ids.iter_mut();
                    ids.for_each(|id| id.rejected.retain(|(rejected, _)| rejected != user));
                    self.erased.push((user.to_owned(), at_ms));
                    self.users.insert(user.to_owned(), vec![WalEvent::Erased { floor }]);
                    continue;
                }
                // They are about no log.
                Ok(Event::Events { .. } | Event::EventsRemoved { .. }) => continue,
                Err(RecordError::Unreadable(error)) => {
                    return (namespace, Err(format!("a part of it is unreadable: {error}")));
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

    /// Removes erased users from the rejected recipients of a stored id.
    pub fn remove_erased(&self, id: &mut StoredId) {
        let StoredId { at_ms, rejected, .. } = id;
        rejected
            .retain(|(user, _)| !self.erased.iter().any(|(erased, until_ms)| erased == user && *at_ms <= *until_ms));
    }
}
