//! An event that is kept until somebody takes it.

use super::super::events::{ConnectionId, Event};
pub use crate::cluster::portals::{At, Told, What};
use crate::message::JsonString;

/// Takes a copy of what is told.
pub(super) fn told(connection: ConnectionId, at: At, event: Event<'_>) -> Told {
    let (user, what) = match event {
        Event::Connection => (None, What::Connection),
        Event::Authentication { user } => (Some(user), What::Authentication),
        Event::Message { user, said } => {
            let kind = said.json_kind().map(JsonString::into_owned);
            (user, What::Message { op: said.op, data: said.data.map(Into::into), kind })
        }
        Event::Disconnection { user, .. } => (user, What::Disconnection),
    };
    Told { connection, at, user: user.cloned(), what }
}
