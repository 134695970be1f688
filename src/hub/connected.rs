//! A connection that is registered with the hub, from before anybody knows whose it is.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use futures_util::future::BoxFuture;

use super::{
    Attach, Hub, Session,
    events::{ConnectionId, Event, Said},
    mailbox::Mailbox,
    on_disk_thread,
};
use crate::{message::UserId, store::StoreError};

/// The mailbox of a connection that is registered with the hub. Dropping it takes the connection out.
#[derive(Debug)]
pub struct Connected {
    pub(super) hub: Arc<Hub>,
    pub(super) id: ConnectionId,
    pub(super) mailbox: Arc<Mailbox>,
    /// Who the client has first shown to be.
    pub(super) user: OnceLock<UserId>,
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
            self.hub.listeners.tell(self.id, Event::Authentication { user: session.user() });
        }
    }

    /// The client has said something that is for the application.
    pub fn said(&self, said: Said<'_>) {
        self.hub.listeners.tell(self.id, Event::Message { user: self.user.get(), said });
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.hub.registry.exit(self.id);
        self.hub.count_connections();
        self.hub.listeners.tell(self.id, Event::Disconnection { user: self.user.get() });
    }
}
