use proptest::prelude::*;

use super::*;

#[test]
fn greeting_always_has_rules_array() {
    assert_eq!(hello(&Hello::default()), r#"{"op":10,"d":{"rules":[]}}"#);
    let all = Hello {
        heartbeat_interval_ms: Some(10_000),
        reconnect_interval_ms: Some(5_000),
        authentication_timeout_ms: Some(10_000),
        enforce_equal_versions: true,
        store_messages: true,
        sends_user_object: true,
    };
    let text = concat!(
        r#"{"op":10,"d":{"c_heartbeat_interval":10000,"c_reconnect_interval":5000,"#,
        r#""c_authentication_timeout":10000,"rules":["enforce_equal_versions","store_messages","sends_user_object"]}}"#
    );
    assert_eq!(hello(&all), text);
}

/// Compares with `data/protocol/original-exchange.txt`, recorded from a server of the original, byte for byte.
#[test]
fn frames_equal_those_of_original() {
    let recorded = include_str!("../../../data/protocol/original-exchange.txt");
    let from_server: Vec<&str> = recorded.lines().filter_map(|line| line.strip_prefix("server ")).collect();
    let user = json!({"id": "alice"});
    let mut ours = vec![
        hello(&Hello { authentication_timeout_ms: Some(10_000), sends_user_object: true, ..Hello::default() }),
        authenticated(user.as_object()),
    ];
    for n in 0..3_u64 {
        let payload = Payload::encode(0, Some(&format!("{{\"n\":{n}}}")), Some("OFF")).unwrap();
        let mut out = Vec::new();
        delivery(&payload, Some(n + 1), &mut out);
        ours.push(String::from_utf8(out).unwrap());
    }
    assert_eq!(ours, from_server);
}

#[test]
fn repeated_heartbeat_carries_attempt_number() {
    assert_eq!(heartbeat(None), r#"{"op":1,"d":{}}"#);
    assert_eq!(heartbeat(Some((2, 3))), r#"{"op":1,"d":{"tries":2,"max":3}}"#);
    assert_eq!(authenticated(None), r#"{"op":22,"d":{}}"#);
}

#[test]
fn resumed_frame_carries_range_and_gap() {
    assert_eq!(resumed(1, 57, None), r#"{"op":13,"d":{"first":1,"last":57,"missed":null}}"#);
    let frame: Value = serde_json::from_str(&resumed(41, 57, Some((12, 40, "quota")))).unwrap();
    let missed = json!({"from": 12, "to": 40, "reason": "quota"});
    assert_eq!(frame, json!({"op": 13, "d": {"first": 41, "last": 57, "missed": missed}}));
}

proptest! {
    #[test]
    fn delivery_is_message_with_position(position in prop::option::of(any::<u64>()), text in ".*") {
        let data = serde_json::to_string(&text).unwrap();
        let payload = Payload::encode(0, Some(&data), Some("T")).unwrap();
        let mut out = Vec::new();
        delivery(&payload, position, &mut out);
        prop_assert_eq!(out.len(), delivery_len(&payload, position));
        let value: Value = serde_json::from_slice(&out).unwrap();
        let mut expected = json!({"op": 0, "d": text, "t": "T"});
        if let Some(position) = position {
            expected["s"] = position.into();
        }
        prop_assert_eq!(value, expected);
    }
}
