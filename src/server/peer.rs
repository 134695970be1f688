//! A client as the program sees it that the server is part of.

use std::{collections::VecDeque, fmt, net::SocketAddr, sync::Arc};

use futures_util::task::AtomicWaker;
use http::Request;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::handle::{Handle, SendError};
use crate::{
    auth::Identity,
    hub::Outcome,
    message::{Message, UserId},
};

/// Messages of one connection that wait for the handlers. With so many the client is not listened to.
pub(super) const MESSAGES_MAX: usize = 32;

/// Bytes of those messages; likewise. One message more may be over it.
pub(super) const BYTES_MAX: usize = 256 << 10;

/// What a connection comes with.
pub(super) struct Arrival {
    pub address: Option<SocketAddr>,
    pub request: Request<()>,
}

impl Arrival {
    pub(super) fn new<B>(address: Option<SocketAddr>, asked: &Request<B>) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = asked.method().clone();
        *request.uri_mut() = asked.uri().clone();
        *request.version_mut() = asked.version();
        *request.headers_mut() = asked.headers().clone();
        Self { address, request }
    }
}

/// A message from a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Received {
    /// 0, or above those of the protocol (23 and up).
    pub op: u64,
    /// The type, by which applications tell messages apart. With U+FFFD in place of each half of a surrogate pair.
    pub kind: Option<String>,
    /// The data: JSON text as it stood; `None` where there was none.
    pub data: Option<Box<RawValue>>,
}

impl Received {
    /// The type, or the empty text: for `match`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// The data as a type of yours. What a client says is whatever it likes to say: expect the error.
    ///
    /// # Errors
    /// When it has another form.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.as_deref().map_or("null", RawValue::get))
    }
}

/// A close code that may not stand in a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} is no close code for a connection to end with; use 1000, or 3000 to 4999 for reasons of your own")]
pub struct CloseCodeError {
    code: u16,
}

/// One client of this server: a connection, and once it has shown who it is, its user. Cheap to clone, and harmless to
/// keep after the connection has gone.
#[derive(Clone)]
pub struct Peer(pub(super) Arc<State>);

/// Who a client is, and its user object.
type Known = (UserId, Arc<Map<String, Value>>);

pub(super) struct State {
    pub connection: u64,
    pub handle: Handle,
    pub arrival: Arrival,
    pub identity: RwLock<Option<Known>>,
    /// Who the client will be once the handlers have heard of what it said before.
    pub coming: Mutex<Option<Known>>,
    pub queue: Mutex<Queue>,
    /// Woken when the queue has room again.
    pub room: AtomicWaker,
}

impl Peer {
    pub(super) fn new(connection: u64, handle: Handle, arrival: Arrival) -> Self {
        Self(Arc::new(State {
            connection,
            handle,
            arrival,
            identity: RwLock::default(),
            coming: Mutex::default(),
            queue: Mutex::default(),
            room: AtomicWaker::new(),
        }))
    }

    pub(super) fn identified(&self, identity: &Identity) {
        *self.0.coming.lock() = Some((identity.id.clone(), Arc::new(identity.user.clone())));
    }

    /// The handlers are about to be told who it is.
    pub(super) fn introduce(&self) {
        if let Some(known) = self.0.coming.lock().take() {
            *self.0.identity.write() = Some(known);
        }
    }

    /// Names the connection for as long as the process lives.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.0.connection
    }

    /// The server it is connected to.
    #[must_use]
    pub fn server(&self) -> &Handle {
        &self.0.handle
    }

    /// Who it is, once it has shown that and the handlers have been told: what it said before is nobody's.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.0.identity.read().as_ref().map(|(user, _)| user.clone())
    }

    /// Its user object, as authentication or [`Peer::update_user`] has set it; empty before.
    #[must_use]
    pub fn user_object(&self) -> Arc<Map<String, Value>> {
        self.0.identity.read().as_ref().map(|(_, object)| object.clone()).unwrap_or_default()
    }

    /// Sets the user object that [`Peer::user_object`] gives from here on, on this connection. The client is not told, as
    /// with stock, and nothing of it is kept when the connection ends. Who the user *is* cannot change: that takes a new
    /// connection.
    ///
    /// # Errors
    /// When it has not authenticated.
    pub fn update_user(&self, object: Map<String, Value>) -> Result<(), SendError> {
        match &mut *self.0.identity.write() {
            Some((_, current)) => {
                *current = Arc::new(object);
                Ok(())
            }
            None => Err(SendError::Senseless("this client has not been authenticated yet")),
        }
    }

    /// Where it connected from, where that is known: in a router of yours, when it is served with connect info.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.arrival.address
    }

    /// The request it connected with: address, headers.
    #[must_use]
    pub fn request(&self) -> &http::Request<()> {
        &self.0.arrival.request
    }

    /// Sends a message to this client's *user*, as [`Handle::send`]: on all his connections, and kept if he is gone by the
    /// time it gets there. A client that has not authenticated has no log; it gets the message as by [`Peer::send_here`].
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub async fn send(&self, message: &Message) -> Result<Outcome, SendError> {
        if let Some(user) = self.user() {
            return self.0.handle.send(message, user, &[]).await;
        }
        let online = usize::from(self.send_here(message)?);
        let mut outcome = Outcome::default();
        (outcome.recipients, outcome.online) = (1, online);
        outcome.offline = 1 - online;
        Ok(outcome)
    }

    /// Sends a message over this connection alone, past the log: never kept, and dropped (counted, the oldest first) where
    /// the client reads more slowly than that. False if the connection is gone already.
    ///
    /// # Errors
    /// When the message is too large, too deep, or wears an opcode of the protocol.
    pub fn send_here(&self, message: &Message) -> Result<bool, SendError> {
        Ok(self.0.handle.send_to_connection(self.0.connection, &message.payload()?))
    }

    /// Closes the connection with this code: 1000 to 1003, 1007 to 1013, or 3000 to 4999. What waits for its user stays.
    /// False if it is gone already.
    ///
    /// # Errors
    /// When a connection may not be closed with this code.
    pub fn disconnect(&self, code: u16) -> Result<bool, CloseCodeError> {
        if !matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999) {
            return Err(CloseCodeError { code });
        }
        Ok(self.0.handle.close_connection(self.0.connection, code))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (connection, user) = (self.connection(), self.user());
        f.debug_struct("Peer").field("connection", &connection).field("user", &user).finish_non_exhaustive()
    }
}

/// What is told to a handler.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Connection,
    Authentication,
    Message(Received),
    Disconnection(u16, Box<str>),
}

impl Told {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Authentication => "authentication",
            Self::Message(_) => "message",
            Self::Disconnection(..) => "disconnection",
        }
    }
}

/// What waits for the handlers of one connection.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Told>,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// A task is at it.
    pub(super) running: bool,
}

impl Queue {
    pub(super) fn is_full(&self) -> bool {
        self.messages >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }
}
