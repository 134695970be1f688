//! JSON of messages that Dispatchers and servers of the original publish and store.
//!
//! Two forms differ in leniency:
//!
//! - [`PublishRequest`] is a request over RESP. An invalid recipient or option is an error, which the Dispatcher gets as the
//!   reply.
//! - `PublishedDispatch` and `StoredMessage` are read from a Redis. Their sender gets no reply, so an invalid recipient is
//!   skipped, and of the options only `sync` is read. The other recipients still get the message.

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

/// A dispatch in a PUBLISH over RESP. Its message is parsed separately, as a [`RequestMessage`].
#[derive(Deserialize)]
pub struct PublishRequest<'a> {
    #[serde(borrow)]
    pub message: &'a RawValue,
    #[serde(borrow)]
    pub recipients: Vec<Recipient<'a>>,
}

/// A message in a PUBLISH or HSET over RESP.
#[derive(Deserialize)]
pub struct RequestMessage<'a> {
    #[serde(default)]
    pub op: u64,
    #[serde(borrow, default)]
    pub d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub t: Option<JsonString<'a>>,
    #[serde(default)]
    pub o: Option<RequestOptions>,
}

/// Options of a [`RequestMessage`].
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct RequestOptions {
    pub sync: Option<bool>,
    pub ttl: Option<std::num::NonZeroU32>,
    pub collapse: Option<String>,
}

impl RequestOptions {
    /// Returns the options, with defaults for missing ones.
    pub fn to_options(&self) -> message::Options {
        message::Options { sync: self.sync.unwrap_or(true), ttl: self.ttl, collapse: self.collapse.clone() }
    }
}

/// A user id. Node services may send numbers, which become text.
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
    /// Returns the id as text.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Number(number) => Cow::Owned(number.to_string()),
        }
    }
}

/// Value of `from` in messages that our servers publish. The original ignores the field.
#[cfg(feature = "redis")]
pub const SENDER: &str = "mesa";

/// A message as the original stores it in `undelivered_messages`, and publishes it.
#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct StoredMessage<'a> {
    #[serde(default)]
    pub op: u64,
    #[serde(borrow, default)]
    pub d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub t: Option<JsonString<'a>>,
    #[serde(default)]
    pub o: Option<StoredOptions>,
}

/// Options of a [`StoredMessage`].
#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct StoredOptions {
    #[serde(default)]
    pub sync: Option<bool>,
}

/// A dispatch that a server or Dispatcher of the original, or a server of ours, has published.
#[cfg(feature = "redis")]
#[derive(Debug, Deserialize)]
pub struct PublishedDispatch<'a> {
    #[serde(borrow)]
    pub message: StoredMessage<'a>,
    #[serde(borrow)]
    pub recipients: Vec<&'a RawValue>,
    /// [`SENDER`] if a server of ours has published it.
    #[serde(default)]
    pub from: Option<String>,
    /// Marker of a server of ours, from which all our servers count messages.
    #[serde(default)]
    pub mark: Option<String>,
}

/// A dispatch that a server of ours publishes for the original.
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
impl<'a> StoredMessage<'a> {
    /// Parses a message.
    ///
    /// # Errors
    /// The reason why the text is not a message.
    pub fn parse(text: &'a str) -> Result<Self, String> {
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

/// Parses a user id, which may be a number. `None` for any other value.
#[cfg(feature = "redis")]
pub fn parse_recipient(recipient: &RawValue) -> Option<String> {
    match serde_json::from_str(recipient.get()).ok()? {
        Value::String(id) => Some(id),
        Value::Number(id) => id.as_u64().map(|id| id.to_string()),
        _ => None,
    }
}
