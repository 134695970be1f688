//! Middleware: what is called on the way of everything that happens in a server, in the order in which it was added.
//!
//! The trait has a method for each of stock's handlers, under the names that Rust would give them. Two that are of use as
//! they are: [`AccessLog`] and [`RateLimit`].
//!
//! ```
//! use mesa::{
//!     middleware::{Client, Middleware, MiddlewareResult, InboundMessage, Verdict},
//!     server::Server,
//! };
//!
//! /// Clients may say only what is known.
//! struct KnownTypes;
//!
//! impl Middleware for KnownTypes {
//!     fn on_message_received(&self, said: &InboundMessage<'_>, _: &Client<'_>) -> MiddlewareResult<Verdict> {
//!         let known = matches!(said.kind, Some("CHAT" | "TYPING"));
//!         Ok(if known { Verdict::Pass } else { Verdict::Refuse })
//!     }
//! }
//!
//! let builder = Server::builder().middleware(KnownTypes);
//! # _ = builder;
//! ```
//!
//! A server without middleware pays for it with the look at a flag.

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

/// What a middleware returns. An error is logged and told to [`Middleware::on_error`] of all; it changes nothing else.
pub type MiddlewareResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A client, as far as middleware is concerned.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Client<'a> {
    /// Names its connection for as long as the process lives.
    pub connection: u64,
    /// Where it connected from, where that is known.
    pub address: Option<IpAddr>,
    /// Who it is, once it has shown that.
    pub user: Option<&'a UserId>,
}

/// Who a message went to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum SentTo<'a> {
    /// Users who are connected here.
    Users(&'a [UserId]),
    /// Everyone who is connected: that many connections.
    Everyone(usize),
}

/// What becomes of a message from a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes on: to the next middleware, to handlers, portals and webhooks.
    #[default]
    Pass,
    /// It is dropped, and nobody is told of it; the client does not learn that.
    Refuse,
    /// It is dropped, and the connection closed with 1008.
    Disconnect,
}

/// What is called when something happens. Every method does nothing by default.
///
/// Called in the order in which middleware was added, on the task where the thing happens, which waits for it: so a method
/// must not block. Whoever has to wait for something hands it to a task of his own.
///
/// A panic or an error in one method ends that one call. It is logged and told to [`on_error`](Middleware::on_error) of all
/// (where a panic is only logged); the next middleware is called, and the thing goes on. What was counted or kept in a
/// middleware is in memory, and gone with the process.
pub trait Middleware: Send + Sync + 'static {
    /// Stock's `onConnection`: a client has connected.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        _ = client;
        Ok(())
    }

    /// Stock's `onDisconnection`: it is gone, with this close code (1006: without a word).
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        _ = (client, code, reason);
        Ok(())
    }

    /// Stock's `onPortalJoin`: a portal has come, or come back.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_portal_join(&self, portal: &str) -> MiddlewareResult {
        _ = portal;
        Ok(())
    }

    /// Stock's `onPortalLeave`: it has gone.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_portal_leave(&self, portal: &str) -> MiddlewareResult {
        _ = portal;
        Ok(())
    }

    /// Stock's `onUndeliverableMessageSent`: a message is for users who are not here, and is kept for them. By now it is as
    /// durable as configured.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_undeliverable_message_sent(&self, message: &Payload, users: &[UserId]) -> MiddlewareResult {
        _ = (message, users);
        Ok(())
    }

    /// Stock's `onRedeliverUndeliverableMessages`: a client has come that is owed messages, those with these sequences in its
    /// user's log. What of them has expired, or was received out of order before, does not come.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_redeliver_undeliverable_messages(&self, owed: RangeInclusive<Seq>, client: &Client<'_>) -> MiddlewareResult {
        _ = (owed, client);
        Ok(())
    }

    /// Stock's `onMessageSent`: a message goes to clients that are here. If it is kept, it is as durable as configured by now.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_message_sent(&self, message: &Payload, to: SentTo<'_>) -> MiddlewareResult {
        _ = (message, to);
        Ok(())
    }

    /// Stock's `onMessageReceived`: a client has said something. Comes before handlers, portals and webhooks, and decides
    /// whether they are told. The first that does not let it pass has the last word; one that fails lets it pass.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_message_received(&self, said: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Verdict> {
        _ = (said, client);
        Ok(Verdict::Pass)
    }

    /// Stock's `onAuthenticated`: a client has shown who it is.
    ///
    /// # Errors
    /// As the middleware likes; see [`MiddlewareResult`].
    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        _ = client;
        Ok(())
    }

    /// Stock's `onError`: something went wrong, with a client where one is named: a frame that cannot be read, an
    /// authentication that could not be checked, a log that could not be opened or read, a handler that panicked, a
    /// middleware that failed.
    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        _ = (error, client);
    }
}

/// All middleware of a server; set once, before anything happens.
#[derive(Default)]
pub struct Chain(OnceLock<Vec<Arc<dyn Middleware>>>);

impl Chain {
    /// Sets what is called. The first time counts.
    pub fn set(&self, all: Vec<Arc<dyn Middleware>>) {
        if !all.is_empty() {
            _ = self.0.set(all);
        }
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.0.get().is_some()
    }

    /// Calls each. `client`: whom it is about.
    pub fn each(&self, client: Option<&Client<'_>>, call: impl Fn(&dyn Middleware) -> MiddlewareResult) {
        for one in self.all() {
            self.contained(client, || call(one.as_ref()));
        }
    }

    /// What becomes of a message.
    pub fn judge(&self, said: &InboundMessage<'_>, client: &Client<'_>) -> Verdict {
        for one in self.all() {
            match self.contained(Some(client), || one.on_message_received(said, client)) {
                None | Some(Verdict::Pass) => {}
                Some(verdict) => return verdict,
            }
        }
        Verdict::Pass
    }

    /// Tells all that something went wrong.
    pub fn error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        for one in self.all() {
            // What a middleware keeps is its own affair after a panic in it.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| one.on_error(error, client))) {
                tracing::error!("a middleware panicked in on_error: {}", sentence(panic_text(panic.as_ref())));
            }
        }
    }

    fn all(&self) -> &[Arc<dyn Middleware>] {
        self.0.get().map_or(&[], Vec::as_slice)
    }

    fn contained<T>(&self, client: Option<&Client<'_>>, call: impl FnOnce() -> MiddlewareResult<T>) -> Option<T> {
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
        self.error(error.as_ref(), client);
        None
    }
}

impl<'a> Client<'a> {
    /// A client, for whoever tells of one.
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
