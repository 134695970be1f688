//! Parses a typed line into a frame.

use std::collections::BTreeMap;

use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

/// A typed line.
#[derive(Debug)]
pub enum Input {
    /// An empty line.
    Empty,
    /// The command `/quit`.
    Quit,
    /// A frame to send.
    Frame { op: u64, kind: Option<String>, data: Box<RawValue> },
}

/// Form of a frame, for error messages.
const FRAME_FORM: &str = "a frame looks like {\"op\":0,\"d\":{},\"t\":\"TYPE\"}";

impl Input {
    /// Parses a line. A line that begins with a brace must be JSON.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        match line {
            "" => Ok(Self::Empty),
            "/quit" => Ok(Self::Quit),
            json if json.starts_with('{') => object(json),
            text => text_frame(text),
        }
    }
}

/// Creates a message with the line as its text.
fn text_frame(text: &str) -> Result<Input, String> {
    let data = to_raw_value(&json!({ "text": text })).map_err(|error| error.to_string())?;
    Ok(Input::Frame { op: 0, kind: Some("TEXT".into()), data })
}

/// Parses a JSON object. One without `op`, `t` and `d` is sent as text.
fn object(text: &str) -> Result<Input, String> {
    let read = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text);
    let mut fields =
        read.map_err(|error| format!("the line begins with a brace but is not JSON ({error}); {FRAME_FORM}"))?;
    let found = ["op", "t", "d"].map(|name| fields.remove(name));
    if found.iter().all(Option::is_none) {
        return text_frame(text);
    }
    if let Some(other) = fields.keys().next() {
        return Err(format!("a frame has only op, d and t, not \"{other}\"; {FRAME_FORM}"));
    }
    let [op, kind, data] = found.map(|field| field.filter(|field| field.get() != "null"));
    let op = op
        .map_or(Ok(0), |op| op.get().parse())
        .map_err(|_| format!("op must be a whole number, 0 or more; {FRAME_FORM}"))?;
    let kind = kind.map(|kind| serde_json::from_str(kind.get())).transpose();
    let kind = kind.map_err(|_| format!("t must be a string; {FRAME_FORM}"))?;
    let empty = || RawValue::from_string("{}".into()).expect("an empty object is JSON");
    Ok(Input::Frame { op, kind, data: data.unwrap_or_else(empty) })
}

#[cfg(test)]
mod tests;
