//! A connection as the hub has it: what is left for it, and what is told about it.

use std::{
    error::Error,
    net::IpAddr,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Instant,
};

use super::{
    Attach, Hub, Session,
    events::{ConnectionId, Event, Said},
    mailbox::Mailbox,
};
use crate::{
    message::UserId,
    middleware::{Client, Verdict},
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
    pub fn attach(&self, user: UserId, how: Attach, now: Instant) -> Result<Session, StoreError> {
        self.hub.attach(self, user, how, now)
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
    pub fn said(&self, said: Said<'_>) -> Verdict {
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
        let (code, reason) = self.end.as_ref().map_or((WITHOUT_A_WORD, ""), |(code, reason)| (*code, reason));
        let client = self.client();
        self.hub.middleware.each(Some(&client), |one| one.on_disconnection(&client, code, reason));
        self.hub.listeners.tell(self.id, Event::Disconnection { user: self.user.get(), code, reason });
    }
}
