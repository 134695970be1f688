//! Communication with other servers: broadcasts, presence, and messages from and to servers of the original.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{
    Hub,
    dispatch::PreparedDispatch,
    mailbox::{CLOSE_REASON_BYTES_MAX, CloseReason},
};
use crate::{
    cluster::{Broadcast, OriginalMessage, OriginalPresence},
    health::LogLimit,
    logging::excerpt,
    message::{Recipients, UserId},
    store::{Append, StoreError},
};

/// Time for storing a message of the original's servers. After that it is sent unsynced.
///
/// A store remembers for 10 min which entries it has (`Append::per_recipient_id`). An attempt after that could store
/// them twice.
const STORE_TIMEOUT: Duration = Duration::from_secs(300);

/// Limits the warning about rejected entries, for each reason: a user at the quota causes one per message.
static REJECTED: LogLimit = LogLimit::new();

/// Limits the warning about messages that are not stored: a lasting cause fails every message.
static NOT_STORED: LogLimit = LogLimit::new();

/// Delay between two attempts to store a message of the original's servers.
const STORE_RETRY_DELAY: Duration = Duration::from_millis(250);

impl Hub {
    /// Subscribes to broadcasts of other servers, and to messages of the original's servers.
    pub(super) fn subscribe_to_cluster(self: &Arc<Self>) {
        let Some(cluster) = &self.cluster else { return };
        let hub = Arc::downgrade(self);
        let on_broadcast = Arc::new(move |broadcast| {
            let Some(hub) = hub.upgrade() else { return };
            match broadcast {
                Broadcast::Message { payload, recipients: Recipients::Everyone, excluding } => {
                    _ = hub.broadcast_local(&payload, &excluding);
                }
                Broadcast::Message { payload, recipients: Recipients::Users(users), .. } => {
                    users.iter().for_each(|user| hub.put_unsynced(user, &payload));
                }
                Broadcast::Disconnect { recipients, excluding, reason } => {
                    // A longer text would make the close frame invalid.
                    let reason = reason.filter(|reason| reason.len() <= CLOSE_REASON_BYTES_MAX);
                    _ = hub.disconnect_local(&recipients, &excluding, reason);
                }
            }
        });
        let hub = Arc::downgrade(self);
        let on_messages = Arc::new(move |messages: Vec<OriginalMessage>| -> BoxFuture<'static, ()> {
            let (hub, deadline) = (hub.clone(), Instant::now() + STORE_TIMEOUT);
            Box::pin(async move {
                while let Some(hub) = hub.upgrade()
                    && !hub.store_from_original(&messages, Instant::now() < deadline).await
                {
                    drop(hub);
                    tokio::time::sleep(STORE_RETRY_DELAY).await;
                }
            })
        });
        cluster.subscribe(on_broadcast, on_messages);
    }

    /// Stores messages from servers of the original; false if the caller has to retry.
    ///
    /// `retry`: whether the caller can retry while the store is unreachable. If the messages cannot be stored, they are
    /// sent unsynced to online users, as the original does.
    async fn store_from_original(&self, messages: &[OriginalMessage], retry: bool) -> bool {
        let send_unsynced = || {
            for OriginalMessage { payload, users, .. } in messages.iter().filter(|message| !message.late) {
                users.iter().for_each(|user| self.put_unsynced(user, payload));
            }
        };
        if self.settings.sync.is_none() {
            send_unsynced();
            return true;
        }
        let append = |message: &OriginalMessage| Append {
            per_recipient_id: message.id.clone(),
            ..Append::new(message.payload.clone(), message.users.clone())
        };
        match self.store.append_all(messages.iter().map(append).collect()).await {
            Ok(appended) => {
                for (message, appended) in messages.iter().zip(appended) {
                    // No caller receives a result, so the log is the only place to report it.
                    for (user, seq) in message.users.iter().zip(&appended.seqs) {
                        if let Err(reason) = seq
                            && let Some(suppressed) = REJECTED.due(reason.as_str())
                        {
                            tracing::warn!(user = %excerpt(user), reason = reason.as_str(), suppressed, "a message from the original's servers is not stored");
                        }
                    }
                }
            }
            // The append may have been committed. Sent unsynced, the message could arrive twice, and offline users
            // would miss it.
            Err(StoreError::Unreachable(error)) if retry => {
                tracing::debug!(%error, "storing messages from the original's servers is retried");
                return false;
            }
            Err(error) => {
                if let Some(suppressed) = NOT_STORED.due("original") {
                    tracing::warn!(%error, suppressed, "a message from the original's servers is sent to online users and not stored");
                }
                send_unsynced();
            }
        }
        true
    }

    /// Sends a broadcast to the other servers, if there are any.
    pub(super) fn broadcast_to_servers(&self, broadcast: impl FnOnce() -> Broadcast) {
        if let Some(cluster) = &self.cluster {
            cluster.broadcast(broadcast());
        }
    }

    /// Publishes this server's number of connections to the other servers.
    pub(super) fn publish_connection_count(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.set_connection_count(self.registry.connection_count());
        }
    }

    /// Returns the number of connections at other servers, as these last published it.
    pub(super) async fn remote_connection_count(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.remote_connection_count().await,
            None => 0,
        }
    }

    /// Moves recipients at servers of the original to `original_recipients`.
    ///
    /// A recipient that may also be connected to a server of this cluster remains a recipient of the append, because a
    /// client or server may have died unnoticed.
    ///
    /// # Errors
    /// When presence cannot be read.
    pub(super) async fn split_original_recipients(&self, prepared: &mut PreparedDispatch) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let presences = cluster.original_presence(&prepared.context.users).await.map_err(StoreError::Unreachable)?;
        if presences.iter().all(|presence| *presence == OriginalPresence::Offline) {
            return Ok(());
        }
        for (user, presence) in std::mem::take(&mut prepared.context.users).into_iter().zip(presences) {
            if presence != OriginalPresence::Offline {
                prepared.original_recipients.push(user.clone());
            }
            // A session that has just begun may not be in the shared presence yet.
            if presence == OriginalPresence::Exclusive && self.registry.session_count(&user) == 0 {
                prepared.context.original_only += 1;
            } else {
                prepared.context.users.push(user);
            }
        }
        prepared.append.recipients.clone_from(&prepared.context.users);
        Ok(())
    }

    /// Publishes messages to servers of the original for their users.
    ///
    /// This happens before the commit, so that an accepted dispatch has been published. If the commit fails, a retry of
    /// the dispatch may publish the message again.
    ///
    /// # Errors
    /// When a message cannot be published.
    pub(super) async fn publish_to_original(&self, prepared: &[PreparedDispatch]) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let mut published = HashSet::new();
        for PreparedDispatch { append, original_recipients, .. } in
            prepared.iter().filter(|dispatch| !dispatch.original_recipients.is_empty())
        {
            let id = append.idempotency.as_ref().map(|idempotency| &idempotency.id);
            let repeated = id.is_some_and(|id| !published.insert(id));
            if !repeated {
                cluster
                    .publish_to_original(&append.payload, original_recipients, id)
                    .await
                    .map_err(StoreError::Unreachable)?;
            }
        }
        Ok(())
    }

    /// Returns each user's number of connections at all servers.
    ///
    /// If the other servers cannot be queried, only local connections count.
    pub(super) async fn connection_counts_of(&self, users: &[UserId]) -> Vec<usize> {
        let mut counts: Vec<usize> = users.iter().map(|user| self.registry.session_count(user)).collect();
        if let (Some(cluster), false) = (&self.cluster, users.is_empty())
            && let Some(remote) = cluster.remote_connections(users).await
        {
            counts.iter_mut().zip(remote).for_each(|(count, more)| *count += more);
        }
        counts
    }

    /// Returns which users are online at any server.
    ///
    /// The other servers are queried only about users without a local session. If that fails, these count as offline.
    pub(super) async fn online_flags(&self, users: &[UserId]) -> Vec<bool> {
        let mut online: Vec<bool> = users.iter().map(|user| self.registry.session_count(user) > 0).collect();
        let Some(cluster) = &self.cluster else { return online };
        let offline = users.iter().zip(&online).filter(|(_, online)| !**online);
        let offline: Vec<UserId> = offline.map(|(user, _)| user.clone()).collect();
        if !offline.is_empty()
            && let Some(remote) = cluster.remote_connections(&offline).await
        {
            online.iter_mut().filter(|online| !**online).zip(remote).for_each(|(online, count)| *online = count > 0);
        }
        online
    }

    /// Returns which recipients of a disconnect are online; `None` for a broadcast or a single server.
    pub(super) async fn online_flags_of_recipients(
        &self,
        recipients: &Recipients,
        excluding: &[UserId],
    ) -> Option<Vec<bool>> {
        self.cluster.as_ref()?;
        let Recipients::Users(users) = recipients else { return None };
        let users = super::dispatch::distinct_recipients(users.clone(), excluding);
        Some(self.online_flags(&users).await)
    }

    /// Requests the other servers to close connections of these users.
    pub(super) fn disconnect_remote(&self, recipients: &Recipients, excluding: &[UserId], reason: Option<Arc<str>>) {
        self.broadcast_to_servers(|| Broadcast::Disconnect {
            recipients: recipients.clone(),
            excluding: excluding.to_vec(),
            reason,
        });
    }

    /// Closes local connections of these users; returns the numbers of recipients and of local online ones.
    pub(super) fn disconnect_local(
        &self,
        recipients: &Recipients,
        excluding: &[UserId],
        reason: Option<Arc<str>>,
    ) -> (usize, usize) {
        let reason = CloseReason::Requested(reason);
        match recipients {
            Recipients::Everyone => {
                let mut closed = 0;
                self.registry.for_each_connection_except(excluding, |_, mailbox| {
                    mailbox.close(reason.clone());
                    closed += 1;
                });
                (closed, closed)
            }
            Recipients::Users(users) => {
                let users = super::dispatch::distinct_recipients(users.clone(), excluding);
                let online = users.iter().filter(|user| self.registry.close_user(user, reason.clone()) > 0).count();
                (users.len(), online)
            }
        }
    }
}
