//! What happens to clients, told to whoever listens: portals, webhooks, handlers of who embeds the server.
//!
//! Of one connection everything is told in order: that it came, who it turned out to be, what it said, that it went.
//! Between connections there is no order. Nothing is told twice, and nothing of what came before a listener did.

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

/// Something that has happened to a client. Borrowed: a listener copies what it keeps.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It has connected, and nobody knows yet who it is.
    Connection,
    /// It has shown who it is.
    Authentication {
        /// Who it is.
        user: &'a UserId,
    },
    /// It has said something: a message of its application (opcode 0 or above those of the protocol).
    Message {
        /// Who it is, if that is known.
        user: Option<&'a UserId>,
        /// What it said.
        said: InboundMessage<'a>,
    },
    /// It is gone.
    Disconnection {
        /// Who it was, if that was known.
        user: Option<&'a UserId>,
        /// The close code: the client's own where it closed, ours where we did, 1006 where nobody said anything.
        code: u16,
        /// In the words of who closed; often empty.
        reason: &'a str,
    },
}

/// Who is told. Called on the connection's own task, so it must not wait for anything: whoever has more to do puts it into a
/// bounded queue of his own and says what happens when that is full.
pub trait Listener: Send + Sync {
    /// Something has happened to the client on `connection`.
    fn event(&self, connection: ConnectionId, event: Event<'_>);

    /// Whether there is room for another message from this connection. While there is none the client is not listened to,
    /// so that what it says waits on its own side; the waker is to be woken when there is room again. Always, by default.
    fn poll_ready(&self, connection: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        _ = (connection, cx);
        Poll::Ready(())
    }
}

/// All who listen. Costs a look at a flag as long as there are none.
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

    pub(super) fn tell(&self, connection: ConnectionId, event: Event<'_>) {
        if self.any.load(Ordering::Acquire) {
            self.all.read().iter().for_each(|listener| listener.event(connection, event));
        }
    }

    /// Ready when every listener has room for another message.
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
    struct Written(Mutex<Vec<String>>);

    impl Listener for Written {
        fn event(&self, _: ConnectionId, event: Event<'_>) {
            let told = match event {
                Event::Connection => "connection".to_owned(),
                Event::Authentication { user } => format!("authentication {user}"),
                Event::Message { user, said } => format!("{user:?} says {:?}", said.data),
                Event::Disconnection { user, code, .. } => format!("{user:?} goes {code}"),
            };
            self.0.lock().push(told);
        }
    }

    #[tokio::test]
    async fn of_a_connection_everything_is_told_once_and_in_order() {
        let (hub, written) = (hub(Duration::ZERO), Arc::new(Written::default()));
        let unheard = hub.connect();
        hub.listen(written.clone());
        let mut connected = hub.connect();
        connected.said(InboundMessage::new(0, Some("1"), None));
        let attach = Attach { should_sync: true, after: None, device: None };
        let alice = UserId::new("alice").unwrap();
        let session = connected.attach(alice.clone(), attach.clone(), Instant::now()).unwrap();
        connected.said(InboundMessage::new(0, Some("2"), None));
        drop(session);
        drop(connected.attach(alice, attach, Instant::now()).unwrap());
        connected.ends(1000, "");
        drop(connected);
        drop(unheard);
        let expected = [
            "connection",
            "None says Some(\"1\")",
            "authentication alice",
            "Some(\"alice\") says Some(\"2\")",
            "Some(\"alice\") goes 1000",
            "None goes 1006",
        ];
        assert_eq!(written.0.lock()[..], expected);
    }
}
