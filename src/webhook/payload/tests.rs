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
        (OutboxEvent::Connection { connection: connection() }, r#""type":"connection","at":5,"connection":"c0ffee-7""#),
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
            OutboxEvent::RawTypeMessage {
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
            OutboxEvent::RestartDisconnection { user: alice() },
            r#""type":"disconnection","at":5,"connection":null,"user":"alice","reason":"server_restart""#,
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
