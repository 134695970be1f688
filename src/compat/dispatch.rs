//! JSON of the messages that Dispatchers and servers of the original publish and keep.

use std::{borrow::Cow, fmt};

#[cfg(feature = "redis")]
use serde::Serialize;
use serde::{Deserialize, Deserializer, de::Visitor};
#[cfg(feature = "redis")]
use serde_json::Value;
use serde_json::value::RawValue;

use crate::message::{self, JsonString};
#[cfg(feature = "redis")]
use crate::{
    logging::json_error,
    message::{Payload, surrogates},
};

#[derive(Deserialize)]
pub struct Envelope<'a> {
    #[serde(borrow)]
    pub message: &'a RawValue,
    #[serde(borrow)]
    pub recipients: Vec<Recipient<'a>>,
}

#[derive(Deserialize)]
pub struct Message<'a> {
    #[serde(default)]
    pub op: u64,
    #[serde(borrow, default)]
    pub d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub t: Option<JsonString<'a>>,
    #[serde(default)]
    pub o: Option<Options>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Options {
    pub sync: Option<bool>,
    pub ttl: Option<std::num::NonZeroU32>,
    pub collapse: Option<String>,
}

impl Options {
    /// Returns the options of the message, with defaults for missing ones.
    pub fn to_options(&self) -> message::Options {
        message::Options { sync: self.sync.unwrap_or(true), ttl: self.ttl, collapse: self.collapse.clone() }
    }
}

/// A user id. Node services may send numbers; here ids are strings.
pub enum Recipient<'a> {
    Text(Cow<'a, str>),
    Number(u64),
}

impl<'de: 'a, 'a> Deserialize<'de> for Recipient<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Recipient<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user id, which is a string or an integer")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Recipient::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Recipient::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Recipient::Number(number))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Recipient<'_> {
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Number(number) => Cow::Owned(number.to_string()),
        }
    }
}

/// A portal's announcement that it is ready, or no longer.
#[derive(Debug, Deserialize)]
pub struct PortalAnnouncement<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    pub ready: bool,
}

/// Value of `from` in messages that a server of ours publishes. The original ignores the field.
#[cfg(feature = "redis")]
pub const SENDER: &str = "mesa";

/// A message as the original stores and publishes it.
#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct MessageJson<'a> {
    #[serde(default)]
    pub op: u64,
    #[serde(borrow, default)]
    pub d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub t: Option<JsonString<'a>>,
    #[serde(default)]
    pub o: Option<MessageJsonOptions>,
}

#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct MessageJsonOptions {
    #[serde(default)]
    pub sync: Option<bool>,
}

#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct PublishedDispatch<'a> {
    #[serde(borrow)]
    pub message: MessageJson<'a>,
    #[serde(borrow)]
    pub recipients: Vec<&'a RawValue>,
    #[serde(default)]
    pub from: Option<String>,
    #[serde(default)]
    pub mark: Option<String>,
}

#[cfg(feature = "redis")]
#[derive(Debug, Serialize)]
pub struct OutgoingDispatch<'a> {
    pub message: &'a RawValue,
    pub recipients: Vec<&'a str>,
    pub from: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<&'a str>,
}

#[cfg(feature = "redis")]
impl<'a> MessageJson<'a> {
    /// Parses a message.
    ///
    /// # Errors
    /// The reason why the text is not a message.
    pub fn read(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map_err(|error| surrogates::describe_lone_surrogate(text).unwrap_or_else(|| json_error(&error)))
    }

    /// Encodes the message for clients.
    ///
    /// # Errors
    /// The reason why it cannot be sent to clients.
    pub fn payload(&self) -> Result<Payload, crate::message::MessageError> {
        Payload::with_type(self.op, self.d.map(RawValue::get), self.t.as_ref())
    }
}

/// Reads a user id, which may be a number. Returns `None` for any other value, so that the other recipients still get the
/// message.
#[cfg(feature = "redis")]
pub fn parse_recipient(one: &RawValue) -> Option<String> {
    match serde_json::from_str(one.get()).ok()? {
        Value::String(id) => Some(id),
        Value::Number(id) => id.as_u64().map(|id| id.to_string()),
        _ => None,
    }
}
