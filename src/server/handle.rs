//! Controls a running server from the program that embeds it.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::{
    Reloaded, ServerError,
    reload::Reloader,
    tls::{ListenerTls, SetupError as TlsSetupError},
};
use crate::{
    config::Config,
    hub::{CloseReason, Dispatch, Hub, OptionsError, Outcome, StoreError, UserReport},
    message::{
        DispatchId, INTERNAL_EVENT, IdError, Message, MessageError, Payload, Recipients, UserId, check_internal_event,
    },
};

/// Error of sending a message. No recipient received the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is too large, too deep, or has an opcode of the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An option, or its type, is longer than allowed.
    #[error(transparent)]
    Name(#[from] IdError),
    /// There are more recipients than `limits.recipients`.
    #[error("{given} recipients are more than the {max} that limits.recipients allows; send it in parts")]
    Recipients {
        /// Number of recipients.
        given: usize,
        /// The limit.
        max: usize,
    },
    /// The message has a `ttl` or a `collapse` key, which need a stored message, and sync is off.
    #[error(
        "ttl and collapse need stored messages, and sync is off on this server: set sync.enabled to true in its \
         configuration, or omit them"
    )]
    SyncOff,
    /// The options contradict each other, with the reason.
    #[error("{0}")]
    Contradictory(&'static str),
    /// The store accepts no entry: it is full, or has failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server has stopped.
    #[error("the server has stopped")]
    Stopped,
}

/// Handle of a server in this process. Cheap to clone.
///
/// It does not keep the server alive. Once the server has stopped, every call that can fail returns an error.
#[derive(Clone)]
pub struct Handle {
    pub(super) hub: Weak<Hub>,
    pub(super) reloader: Weak<Reloader>,
    pub(super) certificates: ListenerTls,
}

impl Handle {
    /// Reads the files of `tls` and `redisProtocol.tls`, and uses their certificates for new connections.
    ///
    /// The server does so itself within seconds after a file has changed. Open connections are not affected. Returns
    /// whether a file has changed.
    ///
    /// # Errors
    /// When a file cannot be used. The current certificates of its settings stay in use.
    pub async fn reload_certificates(&self) -> Result<bool, TlsSetupError> {
        let mut has_changed = false;
        for tls in self.certificates.distinct() {
            has_changed |= tls.reload().await?;
        }
        Ok(has_changed)
    }

    /// Sends a message to users, or a broadcast to [`Recipients::Everyone`], like `POST /v1/dispatch`.
    ///
    /// Excluded users do not receive it. The future resolves once every stored entry is as durable as configured
    /// (`store.durability`). By default entries survive a crash and a power cut.
    ///
    /// Dropping the future after its first poll does not cancel the dispatch. A message with opcode 5 and type
    /// `DISCONNECT_CLIENT` disconnects its recipients. [`Outcome::rejected`] names the rejected recipients.
    ///
    /// # Errors
    /// When the whole dispatch was rejected.
    pub async fn send(
        &self,
        message: &Message,
        recipients: impl Into<Recipients> + Send,
        excluding: &[UserId],
    ) -> Result<Outcome, SendError> {
        self.dispatch(message, recipients.into(), excluding, None).await
    }

    /// Sends a message with an idempotency id.
    ///
    /// A retry with this id within `api.idWindow` is not sent again and returns the first outcome, with
    /// [`Outcome::duplicate`]. The id is as durable as the message.
    ///
    /// # Errors
    /// When the whole dispatch was rejected.
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
        let recipient_count = if let Recipients::Users(users) = &recipients { users.len() } else { 1 };
        let given = recipient_count.max(excluding.len());
        let max = self.reloader()?.live.load().limits.recipients;
        if given > max {
            return Err(SendError::Recipients { given, max });
        }
        let options = &message.o;
        if message.op == INTERNAL_EVENT {
            let has_id_or_options = id.is_some() || options.ttl.is_some() || options.collapse.is_some();
            check_internal_event(message.t.as_deref(), has_id_or_options).map_err(SendError::Contradictory)?;
            return Ok(hub.disconnect(&recipients, excluding).await);
        }
        let dispatch =
            Dispatch::new(message.payload()?, recipients).with_options(options).map_err(|error| match error {
                OptionsError::NotStored => SendError::Contradictory(OptionsError::NOT_STORED),
                OptionsError::Collapse(error) => error.into(),
            })?;
        let dispatch = Dispatch { excluding: excluding.to_vec(), id, ..dispatch };
        if !hub.is_sync_enabled() && dispatch.requires_storage() {
            return Err(SendError::SyncOff);
        }
        Ok(hub.dispatch(dispatch).await?)
    }

    /// Closes all connections of these users with 1000. Their pending messages stay.
    ///
    /// Published clients do not reconnect after 1000, unless they are configured to.
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

    /// Returns the number of connections, authenticated or not; 0 once the server has stopped.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.hub.upgrade().map_or(0, |hub| hub.connection_count())
    }

    /// Returns a page of at most `limit` online users above `after`, in the order of their ids.
    pub async fn online(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        match self.hub.upgrade() {
            Some(hub) => hub.online(after, limit).await,
            None => Vec::new(),
        }
    }

    /// Returns a user's connections, devices, pending messages and last sequence. Reads the disk.
    ///
    /// # Errors
    /// When the store cannot be read, or the server has stopped.
    pub async fn user(&self, user: &UserId) -> Result<UserReport, SendError> {
        Ok(self.hub()?.user(user).await?)
    }

    /// Acknowledges all pending messages of a user; resolves with their number once that is durable.
    ///
    /// # Errors
    /// When the store accepts no writes, or the server has stopped.
    pub async fn clear(&self, user: &UserId) -> Result<u64, SendError> {
        Ok(self.hub()?.clear(user).await?)
    }

    pub(super) fn send_to_connection(&self, connection: u64, payload: &Payload) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.send_to_connection(connection, payload))
    }

    pub(super) fn close_connection(&self, connection: u64, code: u16) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.close_connection(connection, CloseReason::WithCode(code)))
    }

    /// Applies a changed configuration, as SIGHUP does in `mesa serve`. Connected clients stay connected.
    ///
    /// These keys change while the server runs: `api.keys`, `api.corsOrigins`, `origins`, `authentication.jwt`,
    /// `authentication.webhook`, `authentication.insecure`, `authentication.insecurePublic`, `redisProtocol.password`,
    /// and `limits` except `queue`, `unsyncedMessages` and `unsyncedBytes`. Your program applies `log.level` itself.
    /// [`Reloaded::at_next_start`] names all other changed keys. Certificates are read again, see
    /// [`Handle::reload_certificates`].
    ///
    /// # Errors
    /// When the configuration is invalid, a file of keys or certificates cannot be used, or the server has stopped. Then nothing has changed.
    pub async fn reload(&self, config: &Config) -> Result<Reloaded, ServerError> {
        let reloader = self.reloader.upgrade().ok_or(ServerError::Stopped)?;
        reloader.check(config)?;
        let has_new_certificates = self.reload_certificates().await?;
        let mut reloaded = reloader.reload(config)?;
        if has_new_certificates {
            reloaded.applied.push("tls");
        }
        Ok(reloaded)
    }

    fn reloader(&self) -> Result<Arc<Reloader>, SendError> {
        self.reloader.upgrade().ok_or(SendError::Stopped)
    }

    fn hub(&self) -> Result<Arc<Hub>, SendError> {
        self.hub.upgrade().ok_or(SendError::Stopped)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
