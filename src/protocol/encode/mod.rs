//! Encodes frames for clients. A message is encoded at its dispatch; [`delivery`] only adds its position.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::message::{Payload, Seq};

/// Acknowledges a client's heartbeat.
pub const HEARTBEAT_ACK: &str = r#"{"op":11,"d":{}}"#;

const HEARTBEAT: &str = r#"{"op":1,"d":{}}"#;

/// Number of digits of the largest `u64`.
const DIGITS_MAX: usize = 20;

/// Configures the greeting, the first frame of a connection.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Heartbeat interval, in milliseconds; `None`: heartbeats are off.
    pub heartbeat_interval_ms: Option<u64>,
    /// Delay before reconnecting, in milliseconds; `None`: clients do not reconnect by themselves.
    pub reconnect_interval_ms: Option<u64>,
    /// Time limit of the authentication, in milliseconds; `None`: there is none.
    pub authentication_timeout_ms: Option<u64>,
    /// Rule `enforce_equal_versions`: the client must send its version.
    pub enforce_equal_versions: bool,
    /// Rule `store_messages`.
    pub store_messages: bool,
    /// Rule `sends_user_object`.
    pub sends_user_object: bool,
}

/// Encodes the greeting. `rules` is always present, because clients read it unconditionally.
#[must_use]
pub fn hello(hello: &Hello) -> String {
    let mut fields = Vec::new();
    let intervals = [
        ("c_heartbeat_interval", hello.heartbeat_interval_ms),
        ("c_reconnect_interval", hello.reconnect_interval_ms),
        ("c_authentication_timeout", hello.authentication_timeout_ms),
    ];
    fields.extend(intervals.into_iter().filter_map(|(name, value)| Some(format!("\"{name}\":{}", value?))));
    let rules = [
        ("enforce_equal_versions", hello.enforce_equal_versions),
        ("store_messages", hello.store_messages),
        ("sends_user_object", hello.sends_user_object),
    ];
    let rules: Vec<String> = rules.into_iter().filter(|rule| rule.1).map(|rule| format!("\"{}\"", rule.0)).collect();
    fields.push(format!("\"rules\":[{}]", rules.join(",")));
    format!("{{\"op\":10,\"d\":{{{}}}}}", fields.join(","))
}

/// Encodes op 22, the success of an authentication; `None`: without a user object.
#[must_use]
pub fn authenticated(user: Option<&Map<String, Value>>) -> String {
    authenticated_text(&user.map_or_else(|| json!({}), |user| Value::Object(user.clone())).to_string())
}

/// Encodes op 22 with a user object that is JSON already.
#[must_use]
pub fn authenticated_text(user: &str) -> String {
    format!("{{\"op\":22,\"d\":{user}}}")
}

/// Encodes op 13, the state of a log, for clients that resume.
///
/// The log has the sequences `first` to `last`. `missed` is a gap in the requested sequences: both ends included, and
/// the gap reason.
#[must_use]
pub fn resumed(first: Seq, last: Seq, missed: Option<(Seq, Seq, &str)>) -> String {
    let missed = missed.map(|(from, to, reason)| json!({"from": from, "to": to, "reason": reason}));
    let missed = missed.map_or_else(|| "null".to_owned(), |missed| missed.to_string());
    format!("{{\"op\":13,\"d\":{{\"first\":{first},\"last\":{last},\"missed\":{missed}}}}}")
}

/// Encodes op 1, a heartbeat; `retry` has the number of attempts and their limit.
#[must_use]
pub fn heartbeat(retry: Option<(u32, u32)>) -> Cow<'static, str> {
    match retry {
        None => HEARTBEAT.into(),
        Some((tries, max)) => format!("{{\"op\":1,\"d\":{{\"tries\":{tries},\"max\":{max}}}}}").into(),
    }
}

/// Appends a message for a client. `position` is its sequence, or its number in the backlog.
pub fn delivery(payload: &Payload, position: Option<u64>, out: &mut Vec<u8>) {
    let text = payload.as_bytes();
    match position {
        None => out.extend_from_slice(text),
        Some(position) => {
            // A payload is one object, so its last byte is the closing brace.
            out.extend_from_slice(&text[..text.len() - 1]);
            out.extend_from_slice(b",\"s\":");
            let mut digits = [0; DIGITS_MAX];
            out.extend_from_slice(decimal(position, &mut digits));
            out.push(b'}');
        }
    }
}

/// Counts the bytes that [`delivery`] appends.
#[must_use]
pub fn delivery_len(payload: &Payload, position: Option<u64>) -> usize {
    let digits = |position: u64| position.checked_ilog10().unwrap_or(0) as usize + 1;
    payload.as_bytes().len() + position.map_or(0, |position| 5 + digits(position))
}

fn decimal(mut number: u64, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests;
