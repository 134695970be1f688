//! What is posted: `{"events":[…]}`, each event an object with its `id`, its `type`, when it happened (`at`, in milliseconds
//! of the Unix epoch), and what belongs to its type.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use crate::{
    hub::{EventKind, KeptEvent, OutboxEvent},
    message::JsonString,
};

#[derive(Serialize)]
struct Body<'a> {
    events: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    at: u64,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
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

/// As it stood in the client's frame.
#[derive(Serialize)]
struct Message<'a> {
    op: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<JsonString<'a>>,
}

/// Counts by the names of the kinds.
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

/// The body that tells of these.
pub(super) fn encode(events: &[KeptEvent]) -> Vec<u8> {
    let body = Body { events: events.iter().map(told).collect() };
    // Nothing here has a key that is not a string, and what is raw is JSON.
    serde_json::to_vec(&body).expect("events are JSON")
}

fn told(kept: &KeptEvent) -> Told<'_> {
    Told { id: &kept.id, kind: kept.event.kind().as_str(), at: kept.at_ms, what: what(&kept.event) }
}

fn what(event: &OutboxEvent) -> What<'_> {
    match event {
        OutboxEvent::Connection { connection } => What::Connection { connection },
        OutboxEvent::Authentication { connection, user } => What::Authentication { connection, user },
        OutboxEvent::Message { connection, user, op, data, kind } => {
            let message =
                Message { op: *op, d: data.as_deref().and_then(raw), t: kind.as_deref().map(JsonString::from) };
            What::Message { connection, user: user.as_deref(), message }
        }
        OutboxEvent::CutMessage { connection, user, op, data, kind_json } => {
            let kind = JsonString::Raw(kind_json.into());
            let message = Message { op: *op, d: data.as_deref().and_then(raw), t: Some(kind) };
            What::Message { connection, user: user.as_deref(), message }
        }
        OutboxEvent::Disconnection { connection, user } => What::Disconnection { connection, user: user.as_deref() },
        OutboxEvent::Undelivered { user, seq, devices, payload } => {
            What::Undelivered { user, s: *seq, devices, message: raw(payload) }
        }
        OutboxEvent::Delivered { user, device, from, to } => {
            What::Delivered { user, device: device.as_deref(), from: *from, to: *to }
        }
        OutboxEvent::Expired { user, from, to } => What::Expired { user, from: *from, to: *to },
        OutboxEvent::Dropped { user, from, to, count } => What::Dropped { user, from: *from, to: *to, count: *count },
        OutboxEvent::Overflow { since_ms, lost, at_least } => {
            What::Overflow { since: *since_ms, lost: Lost(lost), at_least: *at_least }
        }
    }
}

/// JSON text as it stands. It was JSON when it was taken in; what a disk has made of it since would spoil the whole batch.
fn raw(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_type_of_event_has_the_fields_that_are_documented() {
        let (connection, alice) = (|| "c0ffee-7".to_owned(), || "alice".to_owned());
        let said = |user, data: Option<&str>, kind: Option<&str>| OutboxEvent::Message {
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
                said(Some(alice()), Some("[1.0]"), Some("T\"")),
                r#""type":"message","at":5,"connection":"c0ffee-7","user":"alice","message":{"op":0,"d":[1.0],"t":"T\""}"#,
            ),
            (
                said(None, None, None),
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
            let kept = KeptEvent { number: 1, id: "ab-1".into(), at_ms: 5, event };
            let text = String::from_utf8(encode(&[kept])).unwrap();
            assert_eq!(text, format!("{{\"events\":[{{\"id\":\"ab-1\",{expected}}}]}}"));
        }
        let none: Value = serde_json::from_slice(&encode(&[])).unwrap();
        assert_eq!(none, json!({ "events": [] }));
    }

    #[test]
    fn what_is_not_json_any_more_does_not_spoil_the_others() {
        let broken = OutboxEvent::Undelivered { user: "a".into(), seq: 1, devices: vec![], payload: "{\"op\":".into() };
        let kept = |event| KeptEvent { number: 1, id: "ab-1".into(), at_ms: 5, event };
        let whole = OutboxEvent::Connection { connection: "c".into() };
        let body: Value = serde_json::from_slice(&encode(&[kept(broken), kept(whole)])).unwrap();
        assert_eq!((&body["events"][0]["message"], &body["events"][1]["connection"]), (&Value::Null, &json!("c")));
    }
}
