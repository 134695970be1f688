//! The other servers, where there are any: what is said to them and heard from them, and who is there.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{Hub, dispatch::Kept, mailbox::Leave};
use crate::{
    cluster::{Broadcast, OriginalMessage, OriginalPresence},
    health::LogLimit,
    logging::excerpt,
    message::{Recipients, UserId},
    store::{Append, StoreError},
};

/// What servers of another make say is kept within this time, or not at all: a store does not know for much longer which copies
/// it has (`Append::each_once`), and would make them again.
const KEEP_WITHIN: Duration = Duration::from_secs(300);

/// A cause that lasts fails every message of another server.
static NOT_STORED: LogLimit = LogLimit::new();

/// Between two attempts at that.
const KEEP_AGAIN: Duration = Duration::from_millis(250);

impl Hub {
    /// From here on does what other servers say.
    pub(super) fn hear_others(self: &Arc<Self>) {
        let Some(cluster) = &self.cluster else { return };
        let hub = Arc::downgrade(self);
        let hears = Arc::new(move |word| {
            let Some(hub) = hub.upgrade() else { return };
            match word {
                Broadcast::Message { payload, recipients: Recipients::Everyone, excluding } => {
                    _ = hub.to_everyone_here(&payload, &excluding);
                }
                Broadcast::Message { payload, recipients: Recipients::Users(users), .. } => {
                    for user in users {
                        let (_, dropped) = hub.registry.put(&user, &payload);
                        hub.metrics.unsynced_dropped.inc_by(dropped);
                    }
                }
                Broadcast::Disconnect { recipients, excluding } => _ = hub.disconnect_here(&recipients, &excluding),
            }
        });
        let hub = Arc::downgrade(self);
        let keeps = Arc::new(move |messages: Vec<OriginalMessage>| -> BoxFuture<'static, ()> {
            let (hub, end) = (hub.clone(), Instant::now() + KEEP_WITHIN);
            Box::pin(async move {
                while let Some(hub) = hub.upgrade()
                    && !hub.store_original_messages(&messages, Instant::now() < end).await
                {
                    drop(hub);
                    tokio::time::sleep(KEEP_AGAIN).await;
                }
            })
        });
        cluster.subscribe(hears, keeps);
    }

    /// Keeps what servers of another make say to users of ours; where that cannot be done it is passed by the log to those who
    /// are here, which is all that those do. False: the store cannot be reached, and it is to be tried `again`.
    async fn store_original_messages(&self, messages: &[OriginalMessage], again: bool) -> bool {
        let pass = || {
            for OriginalMessage { payload, users, .. } in messages.iter().filter(|message| !message.late) {
                for user in users {
                    let (_, dropped) = self.registry.put(user, payload);
                    self.metrics.unsynced_dropped.inc_by(dropped);
                }
            }
        };
        if self.settings.sync.is_none() {
            pass();
            return true;
        }
        let append = |message: &OriginalMessage| Append {
            each_once: message.id.clone(),
            ..Append::new(message.payload.clone(), message.users.clone())
        };
        match self.store.append_all(messages.iter().map(append).collect()).await {
            Ok(appended) => {
                for (message, appended) in messages.iter().zip(appended) {
                    let refused = message.users.iter().zip(&appended.seqs).filter(|(_, seq)| seq.is_err());
                    // Nobody waits for an answer: this is the only place where it can be said.
                    refused.for_each(
                        |(user, _)| tracing::warn!(user = %excerpt(user), "what stock has said is not kept: the user has no room"),
                    );
                }
            }
            // It may have been kept: sent past the log it could come twice, and to who is away not at all.
            Err(StoreError::Unreachable(error)) if again => {
                tracing::debug!(%error, "what stock has said is kept later");
                return false;
            }
            Err(error) => {
                if let Some(suppressed) = NOT_STORED.due("stock") {
                    tracing::warn!(%error, suppressed, "a message from the original's servers is sent and not stored");
                }
                pass();
            }
        }
        true
    }

    pub(super) fn tell_others(&self, word: impl FnOnce() -> Broadcast) {
        if let Some(cluster) = &self.cluster {
            cluster.broadcast(word());
        }
    }

    pub(super) fn count_connections(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.set_connection_count(self.registry.count());
        }
    }

    /// Connections at the other servers in all, as they last said.
    pub(super) async fn all_elsewhere(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.remote_connection_count().await,
            None => 0,
        }
    }

    /// Takes out of what is to be kept those who are at servers of another make alone, and notes who has to be told of there.
    /// Who may be connected because of us is both kept and told: he may have gone, or his server, and nobody has noted it yet.
    ///
    /// # Errors
    /// When it cannot be found out who is there.
    pub(super) async fn look_beside(&self, kept: &mut Kept) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let found = cluster.original_presence(&kept.to.users).await.map_err(StoreError::Unreachable)?;
        if found.iter().all(|one| *one == OriginalPresence::Offline) {
            return Ok(());
        }
        for (user, beside) in std::mem::take(&mut kept.to.users).into_iter().zip(found) {
            if beside != OriginalPresence::Offline {
                kept.beside.push(user.clone());
            }
            // Who has only just come may not have been written down.
            if beside == OriginalPresence::Exclusive && self.registry.connections(&user) == 0 {
                kept.to.only_beside += 1;
            } else {
                kept.to.users.push(user);
            }
        }
        kept.append.recipients.clone_from(&kept.to.users);
        Ok(())
    }

    /// Tells servers of another make of what is for users of theirs. Before it is kept here: what is answered has been told, and
    /// what could not be kept may be told once more when it is said again.
    ///
    /// # Errors
    /// When that cannot be said.
    pub(super) async fn tell_beside(&self, kept: &[Kept]) -> Result<(), StoreError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let mut said = HashSet::new();
        for Kept { append, beside, .. } in kept.iter().filter(|kept| !kept.beside.is_empty()) {
            let id = append.once.as_ref().map(|once| &once.id);
            let again = id.is_some_and(|id| !said.insert(id));
            if !again {
                cluster.publish_to_original(&append.payload, beside, id).await.map_err(StoreError::Unreachable)?;
            }
        }
        Ok(())
    }

    /// Connections of each of these users, at all servers; at this one alone where the others cannot be asked.
    pub(super) async fn connections_of(&self, users: &[UserId]) -> Vec<usize> {
        let mut counts: Vec<usize> = users.iter().map(|user| self.registry.connections(user)).collect();
        if let (Some(cluster), false) = (&self.cluster, users.is_empty())
            && let Some(elsewhere) = cluster.remote_connections(users).await
        {
            counts.iter_mut().zip(elsewhere).for_each(|(count, more)| *count += more);
        }
        counts
    }

    /// Which of these users are here, at any server; at this one alone where the others cannot be asked. Those who are at this one
    /// nobody else is asked about.
    pub(super) async fn who_is_here(&self, users: &[UserId]) -> Vec<bool> {
        let mut here: Vec<bool> = users.iter().map(|user| self.registry.connections(user) > 0).collect();
        let Some(cluster) = &self.cluster else { return here };
        let away = users.iter().zip(&here).filter(|(_, here)| !**here);
        let others: Vec<UserId> = away.map(|(user, _)| user.clone()).collect();
        if !others.is_empty()
            && let Some(elsewhere) = cluster.remote_connections(&others).await
        {
            here.iter_mut().filter(|here| !**here).zip(elsewhere).for_each(|(here, count)| *here = count > 0);
        }
        here
    }

    /// Tells connections of these users to go, at every server.
    pub(super) async fn who_will_leave(&self, recipients: &Recipients, excluding: &[UserId]) -> Option<Vec<bool>> {
        self.cluster.as_ref()?;
        let Recipients::Users(users) = recipients else { return None };
        let users = super::dispatch::without(users.clone(), excluding);
        Some(self.who_is_here(&users).await)
    }

    pub(super) fn leave_elsewhere(&self, recipients: &Recipients, excluding: &[UserId]) {
        self.tell_others(|| Broadcast::Disconnect { recipients: recipients.clone(), excluding: excluding.to_vec() });
    }

    /// Tells connections of these users here to go; which of them, of those named, were here.
    pub(super) fn disconnect_here(&self, recipients: &Recipients, excluding: &[UserId]) -> (usize, usize) {
        match recipients {
            Recipients::Everyone => {
                let mut spared = self.registry.connections_of_users(excluding);
                spared.sort_unstable();
                let mut told = 0;
                self.registry.everyone(|id, mailbox| {
                    if spared.binary_search(&id).is_err() {
                        mailbox.leave(Leave::Asked);
                        told += 1;
                    }
                });
                (told, told)
            }
            Recipients::Users(users) => {
                let users = super::dispatch::without(users.clone(), excluding);
                let online = users.iter().filter(|user| self.registry.leave(user, Leave::Asked) > 0).count();
                (users.len(), online)
            }
        }
    }
}
