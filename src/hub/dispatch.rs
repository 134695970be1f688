//! The path of a message from a backend: into the log first, and from there, or past it, to who is here.

use std::time::Duration;

use super::{
    Hub,
    mailbox::{Leave, Mailbox},
};
use crate::{
    message::{CollapseKey, DispatchId, Payload, Recipients, UserId},
    middleware::SentTo,
    store::{Answered, Append, Appended, Once, Rejected, StoreError},
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
    /// For how long it is kept (`o.ttl`). `None`: as long as anything is.
    pub ttl: Option<Duration>,
    /// What it takes the place of (`o.collapse`).
    pub collapse: Option<CollapseKey>,
    /// A repeat with the same id is not sent again, and gets the first answer.
    pub id: Option<DispatchId>,
    /// Recipients for whom it was refused already.
    pub refused: Vec<Rejected>,
}

impl Dispatch {
    /// A synced message for some users, without anything special.
    #[must_use]
    pub fn new(payload: Payload, recipients: Recipients) -> Self {
        Self {
            payload,
            sync: true,
            recipients,
            excluding: Vec::new(),
            ttl: None,
            collapse: None,
            id: None,
            refused: Vec::new(),
        }
    }
}

/// What became of a dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Users it was for, without those excluded and with those refused; for everyone: connections.
    pub recipients: usize,
    /// Those of them who are here and for whom it was taken.
    pub online: usize,
    /// Those who are not, and for whom it was taken.
    pub offline: usize,
    /// Those for whom it was not taken, and why.
    pub rejected: Vec<Rejected>,
    /// This is the answer to an earlier dispatch with the same id.
    pub duplicate: bool,
}

impl Hub {
    /// Sends a message; resolves once every synced copy is durable. Dropping the future after its first poll does not
    /// call the message back.
    ///
    /// # Errors
    /// When the store takes nothing; then nobody was sent anything.
    pub async fn dispatch(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        let mut outcomes = self.dispatch_all(vec![dispatch]).await?;
        Ok(outcomes.pop().unwrap_or_default())
    }

    /// Sends messages one after the other; those that are kept share a commit. Resolves with one outcome for each, in
    /// order, once every synced copy is durable.
    ///
    /// What passes the log by is sent when all that stands before it is durable.
    ///
    /// # Errors
    /// When the store takes nothing more; what stands before that may have been sent.
    pub async fn dispatch_all(&self, dispatches: Vec<Dispatch>) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(dispatches.len());
        let mut kept = Vec::new();
        for dispatch in dispatches {
            match self.keep(dispatch) {
                Ok(keep) => kept.push(keep),
                Err(past) => {
                    outcomes.extend(self.outcomes(self.append(std::mem::take(&mut kept)).await?));
                    self.metrics.dispatches.inc();
                    outcomes.push(self.send_past(past).await?);
                }
            }
        }
        outcomes.extend(self.outcomes(self.append(kept).await?));
        Ok(outcomes)
    }

    /// What is to be appended for a dispatch; one that passes the log by is given back.
    ///
    /// This, [`Hub::append`] and [`Hub::outcomes`] are the steps of [`Hub::dispatch_all`], for who has something else to
    /// do between them.
    ///
    /// # Errors
    /// With the dispatch, where it is not to be kept.
    #[expect(clippy::result_large_err, reason = "what is given back is what was given")]
    pub fn keep(&self, dispatch: Dispatch) -> Result<Kept, Dispatch> {
        if !dispatch.sync || self.settings.sync.is_none() {
            return Err(dispatch);
        }
        let Recipients::Users(users) = dispatch.recipients else { return Err(dispatch) };
        let recipients = without(users, &dispatch.excluding);
        let online = |users: &[UserId]| users.iter().map(|user| self.registry.connections(user) > 0).collect();
        let (mut refused, mut once) = (dispatch.refused, None);
        if let Some(id) = dispatch.id {
            once = Some(Once { id, online: online(&recipients), refused: std::mem::take(&mut refused) });
        }
        let Dispatch { payload, ttl, collapse, .. } = dispatch;
        let said = self.middleware.any().then(|| payload.clone());
        let to = To { users: recipients.clone(), refused, said };
        self.metrics.dispatches.inc();
        Ok(Kept { append: Append { payload, recipients, ttl, collapse, once }, to })
    }

    /// Appends one after the other, all in one commit; resolves when all of it is durable. Nothing but waiting is done
    /// in between.
    ///
    /// # Errors
    /// When nothing of it was taken.
    pub async fn append(&self, kept: Vec<Kept>) -> Result<Taken, StoreError> {
        if kept.is_empty() {
            return Ok(Taken::default());
        }
        let (appends, told) = kept.into_iter().map(|one| (one.append, one.to)).unzip();
        Ok(Taken { appended: self.store.append_all(appends).await?, told })
    }

    /// What became of messages that were kept, in order.
    pub fn outcomes(&self, taken: Taken) -> impl Iterator<Item = Outcome> {
        let told = taken.told.into_iter();
        taken.appended.into_iter().zip(told).map(|(appended, to)| self.outcome(appended, to))
    }

    fn outcome(&self, appended: Appended, to: To) -> Outcome {
        let To { users, refused, said } = to;
        if let (Some(payload), false) = (said, appended.duplicate) {
            let taken = users.iter().zip(&appended.seqs).filter(|(_, seq)| seq.is_ok()).map(|(user, _)| user);
            self.tell_sent(&payload, taken.cloned().collect());
        }
        let taken = appended.seqs.iter().filter(|seq| seq.is_ok()).count() as u64;
        self.metrics.messages_appended.inc_by(taken);
        self.metrics.messages_rejected.inc_by(appended.seqs.len() as u64 - taken);
        self.metrics.messages_dropped.inc_by(appended.dropped);
        if let Some(answered) = appended.answered {
            return answered_before(answered, appended.duplicate);
        }
        let mut outcome = Outcome { recipients: users.len() + refused.len(), rejected: refused, ..Outcome::default() };
        for (user, seq) in users.iter().zip(appended.seqs) {
            match seq {
                Ok(_) if self.registry.connections(user) > 0 => outcome.online += 1,
                Ok(_) => outcome.offline += 1,
                Err(reason) => outcome.rejected.push(Rejected { user: user.as_str().into(), reason }),
            }
        }
        outcome
    }

    /// To those who are here, past the log. One with an id is written down first: it is sent once at most.
    async fn send_past(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        let Dispatch { payload, recipients, excluding, id, refused, .. } = dispatch;
        let users = match recipients {
            Recipients::Everyone => None,
            Recipients::Users(users) => Some(without(users, &excluding)),
        };
        if let Some(id) = id {
            let online = match &users {
                Some(users) => users.iter().map(|user| self.registry.connections(user) > 0).collect(),
                None => {
                    let mut online = Vec::new();
                    self.each_welcome(&excluding, |_| online.push(true));
                    online
                }
            };
            let once = Some(Once { id, online, refused });
            let appended = self.store.append(Append { once, ..Append::new(payload.clone(), Vec::new()) }).await?;
            if !appended.duplicate {
                _ = self.pass_by(&payload, users.as_deref(), &excluding);
            }
            return Ok(answered_before(appended.answered.unwrap_or_default(), appended.duplicate));
        }
        let mut outcome = self.pass_by(&payload, users.as_deref(), &excluding);
        outcome.recipients += refused.len();
        outcome.rejected = refused;
        Ok(outcome)
    }

    /// Tells the middleware of a message that was kept for `users`.
    fn tell_sent(&self, payload: &Payload, users: Vec<UserId>) {
        let (here, away): (Vec<_>, Vec<_>) = users.into_iter().partition(|user| self.registry.connections(user) > 0);
        if !here.is_empty() {
            self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Users(&here)));
        }
        if !away.is_empty() {
            self.middleware.each(None, |one| one.on_undeliverable_message_sent(payload, &away));
        }
    }

    fn pass_by(&self, payload: &Payload, users: Option<&[UserId]>, excluding: &[UserId]) -> Outcome {
        match users {
            Some(users) => self.to_users(payload, users),
            None => self.to_everyone(payload, excluding),
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
                Outcome { recipients: users.len(), online, offline: users.len() - online, ..Outcome::default() }
            }
        }
    }

    /// To every connection that is here, and never kept: stock's `*`.
    fn to_everyone(&self, payload: &Payload, excluding: &[UserId]) -> Outcome {
        let (mut told, mut dropped) = (0, 0);
        self.each_welcome(excluding, |mailbox| {
            told += 1;
            dropped += mailbox.put(payload);
        });
        self.metrics.unsynced_dropped.inc_by(dropped);
        if told > 0 {
            self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Everyone(told)));
        }
        Outcome { recipients: told, online: told, ..Outcome::default() }
    }

    /// Visits the mailboxes of connections that get what is for everyone.
    fn each_welcome(&self, excluding: &[UserId], mut visit: impl FnMut(&Mailbox)) {
        let mut spared = self.registry.connections_of_users(excluding);
        spared.sort_unstable();
        self.registry.everyone(|id, mailbox| {
            let welcome = mailbox.is_authenticated() || !self.settings.authentication_required;
            if welcome && spared.binary_search(&id).is_err() {
                visit(mailbox);
            }
        });
    }

    /// To those of `users` who are here, past the log.
    fn to_users(&self, payload: &Payload, users: &[UserId]) -> Outcome {
        let (mut online, mut here) = (0, Vec::new());
        let watched = self.middleware.any();
        for user in users {
            let (connections, dropped) = self.registry.put(user, payload);
            online += usize::from(connections > 0);
            self.metrics.unsynced_dropped.inc_by(dropped);
            if watched && connections > 0 {
                here.push(user.clone());
            }
        }
        if !here.is_empty() {
            self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Users(&here)));
        }
        Outcome { recipients: users.len(), online, offline: users.len() - online, ..Outcome::default() }
    }
}

/// A dispatch on its way to the store, and what its answer needs.
#[derive(Debug)]
pub struct Kept {
    append: Append,
    to: To,
}

/// What the answer to a dispatch needs.
#[derive(Debug)]
struct To {
    users: Vec<UserId>,
    refused: Vec<Rejected>,
    /// Where there is middleware to be told.
    said: Option<Payload>,
}

/// Dispatches that the store has taken.
#[derive(Debug, Default)]
pub struct Taken {
    appended: Vec<Appended>,
    told: Vec<To>,
}

fn answered_before(answered: Answered, duplicate: bool) -> Outcome {
    Outcome {
        recipients: answered.recipients as usize,
        online: answered.online as usize,
        offline: answered.offline as usize,
        rejected: answered.rejected,
        duplicate,
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
