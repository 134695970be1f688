use std::time::Duration;

use super::*;
use crate::hub::RejectionReason;
use crate::message::CollapseKey;

fn error(body: &str) -> String {
    read(body.as_bytes(), 3).expect_err(body).to_string()
}

fn dispatched(body: &str) -> Dispatch {
    match read(body.as_bytes(), 3).unwrap() {
        DispatchRequest::Dispatch(dispatch) => dispatch,
        DispatchRequest::Disconnect(_) => panic!("expected a dispatch"),
    }
}

#[test]
fn dispatch_is_parsed_with_its_data_unchanged() {
    let body =
        r#"{"message":{"op":0,"d":{"n": 1.0},"t":"T","o":{"sync":false}},"recipients":["a","b"],"excluding":["c"]}"#;
    let dispatch = dispatched(body);
    assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"n": 1.0},"t":"T"}"#);
    assert!(!dispatch.sync && dispatch.rejected.is_empty());
    assert_eq!(dispatch.excluding, [UserId::new("c").unwrap()]);
    let dispatch = dispatched(r#"{"message":{},"recipients":["*"]}"#);
    assert!(dispatch.sync && dispatch.recipients == Recipients::Everyone);
    let nulls = dispatched(r#"{"message":{"o":null},"recipients":["a"],"id":null}"#);
    assert!(nulls.sync && nulls.id.is_none() && nulls.ttl.is_none() && nulls.collapse.is_none());
}

#[test]
fn dispatch_with_id_ttl_and_collapse_is_parsed() {
    let body = r#"{"message":{"o":{"ttl":4294967295,"collapse":"score"}},"recipients":["a"],"id":"order-7"}"#;
    let dispatch = dispatched(body);
    assert_eq!(dispatch.ttl, Some(Duration::from_secs(u32::MAX.into())));
    assert_eq!(dispatch.collapse, Some(CollapseKey::new("score").unwrap()));
    assert_eq!(dispatch.id, Some(DispatchId::new("order-7").unwrap()));
    // An unsynced message can have an id too: a retry of it is not sent twice.
    assert!(dispatched(r#"{"message":{"o":{"sync":false}},"recipients":["*"],"id":"x"}"#).id.is_some());
    let longest = format!(r#"{{"message":{{}},"recipients":[],"id":"{}"}}"#, "x".repeat(128));
    assert!(dispatched(&longest).id.is_some());
}

#[test]
fn invalid_recipient_is_rejected_and_others_are_accepted() {
    let dispatch = dispatched(r#"{"message":{},"recipients":["a","","b\u0000"]}"#);
    assert_eq!(dispatch.recipients, Recipients::Users(vec![UserId::new("a").unwrap()]));
    let reasons: Vec<_> = dispatch.rejected.iter().map(|one| (&*one.user, one.reason.as_str())).collect();
    assert_eq!(reasons, [("", "invalid"), ("b\0", "invalid")]);
}

#[test]
fn invalid_dispatch_is_rejected_with_reason() {
    let disconnect = r#"{"message":{"op":5,"t":"DISCONNECT_CLIENT","o":{}},"recipients":[]}"#;
    for (body, expected) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be an object, not an array"),
        ("{}", "`message` is missing"),
        (r#"{"message":{}}"#, "`recipients` is missing"),
        (r#"{"message":{},"recipients":"a"}"#, "`recipients` must be an array of user ids, not a string"),
        (r#"{"message":{},"recipients":[1]}"#, "`recipients[0]` must be a string, not 1"),
        (r#"{"message":{},"recipients":["a","*"]}"#, "cannot be combined"),
        (r#"{"message":{},"recipients":[],"to":[]}"#, "`to` is not a field of a dispatch"),
        (r#"[{},["a"]]"#, "must be an object"),
        (r#"{"message":[0,1,"T"],"recipients":[]}"#, "`message` must be an object"),
        (r#"{"message":{"o":[false]},"recipients":[]}"#, "`message.o` must be an object"),
        (r#"{"message":null,"recipients":[]}"#, "not a dispatch"),
        (r#"{"message":{"x":1},"recipients":[]}"#, "`x` is not a field of `message`"),
        (r#"{"message":{"op":-1},"recipients":[]}"#, "`message.op` must be a whole number, 0 or more, not -1"),
        (r#"{"message":{"op":1},"recipients":[]}"#, "belongs to the protocol"),
        (r#"{"message":{"op":22},"recipients":[]}"#, "belongs to the protocol"),
        (r#"{"message":{"op":5,"t":"X"},"recipients":[]}"#, "DISCONNECT_CLIENT"),
        (&disconnect.replace("[]}", r#"[],"id":"x"}"#), "are for messages"),
        (&disconnect.replace(r#""o":{}"#, r#""o":{"ttl":1}"#), "are for messages"),
        (r#"{"message":{"o":{"until":1}},"recipients":[]}"#, "`until` is not a field of `message.o`"),
        (
            r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#,
            "`message.o.ttl` must be a whole number from 1 to 4294967295, not 0",
        ),
        (r#"{"message":{"o":{"ttl":-1}},"recipients":[]}"#, "not a dispatch"),
        (r#"{"message":{"o":{"sync":1}},"recipients":[]}"#, "`message.o.sync` must be true or false, not 1"),
        (r#"{"message":{"o":{"ttl":4294967296}},"recipients":[]}"#, "not a dispatch"),
        (r#"{"message":{"o":{"collapse":""}},"recipients":[]}"#, "a collapse key must have 1 to 64 characters"),
        (r#"{"message":{"o":{"collapse":7}},"recipients":[]}"#, "not a dispatch"),
        (r#"{"message":{"o":{"ttl":1,"sync":false}},"recipients":["a"]}"#, "for stored messages"),
        (r#"{"message":{"o":{"collapse":"k","sync":false}},"recipients":["a"]}"#, "for stored messages"),
        (r#"{"message":{"o":{"ttl":1}},"recipients":["*"]}"#, "for stored messages"),
        (r#"{"message":{},"recipients":["a","b","c","d"]}"#, "at most 3"),
        (r#"{"message":{},"recipients":[],"id":""}"#, "a dispatch id must have 1 to 128 characters"),
        (r#"{"message":{},"recipients":[],"id":"a\u0000"}"#, "a dispatch id must have 1 to 128 characters"),
        (r#"{"message":{},"recipients":[],"id":7}"#, "not a dispatch"),
        (r#"{"message":{},"recipients":[]} x"#, "not JSON"),
    ] {
        let error_text = error(body);
        assert!(error_text.contains(expected), "{body}: expected {expected:?} in {error_text:?}");
    }
    for (body, path) in [
        (r#"{"message":{},"recipients":["a\ud83d"],"id":"x\ud83d"}"#, "id has"),
        (r#"{"message":{"d":"\ud83d","o":{"collapse":"\ude00"}},"recipients":["a"]}"#, "message.o.collapse has"),
        (r#"{"message":{},"recipients":["a"],"id":"x\ud83d"}"#, "id has"),
    ] {
        let error = error(body);
        assert!(error.starts_with(path) && error.contains("a lone surrogate"), "{body}: {error}");
    }
    let long = format!(r#"{{"message":{{}},"recipients":[],"id":"{}"}}"#, "x".repeat(129));
    assert!(error(&long).contains("a dispatch id must have"));
    let deep = format!(r#"{{"message":{{"d":{}{}}},"recipients":[]}}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(error(&deep).contains("nesting levels"), "{}", error(&deep));
}

#[test]
fn lone_surrogate_is_forwarded_in_data_and_rejected_in_recipient() {
    let body = r#"{"message":{"d":{"x\ud83d":"\ude00"},"t":"T\ud83d"},"recipients":["a"]}"#;
    let expected = br#"{"op":0,"d":{"x\ud83d":"\ude00"},"t":"T\ud83d"}"#;
    assert_eq!(&dispatched(body).payload.as_bytes()[..], expected);
    let body =
        r#"{"message":{"d":"\ud83d","o":{"ttl":9}},"recipients":["a","b\ud83d"],"excluding":["\ude00","c"],"id":"i"}"#;
    let dispatch = dispatched(body);
    assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":"\ud83d"}"#);
    assert_eq!(dispatch.recipients, Recipients::Users(vec![UserId::new("a").unwrap()]));
    assert_eq!(dispatch.excluding, [UserId::new("c").unwrap()]);
    assert_eq!(dispatch.rejected, [Rejected { user: r#""b\ud83d""#.into(), reason: RejectionReason::InvalidUnicode }]);
    assert!(dispatch.ttl.is_some() && dispatch.id.is_some());
    let many = r#"{"message":{},"recipients":["\ud83d","\ud83d","\ud83d","\ud83d"]}"#;
    assert!(error(many).contains("limits.recipients"));
}

#[test]
fn disconnect_client_event_is_parsed_as_disconnect() {
    let body = r#"{"message":{"op":5,"d":{},"t":"DISCONNECT_CLIENT"},"recipients":["a"]}"#;
    assert!(matches!(read(body.as_bytes(), 3), Ok(DispatchRequest::Disconnect(_))));
}
