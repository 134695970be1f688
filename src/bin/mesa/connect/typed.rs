//! What a person typed, as what is to be sent.

use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

/// A line that was typed.
#[derive(Debug)]
pub enum Typed {
    /// An empty one.
    Nothing,
    /// `/quit`
    Quit,
    /// Something to send.
    Frame { op: u64, kind: Option<String>, data: Box<RawValue> },
}

/// A frame that was typed as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    op: Option<u64>,
    d: Option<Box<RawValue>>,
    t: Option<String>,
}

impl Typed {
    /// Reads a line. Whatever begins with a brace is meant as JSON: a slip there is said, not sent as text.
    pub fn read(line: &str) -> Result<Self, String> {
        let line = line.trim();
        match line {
            "" => Ok(Self::Nothing),
            "/quit" => Ok(Self::Quit),
            json if json.starts_with('{') => frame(json),
            text => {
                let data = to_raw_value(&json!({ "text": text })).map_err(|error| error.to_string())?;
                Ok(Self::Frame { op: 0, kind: Some("TEXT".into()), data })
            }
        }
    }
}

fn frame(text: &str) -> Result<Typed, String> {
    let form = "a frame looks like {\"op\":0,\"d\":{},\"t\":\"TYPE\"}";
    match serde_json::from_str(text) {
        Ok(Json { op: None, d: None, t: None }) => Err(format!("op, d or t is needed: {form}")),
        Ok(Json { op, d, t }) => {
            let empty = || RawValue::from_string("{}".into()).expect("an empty object is JSON");
            Ok(Typed::Frame { op: op.unwrap_or(0), kind: t, data: d.unwrap_or_else(empty) })
        }
        Err(error) => Err(format!("{error}; {form}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        match Typed::read(line) {
            Ok(Typed::Frame { op, kind, data }) => format!("{op} {} {data}", kind.unwrap_or_default()),
            Ok(other) => format!("{other:?}"),
            Err(_) => "refused".into(),
        }
    }

    #[test]
    fn a_line_is_a_frame_a_text_or_a_wish() {
        for (line, expected) in [
            ("", "Nothing"),
            ("  ", "Nothing"),
            ("/quit", "Quit"),
            ("hello \"you\"", r#"0 TEXT {"text":"hello \"you\""}"#),
            ("42", r#"0 TEXT {"text":"42"}"#),
            ("/quit now", r#"0 TEXT {"text":"/quit now"}"#),
            (r#"{"t":"TYPING"}"#, "0 TYPING {}"),
            (r#"{"op":3,"d":{"s":41}}"#, r#"3  {"s":41}"#),
            (r#"{"d":[1.0]}"#, "0  [1.0]"),
            ("{}", "refused"),
            (r#"{"text":"hello"}"#, "refused"),
            (r#"{"op":-1}"#, "refused"),
            (r#"{"op":0"#, "refused"),
        ] {
            assert_eq!(read(line), expected, "{line:?}");
        }
    }
}
