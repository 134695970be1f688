//! Handlers of client events: a trait with a method for each event, and a closure wrapper for each event.

use std::future::Future;

use futures_util::future::BoxFuture;

use super::{
    handle::Handle,
    peer::{HandlerEvent, Peer, ReceivedMessage},
};
use crate::message::UserId;

/// Handles client events in the embedding program.
///
/// By default each method has no effect. Implement those you need, as `async fn`.
///
/// ```
/// use mesa::{message::Message, server::{Handler, Peer, ReceivedMessage}};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     async fn message(&self, client: Peer, message: ReceivedMessage) {
///         if let Ok(answer) = Message::new("ECHO", &message.data) {
///             _ = client.send(&answer).await;
///         }
///     }
/// }
/// ```
///
/// **Order.** Events of one connection are handled in order: a call begins when the previous one has ended. Calls for
/// different connections run concurrently. Several handlers are called in the order in which they were added.
///
/// **Backpressure.** For each connection at most 32 messages (or 256 KiB of them) are queued for a handler. While the
/// queue is full the server reads nothing from the client. With heartbeats on, a handler that takes longer than the
/// heartbeat timeout loses the connection, so spawn a task for long work.
///
/// **Panics** end one call. They are logged and reported to the middleware. Connection, server and later calls
/// continue.
///
/// **Durability.** Events are not stored. A message from a client is lost in a crash if no handler has processed it,
/// and the client is not notified. Where that matters, let handlers answer messages, and clients retry unanswered ones.
pub trait Handler: Send + Sync + 'static {
    /// Handles a new connection; the client is not authenticated yet.
    fn connection(&self, client: Peer) -> impl Future<Output = ()> + Send {
        _ = client;
        async {}
    }

    /// Handles the authentication of a client: [`Peer::user`].
    fn authentication(&self, client: Peer) -> impl Future<Output = ()> + Send {
        _ = client;
        async {}
    }

    /// Handles an application message from a client.
    fn message(&self, client: Peer, message: ReceivedMessage) -> impl Future<Output = ()> + Send {
        _ = (client, message);
        async {}
    }

    /// Handles the end of a connection: its last event, with close code (1006: no close frame) and reason.
    fn disconnection(&self, client: Peer, code: u16, reason: String) -> impl Future<Output = ()> + Send {
        _ = (client, code, reason);
        async {}
    }

    /// Handles the disconnection of a user by a kill of the previous start, or by a power cut.
    ///
    /// The users are those that the store recorded as connected about a second before. Called once for each user, one
    /// after another, when the server starts. A user who connects again meanwhile comes next, and the call of
    /// [`Handler::authentication`] for that user begins when this one has ended.
    ///
    /// These users are then in memory only: a kill before the last call has ended loses the others for handlers. The
    /// webhook has them in its outbox, if it receives the event `disconnection`.
    fn restart_disconnection(&self, server: Handle, user: UserId) -> impl Future<Output = ()> + Send {
        _ = (server, user);
        async {}
    }
}

/// Object-safe form of a handler, so that several types can be stored together.
pub(super) trait DynHandler: Send + Sync {
    /// Calls the handler; `None` if it does not handle this event.
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>>;

    /// Calls the handler with a disconnection by a restart; `None` if it does not handle this event.
    fn call_restart(&self, _server: Handle, _user: UserId) -> Option<BoxFuture<'_, ()>> {
        None
    }
}

/// Object-safe wrapper of a [`Handler`].
pub(super) struct WholeHandler<H>(pub H);

impl<H: Handler> DynHandler for WholeHandler<H> {
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>> {
        Some(match event {
            HandlerEvent::Connection => Box::pin(self.0.connection(client)),
            HandlerEvent::Authentication => Box::pin(self.0.authentication(client)),
            HandlerEvent::Message(message) => Box::pin(self.0.message(client, message)),
            HandlerEvent::Disconnection(code, reason) => Box::pin(self.0.disconnection(client, code, reason.into())),
        })
    }

    fn call_restart(&self, server: Handle, user: UserId) -> Option<BoxFuture<'_, ()>> {
        Some(Box::pin(self.0.restart_disconnection(server, user)))
    }
}

/// Handler of connections by a closure.
pub(super) struct OnConnection<F>(pub F);

impl<F: Fn(Peer) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> DynHandler for OnConnection<F> {
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>> {
        matches!(event, HandlerEvent::Connection).then(|| Box::pin((self.0)(client)) as _)
    }
}

/// Handler of authentications by a closure.
pub(super) struct OnAuthentication<F>(pub F);

impl<F: Fn(Peer) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> DynHandler for OnAuthentication<F> {
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>> {
        matches!(event, HandlerEvent::Authentication).then(|| Box::pin((self.0)(client)) as _)
    }
}

/// Handler of messages by a closure.
pub(super) struct OnMessage<F>(pub F);

impl<F: Fn(Peer, ReceivedMessage) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> DynHandler
    for OnMessage<F>
{
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>> {
        let HandlerEvent::Message(message) = event else { return None };
        Some(Box::pin((self.0)(client, message)))
    }
}

/// Handler of disconnections by a closure.
pub(super) struct OnDisconnection<F>(pub F);

impl<F: Fn(Peer, u16, String) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> DynHandler
    for OnDisconnection<F>
{
    fn call(&self, client: Peer, event: HandlerEvent) -> Option<BoxFuture<'_, ()>> {
        let HandlerEvent::Disconnection(code, reason) = event else { return None };
        Some(Box::pin((self.0)(client, code, reason.into())))
    }
}
