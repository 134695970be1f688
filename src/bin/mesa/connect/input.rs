//! What a person typed, as what is to be sent.

use std::collections::BTreeMap;

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

const FORM: &str = "a frame looks like {\"op\":0,\"d\":{},\"t\":\"TYPE\"}";

impl Typed {
    /// Reads a line. What begins with a brace is meant as JSON: where it is none, that is said and nothing sent.
    pub fn read(line: &str) -> Result<Self, String> {
        let line = line.trim();
        match line {
            "" => Ok(Self::Nothing),
            "/quit" => Ok(Self::Quit),
            json if json.starts_with('{') => object(json),
            text => words(text),
        }
    }
}

/// A message with what was typed as its text.
fn words(text: &str) -> Result<Typed, String> {
    let data = to_raw_value(&json!({ "text": text })).map_err(|error| error.to_string())?;
    Ok(Typed::Frame { op: 0, kind: Some("TEXT".into()), data })
}

/// A frame, if it has anything of one; else it is text like any other.
fn object(text: &str) -> Result<Typed, String> {
    let read = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text);
    let mut fields = read.map_err(|error| format!("this begins with a brace and is not JSON ({error}); {FORM}"))?;
    let found = ["op", "t", "d"].map(|name| fields.remove(name));
    if found.iter().all(Option::is_none) {
        return words(text);
    }
    if let Some(other) = fields.keys().next() {
        return Err(format!("a frame has op, d and t, and no \"{other}\"; {FORM}"));
    }
    let [op, kind, data] = found.map(|field| field.filter(|field| field.get() != "null"));
    let op =
        op.map_or(Ok(0), |op| op.get().parse()).map_err(|_| format!("op must be a whole number, 0 or more; {FORM}"))?;
    let kind = kind.map(|kind| serde_json::from_str(kind.get())).transpose();
    let kind = kind.map_err(|_| format!("t must be a string; {FORM}"))?;
    let empty = || RawValue::from_string("{}".into()).expect("an empty object is JSON");
    Ok(Typed::Frame { op, kind, data: data.unwrap_or_else(empty) })
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
            ("{}", r#"0 TEXT {"text":"{}"}"#),
            (r#"{"text":"hi"}"#, r#"0 TEXT {"text":"{\"text\":\"hi\"}"}"#),
            (r#"["op"]"#, r#"0 TEXT {"text":"[\"op\"]"}"#),
            (r#"{"op":null,"t":null}"#, "0  {}"),
            (r#"{"op":-1}"#, "refused"),
            (r#"{"op":1.5}"#, "refused"),
            (r#"{"t":7}"#, "refused"),
            (r#"{"op":0,"o":{}}"#, "refused"),
            (r#"{"text":"hi""#, "refused"),
            (r#"{"op":0"#, "refused"),
        ] {
            assert_eq!(read(line), expected, "{line:?}");
        }
    }
}
