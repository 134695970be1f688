//! The hub's handle of a connection, from before its authentication: its mailbox and the events it causes.

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
    middleware::{Client, Decision},
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
    /// The user, once the client has authenticated.
    pub(super) user: OnceLock<UserId>,
    /// Close code and reason; `None`: there was no close frame.
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
        let (id, mailbox) = self.registry.register_connection(self.settings.mailbox);
        on_id(id);
        let handle = ConnectionHandle { hub: self.clone(), id, mailbox, address, user: OnceLock::new(), close: None };
        self.middleware.call_each(Some(&handle.client()), |middleware| middleware.on_connection(&handle.client()));
        self.notify(id, Event::Connection);
        self.publish_connection_count();
        handle
    }
}

impl ConnectionHandle {
    /// Returns the mailbox of this connection.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Attaches the connection to a user. Pending entries become its backlog, unless `how.should_sync` is false.
    ///
    /// # Errors
    /// When the user's log cannot be read, or the user has too many devices here.
    #[cfg(test)]
    pub fn attach(&self, user: UserId, how: Attach, now: Instant) -> Result<Session, StoreError> {
        let session = self.hub.attach(self.id, self.mailbox.clone(), user, how, now)?;
        self.mark_attached(&session);
        Ok(session)
    }

    /// Attaches the connection to a user without blocking the event loop, also if the user's log is remote or on disk.
    ///
    /// Once the future has resolved, pass the session to [`ConnectionHandle::mark_attached`].
    #[must_use]
    pub fn attach_without_blocking(
        &self,
        user: UserId,
        how: Attach,
        now: Instant,
    ) -> BoxFuture<'static, Result<Session, StoreError>> {
        let (hub, id, mailbox) = (self.hub.clone(), self.id, self.mailbox.clone());
        // A caller that drops the future drops the resulting session too.
        if hub.store.is_remote() {
            return Box::pin(run_blocking(move || hub.attach(id, mailbox, user, how, now)));
        }
        if !hub.store.is_in_memory(&user) {
            return Box::pin(async move {
                // Few at a time, so that a storm of connections does not start a thread for each.
                let permit = hub.cold_reads.clone().acquire_owned().await.expect("the semaphore is never closed");
                let attach = move || {
                    let _permit = permit;
                    hub.attach(id, mailbox, user, how, now)
                };
                run_blocking(attach).await
            });
        }
        Box::pin(std::future::ready(hub.attach(id, mailbox, user, how, now)))
    }

    /// Marks the connection as authenticated as its session's user, and notifies the listeners.
    pub fn mark_attached(&self, session: &Session) {
        self.mailbox.set_authenticated();
        if self.user.set(session.user().clone()).is_ok() {
            let (chain, client) = (&self.hub.middleware, self.client());
            chain.call_each(Some(&client), |middleware| middleware.on_authenticated(&client));
            if let (true, Some(backlog)) = (chain.any(), session.backlog()) {
                chain.call_each(Some(&client), |middleware| {
                    middleware.on_redeliver_undeliverable_messages(backlog.clone(), &client)
                });
            }
            self.hub.notify(self.id, Event::Authentication { user: session.user() });
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

    /// Returns the close code and reason that were set; `None`: there was no close frame.
    #[must_use]
    pub fn close(&self) -> Option<(u16, &str)> {
        self.close.as_ref().map(|(code, reason)| (*code, &**reason))
    }

    /// Ready when every listener has capacity for another message, so that the client's next frame may be read.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.hub.listeners.poll_ready(self.id, cx)
    }

    /// Passes an application message from the client to the listeners, unless a middleware rejects it.
    pub fn receive(&self, message: InboundMessage<'_>) -> Decision {
        let hub = &self.hub;
        let decision =
            if hub.middleware.any() { hub.middleware.filter(&message, &self.client()) } else { Decision::Pass };
        if decision == Decision::Pass {
            hub.notify(self.id, Event::Message { user: self.user.get(), message });
        }
        decision
    }

    /// Reports an error on this connection to the middleware.
    pub fn report_error(&self, error: &(dyn Error + 'static)) {
        self.hub.middleware.report_error(error, Some(&self.client()));
    }

    pub(super) fn client(&self) -> Client<'_> {
        Client::new(self.id, self.address, self.user.get())
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.hub.registry.unregister_connection(self.id);
        self.hub.publish_connection_count();
        let (code, reason) = self.close.as_ref().map_or((ABNORMAL_CLOSURE, ""), |(code, reason)| (*code, reason));
        let client = self.client();
        self.hub.middleware.call_each(Some(&client), |middleware| middleware.on_disconnection(&client, code, reason));
        self.hub.notify(self.id, Event::Disconnection { user: self.user.get(), code, reason });
    }
}
