//! An event that is kept until somebody takes it.

use super::super::events::{ConnectionId, Event, Said};
use crate::message::UserId;

/// Something that has happened to a client. Shared by all who are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// To whose connection. Unlike any other for as long as the process lives.
    pub connection: ConnectionId,
    /// Whose that is, if that is known.
    pub user: Option<UserId>,
    /// What.
    pub what: What,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
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
        kind: Option<Box<str>>,
    },
    /// It is gone.
    Disconnection,
}

impl Told {
    /// Takes a copy of what is kept.
    pub(super) fn new(connection: ConnectionId, event: Event<'_>) -> Self {
        let (user, what) = match event {
            Event::Connection => (None, What::Connection),
            Event::Authentication { user } => (Some(user), What::Authentication),
            Event::Message { user, said: Said { op, data, kind } } => {
                (user, What::Message { op, data: data.map(Into::into), kind: kind.map(Into::into) })
            }
            Event::Disconnection { user, .. } => (user, What::Disconnection),
        };
        Self { connection, user: user.cloned(), what }
    }

    /// Bytes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        let said = match &self.what {
            What::Message { data, kind, .. } => {
                data.as_deref().map_or(0, str::len) + kind.as_deref().map_or(0, str::len)
            }
            _ => 0,
        };
        size_of::<Self>() + said
    }
}
