//! Puts client events into the outbox.

use std::sync::Arc;

use crate::{
    hub::{ConnectionId, Event, EventKind, InboundMessage, Listener, Outbox, OutboxEvent},
    message::UserId,
};

/// Listens to the hub, and puts its events into the outbox.
pub(super) struct EventRecorder {
    outbox: Arc<dyn Outbox>,
    /// Distinguishes connection ids of this process from those of earlier ones.
    start: String,
}

impl EventRecorder {
    pub fn new(outbox: Arc<dyn Outbox>) -> Self {
        let start = outbox.start_id();
        Self { outbox, start }
    }
}

impl Listener for EventRecorder {
    fn event(&self, connection: ConnectionId, event: Event<'_>) {
        let kind = match event {
            Event::Connection => EventKind::Connection,
            Event::Authentication { .. } => EventKind::Authentication,
            Event::Message { .. } => EventKind::Message,
            Event::Disconnection { .. } => EventKind::Disconnection,
            // The store itself puts it into the outbox, before it forgets the user.
            Event::RestartDisconnection { .. } => return,
        };
        if !self.outbox.is_enabled(kind) {
            return;
        }
        let connection = format!("{}-{connection}", self.start);
        let owned = |text: Option<&str>| text.map(str::to_owned);
        self.outbox.put(match event {
            Event::Connection => OutboxEvent::Connection { connection },
            Event::Authentication { user } => {
                OutboxEvent::Authentication { connection, user: user.as_str().to_owned() }
            }
            Event::Message { user, message: InboundMessage { op, data, kind, kind_json } } => {
                let (user, data) = (owned(user.map(UserId::as_str)), owned(data));
                match kind_json {
                    None => OutboxEvent::Message { connection, user, op, data, kind: owned(kind) },
                    Some(json) => {
                        OutboxEvent::RawTypeMessage { connection, user, op, data, kind_json: json.to_owned() }
                    }
                }
            }
            Event::Disconnection { user, .. } => {
                OutboxEvent::Disconnection { connection, user: owned(user.map(UserId::as_str)) }
            }
            Event::RestartDisconnection { .. } => return,
        });
    }
}
