//! The other servers, where there are any: what is said to them and heard from them, and who is there.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Hub, dispatch::Kept, mailbox::Leave};
use crate::{
    cluster::Word,
    message::{Payload, Recipients, UserId},
    store::Append,
};

impl Hub {
    /// From here on does what other servers say.
    pub(super) fn hear_others(self: &Arc<Self>) {
        let Some(cluster) = &self.cluster else { return };
        let hub = Arc::downgrade(self);
        let hears = Arc::new(move |word| {
            let Some(hub) = hub.upgrade() else { return };
            match word {
                Word::Message { payload, recipients: Recipients::Everyone, excluding } => {
                    _ = hub.to_everyone_here(&payload, &excluding);
                }
                Word::Message { payload, recipients: Recipients::Users(users), .. } => {
                    for user in users {
                        let (_, dropped) = hub.registry.put(&user, &payload);
                        hub.metrics.unsynced_dropped.inc_by(dropped);
                    }
                }
                Word::Leave { recipients, excluding } => _ = hub.disconnect_here(&recipients, &excluding),
            }
        });
        let hub = Arc::downgrade(self);
        let keeps = Arc::new(move |messages: Vec<(Payload, Vec<UserId>)>| -> BoxFuture<'static, ()> {
            let hub = hub.upgrade();
            Box::pin(async move {
                if let Some(hub) = hub {
                    hub.keep_from_beside(messages).await;
                }
            })
        });
        cluster.hear(hears, keeps);
    }

    /// Keeps what servers of another make say to users who are here; where that cannot be done it is passed by the log, which
    /// is all that those do.
    async fn keep_from_beside(&self, messages: Vec<(Payload, Vec<UserId>)>) {
        let pass = |messages: &[(Payload, Vec<UserId>)]| {
            for (payload, users) in messages {
                for user in users {
                    let (_, dropped) = self.registry.put(user, payload);
                    self.metrics.unsynced_dropped.inc_by(dropped);
                }
            }
        };
        if self.settings.sync.is_none() {
            pass(&messages);
            return;
        }
        let appends = messages.iter().map(|(payload, users)| Append::new(payload.clone(), users.clone())).collect();
        if let Err(error) = self.store.append_all(appends).await {
            tracing::warn!(%error, "what stock has said is sent and not kept");
            pass(&messages);
        }
    }

    pub(super) fn tell_others(&self, word: impl FnOnce() -> Word) {
        if let Some(cluster) = &self.cluster {
            cluster.tell(word());
        }
    }

    pub(super) fn count_connections(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.count(self.registry.count());
        }
    }

    /// Connections at the other servers in all, as they last said.
    pub(super) async fn all_elsewhere(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.all_elsewhere().await,
            None => 0,
        }
    }

    /// Takes out of what is to be kept those who are connected to servers of another make and to none of ours, and notes
    /// who has to be told of beside.
    ///
    /// Where it is not certain that somebody is at none of ours, it is kept: it may come twice then, and is not lost. So those who
    /// come or go just now are looked for before and behind the question whether they are connected at all.
    pub(super) async fn look_beside(&self, kept: &mut Kept) {
        let Some(cluster) = &self.cluster else { return };
        if cluster.beside(&[]).await.is_none() {
            return;
        }
        let before = self.at_none_of_ours(&**cluster, &kept.to.users).await;
        let Some(connected) = cluster.beside(&kept.to.users).await.filter(|connected| connected.contains(&true)) else {
            return;
        };
        let after = self.at_none_of_ours(&**cluster, &kept.to.users).await;
        let at_none = before.into_iter().zip(after).map(|(before, after)| before && after);
        let mut flags = connected.iter().zip(at_none).map(|(connected, at_none)| (*connected, at_none));
        let users = std::mem::take(&mut kept.to.users);
        for user in users {
            let (connected, nowhere_here) = flags.next().unwrap_or_default();
            if connected {
                kept.beside.push(user.clone());
            }
            if connected && nowhere_here {
                kept.to.only_beside += 1;
            } else {
                kept.to.users.push(user);
            }
        }
        kept.append.recipients.clone_from(&kept.to.users);
    }

    /// Who of these is certainly connected to none of our servers.
    async fn at_none_of_ours(&self, cluster: &dyn crate::cluster::Cluster, users: &[UserId]) -> Vec<bool> {
        match cluster.elsewhere(users).await {
            Some(counts) => {
                users.iter().zip(counts).map(|(user, count)| count + self.registry.connections(user) == 0).collect()
            }
            None => vec![false; users.len()],
        }
    }

    /// Connections of each of these users, at all servers; at this one alone where the others cannot be asked.
    pub(super) async fn connections_of(&self, users: &[UserId]) -> Vec<usize> {
        let mut counts: Vec<usize> = users.iter().map(|user| self.registry.connections(user)).collect();
        if let (Some(cluster), false) = (&self.cluster, users.is_empty())
            && let Some(elsewhere) = cluster.elsewhere(users).await
        {
            counts.iter_mut().zip(elsewhere).for_each(|(count, more)| *count += more);
        }
        counts
    }

    /// Tells connections of these users to go, at every server.
    pub(super) async fn who_will_leave(&self, recipients: &Recipients, excluding: &[UserId]) -> Option<Vec<bool>> {
        self.cluster.as_ref()?;
        let Recipients::Users(users) = recipients else { return None };
        let users = super::dispatch::without(users.clone(), excluding);
        Some(self.connections_of(&users).await.into_iter().map(|count| count > 0).collect())
    }

    pub(super) fn leave_elsewhere(&self, recipients: &Recipients, excluding: &[UserId]) {
        self.tell_others(|| Word::Leave { recipients: recipients.clone(), excluding: excluding.to_vec() });
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
