//! Portals at other servers: what is told to them, and what others tell to those that are here.
//!
//! An event is told to whose turn it is and to each that hears everything, wherever they are. All of it may be lost with the
//! line: events are told, not promised.

use std::{borrow::Cow, sync::Arc};

use crate::message::{JsonString, UserId};

/// Something that has happened to a client. Shared by all who are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEvent {
    /// To whose connection, a number of the server it is at. Unlike any other for as long as that server's process lives.
    pub connection: u64,
    /// Which server that is.
    pub origin: EventOrigin,
    /// Whose connection that is, if that is known.
    pub user: Option<UserId>,
    /// What.
    pub kind: ClientEventKind,
}

/// Where something has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EventOrigin {
    /// At the only server there is.
    #[default]
    Local,
    /// At the server of this name, of several.
    Server(Arc<str>),
    /// At a server of another make, which has no names for connections.
    Original,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEventKind {
    /// It has connected.
    Connection,
    /// It has shown who it is.
    Authentication,
    /// It has said something.
    Message {
        /// 0, or one above those of the protocol.
        op: u64,
        /// The data: JSON text.
        data: Option<Box<str>>,
        /// The type.
        kind: Option<JsonString<'static>>,
    },
    /// It is gone.
    Disconnection,
}

impl ClientEvent {
    /// The connection's name, unlike that of any other at any server; empty where a server of another make has it.
    #[must_use]
    pub fn connection_name(&self) -> Cow<'static, str> {
        match &self.origin {
            EventOrigin::Local => self.connection.to_string().into(),
            EventOrigin::Server(server) => format!("{server}.{}", self.connection).into(),
            EventOrigin::Original => "".into(),
        }
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let said = match &self.kind {
            ClientEventKind::Message { data, kind, .. } => {
                data.as_deref().map_or(0, str::len) + kind.as_ref().map_or(0, JsonString::bytes)
            }
            _ => 0,
        };
        size_of::<Self>() + said
    }
}

/// The portals of other servers, from the side of one. Nothing here waits.
pub trait RemotePortals: Send + Sync {
    /// What this server is called among them.
    fn server(&self) -> Arc<str>;

    /// A portal that takes turns is here, under this name.
    fn add(&self, portal: &str);

    /// It is not any more.
    fn remove(&self, portal: &str);

    /// Whether somebody here is to be told everything.
    fn set_wants_all(&self, watching: bool);

    /// Tells the others of an event: it is for `to`, and for all who hear everything, unless it is told `again`, which they
    /// have heard already. What cannot be told is lost, and counted in the log.
    fn publish(&self, event: &Arc<ClientEvent>, to: PortalTarget<'_>, again: bool);
}

/// Whose an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortalTarget<'a> {
    /// No portal takes turns.
    Unassigned,
    /// That of a portal that is here.
    Local(&'a str),
    /// That of one elsewhere, in the words of [`LocalPortals::others`].
    Remote(&'a str),
}

/// The portals that are here, from the side of the others. Called on threads of the line's own: must not block.
pub trait LocalPortals: Send + Sync {
    /// Who takes turns elsewhere, and whether somebody there is to be told everything. Nobody, while the line is lost.
    fn set_remote(&self, in_turn: &[Arc<str>], listen: bool);

    /// Something has happened elsewhere. It is for `portal`, if that is one of those that came here.
    fn deliver(&self, event: Arc<ClientEvent>, portal: Option<&str>, again: bool);
}
