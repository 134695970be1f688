//! Client events, passed to every listener: portals, webhooks, and handlers of an embedding program.
//!
//! Events of one connection arrive in order: connection, authentication, messages, disconnection. Between connections
//! there is no order. Each event is passed once. A listener receives only events after it was added.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use parking_lot::RwLock;

pub use super::registry::ConnectionId;
pub use crate::message::InboundMessage;
use crate::message::UserId;

/// The reason that webhooks and portals receive for [`Event::RestartDisconnection`].
pub const SERVER_RESTART: &str = "server_restart";

/// Stands for a connection of an earlier start, whose id is not known. No connection has this id.
pub(super) const NO_CONNECTION: ConnectionId = 0;

/// An event of one client, borrowed: a listener copies what it stores.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The client has connected and is not authenticated yet.
    Connection,
    /// The client has authenticated.
    Authentication {
        /// The user.
        user: &'a UserId,
    },
    /// The client has sent an application message (opcode 0, or above those of the protocol).
    Message {
        /// The user, if the client is authenticated.
        user: Option<&'a UserId>,
        /// The message.
        message: InboundMessage<'a>,
    },
    /// The client has disconnected.
    Disconnection {
        /// The user, if the client was authenticated.
        user: Option<&'a UserId>,
        /// The close code of the side that closed; 1006 without a close frame.
        code: u16,
        /// The reason from the close frame; often empty.
        reason: &'a str,
    },
    /// The previous start ended without closing this user's connections: it was killed, or the power failed.
    ///
    /// Passed once for each user, before the first connection. The store has put it into the outbox already.
    RestartDisconnection {
        /// The user.
        user: &'a UserId,
    },
}

/// Receives client events.
///
/// Called on the connection's task, so it must not wait. A listener with more work puts it into a bounded queue, and
/// defines what happens when that queue is full.
pub trait Listener: Send + Sync {
    /// Receives an event of the client on `connection`.
    fn event(&self, connection: ConnectionId, event: Event<'_>);

    /// Ready when the listener has capacity for another message from this connection; by default always.
    ///
    /// While it is pending the server reads nothing from the client, so backpressure reaches the client's socket. The
    /// listener wakes the waker when it has capacity again.
    fn poll_ready(&self, connection: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        _ = (connection, cx);
        Poll::Ready(())
    }
}

/// All listeners. Without any, an event costs one atomic load.
#[derive(Default)]
pub(super) struct Listeners {
    any: AtomicBool,
    all: RwLock<Vec<Arc<dyn Listener>>>,
}

impl Listeners {
    pub(super) fn add(&self, listener: Arc<dyn Listener>) {
        self.all.write().push(listener);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn notify(&self, connection: ConnectionId, event: Event<'_>) {
        if self.any.load(Ordering::Acquire) {
            self.all.read().iter().for_each(|listener| listener.event(connection, event));
        }
    }

    /// Ready when every listener has capacity for another message.
    pub(super) fn poll_ready(&self, connection: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        if !self.any.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let all = self.all.read();
        if all.iter().all(|listener| listener.poll_ready(connection, cx).is_ready()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("count", &self.all.read().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use parking_lot::Mutex;

    use super::*;
    use crate::hub::{Attach, tests::hub};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Listener for Recorder {
        fn event(&self, _: ConnectionId, event: Event<'_>) {
            let text = match event {
                Event::Connection => "connection".to_owned(),
                Event::Authentication { user } => format!("authentication {user}"),
                Event::Message { user, message } => format!("message {user:?} {:?}", message.data),
                Event::Disconnection { user, code, .. } => format!("disconnection {user:?} {code}"),
                Event::RestartDisconnection { user } => format!("restart disconnection {user}"),
            };
            self.0.lock().push(text);
        }
    }

    #[tokio::test]
    async fn events_of_a_connection_arrive_once_and_in_order() {
        let (hub, recorder) = (hub(Duration::ZERO), Arc::new(Recorder::default()));
        let earlier = hub.connect();
        hub.listen(recorder.clone());
        let mut connected = hub.connect();
        connected.receive(InboundMessage::new(0, Some("1"), None));
        let attach = Attach { should_sync: true, after: None, device: None };
        let alice = UserId::new("alice").unwrap();
        let session = connected.attach(alice.clone(), attach.clone(), Instant::now()).unwrap();
        connected.receive(InboundMessage::new(0, Some("2"), None));
        drop(session);
        drop(connected.attach(alice, attach, Instant::now()).unwrap());
        connected.set_close(1000, "");
        drop(connected);
        drop(earlier);
        let expected = [
            "connection",
            "message None Some(\"1\")",
            "authentication alice",
            "message Some(\"alice\") Some(\"2\")",
            "disconnection Some(\"alice\") 1000",
            "disconnection None 1006",
        ];
        assert_eq!(recorder.0.lock()[..], expected);
    }
}
