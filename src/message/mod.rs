//! The words everything else is built from: who a message is for, what it says, and how large it may be.
//!
//! This module knows JSON (a message *is* a JSON text) but no socket, no store and no other module of the crate.

use std::{borrow::Borrow, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

mod ids;
pub(crate) mod json_string;
pub(crate) mod surrogates;

pub use ids::{
    COLLAPSE_KEY_CHARACTERS_MAX, CollapseKey, DEVICE_CHARACTERS_MAX, DISPATCH_ID_CHARACTERS_MAX, DeviceId, DispatchId,
    NameError,
};
pub use json_string::JsonString;

/// Position of an entry in one user's log. The first is 1; 0 stands for "before the first".
///
/// Rises by one for every synced message of that user, survives restarts and trims, and is never handed out twice.
pub type Seq = u64;

/// Longest user id, in bytes of UTF-8.
pub const USER_ID_BYTES_MAX: usize = 256;

/// Largest JSON text of one message (`op`, `d` and `t` together), in bytes. A larger one is refused at dispatch.
///
/// A stored record holds at least one whole message, and the store must not be given values much larger than this
/// (see `store`), so this is a property of the format and not a setting.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Deepest nesting of arrays and objects in a message. Deeper ones are refused: recursive parsers, ours and those of
/// the clients, would run out of stack.
pub const JSON_DEPTH_MAX: usize = 100;

/// Highest opcode the protocol keeps for itself; applications may use those above it, and 0.
pub const OPCODE_RESERVED_MAX: u64 = 22;

/// What stands for every connected client among recipients.
pub const EVERYONE: &str = "*";

/// A user's name: 1 to [`USER_ID_BYTES_MAX`] bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Checks `id` and takes a copy of it.
    ///
    /// # Errors
    /// When it is empty, too long, or has a control character.
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

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UserId {
    type Err = UserIdError;

    /// As [`UserId::new`].
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

/// Why a text is no user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserIdError {
    /// Nothing was given.
    #[error("a user id must not be empty")]
    Empty,
    /// More bytes than a key of the store has room for.
    #[error("a user id may have at most {USER_ID_BYTES_MAX} bytes; this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Stands for every connected client, so nobody could be called that.
    #[error("`*` stands for everyone and is no user id")]
    Everyone,
    /// Control characters would let an id break out of a log line.
    #[error("a user id must not contain control characters")]
    ControlCharacter,
}

/// What a backend says: the object under `message` in a dispatch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// 0 for an application's message, 5 for an internal event, above [`OPCODE_RESERVED_MAX`] as the application likes.
    #[serde(default)]
    pub op: u64,
    /// The data: any JSON value, kept to the letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<Box<RawValue>>,
    /// The type, by which applications tell messages apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t: Option<String>,
    /// How it is to be delivered; never sent to a client.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub o: Options,
}

/// How a message is to be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Options {
    /// `false`: sent to who is there and never kept. Default `true`.
    pub sync: bool,
    /// Seconds for which the message is kept for those who have not received it. Default: as long as the server keeps
    /// messages at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<std::num::NonZeroU32>,
    /// What the message is about: it takes the place of a pending one with the same key. See [`CollapseKey`].
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// An application's message: opcode 0.
    ///
    /// # Errors
    /// When `data` cannot be written as JSON.
    pub fn new(kind: &str, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self {
            op: 0,
            d: Some(serde_json::value::to_raw_value(data)?),
            t: Some(kind.to_owned()),
            o: Options::default(),
        })
    }

    /// The same, for who is there alone: never kept.
    #[must_use]
    pub fn unsynced(mut self) -> Self {
        self.o.sync = false;
        self
    }

    /// The same, kept for so long at most: whole seconds, rounded up, 136 years at most.
    #[must_use]
    pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        self.o.ttl = std::num::NonZeroU32::new(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX));
        self
    }

    /// The same, taking the place of a pending one with this key.
    #[must_use]
    pub fn collapse(mut self, key: &CollapseKey) -> Self {
        self.o.collapse = Some(key.as_str().to_owned());
        self
    }

    /// The text clients will read.
    ///
    /// # Errors
    /// When the opcode belongs to the protocol, or the message is too large or too deep.
    pub fn payload(&self) -> Result<Payload, MessageError> {
        Payload::encode(self.op, self.d.as_deref().map(RawValue::get), self.t.as_deref())
    }
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// A client would take it for a frame of the protocol.
    #[error("opcode {op} belongs to the protocol; use 0, or one above {OPCODE_RESERVED_MAX}")]
    Opcode {
        /// What was given.
        op: u64,
    },
    /// See [`PAYLOAD_BYTES_MAX`].
    #[error(
        "a message may have at most {PAYLOAD_BYTES_MAX} bytes of JSON; this one has {bytes}. Send a reference instead"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// See [`JSON_DEPTH_MAX`].
    #[error("a message may be nested at most {JSON_DEPTH_MAX} deep")]
    TooDeep,
}

/// The JSON text of a message as a client reads it, `{"op":0,"d":…,"t":…}`: made once at dispatch, stored, and copied
/// to every recipient. Cheap to clone. Always one object, and never with an `s`: that belongs to a delivery.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// Writes the text. `data` must be JSON text already; it is taken over to the letter.
    ///
    /// # Errors
    /// When the opcode belongs to the protocol, or the message is too large or too deep.
    pub fn encode(op: u64, data: Option<&str>, kind: Option<&str>) -> Result<Self, MessageError> {
        Self::with_type(op, data, kind.map(JsonString::from).as_ref())
    }

    /// The same with a type that may have half of a surrogate pair.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn with_type(op: u64, data: Option<&str>, kind: Option<&JsonString<'_>>) -> Result<Self, MessageError> {
        if op != 0 && op <= OPCODE_RESERVED_MAX {
            return Err(MessageError::Opcode { op });
        }
        let bytes = data.map_or(0, str::len) + kind.map_or(0, JsonString::bytes) + 32;
        if bytes > PAYLOAD_BYTES_MAX + 32 {
            return Err(MessageError::TooLarge { bytes: bytes - 32 });
        }
        if data.is_some_and(|text| json_depth(text) > JSON_DEPTH_MAX) {
            return Err(MessageError::TooDeep);
        }
        let mut text = Vec::with_capacity(bytes);
        write_message(&mut text, op, data, kind);
        if text.len() > PAYLOAD_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes: text.len() });
        }
        Ok(Self(text.into()))
    }

    /// Takes back what [`Payload::as_bytes`] gave: for stores, which trust what they wrote.
    #[must_use]
    pub fn from_stored(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The JSON text.
    #[must_use]
    pub fn as_text(&self) -> &str {
        // It was written from text, and a store gives back what it was given.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The JSON text, as UTF-8.
    #[doc(hidden)]
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Appends a message as JSON text: `{"op":0,"d":…,"t":…}`. `data` must be JSON text already; it is taken over to the letter.
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

/// A message from a client, as it stood in its frame. At most `limits.frameBytes` in all.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Said<'a> {
    /// 0, or one above those of the protocol.
    pub op: u64,
    /// The data: JSON text.
    pub data: Option<&'a str>,
    /// The type, with U+FFFD in place of each half of a surrogate pair.
    pub kind: Option<&'a str>,
    /// The type as JSON, where it has such halves: it is passed on as it came.
    pub kind_json: Option<&'a str>,
}

impl<'a> Said<'a> {
    /// A message, for whoever tells of one.
    #[doc(hidden)]
    #[must_use]
    pub fn new(op: u64, data: Option<&'a str>, kind: Option<&'a str>) -> Self {
        Self { op, data, kind, kind_json: None }
    }

    /// The type as it came.
    #[doc(hidden)]
    #[must_use]
    pub fn json_kind(&self) -> Option<JsonString<'a>> {
        self.kind_json.map(|json| JsonString::Cut(json.into())).or_else(|| self.kind.map(JsonString::from))
    }
}

/// Who a dispatch is for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recipients {
    /// `*`: every connected client; never kept for those who are not.
    Everyone,
    /// These users, each once.
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

/// How deep arrays and objects nest in a JSON text (0 for a scalar). Does not check that the text is JSON.
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
    fn a_user_id_is_refused_when_it_could_not_be_a_key() {
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
    fn a_payload_keeps_the_data_to_the_letter() {
        let text = |op, d, t| String::from_utf8(Payload::encode(op, d, t).unwrap().as_bytes().to_vec()).unwrap();
        assert_eq!(text(0, Some("{}"), Some("X")), r#"{"op":0,"d":{},"t":"X"}"#);
        assert_eq!(text(0, None, None), r#"{"op":0}"#);
        assert_eq!(text(100, Some("1.000"), Some("a\"b\n")), r#"{"op":100,"d":1.000,"t":"a\"b\n"}"#);
        assert_eq!(text(0, Some("12345678901234567890123"), None), r#"{"op":0,"d":12345678901234567890123}"#);
    }

    #[test]
    fn a_payload_never_wears_an_opcode_of_the_protocol() {
        for op in 1..=22 {
            assert_eq!(Payload::encode(op, None, None), Err(MessageError::Opcode { op }));
        }
    }

    #[test]
    fn a_payload_is_bounded_in_size_and_depth() {
        let fits = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 15));
        assert_eq!(Payload::encode(0, Some(&fits), None).unwrap().as_bytes().len(), PAYLOAD_BYTES_MAX);
        let over = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 14));
        assert!(matches!(Payload::encode(0, Some(&over), None), Err(MessageError::TooLarge { .. })));
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Payload::encode(0, Some(&nested(JSON_DEPTH_MAX)), None).is_ok());
        assert_eq!(Payload::encode(0, Some(&nested(JSON_DEPTH_MAX + 1)), None), Err(MessageError::TooDeep));
    }

    #[test]
    fn brackets_in_strings_do_not_nest() {
        assert_eq!(json_depth(r#"{"a":"[[[[\"[[","b":[1]}"#), 2);
        assert_eq!(json_depth("7"), 0);
    }
}
