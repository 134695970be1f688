//! Encodes the body of a request: `{"events":[…]}`.
//!
//! An event is an object with `id`, `type`, `at` (milliseconds since the Unix epoch) and the fields of its type.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use crate::{
    hub::{EventKind, OutboxEvent, QueuedEvent, SERVER_RESTART},
    message::JsonString,
};

#[derive(Serialize)]
struct Body<'a> {
    events: Vec<EventJson<'a>>,
}

#[derive(Serialize)]
struct EventJson<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    at: u64,
    #[serde(flatten)]
    fields: Fields<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    Connection {
        connection: &'a str,
    },
    Authentication {
        connection: &'a str,
        user: &'a str,
    },
    Message {
        connection: &'a str,
        user: Option<&'a str>,
        message: Message<'a>,
    },
    Disconnection {
        connection: &'a str,
        user: Option<&'a str>,
    },
    RestartDisconnection {
        /// Always null: the connection was one of an earlier start.
        connection: (),
        user: &'a str,
        reason: &'static str,
    },
    Undelivered {
        user: &'a str,
        s: u64,
        devices: &'a [Option<String>],
        message: Option<Box<RawValue>>,
    },
    Delivered {
        user: &'a str,
        device: Option<&'a str>,
        from: u64,
        to: u64,
    },
    Expired {
        user: &'a str,
        from: u64,
        to: u64,
    },
    Dropped {
        user: &'a str,
        from: u64,
        to: u64,
        count: u64,
    },
    Overflow {
        since: u64,
        lost: Lost<'a>,
        #[serde(rename = "atLeast")]
        at_least: bool,
    },
}

/// Mirrors a client's message, with data and type as they were sent.
#[derive(Serialize)]
struct Message<'a> {
    op: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<JsonString<'a>>,
}

/// Serializes counts of lost events by the names of their kinds.
struct Lost<'a>(&'a [(u8, u64)]);

impl Serialize for Lost<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (kind, count) in self.0 {
            if let Some(kind) = EventKind::from_stored(*kind) {
                map.serialize_entry(kind.as_str(), count)?;
            }
        }
        map.end()
    }
}

/// Encodes a batch of events.
pub(super) fn encode(events: &[QueuedEvent]) -> Vec<u8> {
    let body = Body { events: events.iter().map(event_json).collect() };
    // All keys are strings, and raw values are JSON.
    serde_json::to_vec(&body).expect("events are JSON")
}

fn event_json(queued: &QueuedEvent) -> EventJson<'_> {
    EventJson { id: &queued.id, kind: queued.event.kind().as_str(), at: queued.at_ms, fields: fields(&queued.event) }
}

fn fields(event: &OutboxEvent) -> Fields<'_> {
    match event {
        OutboxEvent::Connection { connection } => Fields::Connection { connection },
        OutboxEvent::Authentication { connection, user } => Fields::Authentication { connection, user },
        OutboxEvent::Message { connection, user, op, data, kind } => {
            let message =
                Message { op: *op, d: data.as_deref().and_then(raw), t: kind.as_deref().map(JsonString::from) };
            Fields::Message { connection, user: user.as_deref(), message }
        }
        OutboxEvent::RawTypeMessage { connection, user, op, data, kind_json } => {
            let kind = JsonString::Raw(kind_json.into());
            let message = Message { op: *op, d: data.as_deref().and_then(raw), t: Some(kind) };
            Fields::Message { connection, user: user.as_deref(), message }
        }
        OutboxEvent::Disconnection { connection, user } => Fields::Disconnection { connection, user: user.as_deref() },
        OutboxEvent::RestartDisconnection { user } => {
            Fields::RestartDisconnection { connection: (), user, reason: SERVER_RESTART }
        }
        OutboxEvent::Undelivered { user, seq, devices, payload } => {
            Fields::Undelivered { user, s: *seq, devices, message: raw(payload) }
        }
        OutboxEvent::Delivered { user, device, from, to } => {
            Fields::Delivered { user, device: device.as_deref(), from: *from, to: *to }
        }
        OutboxEvent::Expired { user, from, to } => Fields::Expired { user, from: *from, to: *to },
        OutboxEvent::Dropped { user, from, to, count } => Fields::Dropped { user, from: *from, to: *to, count: *count },
        OutboxEvent::Overflow { since_ms, lost, at_least } => {
            Fields::Overflow { since: *since_ms, lost: Lost(lost), at_least: *at_least }
        }
    }
}

/// Returns a text as JSON; `None` if the disk has damaged it, which must not fail the whole batch.
fn raw(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).ok()
}

#[cfg(test)]
mod tests;
