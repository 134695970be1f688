//! An event that is kept until somebody takes it.

use super::super::events::{ConnectionId, Event, Said};
pub use crate::cluster::portals::{At, Told, What};

/// Takes a copy of what is told.
pub(super) fn told(connection: ConnectionId, at: At, event: Event<'_>) -> Told {
    let (user, what) = match event {
        Event::Connection => (None, What::Connection),
        Event::Authentication { user } => (Some(user), What::Authentication),
        Event::Message { user, said: Said { op, data, kind } } => {
            (user, What::Message { op, data: data.map(Into::into), kind: kind.map(Into::into) })
        }
        Event::Disconnection { user, .. } => (user, What::Disconnection),
    };
    Told { connection, at, user: user.cloned(), what }
}
