//! A connection as the hub has it, from before anybody knows whose it is: what is left for it, and what is told about it.

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
    on_disk_thread,
};
use crate::{
    message::UserId,
    middleware::{Client, Middleware, Verdict},
    store::StoreError,
};

/// The close code of a connection that ended without one.
const WITHOUT_A_WORD: u16 = 1006;

/// The mailbox of a connection that is registered with the hub. Dropping it takes the connection out.
#[derive(Debug)]
pub struct Connected {
    pub(super) hub: Arc<Hub>,
    pub(super) id: ConnectionId,
    pub(super) mailbox: Arc<Mailbox>,
    /// Where it comes from, if that is known.
    pub(super) address: Option<IpAddr>,
    /// Who the client has first shown to be.
    pub(super) user: OnceLock<UserId>,
    /// How it ends.
    pub(super) end: Option<(u16, Box<str>)>,
}

impl Hub {
    /// Registers a connection: from here on it can be told things.
    #[cfg(test)]
    #[must_use]
    pub fn connect(self: &Arc<Self>) -> Connected {
        self.connect_from(None, |_| ())
    }

    /// Registers a connection, from an address: from here on it can be told things. `named` learns what the connection is called before anybody is told of it.
    #[must_use]
    pub fn connect_from(self: &Arc<Self>, address: Option<IpAddr>, named: impl FnOnce(ConnectionId)) -> Connected {
        let (id, mailbox) = self.registry.enter(self.settings.mailbox);
        named(id);
        let connected = Connected { hub: self.clone(), id, mailbox, address, user: OnceLock::new(), end: None };
        self.middleware.each(Some(&connected.client()), |one| one.on_connection(&connected.client()));
        self.listeners.tell(id, Event::Connection);
        self.count_connections();
        connected
    }
}

impl Connected {
    /// What the hub leaves for this connection.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Attaches the connection to a user. What was pending is owed from here on, unless `how` says otherwise.
    ///
    /// # Errors
    /// When the user's log cannot be read, or he has too many devices here.
    #[cfg(test)]
    pub fn attach(&self, user: UserId, how: Attach, now: Instant) -> Result<Session, StoreError> {
        let session = self.hub.attach(self.id, self.mailbox.clone(), user, how, now)?;
        self.attached(&session);
        Ok(session)
    }

    /// The same without waiting, where the log is on the other side of a network. Once it has resolved, tell it to
    /// [`Connected::attached`].
    #[must_use]
    pub fn attach_later(
        &self,
        user: UserId,
        how: Attach,
        now: Instant,
    ) -> BoxFuture<'static, Result<Session, StoreError>> {
        let (hub, id, mailbox) = (self.hub.clone(), self.id, self.mailbox.clone());
        if hub.store.is_far() {
            // Who is gone before it ends drops the session that came of it.
            return Box::pin(on_disk_thread(move || hub.attach(id, mailbox, user, how, now)));
        }
        Box::pin(std::future::ready(hub.attach(id, mailbox, user, how, now)))
    }

    /// From here on this connection is its user's.
    pub fn attached(&self, session: &Session) {
        self.mailbox.set_authenticated();
        if self.user.set(session.user().clone()).is_ok() {
            let (middleware, client) = (&self.hub.middleware, self.client());
            middleware.each(Some(&client), |one| one.on_authenticated(&client));
            if let (true, Some(owed)) = (middleware.any(), session.owed()) {
                let told = |one: &dyn Middleware| one.on_redeliver_undeliverable_messages(owed.clone(), &client);
                middleware.each(Some(&client), told);
            }
            self.hub.listeners.tell(self.id, Event::Authentication { user: session.user() });
        }
    }

    /// What the connection is called.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// How it ends: what is told when it is dropped.
    pub fn ends(&mut self, code: u16, reason: &str) {
        self.end = Some((code, reason.into()));
    }

    /// Whether the client is to be listened to now: everybody who is told has room for another message.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.hub.listeners.poll_ready(self.id, cx)
    }

    /// The client has said something that is for the application. Who listens is told, unless a middleware is against it.
    pub fn said(&self, said: InboundMessage<'_>) -> Verdict {
        let hub = &self.hub;
        let verdict = if hub.middleware.any() { hub.middleware.judge(&said, &self.client()) } else { Verdict::Pass };
        if verdict == Verdict::Pass {
            hub.listeners.tell(self.id, Event::Message { user: self.user.get(), said });
        }
        verdict
    }

    /// Something went wrong with it.
    pub fn failed(&self, error: &(dyn Error + 'static)) {
        self.hub.middleware.error(error, Some(&self.client()));
    }

    pub(super) fn client(&self) -> Client<'_> {
        Client::new(self.id, self.address, self.user.get())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.hub.registry.exit(self.id);
        self.hub.count_connections();
        let (code, reason) = self.end.as_ref().map_or((WITHOUT_A_WORD, ""), |(code, reason)| (*code, reason));
        let client = self.client();
        self.hub.middleware.each(Some(&client), |one| one.on_disconnection(&client, code, reason));
        self.hub.listeners.tell(self.id, Event::Disconnection { user: self.user.get(), code, reason });
    }
}
