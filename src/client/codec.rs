//! Encodes frames to the server and decodes frames from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{ClientError, Gap};
use crate::{
    logging::json_error,
    message::{Seq, json_string::lossy_option, surrogates},
    protocol::opcode,
};

/// Holds the server's greeting (opcode 10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// Interval between heartbeats of the server; `None`: heartbeats are off.
    pub heartbeat_interval: Option<Duration>,
    /// Delay before reconnecting; `None`: clients do not reconnect by themselves.
    pub reconnect_interval: Option<Duration>,
    /// Time limit for authentication.
    pub authentication_timeout: Option<Duration>,
    /// Rules of the server: `enforce_equal_versions`, `store_messages`, `sends_user_object`.
    pub rules: Vec<String>,
}

/// Holds a decoded frame, or the end of the connection.
#[derive(Debug)]
pub(super) enum Incoming {
    Hello(Hello),
    Authenticated(Map<String, Value>),
    /// A heartbeat, which the client must acknowledge.
    Heartbeat,
    /// The answer to a heartbeat of the client.
    HeartbeatAck,
    /// The answer to a ping of the client.
    Pong,
    Message {
        op: u64,
        data: Box<RawValue>,
        kind: Option<String>,
        position: Option<u64>,
    },
    Resumed {
        first: Seq,
        last: Seq,
        missed: Option<Gap>,
    },
    Closed(u16, String),
}

#[derive(Serialize)]
struct OutgoingFrame<'a> {
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

/// Mirrors the greeting's data: durations in milliseconds, absent where they do not apply.
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
    missed: Option<Gap>,
}

/// Encodes a frame.
pub(super) fn encode(op: u64, data: &RawValue, kind: Option<&str>) -> String {
    // Numbers, strings and JSON text always have a JSON form.
    serde_json::to_string(&OutgoingFrame { op, d: data, t: kind }).expect("a frame is JSON")
}

/// Encodes a heartbeat, which the server answers (opcode 1).
pub(super) fn heartbeat() -> String {
    format!("{{\"op\":{},\"d\":{{}}}}", opcode::HEARTBEAT)
}

/// Encodes an acknowledgement of everything received so far (opcode 11).
pub(super) fn heartbeat_ack() -> String {
    format!("{{\"op\":{},\"d\":{{}}}}", opcode::HEARTBEAT_ACK)
}

/// Encodes an acknowledgement of all entries up to a sequence (opcode 3).
pub(super) fn acknowledge(seq: Seq) -> String {
    format!("{{\"op\":{},\"d\":{{\"s\":{seq}}}}}", opcode::ACK)
}

/// Decodes a frame of the server.
pub(super) fn decode(text: &str) -> Result<Incoming, ClientError> {
    let frame: Frame<'_> = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    let data = frame.d.map_or("null", RawValue::get);
    Ok(match frame.op {
        opcode::HEARTBEAT => Incoming::Heartbeat,
        opcode::HEARTBEAT_ACK => Incoming::HeartbeatAck,
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
            // A user object may have a lone surrogate, which a Rust string cannot hold.
            Incoming::Authenticated(
                serde_json::from_str(&surrogates::replace_lone_surrogates(data)).map_err(|error| unreadable(&error))?,
            )
        }
        opcode::RESUMED => {
            let ResumedData { first, last, missed } = serde_json::from_str(data).map_err(|error| unreadable(&error))?;
            Incoming::Resumed { first, last, missed }
        }
        op => Incoming::Message {
            op,
            // A slice of text that was parsed as JSON above.
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
    ClientError::Protocol(format!("a frame cannot be parsed ({})", json_error(error)))
}
