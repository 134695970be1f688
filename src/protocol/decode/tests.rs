use proptest::prelude::*;

use super::*;

#[test]
fn frames_of_original_clients_are_decoded() {
    let ClientFrame::Authentication(frame) = decode(r#"{"op":2,"d":{"token":"alice","shouldSync":false}}"#).unwrap()
    else {
        panic!("expected an authentication")
    };
    assert!(!frame.should_sync && frame.data["token"] == "alice");
    assert_eq!((frame.after, frame.device), (None, None));
    assert!(matches!(decode(r#"{"op":11,"d":{}}"#), Ok(ClientFrame::HeartbeatAck)));
    assert!(matches!(decode(r#"{"op":1}"#), Ok(ClientFrame::Heartbeat)));
    let ClientFrame::Dispatch(frame) = decode(r#"{"op":0,"d":{"v":"1.5.3"},"t":"CLIENT_VERSION"}"#).unwrap() else {
        panic!("expected a message")
    };
    assert_eq!((frame.data.unwrap().get(), frame.kind.unwrap().text()), (r#"{"v":"1.5.3"}"#, Some("CLIENT_VERSION")));
    assert!(decode(r#"{"t":"T","d":[1,"x"],"op":0,"s":4,"o":{"sync":true},"more":null}"#).is_ok());
    assert!(decode(r#"{"op":99,"t":null}"#).is_ok());
}

#[test]
fn frames_of_resuming_client_are_decoded() {
    let text = r#"{"op":2,"d":{"token":"alice","after":41,"device":"phone-1","shouldSync":true,"more":[1]}}"#;
    let ClientFrame::Authentication(frame) = decode(text).unwrap() else { panic!("expected an authentication") };
    assert_eq!((frame.after, frame.device), (Some(41), Some(DeviceId::new("phone-1").unwrap())));
    // The authenticator does not get the server's own fields.
    assert_eq!(Value::Object(frame.data), serde_json::json!({"token": "alice", "more": [1]}));
    let ClientFrame::Authentication(frame) = decode(r#"{"op":2,"d":{"after":0}}"#).unwrap() else {
        panic!("expected an authentication")
    };
    assert_eq!(frame.after, Some(0));
    let text = r#"{"op":2,"d":{"token":"alice","device":{"os":"an application's own"}}}"#;
    let ClientFrame::Authentication(frame) = decode(text).unwrap() else { panic!("expected an authentication") };
    assert!(frame.device.is_none() && frame.data["device"]["os"] == "an application's own");
    assert!(matches!(decode(r#"{"op":3,"d":{"s":41}}"#), Ok(ClientFrame::Ack { s: 41 })));
    assert!(matches!(decode(r#"{"op":3,"d":{"s":0,"more":1}}"#), Ok(ClientFrame::Ack { s: 0 })));
}

/// Reads `data/protocol/malformed.txt`: a close code, a tab, and a frame that must cause it, as a JSON string.
#[test]
fn malformed_frame_is_rejected_with_its_close_code() {
    let table = include_str!("../../../data/protocol/malformed.txt");
    let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert!(rows.len() >= 40);
    for row in rows {
        let (code, text) = row.split_once('\t').unwrap();
        let text: String = serde_json::from_str(text).unwrap();
        let rejected = decode(&text).expect_err(&text);
        assert_eq!(rejected.close_code().code().to_string(), code, "{text:?}: {rejected}");
    }
}

#[test]
fn lone_surrogate_in_forwarded_text_is_unchanged() {
    let text = r#"{"op":0,"d":{"x":"\ud83d"},"t":"T\ude00"}"#;
    let ClientFrame::Dispatch(sent) = decode(text).unwrap() else { panic!("expected a message") };
    assert_eq!(sent.data.unwrap().get(), r#"{"x":"\ud83d"}"#);
    assert_eq!(sent.kind.unwrap().raw(), Some(r#""T\ude00""#));
    let text = r#"{"op":2,"d":{"token":"t","after":3,"name":"a\ud83d","device":"phone","shouldSync":false}}"#;
    let ClientFrame::Authentication(sent) = decode(text).unwrap() else { panic!("expected an authentication") };
    assert_eq!((sent.after, sent.should_sync, sent.token_has_lone_surrogate), (Some(3), false, false));
    assert_eq!(sent.text.unwrap(), r#"{"name":"a\ud83d","token":"t"}"#);
    assert_eq!(Value::Object(sent.data), serde_json::json!({"token": "t", "name": "a\u{fffd}"}));
    // Without `after` the device belongs to the application.
    let text = r#"{"op":2,"d":{"token":"t\ud83d","device":"\ude00"}}"#;
    let ClientFrame::Authentication(sent) = decode(text).unwrap() else { panic!("expected an authentication") };
    assert!(
        sent.token_has_lone_surrogate && sent.device.is_none() && sent.text.unwrap().contains(r#""device":"\ude00""#)
    );
    let ClientFrame::Authentication(sent) = decode(r#"{"op":2,"d":{"token":"\ud83d\ude00"}}"#).unwrap() else {
        panic!("expected an authentication")
    };
    assert!(sent.text.is_none() && !sent.token_has_lone_surrogate && sent.data["token"] == "\u{1f600}");
}

#[test]
fn lone_surrogate_in_other_text_is_rejected() {
    let rejected = decode(r#"{"op":0,"d":"\ud83d","t":"a\ude00","\ude00":1}"#).unwrap_err();
    assert!(rejected.to_string().starts_with("a text has a lone surrogate"), "{rejected}");
    assert_eq!((rejected.close_code(), rejected.reason()), (CloseCode::Policy, "a text has a lone surrogate"));
}

#[test]
fn each_error_has_reason_that_fits_close_frame() {
    let frames = ["{", "{}", r#"{"op":5}"#, r#"{"op":2}"#, r#"{"op":3}"#, r#"{"op":0,"\ud83d":1}"#];
    let reasons: Vec<&str> = frames.iter().map(|frame| decode(frame).unwrap_err().reason()).collect();
    assert!(reasons.iter().all(|reason| (1..=123).contains(&reason.len())), "{reasons:?}");
    assert!(reasons.iter().enumerate().all(|(at, reason)| !reasons[..at].contains(reason)), "{reasons:?}");
}

#[test]
fn deep_nesting_is_rejected_before_parsing() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let text = format!("{{\"op\":0,\"d\":{}1{}}}", open.repeat(200_000), close.repeat(200_000));
        assert!(matches!(decode(&text), Err(FrameError::TooDeep)));
    }
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(text in ".*") {
        _ = decode(&text);
    }

    #[test]
    fn damaged_frame_causes_no_panic(at in 0_usize..64, with in any::<char>(), cut in 0_usize..64) {
        let mut text: Vec<char> = r#"{"op":2,"d":{"token":"alice","shouldSync":true},"t":"\u0041"}"#.chars().collect();
        let at = at.min(text.len() - 1);
        text[at] = with;
        text.truncate(text.len() - cut.min(text.len()));
        _ = decode(&text.into_iter().collect::<String>());
    }
}
