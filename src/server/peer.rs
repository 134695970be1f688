//! A client, for the embedding program.

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

/// Messages of one connection queued for the handlers. At this limit the server reads nothing from the client.
pub(super) const MESSAGES_MAX: usize = 32;

/// Bytes of those messages, with the same consequence. The last message may exceed it.
pub(super) const BYTES_MAX: usize = 256 << 10;

/// Address and request of a new connection.
pub(super) struct HandshakeInfo {
    pub address: Option<SocketAddr>,
    pub request: Request<()>,
}

impl HandshakeInfo {
    pub(super) fn new<B>(address: Option<SocketAddr>, source: &Request<B>) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = source.method().clone();
        *request.uri_mut() = source.uri().clone();
        *request.version_mut() = source.version();
        *request.headers_mut() = source.headers().clone();
        Self { address, request }
    }
}

/// A message from a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// 0, or an opcode above those of the protocol (23 and up).
    pub op: u64,
    /// The type. U+FFFD replaces each lone surrogate.
    pub kind: Option<String>,
    /// The data as JSON text, unchanged; `None` if there was none.
    pub data: Option<Box<RawValue>>,
}

impl ReceivedMessage {
    /// Returns the type, or the empty string if there is none.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// Parses the data as `T`. Clients can send any JSON, so expect the error.
    ///
    /// # Errors
    /// When the data is no `T`.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.as_deref().map_or("null", RawValue::get))
    }
}

/// A close code that is not allowed in a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} is not allowed as a close code; use 1000, or 3000 to 4999 for reasons of your own")]
pub struct CloseCodeError {
    code: u16,
}

/// One client of this server: a connection, and once authenticated, its user.
///
/// Cheap to clone. It may outlive the connection.
#[derive(Clone)]
pub struct Peer(pub(super) Arc<PeerState>);

/// User and user object of a client.
type PeerIdentity = (UserId, Arc<Map<String, Value>>);

/// State of a connection that its peers share.
pub(super) struct PeerState {
    pub connection: u64,
    pub handle: Handle,
    pub handshake: HandshakeInfo,
    pub identity: RwLock<Option<PeerIdentity>>,
    /// Identity that takes effect once the handlers have received all earlier messages.
    pub pending_identity: Mutex<Option<PeerIdentity>>,
    pub queue: Mutex<Queue>,
    /// Woken when the queue has capacity again.
    pub capacity_waker: AtomicWaker,
}

impl Peer {
    pub(super) fn new(connection: u64, handle: Handle, handshake: HandshakeInfo) -> Self {
        Self(Arc::new(PeerState {
            connection,
            handle,
            handshake,
            identity: RwLock::default(),
            pending_identity: Mutex::default(),
            queue: Mutex::default(),
            capacity_waker: AtomicWaker::new(),
        }))
    }

    pub(super) fn set_pending_identity(&self, identity: &Identity) {
        *self.0.pending_identity.lock() = Some((identity.id.clone(), Arc::new(identity.user.clone())));
    }

    /// Sets the identity, right before the handlers receive the authentication.
    pub(super) fn apply_pending_identity(&self) {
        if let Some(identity) = self.0.pending_identity.lock().take() {
            *self.0.identity.write() = Some(identity);
        }
    }

    /// Returns the id of the connection, unique in this process.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.0.connection
    }

    /// Returns the handle of the server.
    #[must_use]
    pub fn server(&self) -> &Handle {
        &self.0.handle
    }

    /// Returns the user, from the authentication event on. Earlier messages have no user.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.0.identity.read().as_ref().map(|(user, _)| user.clone())
    }

    /// Returns the user object that authentication or [`Peer::update_user`] has set; empty before.
    #[must_use]
    pub fn user_object(&self) -> Arc<Map<String, Value>> {
        self.0.identity.read().as_ref().map(|(_, object)| object.clone()).unwrap_or_default()
    }

    /// Sets the user object that [`Peer::user_object`] returns, for this connection.
    ///
    /// As with the original, the client is not notified, and the object is not stored. A connection's user id cannot
    /// change.
    ///
    /// # Errors
    /// When the client has not authenticated.
    pub fn update_user(&self, object: Map<String, Value>) -> Result<(), SendError> {
        match &mut *self.0.identity.write() {
            Some((_, current)) => {
                *current = Arc::new(object);
                Ok(())
            }
            None => Err(SendError::Contradictory("this client has not been authenticated yet")),
        }
    }

    /// Returns the client's address, if it is known. In your own router that requires serving it with connect info.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.handshake.address
    }

    /// Returns the upgrade request, without a body.
    #[must_use]
    pub fn request(&self) -> &http::Request<()> {
        &self.0.handshake.request
    }

    /// Sends a message to this client's *user*, as [`Handle::send`] does: to all connections and devices.
    ///
    /// A client that has not authenticated has no log; it receives the message as from [`Peer::send_here`].
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

    /// Sends an unsynced message only to this connection; false if it has ended.
    ///
    /// The message is never stored. If the client reads too slowly, its oldest unsynced message is dropped and counted.
    ///
    /// # Errors
    /// When the message is too large, too deep, or has an opcode of the protocol.
    pub fn send_here(&self, message: &Message) -> Result<bool, SendError> {
        Ok(self.0.handle.send_to_connection(self.0.connection, &message.payload()?))
    }

    /// Closes the connection with a code; false if it has ended or is closing.
    ///
    /// Allowed codes are 1000 to 1003, 1007 to 1013, and 3000 to 4999. The user's pending messages stay.
    ///
    /// # Errors
    /// When the code is not allowed.
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

/// An event for a handler.
#[derive(Clone, Debug)]
pub(super) enum HandlerEvent {
    Connection,
    Authentication,
    Message(ReceivedMessage),
    Disconnection(u16, Box<str>),
}

impl HandlerEvent {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Authentication => "authentication",
            Self::Message(_) => "message",
            Self::Disconnection(..) => "disconnection",
        }
    }
}

/// Queued events of one connection.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) events: VecDeque<HandlerEvent>,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// Whether a task is processing the queue.
    pub(super) running: bool,
}

impl Queue {
    pub(super) fn is_full(&self) -> bool {
        self.messages >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }
}
