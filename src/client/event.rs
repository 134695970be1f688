//! Defines the events of a connection and a client, and the options of an authentication.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::message::{DeviceId, Seq};

/// Reports what a [`Connection`](super::Connection) received.
#[derive(Clone, Debug)]
pub enum ConnectionEvent {
    /// A message.
    Message {
        /// Opcode: 0, or one of the application.
        op: u64,
        /// Data, byte for byte as sent; `null` if there was none.
        data: Box<RawValue>,
        /// Type that distinguishes messages of the application.
        kind: Option<String>,
        /// For a synced message: its position among those redelivered on this connection, from 1. For a client that
        /// resumes (`after`): its sequence in the user's log.
        position: Option<u64>,
    },
    /// The state of the log, for a client that resumes. Precedes the messages that it describes, and is repeated for
    /// each gap.
    Resumed {
        /// First sequence in the log.
        first: Seq,
        /// Last sequence when this was sent; `first - 1` if the log is empty.
        last: Seq,
        /// Requested sequences that are missing from the log.
        missed: Option<Gap>,
    },
    /// The connection has ended. Every further call returns this event again.
    Closed {
        /// Close code of the server, or [`close_code::LOST`](super::close_code::LOST) without one. See
        /// [`close_code`](super::close_code).
        code: u16,
        /// Reason that the server sent, or the cause of a lost connection.
        reason: String,
    },
}

/// Reports what happens to a [`Client`](super::Client).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The client has connected. If it has credentials, it authenticates next.
    Connected {
        /// True for the first connection: `isInitialConnection` of the original.
        is_initial_connection: bool,
        /// True for a reconnect: `isAutomaticReconnection` of the original.
        is_automatic_reconnection: bool,
    },
    /// The client has authenticated.
    Authenticated {
        /// User object as the server sent it; empty if the server does not send it.
        user: Map<String, Value>,
    },
    /// A message.
    Message(Delivery),
    /// The state of the log, for a client that resumes. Precedes the messages that it describes: once after each
    /// reconnect, and again for each gap.
    Resumed {
        /// First sequence in the log.
        first: Seq,
        /// Last sequence when this was sent; `first - 1` if the log is empty.
        last: Seq,
        /// Requested sequences that are missing from the log.
        missed: Option<Gap>,
    },
    /// The connection has ended.
    Disconnected {
        /// Close code of the server, or [`close_code::LOST`](super::close_code::LOST) without one.
        code: u16,
        /// Reason that the server sent, or the cause of a lost connection.
        reason: String,
        /// Whether the client will reconnect: `willAttemptReconnect` of the original. If false, this is the last event.
        will_reconnect: bool,
    },
}

/// Holds a message that a [`Client`](super::Client) received.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// Opcode: 0, or one of the application.
    pub op: u64,
    /// Type that distinguishes messages of the application.
    pub kind: Option<String>,
    /// Data as JSON, byte for byte as sent; `null` if there was none.
    pub data: Box<RawValue>,
    /// For a synced message: its position among those redelivered on this connection, from 1. For a client that resumes
    /// (`after`): its sequence in the user's log.
    pub position: Option<u64>,
}

impl Delivery {
    /// Returns the type, or an empty string, for use in `match`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// Deserializes the data.
    ///
    /// # Errors
    /// Fails if the data does not match the type.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.get())
    }
}

/// Describes a gap: sequences missing from the log, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// First sequence.
    pub from: Seq,
    /// Last sequence.
    pub to: Seq,
    /// Gap reason, for programs: `quota`, `expired`, `cleared` and others.
    pub reason: String,
}

/// Configures an authentication.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Requests the pending messages; `false` acknowledges all of them instead. Default true.
    pub should_sync: bool,
    /// Resumes after this sequence: the last one that the program has processed, 0 for none.
    ///
    /// Store it together with the effect of the message, and pass it at the next start. Then no message is lost or
    /// repeated. A running [`Client`](super::Client) updates it itself. With
    /// [`ClientBuilder::positions`](super::ClientBuilder::positions) it also stores it.
    pub after: Option<Seq>,
    /// Device of the client, which has its own cursor in the log.
    pub device: Option<DeviceId>,
}

impl Options {
    /// Sets [`Options::should_sync`].
    #[must_use]
    pub fn should_sync(mut self, should_sync: bool) -> Self {
        self.should_sync = should_sync;
        self
    }

    /// Sets [`Options::after`]: resumes after a sequence, 0 for the beginning.
    #[must_use]
    pub fn after(mut self, after: Seq) -> Self {
        self.after = Some(after);
        self
    }

    /// Sets [`Options::device`].
    #[must_use]
    pub fn device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { should_sync: true, after: None, device: None }
    }
}

/// Creates the data of [`Connection::authenticate`](super::Connection::authenticate) for authentication by a token.
#[must_use]
pub fn token(token: &str) -> Map<String, Value> {
    Map::from_iter([("token".to_owned(), token.into())])
}
