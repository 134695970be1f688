//! Defines messages, their recipients, ids and bounds: the types that all other modules use.
//!
//! The module handles JSON, because a message is a JSON text. It knows no socket and no store.
//!
//! - `ids`: device ids, idempotency ids and collapse keys
//! - `internal_event`: opcode 5
//! - `json_string`, `surrogates`: JSON strings that are not valid Unicode

use std::{borrow::Borrow, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

mod ids;
mod internal_event;
pub(crate) mod json_string;
pub(crate) mod surrogates;

pub use ids::{
    COLLAPSE_KEY_CHARACTERS_MAX, CollapseKey, DEVICE_CHARACTERS_MAX, DISPATCH_ID_CHARACTERS_MAX, DeviceId, DispatchId,
    IdError,
};
#[cfg(feature = "redis")]
pub(crate) use internal_event::DISCONNECT_CLIENT;
pub(crate) use internal_event::{INTERNAL_EVENT, check_internal_event};
pub use json_string::JsonString;

/// Sequence: the position of an entry in its user's log. The first is 1; 0 means "before the first".
///
/// It rises by one per entry, except over a reported gap. It survives restarts and trims, and is never reused.
pub type Seq = u64;

/// Longest user id, in bytes of UTF-8.
pub const USER_ID_BYTES_MAX: usize = 256;

/// Largest JSON text of one message (`op`, `d` and `t` together), in bytes. A larger one is rejected at dispatch.
///
/// This is a property of the store's format, and not a setting: a WAL record holds at least one complete message.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Deepest nesting of arrays and objects in a message.
///
/// A deeper message is rejected, because recursive parsers of server and clients could overflow their stack.
pub const JSON_DEPTH_MAX: usize = 100;

/// Highest opcode that the protocol reserves. Applications may use higher ones, and 0.
pub const OPCODE_RESERVED_MAX: u64 = 22;

/// Recipient that means every connected client: a broadcast.
pub const EVERYONE: &str = "*";

/// User id: 1 to [`USER_ID_BYTES_MAX`] bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Validates and copies `id`.
    ///
    /// # Errors
    /// If it is empty, `*`, too long, or has a control character.
    pub fn new(id: &str) -> Result<Self, UserIdError> {
        if id.is_empty() {
            return Err(UserIdError::Empty);
        }
        if id.len() > USER_ID_BYTES_MAX {
            return Err(UserIdError::TooLong { bytes: id.len() });
        }
        if id == EVERYONE {
            return Err(UserIdError::Everyone);
        }
        if id.chars().any(char::is_control) {
            return Err(UserIdError::ControlCharacter);
        }
        Ok(Self(id.into()))
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UserId {
    type Err = UserIdError;

    /// Same as [`UserId::new`].
    fn from_str(id: &str) -> Result<Self, UserIdError> {
        Self::new(id)
    }
}

impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for UserId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Reason why a text is not a user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserIdError {
    /// The text is empty.
    #[error("a user id must not be empty")]
    Empty,
    /// The text is longer than a key of the store may be.
    #[error("a user id may have at most {USER_ID_BYTES_MAX} bytes; this one has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The text is `*`, which means every connected client.
    #[error("`*` means every connected client and is not a user id")]
    Everyone,
    /// The text has a control character, which could forge a log line.
    #[error("a user id must not contain control characters")]
    ControlCharacter,
}

/// A message of a backend: the object `message` in a dispatch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Opcode: 0, or above [`OPCODE_RESERVED_MAX`]. The protocol uses the others; 5 is an internal event.
    #[serde(default)]
    pub op: u64,
    /// Data: any JSON value, delivered unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<Box<RawValue>>,
    /// Type, by which applications distinguish messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t: Option<String>,
    /// Delivery options; never sent to a client.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub o: Options,
}

/// Delivery options of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = MessageOptions)]
#[non_exhaustive]
pub struct Options {
    /// `false`: unsynced, so sent only to online users and never stored. Default `true`.
    pub sync: bool,
    /// Seconds until a pending message expires. Default: `sync.maxAge` of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub ttl: Option<std::num::NonZeroU32>,
    /// Collapse key: the message replaces a pending one with the same key. See [`CollapseKey`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub collapse: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { sync: true, ttl: None, collapse: None }
    }
}

impl Options {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Message {
    /// Creates a message with opcode 0.
    ///
    /// # Errors
    /// If `data` cannot be serialized to JSON.
    pub fn new(kind: &str, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self {
            op: 0,
            d: Some(serde_json::value::to_raw_value(data)?),
            t: Some(kind.to_owned()),
            o: Options::default(),
        })
    }

    /// Makes it unsynced: sent only to online users, never stored.
    #[must_use]
    pub fn unsynced(mut self) -> Self {
        self.o.sync = false;
        self
    }

    /// Sets its time to live: rounded up to whole seconds, at most 136 years.
    #[must_use]
    pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        self.o.ttl = std::num::NonZeroU32::new(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX));
        self
    }

    /// Sets its collapse key: it replaces a pending message with the same key.
    #[must_use]
    pub fn collapse(mut self, key: &CollapseKey) -> Self {
        self.o.collapse = Some(key.as_str().to_owned());
        self
    }

    /// Encodes the JSON text that clients receive.
    ///
    /// # Errors
    /// If the opcode belongs to the protocol, or the message is too large or too deep.
    pub fn payload(&self) -> Result<Payload, MessageError> {
        Payload::encode(self.op, self.d.as_deref().map(RawValue::get), self.t.as_deref())
    }
}

/// Reason why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The opcode is reserved: clients would read the message as a frame of the protocol.
    #[error("opcode {op} belongs to the protocol; use 0, or one above {OPCODE_RESERVED_MAX}")]
    Opcode {
        /// The opcode.
        op: u64,
    },
    /// The JSON is larger than [`PAYLOAD_BYTES_MAX`].
    #[error(
        "a message may have at most {PAYLOAD_BYTES_MAX} bytes of JSON; this one has {bytes}. Send a reference instead"
    )]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// The nesting is deeper than [`JSON_DEPTH_MAX`].
    #[error("a message may have at most {JSON_DEPTH_MAX} nesting levels; flatten it")]
    TooDeep,
}

/// Bytes that are reserved for the fields of a message besides its data and its type: names, braces and opcode.
const ENVELOPE_BYTES: usize = 32;

/// JSON text of a message as a client receives it: `{"op":0,"d":…,"t":…}`.
///
/// It is encoded once at dispatch, stored, and shared by all recipients. Cheap to clone. It is always one object,
/// without `s`: the position differs between deliveries.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// Encodes a message. `data` must be JSON; it is copied unchanged.
    ///
    /// # Errors
    /// If the opcode belongs to the protocol, or the message is too large or too deep.
    pub fn encode(op: u64, data: Option<&str>, kind: Option<&str>) -> Result<Self, MessageError> {
        Self::with_type(op, data, kind.map(JsonString::from).as_ref())
    }

    /// Encodes a message with a type that may have a lone surrogate.
    ///
    /// # Errors
    /// Same as [`encode`](Self::encode).
    pub fn with_type(op: u64, data: Option<&str>, kind: Option<&JsonString<'_>>) -> Result<Self, MessageError> {
        if op != 0 && op <= OPCODE_RESERVED_MAX {
            return Err(MessageError::Opcode { op });
        }
        // Before anything is copied.
        let bytes = data.map_or(0, str::len) + kind.map_or(0, JsonString::bytes);
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes });
        }
        if data.is_some_and(|text| json_depth(text) > JSON_DEPTH_MAX) {
            return Err(MessageError::TooDeep);
        }
        let mut text = Vec::with_capacity(bytes + ENVELOPE_BYTES);
        write_message(&mut text, op, data, kind);
        if text.len() > PAYLOAD_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes: text.len() });
        }
        Ok(Self(text.into()))
    }

    /// Restores a payload from stored bytes of [`Payload::as_bytes`], without validation.
    #[must_use]
    pub fn from_stored(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the JSON text.
    #[must_use]
    pub fn as_text(&self) -> &str {
        // The bytes were encoded from text, and stores do not change them.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns the JSON text as UTF-8.
    #[doc(hidden)]
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Appends a message as JSON: `{"op":0,"d":…,"t":…}`. `data` must be JSON; it is copied unchanged.
pub fn write_message(out: &mut Vec<u8>, op: u64, data: Option<&str>, kind: Option<&JsonString<'_>>) {
    out.extend_from_slice(b"{\"op\":");
    out.extend_from_slice(op.to_string().as_bytes());
    if let Some(data) = data {
        out.extend_from_slice(b",\"d\":");
        out.extend_from_slice(data.as_bytes());
    }
    if let Some(kind) = kind {
        out.extend_from_slice(b",\"t\":");
        kind.write(out);
    }
    out.push(b'}');
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A message from a client. Its frame has at most `limits.frameBytes`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct InboundMessage<'a> {
    /// Opcode: 0, or above [`OPCODE_RESERVED_MAX`].
    pub op: u64,
    /// Data, as JSON.
    pub data: Option<&'a str>,
    /// Type, with U+FFFD in place of each lone surrogate.
    pub kind: Option<&'a str>,
    /// Type as raw JSON, if it has a lone surrogate. It is forwarded unchanged.
    pub kind_json: Option<&'a str>,
}

impl<'a> InboundMessage<'a> {
    /// Creates a message whose type is valid Unicode.
    #[doc(hidden)]
    #[must_use]
    pub fn new(op: u64, data: Option<&'a str>, kind: Option<&'a str>) -> Self {
        Self { op, data, kind, kind_json: None }
    }

    /// Returns the type as the client sent it.
    #[doc(hidden)]
    #[must_use]
    pub fn json_kind(&self) -> Option<JsonString<'a>> {
        self.kind_json.map(|json| JsonString::Raw(json.into())).or_else(|| self.kind.map(JsonString::from))
    }
}

/// Recipients of a dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recipients {
    /// `*`: every connected client (a broadcast). Never stored for offline users.
    Everyone,
    /// These users. Each receives the message once.
    Users(Vec<UserId>),
}

impl From<UserId> for Recipients {
    fn from(user: UserId) -> Self {
        Self::Users(vec![user])
    }
}

impl From<&UserId> for Recipients {
    fn from(user: &UserId) -> Self {
        Self::Users(vec![user.clone()])
    }
}

impl From<Vec<UserId>> for Recipients {
    fn from(users: Vec<UserId>) -> Self {
        Self::Users(users)
    }
}

impl From<&[UserId]> for Recipients {
    fn from(users: &[UserId]) -> Self {
        Self::Users(users.to_vec())
    }
}

/// Returns the nesting depth of arrays and objects in a JSON text, 0 for a scalar. Does not validate the text.
#[must_use]
pub fn json_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(inside) = bytes.next() {
                    match inside {
                        b'\\' => _ = bytes.next(),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_id_that_is_empty_too_long_or_reserved_is_rejected() {
        assert_eq!(UserId::new(""), Err(UserIdError::Empty));
        assert_eq!(UserId::new("*"), Err(UserIdError::Everyone));
        assert_eq!(UserId::new(&"é".repeat(129)), Err(UserIdError::TooLong { bytes: 258 }));
        for id in ["a\0b", "a\nb", "\u{1b}[31m", "\u{85}"] {
            assert_eq!(UserId::new(id), Err(UserIdError::ControlCharacter), "{id:?}");
        }
        for id in ["a", "alice@example.org", "名前", "a b", &"x".repeat(256)] {
            assert_eq!(UserId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn payload_has_unchanged_data() {
        let text = |op, d, t| String::from_utf8(Payload::encode(op, d, t).unwrap().as_bytes().to_vec()).unwrap();
        assert_eq!(text(0, Some("{}"), Some("X")), r#"{"op":0,"d":{},"t":"X"}"#);
        assert_eq!(text(0, None, None), r#"{"op":0}"#);
        assert_eq!(text(100, Some("1.000"), Some("a\"b\n")), r#"{"op":100,"d":1.000,"t":"a\"b\n"}"#);
        assert_eq!(text(0, Some("12345678901234567890123"), None), r#"{"op":0,"d":12345678901234567890123}"#);
    }

    #[test]
    fn payload_with_reserved_opcode_is_rejected() {
        for op in 1..=22 {
            assert_eq!(Payload::encode(op, None, None), Err(MessageError::Opcode { op }));
        }
    }

    #[test]
    fn payload_is_bounded_in_size_and_depth() {
        let fits = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 15));
        assert_eq!(Payload::encode(0, Some(&fits), None).unwrap().as_bytes().len(), PAYLOAD_BYTES_MAX);
        let over = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 14));
        assert!(matches!(Payload::encode(0, Some(&over), None), Err(MessageError::TooLarge { .. })));
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Payload::encode(0, Some(&nested(JSON_DEPTH_MAX)), None).is_ok());
        assert_eq!(Payload::encode(0, Some(&nested(JSON_DEPTH_MAX + 1)), None), Err(MessageError::TooDeep));
    }

    #[test]
    fn json_depth_ignores_brackets_in_strings() {
        assert_eq!(json_depth(r#"{"a":"[[[[\"[[","b":[1]}"#), 2);
        assert_eq!(json_depth("7"), 0);
    }
}
