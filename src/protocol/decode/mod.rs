//! Decodes frames of a client. Rejects invalid text, never panics, and borrows where it can.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, error::Category, value::RawValue};

use super::{close_code::CloseCode, opcode};
use crate::{
    logging::json_error,
    message::{DeviceId, JSON_DEPTH_MAX, JsonString, OPCODE_RESERVED_MAX, Seq, json_depth, surrogates},
};

/// Holds a decoded frame of a client.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// An application's message.
    Dispatch(ClientMessage<'a>),
    /// A heartbeat of the client, which the server acknowledges.
    Heartbeat,
    /// The acknowledgement of the server's heartbeat.
    HeartbeatAck,
    /// An authentication.
    Authentication(Authentication),
    /// An acknowledgement up to a sequence of the user's log, from clients that resume.
    Ack {
        /// Last acknowledged sequence; 0 for none.
        s: Seq,
    },
}

/// Holds a message from a client.
#[derive(Debug)]
pub struct ClientMessage<'a> {
    /// Opcode: 0, or one above those of the protocol.
    pub op: u64,
    /// Data, byte for byte as sent.
    pub data: Option<&'a RawValue>,
    /// Type of the message.
    pub kind: Option<JsonString<'a>>,
}

/// Holds the data of an authentication.
#[derive(Debug)]
pub struct Authentication {
    /// Data that the application passed, without the fields below.
    pub data: Map<String, Value>,
    /// `data` as JSON, if a string has a lone surrogate, for which `data` has U+FFFD.
    pub text: Option<String>,
    /// Whether the token has a lone surrogate. Such a token is invalid.
    pub token_has_lone_surrogate: bool,
    /// Whether the client requests pending messages (`shouldSync`). Default true.
    pub should_sync: bool,
    /// Last sequence that the client has processed (`after`), 0 for none. Set if the client resumes.
    pub after: Option<Seq>,
    /// Device of the client (`device`).
    pub device: Option<DeviceId>,
}

/// Describes why a text is not a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    /// The JSON has another structure.
    #[error("not a frame: {0}")]
    Shape(String),
    /// A string has a lone surrogate where none is allowed.
    #[error("{0}")]
    LoneSurrogate(String),
    /// The JSON is nested deeper than [`JSON_DEPTH_MAX`].
    #[error("nested deeper than {JSON_DEPTH_MAX}")]
    TooDeep,
    /// Clients do not send this opcode.
    #[error("opcode {0} is not for clients")]
    Opcode(u64),
    /// The data of an authentication is invalid.
    #[error("{0}")]
    Authentication(&'static str),
    /// An acknowledgement has no sequence.
    #[error("an acknowledgement must look like {{\"op\":3,\"d\":{{\"s\":41}}}}, with a whole number from 0 up")]
    Ack,
}

impl FrameError {
    /// Returns the close code for this error.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::NotJson(_) => CloseCode::NotJson,
            Self::Shape(_)
            | Self::LoneSurrogate(_)
            | Self::TooDeep
            | Self::Opcode(_)
            | Self::Authentication(_)
            | Self::Ack => CloseCode::Policy,
        }
    }

    /// Returns the reason of the close frame: fixed for each cause, without content of the frame.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotJson(_) => CloseCode::NotJson.reason(),
            Self::Shape(_) => "not a frame: an object with a number op is needed, and t must be a text",
            Self::LoneSurrogate(_) => "a text has a lone surrogate",
            Self::TooDeep => "nested too deeply",
            Self::Opcode(_) => "this opcode is not for clients",
            Self::Authentication(reason) => reason,
            Self::Ack => "op 3 needs a whole number from 0 up in d.s",
        }
    }
}

#[derive(Deserialize)]
struct Shape<'a> {
    op: u32,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    t: Option<JsonString<'a>>,
}

/// Decodes a frame. The caller bounds the length of `text`.
///
/// # Errors
/// Fails if it is not JSON, has another structure, or has an opcode that clients do not send.
pub fn decode(text: &str) -> Result<ClientFrame<'_>, FrameError> {
    if json_depth(text) > JSON_DEPTH_MAX {
        return Err(FrameError::TooDeep);
    }
    let shape: Shape<'_> = serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Data => FrameError::Shape(json_error(&error)),
        _ => surrogates::describe_lone_surrogate(text).map_or(FrameError::NotJson(error), FrameError::LoneSurrogate),
    })?;
    // Serde would accept an array of the field values too.
    if text.trim_start().starts_with('[') {
        return Err(FrameError::Shape("a list".to_owned()));
    }
    match u64::from(shape.op) {
        opcode::HEARTBEAT_ACK => Ok(ClientFrame::HeartbeatAck),
        opcode::HEARTBEAT => Ok(ClientFrame::Heartbeat),
        opcode::AUTHENTICATION => authentication(shape.d).map(ClientFrame::Authentication),
        opcode::ACK => ack(shape.d),
        op if op == opcode::DISPATCH || op > OPCODE_RESERVED_MAX => {
            Ok(ClientFrame::Dispatch(ClientMessage { op, data: shape.d, kind: shape.t }))
        }
        op => Err(FrameError::Opcode(op)),
    }
}

fn authentication(data: Option<&RawValue>) -> Result<Authentication, FrameError> {
    let reject = FrameError::Authentication;
    let no_object = || reject("the data of an authentication must be an object");
    let raw = data.ok_or_else(no_object)?.get();
    let (mut data, is_lossy) = match serde_json::from_str::<Map<String, Value>>(raw) {
        Ok(data) => (data, false),
        Err(_) => (serde_json::from_str(&surrogates::replace_lone_surrogates(raw)).map_err(|_| no_object())?, true),
    };
    let entries = if is_lossy { surrogates::entries(raw) } else { None };
    let has_lone_surrogate = |name| {
        entries.as_ref().and_then(|all| all.get(name)).is_some_and(|value| surrogates::has_lone_surrogate(value))
    };
    let should_sync = match data.remove("shouldSync") {
        None => true,
        Some(Value::Bool(should_sync)) => should_sync,
        Some(_) => return Err(reject("shouldSync must be true or false")),
    };
    let after =
        data.remove("after").map(|after| after.as_u64().ok_or(reject("after must be a whole number from 0 up")));
    let after = after.transpose()?;
    // Applications of the original may send a `device` of any type. So it must be a valid device id only if the client
    // resumes.
    let device = data.get("device").filter(|_| !has_lone_surrogate("device")).and_then(Value::as_str);
    let device = device.and_then(|name| DeviceId::new(name).ok());
    if device.is_none() && after.is_some() && data.contains_key("device") {
        return Err(reject(
            "device must be a text of 1 to 64 characters, without control characters or lone surrogates",
        ));
    }
    if device.is_some() {
        data.remove("device");
    }
    let token_has_lone_surrogate = has_lone_surrogate("token");
    let without_own_fields =
        |entries: BTreeMap<String, _>| entries.into_iter().filter(|(name, _)| data.contains_key(name));
    let text = entries.map(|entries| surrogates::object(without_own_fields(entries)));
    Ok(Authentication { data, text, token_has_lone_surrogate, should_sync, after, device })
}

fn ack(data: Option<&RawValue>) -> Result<ClientFrame<'static>, FrameError> {
    #[derive(Deserialize)]
    struct AckData {
        s: Seq,
    }
    // Serde would accept an array of the field values too.
    let object = data.map(RawValue::get).filter(|data| data.starts_with('{')).ok_or(FrameError::Ack)?;
    let AckData { s } = serde_json::from_str(object).map_err(|_| FrameError::Ack)?;
    Ok(ClientFrame::Ack { s })
}

#[cfg(test)]
mod tests;
