//! Decodes records into events, for recovery, the flush, backups and inspections.

use super::record::{Header, Item, RecordReader};
use crate::{
    embedded::{
        tables::schema::{StoredCursor, StoredId},
        unreadable::Unreadable,
    },
    message::{CollapseKey, DeviceId, Seq},
    store::{GapReason, RejectionReason},
};

/// Decodes records in the order of their numbers.
///
/// The rejected recipients of an append may be in earlier records than its summary. The decoder carries them over.
#[derive(Debug, Default)]
pub struct RecordDecoder {
    rejected: Vec<(String, u8)>,
}

/// Holds a message of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Offset in the record.
    pub at: u32,
    pub payload: &'a [u8],
    /// Expiry in seconds of the Unix epoch; 0 = never.
    pub expires_s: u32,
    pub collapse: Option<CollapseKey>,
}

/// Represents an event of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The message was appended to this user's log. `recipient_at` is the offset of the recipient in the record.
    Entry { user: &'a str, seq: Seq, recipient_at: u32, message: Message<'a> },
    /// The user connected or disconnected at this time, in milliseconds of the Unix epoch.
    Seen { user: &'a str, at_ms: u64 },
    /// A cursor of this user has changed. `None` is the cursor shared by clients without a device.
    Cursor { user: &'a str, device: Option<DeviceId>, cursor: StoredCursor },
    /// This cursor was removed.
    CursorRemoved { user: &'a str, device: Option<DeviceId> },
    /// Entries were dropped before all devices acknowledged them. For expired entries, the outbox has the event.
    Gap { user: &'a str, from: Seq, to: Seq, reason: GapReason },
    /// An append with an idempotency id ended with this result.
    Summary(StoredId),
    /// The user was erased. A later log of this user starts at `floor` or above. `events` is the number of the last
    /// event of the outbox at that time; 0 = none.
    Erased { user: &'a str, floor: Seq, events: u64 },
    /// A piece of a batch of webhook events, whose first event has the number `first`.
    Events { first: u64, piece: u32, bytes: &'a [u8] },
    /// Webhook events up to this number were removed before.
    EventsRemoved { through: u64 },
}

/// States why an item, or the whole record, cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// This item and the later ones cannot be decoded.
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
    /// An item is not valid: its description, and its offset.
    #[error("{0} at {1}")]
    Invalid(&'static str, u32),
}

/// Iterates over the events of a record. Ends at an item that cannot be decoded.
#[derive(Debug)]
pub struct RecordEvents<'r, 'd> {
    /// Fingerprint of the namespace.
    pub namespace: u32,
    /// Time of the commit, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    reader: RecordReader<'r>,
    /// The last message, which the following recipients receive.
    message: Option<Message<'r>>,
    rejected: &'d mut Vec<(String, u8)>,
    is_continued: bool,
}

impl RecordDecoder {
    /// Begins to decode the next record.
    pub fn events<'r>(&mut self, record: &'r [u8]) -> Result<RecordEvents<'r, '_>, RecordError> {
        let reader = RecordReader::new(record)?;
        let Header::V1 { namespace, at_ms } = reader.header;
        let rejected = &mut self.rejected;
        Ok(RecordEvents { namespace, at_ms, reader, message: None, rejected, is_continued: false })
    }
}

impl RecordEvents<'_, '_> {
    /// Returns whether the commit continues in the next record, as far as this one was read.
    pub fn is_continued(&self) -> bool {
        self.is_continued
    }
}

impl<'r> RecordEvents<'r, '_> {
    /// Decodes an item. Returns `None` if it is part of a later event.
    fn event(&mut self, at: u32, item: Item<'r>) -> Result<Option<Event<'r>>, RecordError> {
        self.is_continued = matches!(item, Item::More);
        let device_of = |name: &str| {
            let device = (!name.is_empty()).then(|| DeviceId::new(name)).transpose();
            device.map_err(|_| RecordError::Invalid("an invalid device", at))
        };
        Ok(Some(match item {
            Item::Message { payload, expires_s, collapse } => {
                // An invalid key was never written by this server: no later entry replaces this one.
                let collapse = if collapse.is_empty() { None } else { CollapseKey::new(collapse).ok() };
                self.message = Some(Message { at, payload, expires_s, collapse });
                return Ok(None);
            }
            Item::To { user, seq } => {
                let message = self.message.clone();
                let message = message.ok_or(RecordError::Invalid("a recipient without a message", at))?;
                Event::Entry { user, seq, recipient_at: at, message }
            }
            Item::Seen { user, at_ms } => Event::Seen { user, at_ms },
            Item::Cursor { user, device, cursor } => Event::Cursor { user, device: device_of(device)?, cursor },
            Item::CursorRemoved { user, device } => Event::CursorRemoved { user, device: device_of(device)? },
            Item::Gap { user, from, to, reason } => {
                let reason = GapReason::from_stored(reason).ok_or(RecordError::Invalid("an unknown gap reason", at))?;
                Event::Gap { user, from, to, reason }
            }
            Item::Rejected { user, reason } => {
                RejectionReason::from_stored(reason).ok_or(RecordError::Invalid("an unknown reason", at))?;
                self.rejected.push((user.to_owned(), reason));
                return Ok(None);
            }
            Item::Summary { id, recipients, online, offline, stored } => {
                let (id, at_ms, rejected) = (id.to_owned(), self.at_ms, std::mem::take(self.rejected));
                Event::Summary(StoredId { id, at_ms, recipients, online, offline, stored, rejected, more: false })
            }
            Item::More => return Ok(None),
            Item::Erased { user, floor, events } => Event::Erased { user, floor, events },
            Item::Events { first, piece, bytes } => Event::Events { first, piece, bytes },
            Item::EventsRemoved { through } => Event::EventsRemoved { through },
        }))
    }
}

impl<'r> Iterator for RecordEvents<'r, '_> {
    type Item = Result<Event<'r>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let event = match self.reader.next_item()? {
                Ok((at, item)) => self.event(at, item),
                Err(error) => Err(error.into()),
            };
            if let Some(event) = event.transpose() {
                return Some(event);
            }
        }
    }
}

/// Returns whether the commit of a record continues in the next. Returns `None` if the record cannot be decoded.
pub fn is_continued(record: &[u8]) -> Option<bool> {
    let mut decoder = RecordDecoder::default();
    let mut events = decoder.events(record).ok()?;
    for event in events.by_ref() {
        event.ok()?;
    }
    Some(events.is_continued())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::wal::record::RecordWriter;

    fn record(items: &[Item<'_>]) -> Vec<u8> {
        let mut writer = RecordWriter::new(7, 70);
        items.iter().for_each(|item| _ = writer.push(item));
        writer.finish()
    }

    fn rejected(user: &str) -> Item<'_> {
        Item::Rejected { user, reason: RejectionReason::Quota as u8 }
    }

    fn error(items: &[Item<'_>]) -> String {
        let record = record(items);
        let mut decoder = RecordDecoder::default();
        let errors: Vec<_> = decoder.events(&record).unwrap().filter_map(Result::err).collect();
        assert_eq!((errors.len(), is_continued(&record)), (1, None), "{errors:?}");
        errors[0].to_string()
    }

    #[test]
    fn recipients_have_the_message_before_them_with_its_options() {
        let record = record(&[
            Item::Message { payload: b"one", expires_s: 5, collapse: "key" },
            Item::To { user: "a", seq: 1 },
            Item::To { user: "b", seq: 9 },
            Item::Message { payload: b"two", expires_s: 0, collapse: "" },
            Item::To { user: "a", seq: 2 },
        ]);
        let mut decoder = RecordDecoder::default();
        let mut events = decoder.events(&record).unwrap();
        assert_eq!((events.namespace, events.at_ms), (7, 70));
        let mut found = Vec::new();
        for event in events.by_ref() {
            let Event::Entry { user, seq, message, .. } = event.unwrap() else { panic!("expected an entry") };
            let collapse = message.collapse.map(|key| key.as_str().to_owned());
            found.push((user, seq, message.payload, message.expires_s, collapse));
        }
        let key = || Some("key".to_owned());
        assert_eq!(found, [("a", 1, &b"one"[..], 5, key()), ("b", 9, b"one", 5, key()), ("a", 2, b"two", 0, None)]);
        assert!(!events.is_continued());
    }

    #[test]
    fn summary_has_rejections_of_earlier_records_of_its_commit() {
        let summary = |id| Item::Summary { id, recipients: 3, online: 1, offline: 0, stored: 1 };
        let records = [
            record(&[rejected("x"), Item::More]),
            record(&[rejected("y"), summary("one"), summary("two"), rejected("z"), summary("three")]),
        ];
        let mut decoder = RecordDecoder::default();
        let mut found = Vec::new();
        for record in &records {
            for event in decoder.events(record).unwrap() {
                let Event::Summary(id) = event.unwrap() else { panic!("expected a summary") };
                assert_eq!((id.at_ms, id.recipients, id.online, id.stored), (70, 3, 1, 1));
                found.push((id.id, id.rejected.into_iter().map(|(user, _)| user).collect::<Vec<_>>().concat()));
            }
        }
        assert_eq!(found, [("one", "xy"), ("two", ""), ("three", "z")].map(|(id, users)| (id.into(), users.into())));
        assert_eq!(records.map(|record| is_continued(&record)), [Some(true), Some(false)]);
    }

    #[test]
    fn invalid_item_is_an_error_with_its_offset() {
        let at = record(&[]).len();
        let to = Item::To { user: "a", seq: 1 };
        assert_eq!(error(&[to]), format!("a recipient without a message at {at}"));
        assert_eq!(
            error(&[Item::Gap { user: "a", from: 1, to: 1, reason: 99 }]),
            format!("an unknown gap reason at {at}")
        );
        assert_eq!(error(&[Item::Rejected { user: "a", reason: 99 }]), format!("an unknown reason at {at}"));
        let removed = Item::CursorRemoved { user: "a", device: "a\nb" };
        assert_eq!(error(&[removed]), format!("an invalid device at {at}"));
    }

    #[test]
    fn truncated_record_has_the_events_before_the_cut() {
        let whole =
            record(&[Item::Seen { user: "a", at_ms: 1 }, Item::Seen { user: "b", at_ms: u64::MAX }, Item::More]);
        let cut = &whole[..whole.len() - 3];
        let mut decoder = RecordDecoder::default();
        let events: Vec<_> = decoder.events(cut).unwrap().collect();
        assert!(
            matches!(events[..], [Ok(Event::Seen { user: "a", .. }), Err(RecordError::Unreadable(_))]),
            "{events:?}"
        );
        assert_eq!((is_continued(&whole), is_continued(cut), is_continued(b"")), (Some(true), None, None));
    }
}
