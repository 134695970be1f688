//! JSON of portals of the original: their announcements, and the events that servers publish to them.

use std::borrow::Cow;

use serde::Deserialize;
#[cfg(feature = "redis")]
use serde::Serialize;
#[cfg(feature = "redis")]
use serde_json::value::RawValue;

use crate::message::{JsonString, UserId, write_message};

/// A portal's announcement that it is ready, or no longer ready.
#[derive(Debug, Deserialize)]
pub struct PortalAnnouncement<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    pub ready: bool,
}

/// Values of the field `type` of an event.
pub mod kind {
    pub const CONNECTION: &str = "connection";
    pub const AUTHENTICATION: &str = "authentication";
    pub const MESSAGE: &str = "message";
    pub const DISCONNECTION: &str = "disconnection";
}

/// A client's message in an event.
#[cfg(feature = "redis")]
#[derive(Debug, Serialize, Deserialize)]
pub struct EventMessage<'a> {
    #[serde(default)]
    pub op: u64,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub d: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub t: Option<JsonString<'a>>,
}

/// An event as servers of the original publish it, with fields of ours that the original ignores.
#[cfg(feature = "redis")]
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedEvent<'a> {
    pub r#type: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub message: Option<EventMessage<'a>>,
    /// Mostly a string: servers of the original publish any value that their authentication returns.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<&'a RawValue>,
    #[serde(default)]
    pub portal_id: String,
    /// The server of ours that published the event. `None` for the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Server of the event, if not `from`: the name of a server of ours, or empty for the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Number of the connection on its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// Portals that receive all events have received this one before.
    #[serde(rename = "again", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_redispatch: bool,
}

/// Opcode, data and type of a client's message.
pub type MessageFields<'a> = (u64, Option<&'a str>, Option<&'a JsonString<'a>>);

/// Encodes an event as servers of the original do.
pub fn write(kind: &str, message: Option<MessageFields<'_>>, user: Option<&UserId>, portal: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(format!("{{\"type\":\"{kind}\"").as_bytes());
    if let Some((op, data, kind)) = message {
        out.extend_from_slice(b",\"message\":");
        write_message(&mut out, op, data, kind);
    }
    let mut field = |name: &str, text: &str| {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        // A string can always be encoded, and writing to a Vec cannot fail.
        serde_json::to_writer(&mut out, text).expect("a string is JSON");
    };
    if let Some(user) = user {
        field("clientId", user.as_str());
    }
    field("portalId", portal);
    out.push(b'}');
    out
}
