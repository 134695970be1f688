//! Encodes the body of a request: `{"events":[…]}`. An event is an object with `id`, `type`, `at` (in milliseconds of the
//! Unix epoch) and the fields of its type.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use crate::{
    hub::{EventKind, OutboxEvent, QueuedEvent},
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
        OutboxEvent::CutMessage { connection, user, op, data, kind_json } => {
            let kind = JsonString::Raw(kind_json.into());
            let message = Message { op: *op, d: data.as_deref().and_then(raw), t: Some(kind) };
            Fields::Message { connection, user: user.as_deref(), message }
        }
        OutboxEvent::Disconnection { connection, user } => Fields::Disconnection { connection, user: user.as_deref() },
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

/// Returns JSON as it is; `None` if a disk has damaged it since it was accepted, which must not fail the whole batch.
fn raw(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_event_type_has_its_documented_fields() {
        let (connection, alice) = (|| "c0ffee-7".to_owned(), || "alice".to_owned());
        let message = |user, data: Option<&str>, kind: Option<&str>| OutboxEvent::Message {
            connection: connection(),
            user,
            op: 0,
            data: data.map(str::to_owned),
            kind: kind.map(str::to_owned),
        };
        let payload = r#"{"op":0,"d":{"n":1.0},"t":"T"}"#.to_owned();
        for (event, expected) in [
            (
                OutboxEvent::Connection { connection: connection() },
                r#""type":"connection","at":5,"connection":"c0ffee-7""#,
            ),
            (
                OutboxEvent::Authentication { connection: connection(), user: alice() },
                r#""type":"authentication","at":5,"connection":"c0ffee-7","user":"alice""#,
            ),
            (
                message(Some(alice()), Some("[1.0]"), Some("T\"")),
                r#""type":"message","at":5,"connection":"c0ffee-7","user":"alice","message":{"op":0,"d":[1.0],"t":"T\""}"#,
            ),
            (
                message(None, None, None),
                r#""type":"message","at":5,"connection":"c0ffee-7","user":null,"message":{"op":0}"#,
            ),
            (
                OutboxEvent::CutMessage {
                    connection: connection(),
                    user: None,
                    op: 0,
                    data: Some(r#""\ude00""#.into()),
                    kind_json: r#""T\ud83d""#.into(),
                },
                r#""type":"message","at":5,"connection":"c0ffee-7","user":null,"message":{"op":0,"d":"\ude00","t":"T\ud83d"}"#,
            ),
            (
                OutboxEvent::Disconnection { connection: connection(), user: None },
                r#""type":"disconnection","at":5,"connection":"c0ffee-7","user":null"#,
            ),
            (
                OutboxEvent::Undelivered { user: alice(), seq: 3, devices: vec![None, Some("phone".into())], payload },
                r#""type":"undelivered","at":5,"user":"alice","s":3,"devices":[null,"phone"],"message":{"op":0,"d":{"n":1.0},"t":"T"}"#,
            ),
            (
                OutboxEvent::Delivered { user: alice(), device: None, from: 1, to: 2 },
                r#""type":"delivered","at":5,"user":"alice","device":null,"from":1,"to":2"#,
            ),
            (
                OutboxEvent::Expired { user: alice(), from: 1, to: 2 },
                r#""type":"expired","at":5,"user":"alice","from":1,"to":2"#,
            ),
            (
                OutboxEvent::Dropped { user: alice(), from: 1, to: 9, count: 8 },
                r#""type":"dropped","at":5,"user":"alice","from":1,"to":9,"count":8"#,
            ),
            (
                OutboxEvent::Overflow { since_ms: 4, lost: vec![(2, 7), (5, 1)], at_least: false },
                r#""type":"overflow","at":5,"since":4,"lost":{"message":7,"delivered":1},"atLeast":false"#,
            ),
        ] {
            let queued = QueuedEvent { number: 1, id: "ab-1".into(), at_ms: 5, event };
            let text = String::from_utf8(encode(&[queued])).unwrap();
            assert_eq!(text, format!("{{\"events\":[{{\"id\":\"ab-1\",{expected}}}]}}"));
        }
        let none: Value = serde_json::from_slice(&encode(&[])).unwrap();
        assert_eq!(none, json!({ "events": [] }));
    }

    #[test]
    fn damaged_json_leaves_other_events_intact() {
        let broken = OutboxEvent::Undelivered { user: "a".into(), seq: 1, devices: vec![], payload: "{\"op\":".into() };
        let queued = |event| QueuedEvent { number: 1, id: "ab-1".into(), at_ms: 5, event };
        let whole = OutboxEvent::Connection { connection: "c".into() };
        let body: Value = serde_json::from_slice(&encode(&[queued(broken), queued(whole)])).unwrap();
        assert_eq!((&body["events"][0]["message"], &body["events"][1]["connection"]), (&Value::Null, &json!("c")));
    }
}
