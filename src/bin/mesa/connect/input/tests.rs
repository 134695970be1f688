use super::*;

fn parsed(line: &str) -> String {
    match Input::parse(line) {
        Ok(Input::Frame { op, kind, data }) => format!("{op} {} {data}", kind.unwrap_or_default()),
        Ok(other) => format!("{other:?}"),
        Err(_) => "rejected".into(),
    }
}

#[test]
fn line_is_parsed_as_frame_text_or_command() {
    for (line, expected) in [
        ("", "Empty"),
        ("  ", "Empty"),
        ("/quit", "Quit"),
        ("hello \"you\"", r#"0 TEXT {"text":"hello \"you\""}"#),
        ("42", r#"0 TEXT {"text":"42"}"#),
        ("/quit now", r#"0 TEXT {"text":"/quit now"}"#),
        (r#"{"t":"TYPING"}"#, "0 TYPING {}"),
        (r#"{"op":3,"d":{"s":41}}"#, r#"3  {"s":41}"#),
        (r#"{"d":[1.0]}"#, "0  [1.0]"),
        ("{}", r#"0 TEXT {"text":"{}"}"#),
        (r#"{"text":"hi"}"#, r#"0 TEXT {"text":"{\"text\":\"hi\"}"}"#),
        (r#"["op"]"#, r#"0 TEXT {"text":"[\"op\"]"}"#),
        (r#"{"op":null,"t":null}"#, "0  {}"),
        (r#"{"op":-1}"#, "rejected"),
        (r#"{"op":1.5}"#, "rejected"),
        (r#"{"t":7}"#, "rejected"),
        (r#"{"op":0,"o":{}}"#, "rejected"),
        (r#"{"text":"hi""#, "rejected"),
        (r#"{"op":0"#, "rejected"),
    ] {
        assert_eq!(parsed(line), expected, "{line:?}");
    }
}
