//! The path of a message from a backend: into the log first, and from there, or past it, to who is here.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Hub, mailbox::Mailbox};
use crate::{
    cluster::Broadcast,
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

    /// Reports options that only a stored message can follow. With sync off such a dispatch is rejected.
    #[must_use]
    pub fn is_for_logs_alone(&self) -> bool {
        self.ttl.is_some() || self.collapse.is_some()
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
    /// Logs it was appended to: 0 with sync off, for unsynced messages and for everyone.
    pub stored: usize,
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
    /// When the store takes nothing; then nobody was sent anything, but for users of servers of another make.
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
        let to = To { users: recipients.clone(), refused, said, online: None, only_beside: 0 };
        self.metrics.dispatches.inc();
        let append = Append { ttl, collapse, once, ..Append::new(payload, recipients) };
        Ok(Kept { append, to, beside: Vec::new() })
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
        let mut kept = kept;
        if self.cluster.is_some() {
            // What is to be answered the same every time is found out before.
            for one in &mut kept {
                self.look_beside(one).await?;
                if let Some(once) = &mut one.append.once {
                    once.online = self.who_is_here(&one.to.users).await;
                    one.to.online = Some(once.online.clone());
                    once.online.extend(std::iter::repeat_n(true, one.to.only_beside));
                }
            }
        }
        self.tell_beside(&kept).await?;
        let (appends, mut told): (Vec<_>, Vec<_>) = kept.into_iter().map(|kept| (kept.append, kept.to)).unzip();
        let unknown = told.iter_mut().filter(|one| one.online.is_none());
        let asking = join_all(unknown.map(async |one| one.online = Some(self.who_is_here(&one.users).await)));
        let appending = self.store.append_all(appends);
        let appended = if self.cluster.is_some() {
            // Both at once: each is a way to Redis and back.
            tokio::join!(appending, asking).0?
        } else {
            let appended = appending.await?;
            asking.await;
            appended
        };
        Ok(Taken { appended, told })
    }

    /// What became of messages that were kept, in order.
    pub fn outcomes(&self, taken: Taken) -> impl Iterator<Item = Outcome> {
        let told = taken.told.into_iter();
        taken.appended.into_iter().zip(told).map(|(appended, to)| self.outcome(appended, to))
    }

    fn outcome(&self, appended: Appended, to: To) -> Outcome {
        let To { users, refused, said, online, only_beside } = to;
        let online = online.unwrap_or_default();
        if let (Some(payload), false) = (said, appended.duplicate) {
            let with_presence = users.iter().zip(&online).zip(&appended.seqs);
            let taken = with_presence.filter(|(_, seq)| seq.is_ok()).map(|((user, here), _)| (user.clone(), *here));
            self.tell_sent(&payload, taken.collect());
        }
        let taken = appended.seqs.iter().filter(|seq| seq.is_ok()).count() as u64;
        self.metrics.messages_appended.inc_by(taken);
        self.metrics.messages_rejected.inc_by(appended.seqs.len() as u64 - taken);
        self.metrics.messages_dropped.inc_by(appended.dropped);
        if let Some(answered) = appended.answered {
            return answered_before(answered, appended.duplicate);
        }
        let mut outcome = Outcome {
            recipients: users.len() + refused.len() + only_beside,
            online: only_beside,
            rejected: refused,
            ..Outcome::default()
        };
        for ((user, here), seq) in users.iter().zip(&online).zip(appended.seqs) {
            outcome.stored += usize::from(seq.is_ok());
            match seq {
                Ok(_) if *here => outcome.online += 1,
                Ok(_) => outcome.offline += 1,
                Err(reason) => outcome.rejected.push(Rejected { user: user.as_str().into(), reason }),
            }
        }
        outcome
    }

    /// To those who are here, past the log. One with an id is written down first: it is sent once at most.
    async fn send_past(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        let Dispatch { payload, sync, recipients, excluding, id, refused, .. } = dispatch;
        // Only a message that asked to be kept is lost by not being kept.
        let drops = sync && self.settings.sync.is_none();
        let users = match recipients {
            Recipients::Everyone => None,
            Recipients::Users(users) => Some(without(users, &excluding)),
        };
        if let Some(id) = id {
            let online = match &users {
                Some(users) => self.who_is_here(users).await,
                None => {
                    let mut online = vec![true; self.all_elsewhere().await];
                    self.each_welcome(&excluding, |_| online.push(true));
                    online
                }
            };
            let once = Some(Once { id, online, refused });
            let appended = self.store.append(Append { once, ..Append::new(payload.clone(), Vec::new()) }).await?;
            if !appended.duplicate {
                let outcome = self.pass_by(&payload, users.as_deref(), &excluding).await;
                self.count_dropped(drops, &outcome);
            }
            return Ok(answered_before(appended.answered.unwrap_or_default(), appended.duplicate));
        }
        let mut outcome = self.pass_by(&payload, users.as_deref(), &excluding).await;
        self.count_dropped(drops, &outcome);
        outcome.recipients += refused.len();
        outcome.rejected = refused;
        Ok(outcome)
    }

    fn count_dropped(&self, drops: bool, outcome: &Outcome) {
        if drops {
            self.metrics.sync_off_dropped.inc_by(outcome.offline as u64);
        }
    }

    /// Tells the middleware of a message that was kept for `users`, each with whether he is here, at any server.
    fn tell_sent(&self, payload: &Payload, users: Vec<(UserId, bool)>) {
        let (mut here, mut away) = (Vec::new(), Vec::new());
        for (user, online) in users {
            if online { here.push(user) } else { away.push(user) }
        }
        if !here.is_empty() {
            self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Users(&here)));
        }
        if !away.is_empty() {
            self.middleware.each(None, |one| one.on_undeliverable_message_sent(payload, &away));
        }
    }

    async fn pass_by(&self, payload: &Payload, users: Option<&[UserId]>, excluding: &[UserId]) -> Outcome {
        self.tell_others(|| Broadcast::Message {
            payload: payload.clone(),
            recipients: users.map_or(Recipients::Everyone, |users| Recipients::Users(users.to_vec())),
            excluding: excluding.to_vec(),
        });
        match users {
            Some(users) => self.to_users(payload, users).await,
            None => {
                let told = self.to_everyone_here(payload, excluding) + self.all_elsewhere().await;
                if told > 0 {
                    self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Everyone(told)));
                }
                Outcome { recipients: told, online: told, ..Outcome::default() }
            }
        }
    }

    /// Tells connections of these users to go (close code 1000), at every server.
    pub async fn disconnect(&self, recipients: &Recipients, excluding: &[UserId]) -> Outcome {
        let online = self.who_will_leave(recipients, excluding).await;
        self.leave_elsewhere(recipients, excluding);
        let (recipients_here, online_here) = self.disconnect_here(recipients, excluding);
        match (recipients, online) {
            (Recipients::Everyone, _) => {
                let told = recipients_here + self.all_elsewhere().await;
                Outcome { recipients: told, online: told, ..Outcome::default() }
            }
            (Recipients::Users(_), online) => {
                let count = online.map_or(online_here, |online| online.into_iter().filter(|one| *one).count());
                let (recipients, online, offline) = (recipients_here, count, recipients_here - count);
                Outcome { recipients, online, offline, ..Outcome::default() }
            }
        }
    }

    /// To every connection that is here, and never kept: stock's `*`. Returns how many those are.
    pub(super) fn to_everyone_here(&self, payload: &Payload, excluding: &[UserId]) -> usize {
        let (mut told, mut dropped) = (0, 0);
        self.each_welcome(excluding, |mailbox| {
            told += 1;
            dropped += mailbox.put(payload);
        });
        self.metrics.unsynced_dropped.inc_by(dropped);
        told
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

    /// To those of `users` who are here, past the log. Who is there is asked first: a message that makes them leave counts.
    async fn to_users(&self, payload: &Payload, users: &[UserId]) -> Outcome {
        let online = self.who_is_here(users).await;
        let (watched, mut here) = (self.middleware.any(), Vec::new());
        for (user, is_here) in users.iter().zip(&online) {
            let (_, dropped) = self.registry.put(user, payload);
            self.metrics.unsynced_dropped.inc_by(dropped);
            if watched && *is_here {
                here.push(user.clone());
            }
        }
        if !here.is_empty() {
            self.middleware.each(None, |one| one.on_message_sent(payload, SentTo::Users(&here)));
        }
        let online = online.into_iter().filter(|is_here| *is_here).count();
        Outcome { recipients: users.len(), online, offline: users.len() - online, ..Outcome::default() }
    }
}

/// A dispatch on its way to the store, and what its answer needs.
#[derive(Debug)]
pub struct Kept {
    pub(super) append: Append,
    pub(super) to: To,
    /// Who is to be told by servers of another make.
    pub(super) beside: Vec<UserId>,
}

/// What the answer to a dispatch needs.
#[derive(Debug)]
pub(super) struct To {
    pub(super) users: Vec<UserId>,
    refused: Vec<Rejected>,
    /// Where there is middleware to be told.
    said: Option<Payload>,
    /// Which of the users are here, at any server; `None` before they were asked for.
    online: Option<Vec<bool>>,
    /// How many more are at servers of another make and at none of ours: nothing is kept for them here.
    pub(super) only_beside: usize,
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
        stored: answered.stored as usize,
        rejected: answered.rejected,
        duplicate,
    }
}

/// Each user once, in the order given, without those excluded.
pub(super) fn without(mut users: Vec<UserId>, excluding: &[UserId]) -> Vec<UserId> {
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
