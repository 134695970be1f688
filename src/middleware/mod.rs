//! Defines middleware: hooks that a server calls for each event, in the order in which they were added.
//!
//! The trait has a method for each handler of the original Mesa (`@cryb/mesa`), named in Rust's style. The crate has
//! two implementations: [`AccessLog`] and [`RateLimit`].
//!
//! ```
//! use mesa::{
//!     middleware::{Client, Middleware, MiddlewareResult, InboundMessage, Decision},
//!     server::Server,
//! };
//!
//! /// Accepts only messages of known types.
//! struct KnownTypes;
//!
//! impl Middleware for KnownTypes {
//!     fn on_message_received(&self, message: &InboundMessage<'_>, _: &Client<'_>) -> MiddlewareResult<Decision> {
//!         let known = matches!(message.kind, Some("CHAT" | "TYPING"));
//!         Ok(if known { Decision::Pass } else { Decision::Reject })
//!     }
//! }
//!
//! let builder = Server::builder().middleware(KnownTypes);
//! # _ = builder;
//! ```
//!
//! Without middleware the cost is one flag test per event.

mod access_log;
mod rate_limit;

use std::{
    error::Error,
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

pub use self::{access_log::AccessLog, rate_limit::RateLimit};
pub use crate::message::InboundMessage;
use crate::{
    logging::{panic_text, sentence},
    message::{Payload, Seq, UserId},
};

/// Result of a middleware call. An error is only logged and passed to [`Middleware::on_error`] of all middleware.
pub type MiddlewareResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Describes a client to middleware.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Client<'a> {
    /// Id of the connection, unique within the process.
    pub connection: u64,
    /// Address of the client, if it is known.
    pub address: Option<IpAddr>,
    /// User, once the client has authenticated.
    pub user: Option<&'a UserId>,
}

/// Describes the recipients of a message.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum SentTo<'a> {
    /// Recipients that are online at any server.
    Users(&'a [UserId]),
    /// All connected clients of all servers: their number.
    Everyone(usize),
}

/// Decides what happens to a message from a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Passes the message to the next middleware, then to handlers, portals and webhooks.
    #[default]
    Pass,
    /// Drops the message; the client gets no error.
    Reject,
    /// Drops the message, and closes the connection with 1008.
    Disconnect,
}

/// Observes and filters events of a server. By default each method has no effect.
///
/// Methods are called in the order in which middleware was added. The task of the event waits for them, so a method
/// must not block: spawn a task for work that waits.
///
/// A panic or an error ends only that call. It is logged and passed to [`on_error`](Middleware::on_error) of all
/// middleware. A panic in `on_error` is only logged. Then the next middleware is called.
pub trait Middleware: Send + Sync + 'static {
    /// Called when a client has connected: `onConnection` of the original.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        _ = client;
        Ok(())
    }

    /// Called when a client has disconnected, with its close code (1006: no close frame): `onDisconnection` of the
    /// original.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        _ = (client, code, reason);
        Ok(())
    }

    /// Called when a portal has connected or reconnected: `onPortalJoin` of the original.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_portal_join(&self, portal: &str) -> MiddlewareResult {
        _ = portal;
        Ok(())
    }

    /// Called when a portal has disconnected: `onPortalLeave` of the original.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_portal_leave(&self, portal: &str) -> MiddlewareResult {
        _ = portal;
        Ok(())
    }

    /// Called when a message was stored for offline users: `onUndeliverableMessageSent` of the original.
    ///
    /// The message is as durable as configured by then.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_undeliverable_message_sent(&self, message: &Payload, users: &[UserId]) -> MiddlewareResult {
        _ = (message, users);
        Ok(())
    }

    /// Called when a client attaches with a backlog: `onRedeliverUndeliverableMessages` of the original.
    ///
    /// `backlog`: sequences in the user's log. Entries that have expired, or were acknowledged out of order, are not
    /// sent.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_redeliver_undeliverable_messages(
        &self,
        backlog: RangeInclusive<Seq>,
        client: &Client<'_>,
    ) -> MiddlewareResult {
        _ = (backlog, client);
        Ok(())
    }

    /// Called when a message is sent to online clients: `onMessageSent` of the original.
    ///
    /// A synced message is as durable as configured by then.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_message_sent(&self, message: &Payload, to: SentTo<'_>) -> MiddlewareResult {
        _ = (message, to);
        Ok(())
    }

    /// Called when a client has sent a message: `onMessageReceived` of the original.
    ///
    /// Decides whether handlers, portals and webhooks receive the message. The first decision other than `Pass` counts.
    /// A failed call counts as `Pass`.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_message_received(&self, message: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        _ = (message, client);
        Ok(Decision::Pass)
    }

    /// Called when a client has authenticated: `onAuthenticated` of the original.
    ///
    /// # Errors
    /// Any error of the middleware; see [`MiddlewareResult`].
    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        _ = client;
        Ok(())
    }

    /// Called on an error, with its client if there is one: `onError` of the original.
    ///
    /// Errors are: an invalid frame, a violation of the WebSocket protocol, an authentication that could not be
    /// checked, a log that could not be opened or read, a panic of a handler, and a failed call of middleware.
    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        _ = (error, client);
    }
}

/// Holds all middleware of a server; set once, before the first event.
#[derive(Default)]
pub struct Chain(OnceLock<Vec<Arc<dyn Middleware>>>);

impl Chain {
    /// Sets the middleware. Only the first call has an effect.
    pub fn set(&self, all: Vec<Arc<dyn Middleware>>) {
        if !all.is_empty() {
            _ = self.0.set(all);
        }
    }

    /// Reports whether there is any middleware.
    pub fn any(&self) -> bool {
        self.0.get().is_some()
    }

    /// Calls each middleware. `client`: the client that the event concerns.
    pub fn call_each(&self, client: Option<&Client<'_>>, call: impl Fn(&dyn Middleware) -> MiddlewareResult) {
        for middleware in self.all() {
            self.call_caught(client, || call(middleware.as_ref()));
        }
    }

    /// Decides about a message from a client.
    pub fn filter(&self, message: &InboundMessage<'_>, client: &Client<'_>) -> Decision {
        for middleware in self.all() {
            match self.call_caught(Some(client), || middleware.on_message_received(message, client)) {
                None | Some(Decision::Pass) => {}
                Some(decision) => return decision,
            }
        }
        Decision::Pass
    }

    /// Calls [`Middleware::on_error`] of each middleware.
    pub fn report_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        for middleware in self.all() {
            // Unwind safety: the middleware is responsible for its own state after a panic.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| middleware.on_error(error, client))) {
                tracing::error!("a middleware panicked in on_error: {}", sentence(panic_text(panic.as_ref())));
            }
        }
    }

    fn all(&self) -> &[Arc<dyn Middleware>] {
        self.0.get().map_or(&[], Vec::as_slice)
    }

    /// Runs a call; reports its error or panic, and returns `None`.
    fn call_caught<T>(&self, client: Option<&Client<'_>>, call: impl FnOnce() -> MiddlewareResult<T>) -> Option<T> {
        let error = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error,
            Err(panic) => format!("a middleware panicked: {}", panic_text(panic.as_ref())).into(),
        };
        tracing::error!(
            connection = client.map(|client| client.connection),
            "a middleware failed: {}",
            sentence(&error)
        );
        self.report_error(error.as_ref(), client);
        None
    }
}

impl<'a> Client<'a> {
    /// Creates the description of a client.
    #[doc(hidden)]
    #[must_use]
    pub fn new(connection: u64, address: Option<IpAddr>, user: Option<&'a UserId>) -> Self {
        Self { connection, address, user }
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chain").field(&self.all().len()).finish()
    }
}
