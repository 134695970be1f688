//! What a program does when something happens to clients: a trait with a method for each event, and closures for one each.

use std::future::Future;

use futures_util::future::BoxFuture;

use super::peer::{Peer, Received, Told};

/// What a program does when something happens to a client. Every method does nothing by default: write those you need, as
/// `async fn`.
///
/// ```
/// use mesa::{message::Message, server::{Handler, Peer, Received}};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     async fn message(&self, client: Peer, message: Received) {
///         if let Ok(answer) = Message::new("ECHO", &message.data) {
///             _ = client.send(&answer).await;
///         }
///     }
/// }
/// ```
///
/// **Order.** Of one connection everything is told in order, one call after the other: the next begins when the last has
/// ended. Calls of different connections run side by side. Several handlers are called in the order in which they were
/// given, each for itself.
///
/// **The bound.** For each connection at most 32 messages (or 256 KiB of them) wait for a handler; while there are that many
/// the client is not read from, so that what it says waits on its own side. With heartbeats on, a handler that takes longer
/// over its messages than the heartbeat is patient loses the connection: leave long work to a task of your own.
///
/// **A panic** ends that one call. It is written to the log and told to the middleware; connection, server and later calls
/// go on.
///
/// Nothing of this is kept: what a client said is lost in a crash if no handler has dealt with it, and the client does not
/// know. Where that matters let the client repeat what was not answered.
pub trait Handler: Send + Sync + 'static {
    /// A client has connected; nobody knows yet who it is.
    fn connection(&self, client: Peer) -> impl Future<Output = ()> + Send {
        _ = client;
        async {}
    }

    /// A client has shown who it is: [`Peer::user`].
    fn authentication(&self, client: Peer) -> impl Future<Output = ()> + Send {
        _ = client;
        async {}
    }

    /// A client has said something: a message of its application.
    fn message(&self, client: Peer, message: Received) -> impl Future<Output = ()> + Send {
        _ = (client, message);
        async {}
    }

    /// A client is gone, with this close code (1006: without a word) and in the words of who closed. Comes after everything
    /// else, and once.
    fn disconnection(&self, client: Peer, code: u16, reason: String) -> impl Future<Output = ()> + Send {
        _ = (client, code, reason);
        async {}
    }
}

/// A handler that several kinds of can stand side by side.
pub(super) trait Called: Send + Sync {
    /// `None` where there is nothing to do.
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>>;
}

/// A handler of every event.
pub(super) struct All<H>(pub H);

impl<H: Handler> Called for All<H> {
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>> {
        Some(match told {
            Told::Connection => Box::pin(self.0.connection(client)),
            Told::Authentication => Box::pin(self.0.authentication(client)),
            Told::Message(message) => Box::pin(self.0.message(client, message)),
            Told::Disconnection(code, reason) => Box::pin(self.0.disconnection(client, code, reason.into())),
        })
    }
}

pub(super) struct OnConnection<F>(pub F);

impl<F: Fn(Peer) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> Called for OnConnection<F> {
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>> {
        matches!(told, Told::Connection).then(|| Box::pin((self.0)(client)) as _)
    }
}

pub(super) struct OnAuthentication<F>(pub F);

impl<F: Fn(Peer) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> Called for OnAuthentication<F> {
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>> {
        matches!(told, Told::Authentication).then(|| Box::pin((self.0)(client)) as _)
    }
}

pub(super) struct OnMessage<F>(pub F);

impl<F: Fn(Peer, Received) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> Called for OnMessage<F> {
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>> {
        let Told::Message(message) = told else { return None };
        Some(Box::pin((self.0)(client, message)))
    }
}

pub(super) struct OnDisconnection<F>(pub F);

impl<F: Fn(Peer, u16, String) -> R + Send + Sync, R: Future<Output = ()> + Send + 'static> Called
    for OnDisconnection<F>
{
    fn call(&self, client: Peer, told: Told) -> Option<BoxFuture<'_, ()>> {
        let Told::Disconnection(code, reason) = told else { return None };
        Some(Box::pin((self.0)(client, code, reason.into())))
    }
}
