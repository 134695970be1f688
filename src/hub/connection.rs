//! A connection as the hub sees it, from before its authentication: its mailbox and the events it causes.

use std::{
    error::Error,
    net::IpAddr,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::BoxFuture;

use super::{
    Attach, Hub, Session,
    events::{ConnectionId, Event, InboundMessage},
    mailbox::Mailbox,
    run_blocking,
};
use crate::{
    message::UserId,
    middleware::{Client, Decision, Middleware},
    store::StoreError,
};

/// Close code of a connection that ended without a close frame.
const ABNORMAL_CLOSURE: u16 = 1006;

/// A connection registered with the hub. Dropping it unregisters the connection.
#[derive(Debug)]
pub struct ConnectionHandle {
    pub(super) hub: Arc<Hub>,
    pub(super) id: ConnectionId,
    pub(super) mailbox: Arc<Mailbox>,
    /// The client's IP address, if it is known.
    pub(super) address: Option<IpAddr>,
    /// The user as whom the client first authenticated.
    pub(super) user: OnceLock<UserId>,
    /// Close code and reason.
    pub(super) close: Option<(u16, Box<str>)>,
}

impl Hub {
    /// Registers a connection without an address.
    #[cfg(test)]
    #[must_use]
    pub fn connect(self: &Arc<Self>) -> ConnectionHandle {
        self.connect_from(None, |_| ())
    }

    /// Registers a connection; from then on the hub can send to it and close it.
    ///
    /// `on_id` receives the connection's id before any listener is notified of it.
    #[must_use]
    pub fn connect_from(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        on_id: impl FnOnce(ConnectionId),
    ) -> ConnectionHandle {
        let (id, mailbox) = self.registry.enter(self.settings.mailbox);
        on_id(id);
        let connected =
            ConnectionHandle { hub: self.clone(), id, mailbox, address, user: OnceLock::new(), close: None };
        self.middleware.each(Some(&connected.client()), |one| one.on_connection(&connected.client()));
        self.listeners.notify(id, Event::Connection);
        self.publish_connection_count();
        connected
    }
}

impl ConnectionHandle {
    /// Returns the mailbox of this connection.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Attaches the connection to a user. Pending entries become its backlog, unless `how` says otherwise.
    ///
    /// # Errors
    /// When the user's log cannot be read, or the user has too many devices here.
    #[cfg(test)]
    pub fn attach(&self, user: UserId, how: Attach, now: Instant) -> Result<Session, StoreError> {
        let session = self.hub.attach(self.id, self.mailbox.clone(), user, how, now)?;
        self.attached(&session);
        Ok(session)
    }

    /// Attaches the connection to a user without blocking, also where the log is behind a network.
    ///
    /// Once the future has resolved, pass the session to [`ConnectionHandle::attached`].
    #[must_use]
    pub fn attach_without_blocking(
        &self,
        user: UserId,
        how: Attach,
        now: Instant,
    ) -> BoxFuture<'static, Result<Session, StoreError>> {
        let (hub, id, mailbox) = (self.hub.clone(), self.id, self.mailbox.clone());
        if hub.store.is_remote() {
            // A caller that drops the future drops the resulting session too.
            return Box::pin(run_blocking(move || hub.attach(id, mailbox, user, how, now)));
        }
        Box::pin(std::future::ready(hub.attach(id, mailbox, user, how, now)))
    }

    /// Marks the connection as authenticated as its session's user, and notifies the listeners.
    pub fn attached(&self, session: &Session) {
        self.mailbox.set_authenticated();
        if self.user.set(session.user().clone()).is_ok() {
            let (middleware, client) = (&self.hub.middleware, self.client());
            middleware.each(Some(&client), |one| one.on_authenticated(&client));
            if let (true, Some(backlog)) = (middleware.any(), session.backlog()) {
                let redeliver =
                    |one: &dyn Middleware| one.on_redeliver_undeliverable_messages(backlog.clone(), &client);
                middleware.each(Some(&client), redeliver);
            }
            self.hub.listeners.notify(self.id, Event::Authentication { user: session.user() });
        }
    }

    /// Returns the connection's id.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Sets the close code and reason that listeners receive when the connection is dropped.
    pub fn set_close(&mut self, code: u16, reason: &str) {
        self.close = Some((code, reason.into()));
    }

    /// Ready when every listener has room for another message, so that the client's next frame may be read.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.hub.listeners.poll_ready(self.id, cx)
    }

    /// Passes an application message from the client to the listeners, unless a middleware rejects it.
    pub fn receive(&self, message: InboundMessage<'_>) -> Decision {
        let hub = &self.hub;
        let decision =
            if hub.middleware.any() { hub.middleware.filter(&message, &self.client()) } else { Decision::Pass };
        if decision == Decision::Pass {
            hub.listeners.notify(self.id, Event::Message { user: self.user.get(), message });
        }
        decision
    }

    /// Reports an error on this connection to the middleware.
    pub fn report_error(&self, error: &(dyn Error + 'static)) {
        self.hub.middleware.error(error, Some(&self.client()));
    }

    pub(super) fn client(&self) -> Client<'_> {
        Client::new(self.id, self.address, self.user.get())
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.hub.registry.exit(self.id);
        self.hub.publish_connection_count();
        let (code, reason) = self.close.as_ref().map_or((ABNORMAL_CLOSURE, ""), |(code, reason)| (*code, reason));
        let client = self.client();
        self.hub.middleware.each(Some(&client), |one| one.on_disconnection(&client, code, reason));
        self.hub.listeners.notify(self.id, Event::Disconnection { user: self.user.get(), code, reason });
    }
}
