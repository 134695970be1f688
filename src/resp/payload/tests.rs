use std::time::Duration;

use super::*;
use crate::message::CollapseKey;

fn ids(text: &str) -> Vec<UserId> {
    text.split_whitespace().map(|id| UserId::new(id).unwrap()).collect()
}

fn dispatches(text: &str) -> Vec<Dispatch> {
    match parse_publish(text.as_bytes(), 4).unwrap_or_else(|error| panic!("{text}: {error}")) {
        Published::Dispatches(dispatches) => dispatches,
        other @ Published::Disconnect(_) => panic!("expected dispatches, not {other:?}"),
    }
}

#[test]
fn published_dispatch_is_parsed_as_the_original_sends_it() {
    let text = r#"{"message":{"op":0,"d":{"n": 1},"t":"T","o":{"sync":false,"more":1},"s":3},"recipients":["a",7]}"#;
    let [dispatch] = &dispatches(text)[..] else { panic!("expected one dispatch") };
    assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"n": 1},"t":"T"}"#);
    assert!(!dispatch.sync);
    assert_eq!(dispatch.recipients, Recipients::Users(ids("a 7")));
    let [dispatch] = &dispatches(r#"{"message":{},"recipients":["a","\u0000"]}"#)[..] else {
        panic!("expected one dispatch")
    };
    assert!(dispatch.sync && dispatch.rejected.len() == 1);
    assert!(
        matches!(&dispatches(r#"{"message":{},"recipients":[]}"#)[..], [one] if one.recipients == Recipients::Users(vec![]))
    );
    let stored = r#"{"message":{"o":{"ttl":5,"collapse":"k"}},"recipients":["a"]}"#;
    let [dispatch] = &dispatches(stored)[..] else { panic!("expected one dispatch") };
    assert_eq!(dispatch.ttl, Some(Duration::from_secs(5)));
    assert_eq!(dispatch.collapse, Some(CollapseKey::new("k").unwrap()));
}

#[test]
fn lone_surrogate_is_forwarded_in_data_and_rejected_elsewhere() {
    let text = r#"{"message":{"d":"\ud83d","t":"T\ude00"},"recipients":["a","\ud83d",7]}"#;
    let [dispatch] = &dispatches(text)[..] else { panic!("expected one dispatch") };
    assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":"\ud83d","t":"T\ude00"}"#);
    assert_eq!(dispatch.recipients, Recipients::Users(ids("a 7")));
    assert_eq!(dispatch.rejected, [Rejected { user: r#""\ud83d""#.into(), reason: RejectionReason::InvalidUnicode }]);
    let text = r#"{"message":{"t":"\ud83d","o":{"collapse":"\ud83d"}},"recipients":["\ud83d"]}"#;
    let error = parse_publish(text.as_bytes(), 4).unwrap_err();
    assert!(error.starts_with("o.collapse has a lone surrogate"), "{error}");
    let user = UserId::new("a").unwrap();
    let list = r#"[{"t":"\ud83d"},{"d":{"x":"\ud83d"}}]"#;
    assert_eq!(
        &parse_hset_value(list.as_bytes(), user.clone()).unwrap().payload.as_bytes()[..],
        br#"{"op":0,"d":{"x":"\ud83d"}}"#
    );
    assert_eq!(
        &parse_hset_value(br#"[{"t":"\ud83d"}]"#, user).unwrap().payload.as_bytes()[..],
        br#"{"op":0,"t":"\ud83d"}"#
    );
    assert!(
        parse_portal_announcement(br#"{"id":"\ud83d","ready":true}"#)
            .unwrap_err()
            .starts_with("id has a lone surrogate")
    );
}

#[test]
fn user_named_with_broadcast_gets_one_stored_message() {
    let [everyone, named] = &dispatches(r#"{"message":{"t":"T"},"recipients":["*","a"]}"#)[..] else {
        panic!("expected two dispatches")
    };
    assert_eq!((&everyone.recipients, &everyone.excluding), (&Recipients::Everyone, &ids("a")));
    assert_eq!((&named.recipients, named.sync), (&Recipients::Users(ids("a")), true));
    let [everyone] = &dispatches(r#"{"message":{"t":"T"},"recipients":["*"]}"#)[..] else {
        panic!("expected one dispatch")
    };
    assert_eq!((&everyone.recipients, &everyone.excluding), (&Recipients::Everyone, &ids("")));
}

#[test]
fn disconnect_client_event_is_parsed_as_disconnect() {
    let event =
        |recipients| format!(r#"{{"message":{{"op":5,"d":{{}},"t":"DISCONNECT_CLIENT"}},"recipients":{recipients}}}"#);
    for (recipients, expected) in [(r#"["a"]"#, Recipients::Users(ids("a"))), (r#"["*"]"#, Recipients::Everyone)] {
        let read = parse_publish(event(recipients).as_bytes(), 4).unwrap();
        assert!(matches!(read, Published::Disconnect(read) if read == expected), "{recipients}");
    }
}

#[test]
fn hset_value_yields_its_last_message() {
    let parse = |text: &str| parse_hset_value(text.as_bytes(), UserId::new("a").unwrap());
    let dispatch = parse(r#" [ {"op":0,"d":1}, {"op":0,"d":{"a":[1,2]},"t":"T"} ] "#).unwrap();
    assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"a":[1,2]},"t":"T"}"#);
    assert_eq!(dispatch.recipients, Recipients::Users(ids("a")));
    assert!(!parse(r#"[{"o":{"sync":false}}]"#).unwrap().sync);
    for (text, expected) in [
        ("[]", "HDEL"),
        ("", "not a list"),
        ("{}", "not a list"),
        ("[{}", "not a list"),
        ("[1]", "expected an object"),
        ("[[0]]", "expected an object"),
        (r#"[{"op":5,"t":"DISCONNECT_CLIENT"}]"#, "belongs to the protocol"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: expected {expected:?} in {error:?}");
    }
}

#[test]
fn invalid_publish_is_rejected_with_reason() {
    let deep = format!(r#"{{"message":{{"d":{}{}}},"recipients":[]}}"#, "[".repeat(5000), "]".repeat(5000));
    for (text, expected) in [
        ("", "expected an object"),
        ("nonsense", "expected an object"),
        ("[]", "expected an object"),
        ("{", "the text is not a dispatch: the text ends"),
        ("{}", "missing field `message`"),
        (r#"{"message":{}}"#, "missing field `recipients`"),
        (r#"{"message":[],"recipients":[]}"#, "not a message: expected an object"),
        (r#"{"message":{"op":-1},"recipients":[]}"#, "not a message: expected a whole number, 0 or more, but found -1"),
        (r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#, "from 1 to 4294967295, but found 0"),
        (r#"{"message":{"op":10},"recipients":[]}"#, "belongs to the protocol"),
        (r#"{"message":{"op":5,"t":"X"},"recipients":[]}"#, "DISCONNECT_CLIENT"),
        (r#"{"message":{},"recipients":"a"}"#, "not a dispatch"),
        (
            r#"{"message":{},"recipients":[null]}"#,
            "expected a user id, which is a string or an integer, but found null",
        ),
        (r#"{"message":{},"recipients":[-1]}"#, "expected a user id"),
        (r#"{"message":{},"recipients":[1,2,3,4,5]}"#, "at most 4"),
        (r#"{"message":{"o":{"ttl":1,"sync":false}},"recipients":["a"]}"#, "for stored messages"),
        (r#"{"message":{"o":{"collapse":"k"}},"recipients":["*"]}"#, "for stored messages"),
        (r#"{"message":{"o":{"collapse":""}},"recipients":["a"]}"#, "a collapse key must have"),
        (&deep, "nesting levels"),
    ] {
        let error = parse_publish(text.as_bytes(), 4).unwrap_err();
        assert!(error.contains(expected), "{text}: expected {expected:?} in {error:?}");
    }
}

#[test]
fn portal_announcement_is_parsed() {
    let announcement = parse_portal_announcement(br#"{"id":"x","ready":true,"more":1}"#).unwrap();
    assert_eq!((&*announcement.id, announcement.ready), ("x", true));
    assert!(
        parse_portal_announcement(b"[\"x\",true]").is_err() && parse_portal_announcement(br#"{"id":"x"}"#).is_err()
    );
}
