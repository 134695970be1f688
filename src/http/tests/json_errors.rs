//! Tests that errors name the field and speak of JSON, never of Rust.

use super::*;

/// Words of Rust, of serde and of its crates.
const FOREIGN: [&str; 22] = [
    "u8",
    "u16",
    "u32",
    "u64",
    "usize",
    "i32",
    "i64",
    "f64",
    "nonzero",
    "map",
    "sequence",
    "unit",
    "struct",
    "enum",
    "variant",
    "tuple",
    "Option",
    "borrowed",
    "invalid type",
    "invalid value",
    "deserialize",
    "serde",
];

fn assert_json_terms(request: &str, answer: &Answer, expected: &str) {
    let json = answer.json();
    let text = json["error"]["message"].as_str().expect("a message");
    assert!(text.contains(expected), "{request}: expected {expected:?} in {text:?}");
    let words: Vec<&str> = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
    for foreign in FOREIGN {
        let found = if foreign.contains(' ') { text.contains(foreign) } else { words.contains(&foreign) };
        assert!(!found, "{request}: {foreign:?} in {text:?}");
    }
}

#[tokio::test]
async fn wrong_kind_in_any_field_of_a_dispatch_is_described_with_its_path() {
    const VALUES: [(&str, &str); 9] = [
        ("null", "null"),
        ("true", "boolean"),
        ("7", "whole"),
        ("-1", "negative"),
        ("1.5", "fraction"),
        ("18446744073709551616", "fraction"),
        (r#""x""#, "string"),
        ("[7]", "array"),
        (r#"{"a":1}"#, "object"),
    ];
    let users = "must be an array of user ids, not ";
    let api = TestApi::new();
    for (path, template, accepted, expected) in [
        ("message", r#"{"message":$,"recipients":[]}"#, &["object"][..], "must be an object, not "),
        ("recipients", r#"{"message":{},"recipients":$}"#, &["array"], users),
        ("recipients[1]", r#"{"message":{},"recipients":["a",$]}"#, &["string"], "must be a string, not "),
        ("excluding", r#"{"message":{},"recipients":[],"excluding":$}"#, &["array"], users),
        ("excluding[0]", r#"{"message":{},"recipients":[],"excluding":[$]}"#, &["string"], "must be a string, not "),
        ("id", r#"{"message":{},"recipients":[],"id":$}"#, &["string", "null"], "must be a string, not "),
        (
            "message.op",
            r#"{"message":{"op":$},"recipients":[]}"#,
            &["whole"],
            "must be a whole number, 0 or more, not ",
        ),
        ("message.t", r#"{"message":{"t":$},"recipients":[]}"#, &["string", "null"], "must be a string, not "),
        ("message.o", r#"{"message":{"o":$},"recipients":[]}"#, &["object", "null"], "must be an object, not "),
        (
            "message.o.sync",
            r#"{"message":{"o":{"sync":$}},"recipients":[]}"#,
            &["boolean"],
            "must be true or false, not ",
        ),
        (
            "message.o.ttl",
            r#"{"message":{"o":{"ttl":$}},"recipients":[]}"#,
            &["whole", "null"],
            "must be a whole number from 1 to 4294967295, not ",
        ),
        (
            "message.o.collapse",
            r#"{"message":{"o":{"collapse":$}},"recipients":[]}"#,
            &["string", "null"],
            "must be a string, not ",
        ),
    ] {
        for (value, kind) in VALUES.into_iter().filter(|(_, kind)| !accepted.contains(kind)) {
            let body = template.replace('$', value);
            let answer = api.call("POST", "/v1/dispatch", &[], body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{kind} {body}");
            assert_json_terms(&body, &answer, &format!("`{path}` {expected}"));
        }
    }
}

#[tokio::test]
async fn other_mistakes_in_a_dispatch_are_described_in_terms_of_json() {
    let api = TestApi::new();
    for (body, expected) in [
        ("7", "a dispatch must be an object, not 7"),
        ("[]", "a dispatch must be an object, not an array"),
        ("{}", "`message` is missing"),
        (r#"{"message":{}}"#, "`recipients` is missing"),
        (
            r#"{"message":{},"recipients":[],"to":1}"#,
            "`to` is not a field of a dispatch: it may have `message`, `recipients`",
        ),
        (r#"{"message":{"x":1},"recipients":[]}"#, "`x` is not a field of `message`"),
        (r#"{"message":{"o":{"until":1}},"recipients":[]}"#, "`until` is not a field of `message.o`"),
        (r#"{"message":{"op":1,"op":2},"recipients":[]}"#, "`op` occurs twice"),
        (
            r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#,
            "`message.o.ttl` must be a whole number from 1 to 4294967295, not 0",
        ),
        (r#"{"message":{"op":1e999},"recipients":[]}"#, "number"),
        (r#"{"message":7,"recipients":"#, "expected an object, but found 7"),
        (r#"{"message":{},"recipients":[],}"#, "not JSON"),
        (r#"{"message":{},"recipients":[]} {}"#, "not JSON"),
        ("", "not JSON"),
        ("nul", "not JSON"),
    ] {
        let answer = api.call("POST", "/v1/dispatch", &[], body).await;
        assert!(answer.status.is_client_error(), "{body}");
        assert_json_terms(body, &answer, expected);
    }
}

#[tokio::test]
async fn wrong_parameter_is_described_with_its_name() {
    let api = TestApi::new();
    for (path, names) in [
        ("/v1/users", &["online", "limit"][..]),
        ("/v1/users/alice/messages", &["after", "limit"]),
        ("/v1/events", &["all", "observe"]),
    ] {
        for name in names {
            let is_flag = matches!(*name, "online" | "all" | "observe");
            for value in ["", "x", "-1", "1.5", "99999999999999999999", "%00", "[]", "null", "True"] {
                let request = format!("{path}?{name}={value}");
                let answer = api.get(&request).await;
                assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{request}: {}", answer.text());
                let expected = match value {
                    _ if is_flag => format!("{name} must be true or false"),
                    "99999999999999999999" => format!("{name} is too large"),
                    _ => format!("{name} must be a whole number, 0 or more"),
                };
                assert_json_terms(&request, &answer, &expected);
            }
        }
    }
}
