//! Dispatch: appends synced messages to the recipients' logs, and fans unsynced messages out to online users.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{Hub, mailbox::Mailbox};
use crate::{
    cluster::Broadcast,
    message::{CollapseKey, DispatchId, IdError, Options, Payload, Recipients, UserId},
    middleware::SentTo,
    store::{Append, AppendResult, DispatchSummary, Idempotency, Rejected, StoreError},
    telemetry::StepSpan,
};

/// A message to send, validated by the API that received it.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The message.
    pub payload: Payload,
    /// Whether it is stored for its recipients (`o.sync`). Has no effect while sync is off, or on a broadcast.
    pub sync: bool,
    /// The recipients.
    pub recipients: Recipients,
    /// Users who do not receive it, even if they are recipients.
    pub excluding: Vec<UserId>,
    /// How long it is stored (`o.ttl`). `None`: until the store's own limits expire it.
    pub ttl: Option<Duration>,
    /// Collapse key (`o.collapse`): replaces a pending message with the same key.
    pub collapse: Option<CollapseKey>,
    /// Idempotency id: a retry with the same id is not sent again, and returns the first result.
    pub id: Option<DispatchId>,
    /// Recipients that were rejected before the hub received the dispatch.
    pub rejected: Vec<Rejected>,
}

impl Dispatch {
    /// Creates a synced message without further options.
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
            rejected: Vec::new(),
        }
    }

    /// Applies the options of a message.
    ///
    /// # Errors
    /// Fails if the message is not stored and has options of stored messages, or if its collapse key is invalid.
    pub fn with_options(self, options: &Options) -> Result<Self, OptionsError> {
        let is_stored = options.sync && self.recipients != Recipients::Everyone;
        if !is_stored && (options.ttl.is_some() || options.collapse.is_some()) {
            // If they were ignored, the backend would assume that they took effect.
            return Err(OptionsError::NotStored);
        }
        Ok(Self {
            sync: options.sync,
            ttl: options.ttl.map(|seconds| Duration::from_secs(seconds.get().into())),
            collapse: options.collapse.as_deref().map(CollapseKey::new).transpose()?,
            ..self
        })
    }

    /// Reports whether it has an option of stored messages. With sync off such a dispatch is rejected.
    #[must_use]
    pub fn requires_storage(&self) -> bool {
        self.ttl.is_some() || self.collapse.is_some()
    }
}

/// Error of [`Dispatch::with_options`].
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Options of stored messages, on a message that is not stored.
    #[error("{}", Self::NOT_STORED)]
    NotStored,
    /// The collapse key is invalid.
    #[error(transparent)]
    Collapse(#[from] IdError),
}

impl OptionsError {
    /// Text of [`Self::NotStored`].
    pub const NOT_STORED: &str =
        "o.ttl and o.collapse are for stored messages: omit them with sync: false, and for `*`";
}

/// Result of a dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Recipients, including rejected ones and without excluded users. For a broadcast: connections.
    pub recipients: usize,
    /// Accepted recipients that are online.
    pub online: usize,
    /// Accepted recipients that are offline.
    pub offline: usize,
    /// Logs it was appended to: 0 with sync off, for unsynced messages and for broadcasts.
    pub stored: usize,
    /// Rejected recipients, each with the reason.
    pub rejected: Vec<Rejected>,
    /// Whether this is the stored result of an earlier dispatch with the same id.
    pub duplicate: bool,
}

impl Hub {
    /// Sends a message; resolves once every synced entry is durable.
    ///
    /// Dropping the future after its first poll does not cancel the dispatch.
    ///
    /// # Errors
    /// When the store accepts no entry. Then no user received the message, except users of the original's servers.
    pub async fn dispatch(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        let mut results = self.dispatch_all(vec![dispatch]).await;
        results.pop().unwrap_or_else(|| Ok(Outcome::default()))
    }

    /// Sends messages in order, and returns the result of each, in the same order.
    ///
    /// It resolves once every synced entry is durable. Consecutive synced messages share a commit. An unsynced message
    /// is sent once all messages before it are durable or rejected. An error of one message does not stop those after
    /// it.
    pub async fn dispatch_all(&self, dispatches: Vec<Dispatch>) -> Vec<Result<Outcome, StoreError>> {
        StepSpan::dispatch().run(self.dispatch_each(dispatches)).await
    }

    async fn dispatch_each(&self, dispatches: Vec<Dispatch>) -> Vec<Result<Outcome, StoreError>> {
        let mut results = Vec::with_capacity(dispatches.len());
        let mut prepared = Vec::new();
        for dispatch in dispatches {
            match self.prepare(dispatch) {
                Ok(synced) => prepared.push(synced),
                Err(unsynced) => {
                    self.commit_into(std::mem::take(&mut prepared), &mut results).await;
                    self.metrics.dispatches.inc();
                    let began = Instant::now();
                    results.push(self.send_unsynced(unsynced).await);
                    self.metrics.dispatch_latency.record(began.elapsed());
                }
            }
        }
        self.commit_into(prepared, &mut results).await;
        results
    }

    /// Commits prepared dispatches, and adds the result of each.
    async fn commit_into(&self, prepared: Vec<PreparedDispatch>, results: &mut Vec<Result<Outcome, StoreError>>) {
        let count = prepared.len();
        match self.commit(prepared).await {
            Ok(committed) => results.extend(self.outcomes(committed)),
            Err(error) => results.extend(std::iter::repeat_n(Err(error), count)),
        }
    }

    /// Prepares a synced dispatch for the store; returns an unsynced one to the caller.
    ///
    /// This, [`Hub::commit`] and [`Hub::outcomes`] are the steps of [`Hub::dispatch_all`], for callers that do other
    /// work between them.
    ///
    /// # Errors
    /// With the dispatch, if it is unsynced.
    #[expect(clippy::result_large_err, reason = "the error is the argument")]
    pub fn prepare(&self, dispatch: Dispatch) -> Result<PreparedDispatch, Dispatch> {
        if !dispatch.sync || self.settings.sync.is_none() {
            return Err(dispatch);
        }
        let Recipients::Users(users) = dispatch.recipients else { return Err(dispatch) };
        let recipients = distinct_recipients(users, &dispatch.excluding);
        let (mut rejected, mut idempotency) = (dispatch.rejected, None);
        if let Some(id) = dispatch.id {
            let online = recipients.iter().map(|user| self.registry.session_count(user) > 0).collect();
            idempotency = Some(Idempotency { id, online, rejected: std::mem::take(&mut rejected) });
        }
        let Dispatch { payload, ttl, collapse, .. } = dispatch;
        let observed = self.middleware.any().then(|| payload.clone());
        let (users, began) = (recipients.clone(), Instant::now());
        let context = OutcomeContext { users, rejected, observed, online: None, original_only: 0, began };
        self.metrics.dispatches.inc();
        let append = Append { ttl, collapse, idempotency, ..Append::new(payload, recipients) };
        Ok(PreparedDispatch { append, context, original_recipients: Vec::new() })
    }

    /// Appends prepared dispatches in order, in one commit; resolves when all of them are durable.
    ///
    /// After its first poll the future only waits.
    ///
    /// # Errors
    /// When none of them was passed to the store. [`Hub::outcomes`] returns the errors of the store.
    pub async fn commit(&self, prepared: Vec<PreparedDispatch>) -> Result<CommittedBatch, StoreError> {
        if prepared.is_empty() {
            return Ok(CommittedBatch::default());
        }
        let mut prepared = prepared;
        if self.cluster.is_some() {
            // An idempotent result must be the same for every retry, so presence is determined before the commit.
            for dispatch in &mut prepared {
                self.split_original_recipients(dispatch).await?;
                if let Some(idempotency) = &mut dispatch.append.idempotency {
                    idempotency.online = self.online_flags(&dispatch.context.users).await;
                    dispatch.context.online = Some(idempotency.online.clone());
                    idempotency.online.extend(std::iter::repeat_n(true, dispatch.context.original_only));
                }
            }
        }
        self.publish_to_original(&prepared).await?;
        let (appends, mut contexts): (Vec<_>, Vec<_>) =
            prepared.into_iter().map(|dispatch| (dispatch.append, dispatch.context)).unzip();
        let unknown = contexts.iter_mut().filter(|context| context.online.is_none());
        let querying =
            join_all(unknown.map(async |context| context.online = Some(self.online_flags(&context.users).await)));
        let appending = StepSpan::commit().run(self.store.append_each(appends));
        let appended = if self.cluster.is_some() {
            // Concurrently, because each is one round trip to Redis.
            tokio::join!(appending, querying).0
        } else {
            let appended = appending.await;
            querying.await;
            appended
        };
        Ok(CommittedBatch { appended, contexts })
    }

    /// Returns the outcomes of committed dispatches, in order, or the error with which the store rejected one.
    pub fn outcomes(&self, committed: CommittedBatch) -> impl Iterator<Item = Result<Outcome, StoreError>> {
        let appended = committed.appended.into_iter().zip(committed.contexts);
        appended.map(|(appended, context)| Ok(self.outcome(appended?, context)))
    }

    fn outcome(&self, appended: AppendResult, context: OutcomeContext) -> Outcome {
        let OutcomeContext { users, rejected, observed, online, original_only, began } = context;
        self.metrics.dispatch_latency.record(began.elapsed());
        let online = online.unwrap_or_default();
        if let (Some(payload), false) = (observed, appended.duplicate) {
            let with_presence = users.iter().zip(&online).zip(&appended.seqs);
            let accepted =
                with_presence.filter(|(_, seq)| seq.is_ok()).map(|((user, online), _)| (user.clone(), *online));
            self.report_sent(&payload, accepted.collect());
        }
        let accepted = appended.seqs.iter().filter(|seq| seq.is_ok()).count() as u64;
        self.metrics.messages_appended.inc_by(accepted);
        self.metrics.messages_rejected.inc_by(appended.seqs.len() as u64 - accepted);
        self.metrics.messages_dropped.inc_by(appended.dropped);
        if let Some(summary) = appended.summary {
            return stored_outcome(summary, appended.duplicate);
        }
        let mut outcome = Outcome {
            recipients: users.len() + rejected.len() + original_only,
            online: original_only,
            rejected,
            ..Outcome::default()
        };
        for ((user, is_online), seq) in users.iter().zip(&online).zip(appended.seqs) {
            outcome.stored += usize::from(seq.is_ok());
            match seq {
                Ok(_) if *is_online => outcome.online += 1,
                Ok(_) => outcome.offline += 1,
                Err(reason) => outcome.rejected.push(Rejected { user: user.as_str().into(), reason }),
            }
        }
        outcome
    }

    /// Sends an unsynced message to online recipients.
    ///
    /// With an idempotency id it is sent at most once, because the store first records the id.
    async fn send_unsynced(&self, dispatch: Dispatch) -> Result<Outcome, StoreError> {
        let Dispatch { payload, sync, recipients, excluding, id, rejected, .. } = dispatch;
        // With sync off a synced message is lost for offline users.
        let is_lost_offline = sync && self.settings.sync.is_none();
        let users = match recipients {
            Recipients::Everyone => None,
            Recipients::Users(users) => Some(distinct_recipients(users, &excluding)),
        };
        if let Some(id) = id {
            let online = match &users {
                Some(users) => self.online_flags(users).await,
                None => {
                    let mut online = vec![true; self.remote_connection_count().await];
                    self.for_each_broadcast_target(&excluding, |_| online.push(true));
                    online
                }
            };
            let idempotency = Some(Idempotency { id, online, rejected });
            let appended =
                self.store.append(Append { idempotency, ..Append::new(payload.clone(), Vec::new()) }).await?;
            if !appended.duplicate {
                let outcome = self.fan_out_unsynced(&payload, users.as_deref(), &excluding).await;
                self.count_lost_offline(is_lost_offline, &outcome);
            }
            return Ok(stored_outcome(appended.summary.unwrap_or_default(), appended.duplicate));
        }
        let mut outcome = self.fan_out_unsynced(&payload, users.as_deref(), &excluding).await;
        self.count_lost_offline(is_lost_offline, &outcome);
        outcome.recipients += rejected.len();
        outcome.rejected = rejected;
        Ok(outcome)
    }

    fn count_lost_offline(&self, is_lost_offline: bool, outcome: &Outcome) {
        if is_lost_offline {
            self.metrics.sync_off_dropped.inc_by(outcome.offline as u64);
        }
    }

    /// Reports a stored message to the middleware. `users`: recipients, and whether each is online at any server.
    fn report_sent(&self, payload: &Payload, users: Vec<(UserId, bool)>) {
        let (mut online_users, mut offline_users) = (Vec::new(), Vec::new());
        for (user, is_online) in users {
            if is_online { online_users.push(user) } else { offline_users.push(user) }
        }
        if !online_users.is_empty() {
            self.middleware
                .call_each(None, |middleware| middleware.on_message_sent(payload, SentTo::Users(&online_users)));
        }
        if !offline_users.is_empty() {
            self.middleware
                .call_each(None, |middleware| middleware.on_undeliverable_message_sent(payload, &offline_users));
        }
    }

    /// Sends an unsynced message at all servers. `users: None`: a broadcast.
    async fn fan_out_unsynced(&self, payload: &Payload, users: Option<&[UserId]>, excluding: &[UserId]) -> Outcome {
        self.broadcast_to_servers(|| Broadcast::Message {
            payload: payload.clone(),
            recipients: users.map_or(Recipients::Everyone, |users| Recipients::Users(users.to_vec())),
            excluding: excluding.to_vec(),
        });
        match users {
            Some(users) => self.send_unsynced_to(payload, users).await,
            None => {
                let sent = self.broadcast_local(payload, excluding) + self.remote_connection_count().await;
                if sent > 0 {
                    self.middleware
                        .call_each(None, |middleware| middleware.on_message_sent(payload, SentTo::Everyone(sent)));
                }
                Outcome { recipients: sent, online: sent, ..Outcome::default() }
            }
        }
    }

    /// Closes the connections of these users at every server (close code 1000).
    pub async fn disconnect(&self, recipients: &Recipients, excluding: &[UserId]) -> Outcome {
        self.disconnect_with(recipients, excluding, None).await
    }

    /// As [`Hub::disconnect`], with a text for the close frame: at most
    /// [`CLOSE_REASON_BYTES_MAX`](super::CLOSE_REASON_BYTES_MAX) bytes. `None`: the default.
    pub async fn disconnect_with(
        &self,
        recipients: &Recipients,
        excluding: &[UserId],
        reason: Option<Arc<str>>,
    ) -> Outcome {
        let online = self.online_flags_of_recipients(recipients, excluding).await;
        self.disconnect_remote(recipients, excluding, reason.clone());
        let (local_recipients, local_online) = self.disconnect_local(recipients, excluding, reason);
        match (recipients, online) {
            (Recipients::Everyone, _) => {
                let closed = local_recipients + self.remote_connection_count().await;
                Outcome { recipients: closed, online: closed, ..Outcome::default() }
            }
            (Recipients::Users(_), online) => {
                let online =
                    online.map_or(local_online, |flags| flags.into_iter().filter(|is_online| *is_online).count());
                let offline = local_recipients - online;
                Outcome { recipients: local_recipients, online, offline, ..Outcome::default() }
            }
        }
    }

    /// Sends a broadcast to every local connection; returns their number. Broadcasts are never stored.
    pub(super) fn broadcast_local(&self, payload: &Payload, excluding: &[UserId]) -> usize {
        let (mut sent, mut dropped) = (0, 0);
        self.for_each_broadcast_target(excluding, |mailbox| {
            sent += 1;
            dropped += mailbox.put(payload);
        });
        self.metrics.unsynced_dropped.inc_by(dropped);
        sent
    }

    /// Visits the mailboxes of local connections that receive broadcasts.
    fn for_each_broadcast_target(&self, excluding: &[UserId], mut visit: impl FnMut(&Mailbox)) {
        self.registry.for_each_connection_except(excluding, |_, mailbox| {
            if mailbox.is_authenticated() || !self.settings.authentication_required {
                visit(mailbox);
            }
        });
    }

    /// Puts an unsynced message into the mailboxes of a user's local connections.
    pub(super) fn put_unsynced(&self, user: &UserId, payload: &Payload) {
        self.metrics.unsynced_dropped.inc_by(self.registry.put(user, payload));
    }

    /// Sends an unsynced message to the online users among `users`.
    ///
    /// Presence is read first: a user counts as online even if the message makes the client disconnect.
    async fn send_unsynced_to(&self, payload: &Payload, users: &[UserId]) -> Outcome {
        let online = self.online_flags(users).await;
        let (observed, mut receivers) = (self.middleware.any(), Vec::new());
        for (user, is_online) in users.iter().zip(&online) {
            self.put_unsynced(user, payload);
            if observed && *is_online {
                receivers.push(user.clone());
            }
        }
        if !receivers.is_empty() {
            self.middleware
                .call_each(None, |middleware| middleware.on_message_sent(payload, SentTo::Users(&receivers)));
        }
        let online = online.into_iter().filter(|is_online| *is_online).count();
        Outcome { recipients: users.len(), online, offline: users.len() - online, ..Outcome::default() }
    }
}

/// A dispatch ready for the store, and the data for its outcome.
#[derive(Debug)]
pub struct PreparedDispatch {
    pub(super) append: Append,
    pub(super) context: OutcomeContext,
    /// Recipients who may be connected to servers of the original, which then send it to them.
    pub(super) original_recipients: Vec<UserId>,
}

/// Data for the outcome of a dispatch that the store does not return.
#[derive(Debug)]
pub(super) struct OutcomeContext {
    pub(super) users: Vec<UserId>,
    rejected: Vec<Rejected>,
    /// The message, if middleware is installed.
    observed: Option<Payload>,
    /// Which users are online at any server; `None` until presence was read.
    online: Option<Vec<bool>>,
    /// Users connected only to servers of the original. Nothing is stored for them here.
    pub(super) original_only: usize,
    /// When the dispatch arrived at the hub.
    began: Instant,
}

/// Dispatches that were passed to the store, and its results.
#[derive(Debug, Default)]
pub struct CommittedBatch {
    appended: Vec<Result<AppendResult, StoreError>>,
    contexts: Vec<OutcomeContext>,
}

/// Converts the result that the store returns for an idempotency id.
fn stored_outcome(summary: DispatchSummary, duplicate: bool) -> Outcome {
    Outcome {
        recipients: summary.recipients as usize,
        online: summary.online as usize,
        offline: summary.offline as usize,
        stored: summary.stored as usize,
        rejected: summary.rejected,
        duplicate,
    }
}

/// Removes duplicates and excluded users; the order is unchanged.
pub(super) fn distinct_recipients(mut users: Vec<UserId>, excluding: &[UserId]) -> Vec<UserId> {
    if users.len() == 1 {
        // The common case, without allocating a set.
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
    fn recipients_with_repeats_and_exclusions_are_unique_and_in_order() {
        let ids = |text: &str| text.split_whitespace().map(|id| UserId::new(id).unwrap()).collect::<Vec<_>>();
        assert_eq!(distinct_recipients(ids("b a b c a"), &ids("c")), ids("b a"));
        assert_eq!(distinct_recipients(ids("a"), &ids("a b")), ids(""));
        assert_eq!(distinct_recipients(ids("a"), &[]), ids("a"));
    }
}
