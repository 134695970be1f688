//! The client's half of the wire: what it writes, and what it makes of what it reads.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{ClientError, Missed};
use crate::{
    logging::json_error,
    message::{Seq, json_string::lossy_option, surrogates},
    protocol::opcode,
};

/// What the server says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// How often the server asks a silent client whether it is there, if it does.
    pub heartbeat_interval: Option<Duration>,
    /// How long to wait before connecting again, if the server wishes clients to.
    pub reconnect_interval: Option<Duration>,
    /// How long the server waits for an authentication.
    pub authentication_timeout: Option<Duration>,
    /// `enforce_equal_versions`, `store_messages`, `sends_user_object`.
    pub rules: Vec<String>,
}

/// What was read.
#[derive(Debug)]
pub(super) enum Incoming {
    Hello(Hello),
    Authenticated(Map<String, Value>),
    /// A heartbeat, which is a question for a receipt.
    ReceiptWanted,
    Message {
        op: u64,
        data: Box<RawValue>,
        kind: Option<String>,
        position: Option<u64>,
    },
    Resumed {
        first: Seq,
        last: Seq,
        missed: Option<Missed>,
    },
    Closed(u16, String),
}

#[derive(Serialize)]
struct Outgoing<'a> {
    op: u64,
    d: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<&'a str>,
}

#[derive(Deserialize)]
struct Frame<'a> {
    op: u64,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "lossy_option")]
    t: Option<String>,
    #[serde(default)]
    s: Option<u64>,
}

/// The wire's names: milliseconds, and left out where they do not apply.
#[derive(Deserialize)]
struct HelloData {
    c_heartbeat_interval: Option<u64>,
    c_reconnect_interval: Option<u64>,
    c_authentication_timeout: Option<u64>,
    #[serde(default)]
    rules: Vec<String>,
}

#[derive(Deserialize)]
struct ResumedData {
    first: Seq,
    last: Seq,
    missed: Option<Missed>,
}

/// A frame as text.
pub(super) fn encode(op: u64, data: &RawValue, kind: Option<&str>) -> String {
    // Numbers, strings and JSON text always have a JSON form.
    serde_json::to_string(&Outgoing { op, d: data, t: kind }).expect("a frame is JSON")
}

/// "I have got everything up to here."
pub(super) fn receipt() -> String {
    format!("{{\"op\":{},\"d\":{{}}}}", opcode::HEARTBEAT_ACK)
}

/// "My application has had everything up to here."
pub(super) fn confirm(seq: Seq) -> String {
    format!("{{\"op\":{},\"d\":{{\"s\":{seq}}}}}", opcode::RECEIPT)
}

/// Reads a frame of the server.
pub(super) fn decode(text: &str) -> Result<Incoming, ClientError> {
    let frame: Frame<'_> = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    let data = frame.d.map_or("null", RawValue::get);
    Ok(match frame.op {
        opcode::HEARTBEAT => Incoming::ReceiptWanted,
        opcode::HELLO => {
            let hello: HelloData = serde_json::from_str(data).map_err(|error| unreadable(&error))?;
            Incoming::Hello(Hello {
                heartbeat_interval: hello.c_heartbeat_interval.map(Duration::from_millis),
                reconnect_interval: hello.c_reconnect_interval.map(Duration::from_millis),
                authentication_timeout: hello.c_authentication_timeout.map(Duration::from_millis),
                rules: hello.rules,
            })
        }
        opcode::AUTHENTICATED => {
            // A user object may have a text with half of a surrogate pair, which a Rust text cannot hold.
            Incoming::Authenticated(
                serde_json::from_str(&surrogates::replace_halves(data)).map_err(|error| unreadable(&error))?,
            )
        }
        opcode::RESUMED => {
            let ResumedData { first, last, missed } = serde_json::from_str(data).map_err(|error| unreadable(&error))?;
            Incoming::Resumed { first, last, missed }
        }
        op => Incoming::Message {
            op,
            // It was cut out of a text that was read as JSON a moment ago.
            data: frame.d.map_or_else(null, RawValue::to_owned),
            kind: frame.t,
            position: frame.s,
        },
    })
}

fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

fn unreadable(error: &serde_json::Error) -> ClientError {
    ClientError::Protocol(format!("a frame cannot be read ({})", json_error(error)))
}
