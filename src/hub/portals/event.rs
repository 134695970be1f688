//! An event that is kept until somebody takes it.

use super::super::events::{ConnectionId, Event};
pub use crate::cluster::portals::{ClientEvent, ClientEventKind, EventOrigin};
use crate::message::JsonString;

/// Takes a copy of what is told.
pub(super) fn told(connection: ConnectionId, at: EventOrigin, event: Event<'_>) -> ClientEvent {
    let (user, what) = match event {
        Event::Connection => (None, ClientEventKind::Connection),
        Event::Authentication { user } => (Some(user), ClientEventKind::Authentication),
        Event::Message { user, said } => {
            let kind = said.json_kind().map(JsonString::into_owned);
            (user, ClientEventKind::Message { op: said.op, data: said.data.map(Into::into), kind })
        }
        Event::Disconnection { user, .. } => (user, ClientEventKind::Disconnection),
    };
    ClientEvent { connection, origin: at, user: user.cloned(), kind: what }
}
