//! What the program that a server is part of can do with it while it runs.

use std::{fmt, sync::Weak, time::Duration};

use crate::{
    hub::{CloseReason, Dispatch, Hub, Outcome, StoreError, UserReport},
    message::{CollapseKey, DispatchId, Message, MessageError, NameError, Payload, Recipients, UserId},
    protocol::opcode,
};

/// The only internal event there is.
const DISCONNECT_CLIENT: &str = "DISCONNECT_CLIENT";

/// Why a message was not sent. Nobody has got anything of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is too large, too deep, or wears an opcode of the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Something in its options, or its name, is longer than it may be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// More recipients than `limits.recipients`.
    #[error("{given} recipients are more than the {max} that limits.recipients allows; send it in parts")]
    Recipients {
        /// How many there were.
        given: usize,
        /// How many there may be.
        max: usize,
    },
    /// It has a `ttl` or a `collapse` key, which are for messages that are kept, and sync is off.
    #[error(
        "ttl and collapse are for messages that are kept, and this server keeps none: sync is off. Set sync.enabled, or \
         leave them out"
    )]
    SyncOff,
    /// It makes no sense as it is: a sentence that says why.
    #[error("{0}")]
    Senseless(&'static str),
    /// The store takes nothing: it is full, or has failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server has stopped.
    #[error("the server has stopped")]
    Stopped,
}

/// A server that is running, or about to run, in this process. Cheap to clone. Does not keep the server: once that has
/// stopped, every call says so.
#[derive(Clone)]
pub struct Handle {
    pub(super) hub: Weak<Hub>,
    pub(super) recipients_max: usize,
}

impl Handle {
    /// Sends a message, as a backend's `POST /v1/dispatch` does: to these users (or [`Recipients::Everyone`], who is
    /// connected now) without those excluded. Resolves once every copy that is kept is as durable as configured
    /// (`store.durability`): with the default, those survive a crash and a power cut. Dropping the future after its first
    /// poll does not call the message back. A message with opcode 5 and type `DISCONNECT_CLIENT` disconnects its recipients.
    ///
    /// [`Outcome::rejected`] names those for whom it was not taken.
    ///
    /// # Errors
    /// When nothing of it was taken.
    pub async fn send(
        &self,
        message: &Message,
        recipients: impl Into<Recipients> + Send,
        excluding: &[UserId],
    ) -> Result<Outcome, SendError> {
        self.dispatch(message, recipients.into(), excluding, None).await
    }

    /// The same, once: a repeat with this id within `api.idWindow` is not sent again and gets the first outcome, with
    /// [`Outcome::duplicate`]. Remembered over a crash like the message itself.
    ///
    /// # Errors
    /// When nothing of it was taken.
    pub async fn send_once(
        &self,
        id: DispatchId,
        message: &Message,
        recipients: impl Into<Recipients> + Send,
        excluding: &[UserId],
    ) -> Result<Outcome, SendError> {
        self.dispatch(message, recipients.into(), excluding, Some(id)).await
    }

    async fn dispatch(
        &self,
        message: &Message,
        recipients: Recipients,
        excluding: &[UserId],
        id: Option<DispatchId>,
    ) -> Result<Outcome, SendError> {
        let hub = self.hub()?;
        let named = if let Recipients::Users(users) = &recipients { users.len() } else { 1 };
        let given = named.max(excluding.len());
        if given > self.recipients_max {
            return Err(SendError::Recipients { given, max: self.recipients_max });
        }
        let options = &message.o;
        if message.op == opcode::INTERNAL {
            if message.t.as_deref() != Some(DISCONNECT_CLIENT) {
                return Err(SendError::Senseless(
                    "opcode 5 is for internal events, of which there is DISCONNECT_CLIENT",
                ));
            }
            if id.is_some() || options.ttl.is_some() || options.collapse.is_some() {
                return Err(SendError::Senseless("id, ttl and collapse are for messages, not for DISCONNECT_CLIENT"));
            }
            return Ok(hub.disconnect(&recipients, excluding).await);
        }
        let keeps = options.sync && recipients != Recipients::Everyone;
        if !keeps && (options.ttl.is_some() || options.collapse.is_some()) {
            return Err(SendError::Senseless(
                "ttl and collapse are for messages that are kept: sync, and not for everyone",
            ));
        }
        let dispatch = Dispatch {
            sync: options.sync,
            excluding: excluding.to_vec(),
            ttl: options.ttl.map(|seconds| Duration::from_secs(seconds.get().into())),
            collapse: options.collapse.as_deref().map(CollapseKey::new).transpose()?,
            id,
            ..Dispatch::new(message.payload()?, recipients)
        };
        if !hub.is_sync_enabled() && dispatch.requires_storage() {
            return Err(SendError::SyncOff);
        }
        Ok(hub.dispatch(dispatch).await?)
    }

    /// Closes all connections of these users with 1000: published clients do not come back after it by themselves, unless
    /// they are told to reconnect. What waits for the users stays.
    ///
    /// # Errors
    /// When the server has stopped.
    pub async fn disconnect(
        &self,
        recipients: impl Into<Recipients>,
        excluding: &[UserId],
    ) -> Result<Outcome, SendError> {
        Ok(self.hub()?.disconnect(&recipients.into(), excluding).await)
    }

    /// Connections in all, authenticated or not. 0 once the server has stopped.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.hub.upgrade().map_or(0, |hub| hub.connections())
    }

    /// Users who are connected now, in the order of their ids, those above `after`: a page of at most `limit`.
    pub async fn online(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        match self.hub.upgrade() {
            Some(hub) => hub.online(after, limit).await,
            None => Vec::new(),
        }
    }

    /// What is known of a user: connections, devices, what waits, the last sequence. Asks the disk.
    ///
    /// # Errors
    /// When the store cannot be read, or the server has stopped.
    pub async fn user(&self, user: &UserId) -> Result<UserReport, SendError> {
        Ok(self.hub()?.user(user).await?)
    }

    /// Counts all that waits for a user as received; resolves, once that is durable, with how many messages that were.
    ///
    /// # Errors
    /// When the store takes nothing, or the server has stopped.
    pub async fn clear(&self, user: &UserId) -> Result<u64, SendError> {
        Ok(self.hub()?.clear(user).await?)
    }

    pub(super) fn send_to_connection(&self, connection: u64, payload: &Payload) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.send_to_connection(connection, payload))
    }

    pub(super) fn close_connection(&self, connection: u64, code: u16) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.close_connection(connection, CloseReason::WithCode(code)))
    }

    fn hub(&self) -> Result<std::sync::Arc<Hub>, SendError> {
        self.hub.upgrade().ok_or(SendError::Stopped)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
