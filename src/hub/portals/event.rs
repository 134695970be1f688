//! Owned copy of a client event, for the queues.

use super::super::events::{ConnectionId, Event};
pub use crate::cluster::portals::{ClientEvent, ClientEventKind, EventOrigin};
use crate::message::JsonString;

/// Copies a hub event.
pub(in crate::hub) fn copy(connection: ConnectionId, origin: EventOrigin, event: Event<'_>) -> ClientEvent {
    let (user, kind) = match event {
        Event::Connection => (None, ClientEventKind::Connection),
        Event::Authentication { user } => (Some(user), ClientEventKind::Authentication),
        Event::Message { user, message } => {
            let message_type = message.json_kind().map(JsonString::into_owned);
            (user, ClientEventKind::Message { op: message.op, data: message.data.map(Into::into), kind: message_type })
        }
        Event::Disconnection { user, .. } => (user, ClientEventKind::Disconnection),
        Event::RestartDisconnection { user } => (Some(user), ClientEventKind::Disconnection),
    };
    let origin = if matches!(event, Event::RestartDisconnection { .. }) { EventOrigin::PreviousStart } else { origin };
    ClientEvent { connection, origin, user: user.cloned(), kind }
}
