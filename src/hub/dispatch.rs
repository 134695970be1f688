//! The path of a message from a backend: into the log first, and from there, or past it, to who is here.

use super::{Hub, mailbox::Leave};
use crate::{
    message::{Payload, Recipients, UserId},
    store::{Append, StoreError},
};

/// A message on its way, checked by whoever took it in.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// What is said.
    pub payload: Payload,
    /// Whether it may be kept for those who are away (`o.sync`). Has no effect while sync is off, or for everyone.
    pub sync: bool,
    /// Who it is for.
    pub recipients: Recipients,
    /// And who not.
    pub excluding: Vec<UserId>,
}

/// What became of a dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Users it was for, without those excluded; for everyone: connections.
    pub recipients: usize,
    /// Those of them who are here.
    pub online: usize,
    /// Those who are not.
    pub offline: usize,
    /// Those for whom it was not taken, and why.
    pub rejected: Vec<Rejected>,
}

/// A recipient for whom a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Who.
    pub user: String,
    /// Why, as one word for programs: `invalid`.
    pub reason: &'static str,
}

impl Hub {
    /// Sends a message; resolves once every synced copy is durable. Dropping the future after its first poll does not
    /// call the message back.
    ///
    /// # Errors
    /// When the store takes nothing; then nobody was sent anything.
    pub async fn dispatch(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        self.metrics.dispatches.inc();
        let Dispatch { payload, sync, recipients, excluding } = dispatch;
        match recipients {
            Recipients::Everyone => Ok(self.broadcast(&payload, &excluding)),
            Recipients::Users(users) => {
                let users = without(users, &excluding);
                if !sync || self.settings.sync.is_none() {
                    return Ok(self.pass_by(&payload, &users));
                }
                self.store.append(Append { payload, recipients: users.clone() }).await?;
                self.metrics.messages_appended.inc_by(users.len() as u64);
                Ok(self.outcome(&users))
            }
        }
    }

    /// Tells connections of these users to go (close code 1000).
    pub fn disconnect(&self, recipients: &Recipients, excluding: &[UserId]) -> Outcome {
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
                Outcome { recipients: told, online: told, ..Outcome::default() }
            }
            Recipients::Users(users) => {
                let users = without(users.clone(), excluding);
                let online = users.iter().filter(|user| self.registry.leave(user, Leave::Asked) > 0).count();
                Outcome { recipients: users.len(), online, offline: users.len() - online, rejected: Vec::new() }
            }
        }
    }

    /// To every connection that is here, and never kept: stock's `*`.
    fn broadcast(&self, payload: &Payload, excluding: &[UserId]) -> Outcome {
        let mut spared = self.registry.connections_of_users(excluding);
        spared.sort_unstable();
        let (mut told, mut dropped) = (0, 0);
        self.registry.everyone(|id, mailbox| {
            let welcome = mailbox.is_authenticated() || !self.settings.authentication_required;
            if welcome && spared.binary_search(&id).is_err() {
                told += 1;
                dropped += mailbox.put(payload);
            }
        });
        self.metrics.unsynced_dropped.inc_by(dropped);
        Outcome { recipients: told, online: told, ..Outcome::default() }
    }

    /// To those of `users` who are here, past the log.
    fn pass_by(&self, payload: &Payload, users: &[UserId]) -> Outcome {
        let mut online = 0;
        for user in users {
            let (connections, dropped) = self.registry.put(user, payload);
            online += usize::from(connections > 0);
            self.metrics.unsynced_dropped.inc_by(dropped);
        }
        Outcome { recipients: users.len(), online, offline: users.len() - online, rejected: Vec::new() }
    }

    fn outcome(&self, users: &[UserId]) -> Outcome {
        let online = users.iter().filter(|user| self.registry.connections(user) > 0).count();
        Outcome { recipients: users.len(), online, offline: users.len() - online, rejected: Vec::new() }
    }
}

/// Each user once, in the order given, without those excluded.
fn without(mut users: Vec<UserId>, excluding: &[UserId]) -> Vec<UserId> {
    if users.len() == 1 {
        // The common case, without a set.
        users.retain(|user| !excluding.contains(user));
        return users;
    }
    let mut seen: std::collections::HashSet<UserId, foldhash::fast::RandomState> = excluding.iter().cloned().collect();
    users.retain(|user| seen.insert(user.clone()));
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_counts_once_and_the_excluded_not_at_all() {
        let ids = |text: &str| text.split_whitespace().map(|id| UserId::new(id).unwrap()).collect::<Vec<_>>();
        assert_eq!(without(ids("b a b c a"), &ids("c")), ids("b a"));
        assert_eq!(without(ids("a"), &ids("a b")), ids(""));
        assert_eq!(without(ids("a"), &[]), ids("a"));
    }
}
