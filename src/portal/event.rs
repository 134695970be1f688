//! Defines the events of a portal.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{dispatcher::DispatchError, message::json_string::lossy_option};

/// Reports what happened to a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The client has connected, and is not authenticated yet.
    Connection {
        /// Id of the connection, unique within a process of the server.
        connection: String,
    },
    /// The client has authenticated.
    Authentication {
        /// Id of the connection.
        connection: String,
        /// User id.
        user: String,
    },
    /// The client has sent a message.
    Message {
        /// Id of the connection.
        connection: String,
        /// User id, if the client has authenticated.
        user: Option<String>,
        /// The message.
        message: Message,
    },
    /// The client has disconnected.
    Disconnection {
        /// Id of the connection.
        connection: String,
        /// User id, if the client had authenticated.
        user: Option<String>,
        /// `server_restart`: the server was killed while this user had connections. There is one such event for each
        /// user, after the restart, with an empty `connection`. `None` in all other cases.
        reason: Option<String>,
    },
    /// Events for this portal are lost: it was too slow, or disconnected for too long.
    Missed {
        /// Number of lost events, if known.
        count: Option<u64>,
    },
}

/// Holds a message from a client.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Opcode: 0, or one of the application (23 and above).
    pub op: u64,
    /// Type that distinguishes messages of the application.
    #[serde(rename = "t", default, deserialize_with = "lossy_option")]
    pub kind: Option<String>,
    /// Data as JSON; `None` if there was none.
    #[serde(rename = "d", default)]
    pub data: Option<Box<RawValue>>,
}

impl Message {
    /// Returns the type, or an empty string, for use in `match`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// Deserializes the data. A client can send any data, so handle the error.
    ///
    /// # Errors
    /// Fails if the data does not match the type.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.as_deref().map_or("null", RawValue::get))
    }
}

/// Holds an event and its id, or the error that ends the portal.
pub(super) type PortalItem = Result<(Event, Option<String>), DispatchError>;
