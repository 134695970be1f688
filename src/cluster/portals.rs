//! Defines the contract between the portals of the servers of a cluster.
//!
//! Each event goes to the portal whose turn it is, and to every portal that receives all events, on any server. Events
//! may be lost with the connection.

use std::{borrow::Cow, sync::Arc};

use crate::message::{JsonString, UserId};

/// An event of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEvent {
    /// Number of the connection on its server. Unique for the lifetime of that server's process.
    pub connection: u64,
    /// The server of that connection.
    pub origin: EventOrigin,
    /// The user of that connection, if known.
    pub user: Option<UserId>,
    /// What happened.
    pub kind: ClientEventKind,
}

/// The server of an event's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EventOrigin {
    /// The only server, without a cluster.
    #[default]
    Local,
    /// The server of this name, in a cluster.
    Server(Arc<str>),
    /// A server of the original, which does not name connections.
    Original,
    /// The previous start of the only server, which was killed. The names of its connections are not known.
    PreviousStart,
}

/// Distinguishes events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEventKind {
    /// The client connected.
    Connection,
    /// The client authenticated.
    Authentication,
    /// The client sent a message.
    Message {
        /// Opcode: 0, or above the opcodes of the protocol.
        op: u64,
        /// Data, as JSON text.
        data: Option<Box<str>>,
        /// Type of the message.
        kind: Option<JsonString<'static>>,
    },
    /// The client disconnected.
    Disconnection,
}

impl ClientEvent {
    /// Returns a name of the connection that is unique in the cluster. Empty if the connection has no known name.
    #[must_use]
    pub fn connection_name(&self) -> Cow<'static, str> {
        match &self.origin {
            EventOrigin::Local => self.connection.to_string().into(),
            EventOrigin::Server(server) => format!("{server}.{}", self.connection).into(),
            EventOrigin::Original | EventOrigin::PreviousStart => "".into(),
        }
    }

    /// Returns the approximate size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let content = match &self.kind {
            ClientEventKind::Message { data, kind, .. } => {
                data.as_deref().map_or(0, str::len) + kind.as_ref().map_or(0, JsonString::bytes)
            }
            _ => 0,
        };
        size_of::<Self>() + content
    }
}

/// The portals of other servers, as this server sees them. No method waits.
pub trait RemotePortals: Send + Sync {
    /// Returns the name of this server in the cluster.
    fn server(&self) -> Arc<str>;

    /// Adds a local portal that takes turns, under this name.
    fn add(&self, portal: &str);

    /// Removes a local portal.
    fn remove(&self, portal: &str);

    /// Sets whether a portal of this server receives all events.
    fn set_wants_all(&self, wants_all: bool);

    /// Publishes an event for `to` and for every portal that receives all events.
    ///
    /// `is_redispatch`: portals that receive all events have received it before. If the event cannot be published, it
    /// is lost, and that is logged.
    fn publish(&self, event: &Arc<ClientEvent>, to: PortalTarget<'_>, is_redispatch: bool);
}

/// Selects the portal that an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortalTarget<'a> {
    /// No portal takes turns.
    Unassigned,
    /// A portal of this server.
    Local(&'a str),
    /// A portal of another server, under a name from [`LocalPortals::set_remote`].
    Remote(&'a str),
}

/// The portals of this server, as other servers see them. Called on threads of the Redis runtime, so it must not block.
pub trait LocalPortals: Send + Sync {
    /// Sets the remote portals that take turns, and whether a remote portal receives all events. None while the
    /// subscription is lost.
    fn set_remote(&self, in_turn: &[Arc<str>], wants_all: bool);

    /// Delivers an event of another server. `portal` names the local portal whose turn it is, if any.
    fn deliver(&self, event: Arc<ClientEvent>, portal: Option<&str>, is_redispatch: bool);
}
